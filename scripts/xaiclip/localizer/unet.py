"""The blocks of the map maker: a residual U-Net and a subpixel upsampling.

They equal MONAI's ``UNet`` (2D, ``num_res_units=1``, group norm), ``Convolution`` and
``SubpixelUpsample``, weights' names and first values too: a test compares them. Importing MONAI
takes longer than localizing a scan.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Groups of the norm.
GROUPS = 4


class Convolution(nn.Sequential):
    """3×3 convolution, group norm, activation (MONAI's NDA order, without dropout)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        transposed: bool = False,
        plain: bool = False,
        act: type[nn.Module] = nn.PReLU,
    ) -> None:
        """``transposed`` enlarges by ``stride``; ``plain`` has neither norm nor activation."""
        conv: nn.Module
        if transposed:
            conv = nn.ConvTranspose2d(
                in_channels, out_channels, 3, stride, padding=1, output_padding=stride - 1
            )
        else:
            conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
        if not plain:
            norm = nn.GroupNorm(GROUPS, out_channels)
            parts["adn"] = nn.Sequential(OrderedDict(N=norm, A=act()))
        super().__init__(parts)


class ResidualUnit(nn.Module):
    """A convolution, and what leads around it."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, plain: bool = False
    ) -> None:
        super().__init__()
        unit = Convolution(in_channels, out_channels, stride=stride, plain=plain)
        self.conv = nn.Sequential(OrderedDict(unit0=unit))
        self.residual: nn.Module = nn.Identity()
        if stride != 1:
            self.residual = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)
        elif in_channels != out_channels:
            self.residual = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, h/stride, w/stride)."""
        around = self.residual(x)
        found: Tensor = self.conv(x)
        return found + around


class Skip(nn.Module):
    """A block's input and its output, one after the other."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C + the block's channels, h, w)."""
        return torch.cat([x, self.submodule(x)], dim=1)


class UNet(nn.Module):
    """A residual U-Net that halves the grid at each level but the last (Kerfoot et al., 2019)."""

    def __init__(self, in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
        """``channels``: of each level, from the top, at least two."""
        super().__init__()
        self.model = self._level(in_channels, out_channels, channels, top=True)

    def _level(
        self, in_channels: int, out_channels: int, channels: Sequence[int], top: bool = False
    ) -> nn.Sequential:
        here, below, *deeper = channels
        if deeper:
            inside: nn.Module = self._level(here, here, channels[1:])
            wide = 2 * here
        else:
            inside = ResidualUnit(here, below)
            wide = here + below
        down = ResidualUnit(in_channels, here, stride=2)
        up = nn.Sequential(
            Convolution(wide, out_channels, stride=2, transposed=True),
            ResidualUnit(out_channels, out_channels, plain=top),
        )
        return nn.Sequential(down, Skip(inside), up)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, h, w)."""
        found: Tensor = self.model(x)
        return found


class SubpixelUpsample(nn.Module):
    """A convolution whose channels become pixels of a finer grid (Shi et al., 2016).

    All pixels of a coarse one start equal (ICNR, Aitken et al., 2017): no chequerboard.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.conv_block = nn.Conv2d(in_channels, out_channels * factor**2, 3, padding=1)
        kernel = nn.init.kaiming_normal_(torch.zeros(out_channels, in_channels, 3, 3))
        # as MONAI orders them: what is drawn for a channel pair fills its factor² kernels
        kernel = kernel.transpose(0, 1).reshape(out_channels, in_channels, -1)
        kernel = kernel.repeat(1, 1, factor**2)
        kernel = kernel.reshape(in_channels, out_channels * factor**2, 3, 3).transpose(0, 1)
        self.conv_block.weight.data.copy_(kernel)
        self.shuffle = nn.PixelShuffle(factor)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) → (B, out_channels, factor·h, factor·w)."""
        found: Tensor = self.shuffle(self.conv_block(x))
        return found
