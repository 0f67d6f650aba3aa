"""The frozen Stable Diffusion VAE of the GMS baseline, through diffusers' `AutoencoderKL`.

Source: GMS (arXiv 2403.18198), section 2.1.

Shapes: image (B, 3, H, W) <-> latent (B, 4, H/8, W/8), scaled by 0.18215.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.vae import FrozenVAE, grey_convolution, load_autoencoder

SCALE_FACTOR = 0.18215


def load_sd_vae(weights: str | Path) -> Any:
    """The `AutoencoderKL` of a local folder or hub id, float32, frozen, in eval mode.

    Raises:
        UserError: see `models.vae.load_autoencoder`.
    """
    return load_autoencoder("AutoencoderKL", weights).requires_grad_(False).eval()


class SDVAE(FrozenVAE):
    """A frozen `AutoencoderKL` as the VAE of a system."""

    # GMS noises the image latent by its own posterior with this probability in training.
    noise_probability = 0.5
    grey_weight: Tensor
    grey_bias: Tensor

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.encoder = nn.Sequential(autoencoder.encoder, autoencoder.quant_conv or nn.Identity())
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder
        weight, bias = grey_convolution(autoencoder.decoder.conv_out)
        self.register_buffer("grey_weight", weight, persistent=False)
        self.register_buffer("grey_bias", bias, persistent=False)
        self.freeze()

    @torch.no_grad()
    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(image * 2 - 1).float().chunk(2, dim=1)
        deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
        return mean * SCALE_FACTOR, deviation * SCALE_FACTOR

    def decode_to_grey(self, latent: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # an export cannot exchange weights
            image = self.decoder(self.post_quant_conv(latent / SCALE_FACTOR))
            return (image.mean(1, keepdim=True) + 1) / 2
        grey = torch.func.functional_call(
            self.decoder,
            {"conv_out.weight": self.grey_weight, "conv_out.bias": self.grey_bias},
            (self.post_quant_conv(latent / SCALE_FACTOR),),
        )
        return (grey + 1) / 2

    def parts(self) -> dict[str, nn.Module]:
        return {
            "SD-VAE encoder": self.encoder,
            "SD-VAE decoder": nn.ModuleList([self.post_quant_conv, self.decoder]),
        }
