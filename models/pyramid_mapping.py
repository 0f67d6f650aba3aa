"""A latent mapping in the form of a small pyramid, in place of ResAttnUNet_DS.

Source: the outline that GET (arXiv 2608.22619) gives of its mapper: a pyramid in latent space with
depthwise convolutions, dilated context and one attention at the bottom. Sizes, blocks and heads are
this project's own; it does not reproduce that network. The block is that of ConvNeXt
(arXiv 2201.03545), with group normalisation.

Shapes: latent (B, 4, h, w) -> each head (B, 4, h, w), with h = H/8, w = W/8; the stages work at
(h, w), (h/2, w/2) and (h/4, w/4), rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.latent_mapping import SelfAttention, group_norm

EXPANSION = 4  # of the channels inside a block
DILATIONS = (1, 2, 3)  # at 224 px the bottom has 7 x 7 positions: the widest spans them all


class Block(nn.Module):
    """Depthwise 5x5, then two pointwise convolutions through a wider layer, residual; (B, C, h, w) kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            group_norm(channels),
            nn.Conv2d(channels, EXPANSION * channels, 1),
            nn.SiLU(),
            nn.Conv2d(EXPANSION * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class DilatedContext(nn.Module):
    """Depthwise 3x3 at several dilations side by side, fused by a pointwise one, residual; (B, C, h, w) kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, groups=channels)
            for rate in DILATIONS
        )
        self.fuse = nn.Conv2d(len(DILATIONS) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        seen = torch.cat([branch(normed) for branch in self.branches], dim=1)
        return x + self.fuse(F.silu(seen))


class Merge(nn.Module):
    """A coarser map, doubled and cut to the size of the skip, joined with it; -> (B, out, h, w)."""

    def __init__(self, coarse_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(coarse_channels + skip_channels, skip_channels, 1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        h, w = skip.shape[-2:]
        doubled = F.interpolate(coarse, scale_factor=2, mode="nearest")[..., :h, :w]
        return self.conv(torch.cat([doubled, skip], dim=1))


class SubPixelHead(nn.Module):
    """GroupNorm-SiLU-conv to a latent `scale` times as large; (B, C, h / scale, w / scale) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        h, w = size
        return self.layers(x)[..., :h, :w]


class PyramidMapping(nn.Module):
    """Image latent (B, 4, h, w) -> mask latents (B, 4, h, w) of three heads; h and w are any.

    Args:
        ch, ch_mult: `ch` times each of the four `ch_mult` is the width at full, half and quarter
            resolution and at the bottom, each a multiple of 16.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        ch: int = 32,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
    ) -> None:
        super().__init__()
        full, half, quarter, bottom = (ch * multiplier for multiplier in ch_mult)
        self.stem = nn.Conv2d(in_channels, full, 3, padding=1)
        self.down_full = two_blocks(full)
        self.to_half = nn.Conv2d(full, half, 3, stride=2, padding=1)
        self.down_half = two_blocks(half)
        self.to_quarter = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.down_quarter = two_blocks(quarter)
        self.bottom = nn.Sequential(
            nn.Conv2d(quarter, bottom, 1), DilatedContext(bottom), SelfAttention(bottom)
        )
        self.merge_quarter = nn.Conv2d(bottom + quarter, quarter, 1)
        self.up_quarter = two_blocks(quarter)
        self.merge_half = Merge(quarter, half)
        self.up_half = two_blocks(half)
        self.merge_full = Merge(half, full)
        self.up_full = two_blocks(full)
        self.head_quarter = SubPixelHead(quarter, out_channels, 4)
        self.head_half = SubPixelHead(half, out_channels, 2)
        self.head_full = SubPixelHead(full, out_channels, 1)
        initialise(self)

    def forward(self, latent: Tensor) -> dict[str, Tensor]:
        """Heads `level2` (from a quarter of the resolution), `level1` (half) and `out`."""
        h, w = latent.shape[-2:]
        at_full = self.down_full(self.stem(latent))
        at_half = self.down_half(self.to_half(at_full))
        at_quarter = self.down_quarter(self.to_quarter(at_half))
        below = self.bottom(at_quarter)
        up_quarter = self.up_quarter(self.merge_quarter(torch.cat([below, at_quarter], dim=1)))
        up_half = self.up_half(self.merge_half(up_quarter, at_half))
        up_full = self.up_full(self.merge_full(up_half, at_full))
        return {
            "level2": self.head_quarter(up_quarter, (h, w)),
            "level1": self.head_half(up_half, (h, w)),
            "out": self.head_full(up_full, (h, w)),
        }


def two_blocks(channels: int) -> nn.Sequential:
    """What every stage of the pyramid computes."""
    return nn.Sequential(Block(channels), Block(channels))


def initialise(module: nn.Module) -> None:
    """Kaiming-normal (fan-in, which suits depthwise ones) weights and zero biases for every convolution."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
            nn.init.zeros_(layer.bias)
