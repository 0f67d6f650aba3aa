"""Multi-resolution Haar encoder: an image to the mean and deviation of its latent.

Source: LiteVAE (arXiv 2405.14477), section 3 and appendix; Wave-GMS (arXiv 2510.03216), section 2.
One feature extractor per Haar level, not shared, then one aggregator at the coarsest resolution; all
four are UNets without resampling. Module names are those of the published checkpoints.

Shapes: image (B, 3, H, W) in [0, 1]; level n (B, 12, H / 2^n, W / 2^n); latent (B, 4, H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.haar import haar_pyramid
from models.vae import LATENT_CHANNELS


class ResidualBlock(nn.Module):
    """GroupNorm(8)-SiLU-conv twice, plus a skip; (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_out = nn.GroupNorm(8, out_channels)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip_connection: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        hidden = self.conv_out(F.silu(self.norm_out(hidden)))
        return self.skip_connection(x) + hidden


class MiddleBlock(nn.Module):
    """Two residual blocks; (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res0 = ResidualBlock(channels, channels)
        self.res1 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.res1(self.res0(x))


class FlatUNet(nn.Module):
    """UNet at one resolution; (B, in, H, W) -> (B, out, H, W).

    Two residual blocks per multiplier on the way in, two on the way out, each of these with the skip
    of its mirror image concatenated.
    """

    def __init__(
        self, in_channels: int, out_channels: int, channels: int, multipliers: Sequence[int]
    ) -> None:
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers for _ in range(2)]
        self.in_layer = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.encoder_blocks = nn.ModuleList(
            ResidualBlock(before, width)
            for before, width in zip([channels, *widths], widths, strict=False)
        )
        self.mid_block = MiddleBlock(widths[-1])
        mirrored = widths[::-1]
        self.decoder_blocks = nn.ModuleList(
            ResidualBlock(before + width, width)
            for before, width in zip([mirrored[0], *mirrored], mirrored, strict=False)
        )
        self.out_layer = nn.Conv2d(channels * multipliers[0], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_layer(x)
        skips = []
        for block in self.encoder_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.decoder_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1))
        return self.out_layer(x)


@dataclass(frozen=True)
class EncoderSize:
    """Base channels and channel multipliers of the feature extractors and of the aggregator."""

    extractor: tuple[int, tuple[int, ...]]
    aggregator: tuple[int, tuple[int, ...]]


ENCODER_SIZES = {
    "litevae": EncoderSize((16, (1, 2, 2)), (16, (1, 2, 2))),
    "litevae-b": EncoderSize((32, (1, 2, 3)), (32, (1, 2, 3))),
    "litevae-m": EncoderSize((64, (1, 2, 4)), (32, (1, 2, 3))),
    "litevae-l": EncoderSize((64, (1, 2, 4)), (64, (1, 2, 4))),
}


class MultiResolutionEncoder(nn.Module):
    """Three Haar levels to the moments (B, 8, H/8, W/8): 4 channels of mean, 4 of log-variance."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.feature_extractor_L1 = FlatUNet(12, 12, *size.extractor)
        self.feature_extractor_L2 = FlatUNet(12, 12, *size.extractor)
        self.feature_extractor_L3 = FlatUNet(12, 12, *size.extractor)
        self.feature_aggregator = FlatUNet(36, 2 * LATENT_CHANNELS, *size.aggregator)

    def forward(self, level1: Tensor, level2: Tensor, level3: Tensor) -> Tensor:
        features = [
            F.avg_pool2d(self.feature_extractor_L1(level1), 4),
            F.avg_pool2d(self.feature_extractor_L2(level2), 2),
            self.feature_extractor_L3(level3),
        ]
        return self.feature_aggregator(torch.cat(features, dim=1))


class HaarEncoder(nn.Module):
    """Multi-resolution encoder: image -> mean and standard deviation of its latent.

    (B, 3, H, W) in [0, 1] -> (B, 4, H/8, W/8) twice, float32; the mean is unbounded, the deviation
    positive. H and W are multiples of 8.

    Args:
        name: one of ENCODER_SIZES: `litevae`, `litevae-b`, `litevae-m`, `litevae-l`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = MultiResolutionEncoder(ENCODER_SIZES[name])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, the log-variance clamped to [-30, 20]."""
        moments = self.encoder(*haar_pyramid(image)).float()
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, (0.5 * log_variance.clamp(-30, 20)).exp()
