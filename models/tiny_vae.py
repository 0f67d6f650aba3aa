"""The frozen Tiny-VAE: TAESD or a network of its layout, through diffusers' `AutoencoderTiny`.

Source: Wave-GMS (arXiv 2510.03216), section 2; TAESD (github.com/madebyollin/taesd).

Shapes: image (B, 3, H, W) <-> latent (B, 4, H/8, W/8).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vae import FrozenVAE, grey_convolution, load_autoencoder


def load_tiny_vae(weights: str | Path) -> Any:
    """The `AutoencoderTiny` of a local folder or hub id, float32, frozen, in eval mode.

    Raises:
        UserError: see `models.vae.load_autoencoder`.
    """
    return load_autoencoder("AutoencoderTiny", weights).requires_grad_(False).eval()


class UpsamplingConvolution(nn.Module):
    """Nearest upsampling and the frozen 3x3 convolution after it, as one transposed convolution.

    (B, C, h, w) -> (B, C', fh, fw). Each output pixel sees 2 x 2 input pixels in place of 3 x 3 copies
    of them: for f = 2 four ninths of the arithmetic, and the upsampled features are never written.
    """

    kernel: Tensor
    bias: Tensor | None

    def __init__(self, upsample: nn.Upsample, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert upsample.mode == "nearest" and convolution.padding == (1, 1)
        self.factor = int(upsample.scale_factor)
        shifts = range(self.factor)
        last = self.factor - 1
        flipped = convolution.weight.detach().flip(2, 3).transpose(0, 1)
        shifted = [F.pad(flipped, (x, last - x, y, last - y)) for y in shifts for x in shifts]
        bias = None if convolution.bias is None else convolution.bias.detach()
        self.register_buffer("kernel", torch.stack(shifted).sum(0), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.kernel, self.bias, stride=self.factor, padding=1)


class TinyVAE(FrozenVAE):
    """A frozen `AutoencoderTiny` as the VAE of a system.

    The layers are run without diffusers' shifts between [-1, 1] and TAESD's own [0, 1]; upsampling
    is merged with the convolution after it, and the mean over RGB with the last convolution.
    """

    grey_weight: Tensor
    grey_bias: Tensor

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.decoder = autoencoder.decoder
        layers = list(autoencoder.decoder.layers)
        self.upsampling = nn.ModuleList(
            UpsamplingConvolution(layer, after)
            for layer, after in pairwise(layers)
            if isinstance(layer, nn.Upsample)
        )
        weight, bias = grey_convolution(layers[-1])
        self.register_buffer("grey_weight", weight, persistent=False)
        self.register_buffer("grey_bias", bias, persistent=False)
        self.freeze()

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, None]:
        return self.encoder.layers(image), None

    def decode_to_grey(self, latent: Tensor) -> Tensor:
        features = torch.tanh(latent / 3) * 3
        layers, upsampling = iter(self.decoder.layers[:-1]), iter(self.upsampling)
        for layer in layers:
            if isinstance(layer, nn.Upsample):
                next(layers)  # the convolution that is merged with it
                layer = next(upsampling)
            features = layer(features)
        return F.conv2d(features, self.grey_weight, self.grey_bias, padding=1)

    def parts(self) -> dict[str, nn.Module]:
        return {"Tiny-VAE encoder": self.encoder, "Tiny-VAE decoder": self.decoder}
