"""The map maker's blocks against MONAI's."""

import pytest
import torch

from xaiclip.localizer import unet

NORM = ("group", {"num_groups": unet.GROUPS})


def monai_unet():
    from monai.networks.nets.unet import UNet

    return UNet(2, 12, 8, channels=(8, 12, 16), strides=(2, 2), num_res_units=1, norm=NORM)


def monai_convolution():
    from monai.networks.blocks.convolutions import Convolution

    return Convolution(2, 12, 8, norm=NORM, act="relu")


def monai_upsample():
    from monai.networks.blocks.upsample import SubpixelUpsample

    return SubpixelUpsample(2, 12, 3, 2, apply_pad_pool=False)


@pytest.mark.parametrize(
    ("own", "reference"),
    [
        (lambda: unet.UNet(12, 8, (8, 12, 16)), monai_unet),
        (lambda: unet.Convolution(12, 8, act=torch.nn.ReLU), monai_convolution),
        (lambda: unet.SubpixelUpsample(12, 3, 2), monai_upsample),
    ],
    ids=["UNet", "Convolution", "SubpixelUpsample"],
)
def test_equal_to_monai(own, reference):
    """The same seed gives the same names, the same values, and the same answer."""
    models = []
    for build in (own, reference):
        torch.manual_seed(3)
        models.append(build())
    ours, theirs = (model.state_dict() for model in models)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for model in models:  # norms and slopes that are not one, zero or a quarter
        for number, parameter in enumerate(model.parameters()):
            parameter.data += 0.01 * number
    images = torch.rand(2, 12, 12, 20)
    answers = [model(images) for model in models]
    assert answers[0].std() > 0.1
    assert torch.equal(*answers)
