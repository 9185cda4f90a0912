"""XAI-CLIP: ROI-guided perturbation explanations of medical image segmentation.

    import xaiclip

    maps = xaiclip.explain("compact", image, boxes={"liver": (60, 80, 190, 200)}, method="rise")
    maps["liver"]  # float32, in the slice's own pixels
    maps.picture().save("liver.png")

Importing it loads no other library; what is asked of it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xaiclip.api import explain as explain
    from xaiclip.api import find_slice as find_slice
    from xaiclip.api import load_model as load_model
    from xaiclip.api import locate as locate
    from xaiclip.explanation import Explanation as Explanation
    from xaiclip.images import load_image as load_image

__version__ = "0.1.0"

__all__ = ["Explanation", "explain", "find_slice", "load_image", "load_model", "locate"]

#: Where each name is. By name, so that a stage's code does not hang on what calls the stages.
_PLACES = {
    "Explanation": "xaiclip.explanation",
    "find_slice": "xaiclip.api",
    "load_image": "xaiclip.images",
    "load_model": "xaiclip.api",
    "locate": "xaiclip.api",
}


def __getattr__(name: str) -> Any:
    if name == "explain":  # a package that can be called
        return import_module("xaiclip.explain")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'xaiclip' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
