"""Small, randomly initialised autoencoders, weights from a formula, and parity fixtures for the tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def save_tiny_vae(folder: Path, **changes: object) -> Path:
    """An `AutoencoderTiny` of TAESD's layout, 8 channels wide, saved in `folder`.

    Its images spread about the middle of [0, 1], so that the clamp leaves gradients.
    """
    from diffusers import AutoencoderTiny

    torch.manual_seed(7)
    config: dict[str, Any] = {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    }
    autoencoder: Any = AutoencoderTiny(**(config | changes))
    *layers, last = autoencoder.decoder.layers
    with torch.no_grad():
        features = torch.nn.Sequential(*layers)(torch.randn(4, 4, 4, 4))
        last.weight *= 0.25 / last(features).std()
        last.bias += 0.5 - last(features).mean(dim=(0, 2, 3))
    autoencoder.save_pretrained(folder)
    return folder


def save_sd_vae(folder: Path) -> Path:
    """An `AutoencoderKL` of the Stable Diffusion layout, 8 channels wide, saved in `folder`."""
    from diffusers import AutoencoderKL

    torch.manual_seed(7)
    autoencoder: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
    )
    autoencoder.save_pretrained(folder)
    return folder


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers (*shape) in [-1, 1], float64, the same in every version and on every machine."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.7 * steps + phase).view(shape)


def weighted_by_waves(network: torch.nn.Module) -> torch.nn.Module:
    """The network in float64, all its weights from `waves`, so that its outputs can be written down."""
    for number, weight in enumerate(network.double().parameters()):
        wave = waves(*weight.shape, phase=number)
        fan_in = weight[0].numel()
        weight.data = wave / math.sqrt(fan_in) if weight.dim() > 1 else 0.5 + 0.3 * wave
    return network.requires_grad_(False)


def parity(shared: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A published network's state dict, and its inputs and outputs."""
    tensors = load_file(shared / "parity" / f"{name}.safetensors")
    prefix = "state_dict."
    weights = {key.removeprefix(prefix): tensors.pop(key) for key in list(tensors) if prefix in key}
    return weights, tensors


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
