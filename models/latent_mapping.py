"""Latent mapping: the latent of an image to the latent of its mask, ResAttnUNet_DS.

Source: GMS (arXiv 2403.18198), section 2.2. A UNet of constant resolution; each stage is a residual
block and self-attention over all positions; four heads for deep supervision. Module names are those
of the published checkpoints.

Shapes: latent (B, 4, h, w) -> each head (B, 4, h, w), with h = H/8, w = W/8 and N = h * w.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 16


def group_norm(channels: int) -> nn.GroupNorm:
    """Over 16 groups, as everywhere in the mapping."""
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """GroupNorm-PReLU-conv twice, plus a skip; (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            group_norm(in_channels),
            nn.PReLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
        )
        self.conv2 = nn.Sequential(
            group_norm(out_channels),
            nn.PReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.skip_connection(x) + self.conv2(self.conv1(x))


class SelfAttention(nn.Module):
    """Single-head attention over all positions, residual; (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, h, w = x.shape
        normed = self.norm(x)
        # (B, 1, N, C), the last axis contiguous: the fused attention kernels ask for that.
        q, k, v = (
            project(normed).flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
            for project in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(attended.transpose(2, 3).reshape(B, C, h, w))


class Stage(nn.Module):
    """Residual block, then self-attention; (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.resblock = ResidualBlock(in_channels, out_channels)
        self.attention = SelfAttention(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.resblock(x))


def head(in_channels: int, out_channels: int, bias: bool) -> nn.Sequential:
    """GroupNorm-SiLU-conv from a stage to a latent; (B, in, h, w) -> (B, out, h, w)."""
    return nn.Sequential(
        group_norm(in_channels),
        nn.SiLU(),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
    )


def initialise(module: nn.Module) -> None:
    """Kaiming-normal (fan-out) weights and zero biases for every convolution in `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class LatentMapping(nn.Module):
    """Latent mapping model: image latent (B, 4, h, w) -> mask latents (B, 4, h, w) of four heads.

    What both mappings share: the topology. Latents are unbounded; h and w are any.

    Args:
        ch, ch_mult: `ch` times each of the four `ch_mult` is the width of a stage, a multiple of 16.

    Attributes:
        stage: what a stage computes, built with its channels in and out.
        stem: name of the first convolution in the published checkpoints.
        head_bias: whether the convolutions of the heads have biases.
    """

    stage: type[nn.Module]
    stem: str
    head_bias: bool

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        ch: int = 32,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
    ) -> None:
        super().__init__()
        width1, width2, width3, width4 = (ch * multiplier for multiplier in ch_mult)
        self.add_module(self.stem, nn.Conv2d(in_channels, ch, 3, padding=1))
        self.conv1_0 = self.stage(ch, width1)
        self.conv2_0 = self.stage(width1, width2)
        self.conv3_0 = self.stage(width2, width3)
        self.conv4_0 = self.stage(width3, width4)
        self.conv3_1 = self.stage(width3 + width4, width3)
        self.conv2_2 = self.stage(width2 + width3, width2)
        self.conv1_3 = self.stage(width1 + width2, width1)
        self.conv0_4 = self.stage(ch + width1, ch)
        self.convds3 = head(width3, out_channels, self.head_bias)
        self.convds2 = head(width2, out_channels, self.head_bias)
        self.convds1 = head(width1, out_channels, self.head_bias)
        self.convds0 = head(ch, out_channels, self.head_bias)
        initialise(self)

    def forward(self, latent: Tensor, *guidance: Tensor) -> dict[str, Tensor]:
        """Heads `level3`, `level2`, `level1` and `out`, each of the shape of `latent`.

        `guidance` goes to every stage: none, or one map (B, 3, h, w), as the stages take it.
        """
        x0 = getattr(self, self.stem)(latent)
        x1 = self.conv1_0(x0, *guidance)
        x2 = self.conv2_0(x1, *guidance)
        x3 = self.conv3_0(x2, *guidance)
        x4 = self.conv4_0(x3, *guidance)
        up3 = self.conv3_1(torch.cat([x3, x4], dim=1), *guidance)
        up2 = self.conv2_2(torch.cat([x2, up3], dim=1), *guidance)
        up1 = self.conv1_3(torch.cat([x1, up2], dim=1), *guidance)
        up0 = self.conv0_4(torch.cat([x0, up1], dim=1), *guidance)
        return {
            "level3": self.convds3(up3),
            "level2": self.convds2(up2),
            "level1": self.convds1(up1),
            "out": self.convds0(up0),
        }


class ResAttnUNet_DS(LatentMapping):
    """The latent mapping model of GMS and Wave-GMS; it takes no guidance."""

    stage = Stage
    stem = "input_blocks"
    head_bias = False
