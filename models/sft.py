"""SFT_UNet_DS: the latent mapping model steered by the wavelet details of the image, and SKFF.

Source: Wave-GMS (arXiv 2510.03216), wavelet guidance; spatial feature transform, Wang et al. (arXiv
1804.02815); selective kernel feature fusion, MIRNet (arXiv 2003.06792). Module names are those of
the published checkpoints.

Shapes: latent (B, 4, h, w); details (B, 9, h, w) -> fused (B, 3, h, w), with h = H/8, w = W/8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.haar import haar_pyramid
from models.latent_mapping import ResidualBlock, SelfAttention, head, initialise


def haar_details(image: Tensor) -> Tensor:
    """Level-3 Haar details (B, 9, H/8, W/8), H, V, D times RGB, of `image` (B, 3, H, W) in [0, 1].

    They are those of the image scaled to [-1, 1], in the normalisation of `haar_pyramid`.
    """
    return haar_pyramid(image * 2 - 1)[2][:, 3:]


class SKFF(nn.Module):
    """Fuses three streams of three channels by a softmax over the streams, a channel each."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.reduce_conv = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.PReLU())
        self.expand_conv1 = nn.Conv2d(1, channels, 1, bias=False)
        self.expand_conv2 = nn.Conv2d(1, channels, 1, bias=False)
        self.expand_conv3 = nn.Conv2d(1, channels, 1, bias=False)

    def forward(self, details: Tensor) -> Tensor:
        """(B, 9, h, w): horizontal, vertical, diagonal -> (B, 3, h, w)."""
        streams = torch.stack(details.chunk(3, dim=1))
        pooled = self.reduce_conv(streams.sum(0).mean(dim=(2, 3), keepdim=True))
        scores = [
            expand(pooled) for expand in (self.expand_conv1, self.expand_conv2, self.expand_conv3)
        ]
        return (streams * torch.stack(scores).softmax(0)).sum(0)


class SFT(nn.Module):
    """Scales and shifts features by the guidance; (B, C, h, w), (B, 3, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, guidance_channels: int = 3, hidden: int = 128) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(guidance_channels, hidden, 3, padding=1), nn.LeakyReLU(0.2)
        )
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        shared = self.shared(guidance)
        return x * self.gamma(shared) + self.beta(shared)


class GuidedStage(nn.Module):
    """Residual block, SFT, then self-attention."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.resblock = ResidualBlock(in_channels, out_channels)
        self.sft = SFT(out_channels)
        self.attention = SelfAttention(out_channels)

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        return self.attention(self.sft(self.resblock(x), guidance))


class SFT_UNet_DS(nn.Module):
    """The topology of `ResAttnUNet_DS`; `ch` times each of the four `ch_mult` is a stage's width."""

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        ch: int = 32,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
    ) -> None:
        super().__init__()
        width1, width2, width3, width4 = (ch * multiplier for multiplier in ch_mult)
        self.input_proj = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.conv1_0 = GuidedStage(ch, width1)
        self.conv2_0 = GuidedStage(width1, width2)
        self.conv3_0 = GuidedStage(width2, width3)
        self.conv4_0 = GuidedStage(width3, width4)
        self.conv3_1 = GuidedStage(width3 + width4, width3)
        self.conv2_2 = GuidedStage(width2 + width3, width2)
        self.conv1_3 = GuidedStage(width1 + width2, width1)
        self.conv0_4 = GuidedStage(ch + width1, ch)
        self.convds3 = head(width3, out_channels, bias=True)
        self.convds2 = head(width2, out_channels, bias=True)
        self.convds1 = head(width1, out_channels, bias=True)
        self.convds0 = head(ch, out_channels, bias=True)
        initialise(self)

    def forward(self, latent: Tensor, guidance: Tensor) -> dict[str, Tensor]:
        """Heads `level3`, `level2`, `level1` and `out`, each of the shape of `latent`."""
        x0 = self.input_proj(latent)
        x1 = self.conv1_0(x0, guidance)
        x2 = self.conv2_0(x1, guidance)
        x3 = self.conv3_0(x2, guidance)
        x4 = self.conv4_0(x3, guidance)
        up3 = self.conv3_1(torch.cat([x3, x4], dim=1), guidance)
        up2 = self.conv2_2(torch.cat([x2, up3], dim=1), guidance)
        up1 = self.conv1_3(torch.cat([x1, up2], dim=1), guidance)
        up0 = self.conv0_4(torch.cat([x0, up1], dim=1), guidance)
        return {
            "level3": self.convds3(up3),
            "level2": self.convds2(up2),
            "level1": self.convds1(up1),
            "out": self.convds0(up0),
        }
