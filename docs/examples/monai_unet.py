"""MONAI networks with fixed classes: one trained on slices, one on volumes."""

from monai.networks.nets.unet import UNet

from xaiclip.models.segmenters.fixed import FixedClassSegmenter
from xaiclip.models.segmenters.loading import load_weights

ORGANS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4, "pancreas": 5}


def slices(checkpoint, widths=(16, 32, 64)):
    """A plain 2D network; the config's `adapter` says which channel is which organ."""
    network = UNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=6,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
    )
    return load_weights(network, checkpoint)


def volumes(checkpoint, device, precision, widths=(16, 32, 64), depth=8):
    """A 3D network, fed a stack of equal slices; everything is said here."""
    network = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=6,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
    )
    return FixedClassSegmenter(
        load_weights(network, checkpoint),
        ORGANS,
        size=128,
        depth=depth,
        orientation="ras",
        name="MONAI 3D U-Net",
        device=device,
        precision=precision,
    )
