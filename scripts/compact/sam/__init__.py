"""The compact SAM: the same classes as MedSAM's, at 256 pixels, trained on the phantom.

It exists so that the demo and the tests explain a real promptable segmenter without a download.
It learns to fill boxes: five organs above all, but also the other structures of FLARE22 and
random blobs, so that the box rather than the organ's name says what is meant.
"""

from compact.sam.training import SamSettings, train_sam

__all__ = ["SamSettings", "train_sam"]
