"""How well autoencoders do: latents against another's, round trips against what went in.

Shapes: image (N, 3, S, S) in [-1, 1], latent (N, 4, S/8, S/8), mask (N, S, S) bool.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoring.metrics import dice


def r_squared(prediction: np.ndarray, target: np.ndarray) -> float:
    """1 - residual / variance about the channel means, pooled over channels; (N, 4, h, w)."""
    centred = target - target.mean(axis=(0, 2, 3), keepdims=True)
    return float(1 - np.square(prediction - target).sum() / np.square(centred).sum())


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image (N,) in dB; (N, 3, H, W) in [-1, 1]."""
    error = (prediction.clamp(-1, 1) - target).div(2).square().mean((1, 2, 3))
    return -10 * error.clamp_min(1e-10).log10()


def to_input(images: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) to float (N, 3, S, S) in [-1, 1], channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def mask_input(masks: np.ndarray) -> np.ndarray:
    """Masks (N, S, S) of 0 and 1 as uint8 images (N, S, S, 3) of 0 and 255."""
    return np.repeat((masks > 0)[..., None], 3, axis=3).astype(np.uint8) * 255


def decoded_mask(decoded: Tensor) -> np.ndarray:
    """Masks (N, S, S), bool, of decoder outputs: mean over RGB at 0.5 of the [0, 1] range."""
    return (decoded.mean(dim=1) >= 0).numpy()


@torch.no_grad()
def encode(vae: Any, images: np.ndarray, batch: int = 4) -> np.ndarray:
    """Latents of uint8 images (N, S, S, 3)."""
    return np.concatenate([vae.encoder(to_input(part)).numpy() for part in _parts(images, batch)])


@torch.no_grad()
def decode(vae: Any, latents: np.ndarray, batch: int = 4) -> Tensor:
    """Decoded latents (N, 3, S, S)."""
    return torch.cat([vae.decoder(torch.from_numpy(part)) for part in _parts(latents, batch)])


@torch.no_grad()
def round_trip(vae: Any, latents: np.ndarray, images: np.ndarray, batch: int = 4) -> np.ndarray:
    """PSNR (N,) of decoded latents against uint8 images."""
    pairs = zip(_parts(latents, batch), _parts(images, batch), strict=True)
    return np.concatenate(
        [psnr(vae.decoder(torch.from_numpy(z)), to_input(x)).numpy() for z, x in pairs]
    )


@torch.no_grad()
def mask_round_trip(vae: Any, latents: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Dice (N,) of decoded mask latents against masks (N, S, S) of 0 and 1."""
    scores = []
    for z, truth in zip(_parts(latents, 4), _parts(masks, 4), strict=True):
        predicted = decoded_mask(vae.decoder(torch.from_numpy(z)))
        scores += [dice(p, t > 0) for p, t in zip(predicted, truth, strict=True)]
    return np.array(scores)


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[i : i + size] for i in range(0, len(array), size))
