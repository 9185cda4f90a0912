"""The shipped localizer: what it is taught, its training, and its checks.

It is trained on slices that vary far more than patients do (domain randomisation: Tobin et al.,
2017; Billot et al., SynthSeg, 2023), so that scans that it never saw are only one more variation.
"""

from compact.localizer.training import LocalizerTraining, train_localizer

__all__ = ["LocalizerTraining", "train_localizer"]
