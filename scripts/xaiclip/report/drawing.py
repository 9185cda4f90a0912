"""The one function that draws every figure: a module registers how its data is drawn."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@singledispatch
def draw(data: Any) -> Figure:
    """A figure of its data.

    Raises:
        TypeError: no figure shows such data.
    """
    raise TypeError(f"no figure shows a {type(data).__name__}.")
