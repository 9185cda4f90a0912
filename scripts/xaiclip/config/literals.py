"""What a module states, read by parsing it: loading it would load what it imports, too."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any


def arguments(call: ast.Call, names: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of a call, by name; ``names`` are those that need not be written.

    Raises:
        ValueError: one is no literal, but computed.
    """
    given = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
    return given | {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
