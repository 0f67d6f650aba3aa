"""SFT_UNet_DS: the latent mapping model steered by the wavelet details of the image, and SKFF.

Source: Wave-GMS (arXiv 2510.03216), wavelet guidance; spatial feature transform (SFT), Wang et al.
(arXiv 1804.02815); selective kernel feature fusion (SKFF), MIRNet (arXiv 2003.06792). Module names
are those of the published checkpoints.

Shapes: latent (B, 4, h, w); details (B, 9, h, w) -> fused (B, 3, h, w), with h = H/8, w = W/8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.haar import haar_pyramid
from models.latent_mapping import LatentMapping, ResidualBlock, SelfAttention

HIDDEN = 128  # channels between the guidance and its scale and shift


def haar_details(image: Tensor) -> Tensor:
    """Level-3 Haar details (B, 9, H/8, W/8), H, V, D times RGB, of `image` (B, 3, H, W) in [0, 1].

    They are those of the image scaled to [-1, 1], in the normalisation of `haar_pyramid`.
    """
    return haar_pyramid(image * 2 - 1)[2][:, 3:]


class SKFF(nn.Module):
    """Selective kernel feature fusion: details (B, 9, h, w) -> guidance (B, 3, h, w).

    The mean of the three directions, weighted for each channel and image by a softmax over them, so
    that it lies within the range of the details.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.PReLU())
        self.expand_conv1 = nn.Conv2d(1, 3, 1, bias=False)
        self.expand_conv2 = nn.Conv2d(1, 3, 1, bias=False)
        self.expand_conv3 = nn.Conv2d(1, 3, 1, bias=False)

    def forward(self, details: Tensor) -> Tensor:
        """`details` (B, 9, h, w) are horizontal, vertical, diagonal, each with its RGB."""
        streams = torch.stack(details.chunk(3, dim=1))
        pooled = self.reduce_conv(streams.sum(0).mean(dim=(2, 3), keepdim=True))
        scores = [
            expand(pooled) for expand in (self.expand_conv1, self.expand_conv2, self.expand_conv3)
        ]
        return (streams * torch.stack(scores).softmax(0)).sum(0)


class SFT(nn.Module):
    """Spatial feature transform: features (B, C, h, w) scaled and shifted by guidance (B, 3, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(3, HIDDEN, 3, padding=1), nn.LeakyReLU(0.2))
        self.gamma = nn.Conv2d(HIDDEN, channels, 3, padding=1)
        self.beta = nn.Conv2d(HIDDEN, channels, 3, padding=1)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        shared = self.shared(guidance)
        return x * self.gamma(shared) + self.beta(shared)


class GuidedStage(nn.Module):
    """Residual block, SFT, then self-attention; (B, in, h, w), (B, 3, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.resblock = ResidualBlock(in_channels, out_channels)
        self.sft = SFT(out_channels)
        self.attention = SelfAttention(out_channels)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return self.attention(self.sft(self.resblock(x), guidance))


class SFT_UNet_DS(LatentMapping):
    """The latent mapping model whose stages take fused details (B, 3, h, w) as their guidance."""

    stage = GuidedStage
    stem = "input_proj"
    head_bias = True
