"""A map maker that sees the slice itself beside the tokens: borders finer than a patch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xaiclip.localizer.unet import Convolution, ResidualUnit, SubpixelUpsample, UNet


class ImageMapMaker(nn.Module):
    """A U-Net on the slice, into whose deepest levels the tokens and their cosine maps enter.

    Its first level works at half the slice's pixels, four of which are one place's channels, so
    none is lost. At an eighth, the tokens' channels join, and a U-Net of three more levels looks
    at both. Skip connections bring the detail back (Ronneberger et al., 2015).
    """

    def __init__(self, in_channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 2 * width, 1)
        channels = (width * 3 // 8, width * 3 // 4, width * 3 // 2)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.downs, self.ups, self.mixes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        wide = 4
        for level, narrow in enumerate(channels):
            first = ResidualUnit(wide, narrow, stride=2 if level else 1)
            self.downs.append(nn.Sequential(first, ResidualUnit(narrow, narrow)))
            wide = narrow
        inner = (width * 7 // 4, width * 5 // 2, width * 7 // 2)
        self.unet = UNet(2 * width + wide, wide, inner)
        for narrow in channels[-2::-1]:
            self.ups.append(nn.ConvTranspose2d(wide, narrow, 2, stride=2))
            self.mixes.append(Convolution(2 * narrow, narrow, act=nn.ReLU))
            wide = narrow
        self.head = SubpixelUpsample(wide, classes, 2)

    def forward(self, x: Tensor, images: Tensor) -> Tensor:
        """What the backbone says, (B, in_channels, g, g), and uint8 (B, S, S) slices → logits
        (B, classes, S, S). S is a multiple of 32."""
        seen = [self.unshuffle(images[:, None].float() / 127.5 - 1)]
        for down in self.downs:
            seen.append(down(seen[-1]))
        said = F.interpolate(self.mix(x), seen[-1].shape[2:], mode="bilinear")
        found = self.unet(torch.cat([said, seen.pop()], dim=1))
        for up, mix in zip(self.ups, self.mixes, strict=True):
            found = mix(torch.cat([up(found), seen.pop()], dim=1))
        logits: Tensor = self.head(found)
        return logits
