"""The compact CLIP: a small open_clip model of the abdomen, trained on phantom slices.

It plays the part of a published CLIP in the demo: a frozen model that knows images and words.
Its training has two contrastive terms, both between images and text:

* whole crops against captions that name what a crop shows and where (CLIP's own loss), and
* patches against the name of the organ that fills them (as in RegionCLIP), which teaches the
  single tokens, on which a localizer is built, and not only their mean.

The captions come from the phantoms' labels; positions are those of the image as it is displayed.
"""

from compact.clip.training import ClipSettings, train_clip

__all__ = ["ClipSettings", "train_clip"]
