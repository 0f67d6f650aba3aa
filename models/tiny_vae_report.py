"""How well a Tiny-VAE stands in for its teacher, on images neither was distilled from.

Shapes: image (N, 3, S, S) in [-1, 1], latent (N, 4, S/8, S/8), mask (N, S, S) bool.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.metrics import dice


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
def mask_round_trip(vae: Any, latents: np.ndarray, masks: np.ndarray, batch: int = 4) -> np.ndarray:
    """Dice (N,) of decoded mask latents against masks (N, S, S) of 0 and 1."""
    scores = []
    for z, truth in zip(_parts(latents, batch), _parts(masks, batch), strict=True):
        predicted = decoded_mask(vae.decoder(torch.from_numpy(z)))
        scores += [dice(p, t > 0) for p, t in zip(predicted, truth, strict=True)]
    return np.array(scores)


def _parts(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (array[i : i + size] for i in range(0, len(array), size))


def multiply_adds(module: nn.Module, x: Tensor) -> int:
    """Multiply-accumulate operations of all convolutions for input `x`."""
    total = 0

    def count(conv: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(conv, nn.Conv2d)
        total += output.numel() * conv.weight[0].numel()

    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(count) for m in convolutions]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return total


@torch.no_grad()
def milliseconds(module: nn.Module, x: Tensor, repeats: int = 9) -> float:
    """CPU time of one call, median over `repeats` after one to warm up.

    Processor time of this process rather than time on the clock, which other programs lengthen;
    with one thread the two are the same on an idle machine.
    """
    module(x)
    times = []
    for _ in range(repeats):
        start = time.process_time()
        module(x)
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times))


def compare(teacher: Any, student: Any, images: np.ndarray, masks: np.ndarray) -> dict[str, Any]:
    """Scores by name; pairs are (encoder, decoder), "t" for teacher and "s" for student.

    `images` (N, S, S, 3) uint8, `masks` (N, S, S) of 0 and 1.
    """
    vaes = {"t": teacher, "s": student}
    as_images = mask_input(masks)
    image_latents = {name: encode(vae, images) for name, vae in vaes.items()}
    mask_latents = {name: encode(vae, as_images) for name, vae in vaes.items()}
    pairs = [(e, d) for e in vaes for d in vaes]
    x = to_input(images[:1])
    z = torch.from_numpy(image_latents["t"][:1])
    return {
        "r2_images": r_squared(image_latents["s"], image_latents["t"]),
        "r2_masks": r_squared(mask_latents["s"], mask_latents["t"]),
        "psnr": {e + d: round_trip(vaes[d], image_latents[e], images).mean() for e, d in pairs},
        "dice": {e + d: mask_round_trip(vaes[d], mask_latents[e], masks).mean() for e, d in pairs},
        "parameters": {
            name: [sum(p.numel() for p in part.parameters()) for part in (v.encoder, v.decoder)]
            for name, v in vaes.items()
        },
        "giga_macs": {
            name: [multiply_adds(v.encoder, x) / 1e9, multiply_adds(v.decoder, z) / 1e9]
            for name, v in vaes.items()
        },
        "milliseconds": {
            name: [milliseconds(v.encoder, x), milliseconds(v.decoder, z)]
            for name, v in vaes.items()
        },
    }


def table(scores: dict[str, Any]) -> str:
    """The scores of `compare` as two Markdown tables: each network, and each pair of parts."""

    def cells(key: str, form: str) -> list[str]:
        return [" / ".join(format(v, form) for v in scores[key][name]) for name in "ts"]

    titles = {"t": "TAESD", "s": "Tiny-VAE"}
    networks = [
        ["encoder / decoder", *titles.values()],
        ["---"] * 3,
        ["parameters", *cells("parameters", ",")],
        ["10^9 multiply-adds an image", *cells("giga_macs", ".2f")],
        ["CPU time an image (ms)", *cells("milliseconds", ".0f")],
        ["R² of latents with TAESD's: images", "1", f"{scores['r2_images']:.4f}"],
        ["R² of latents with TAESD's: masks", "1", f"{scores['r2_masks']:.4f}"],
    ]
    pairs = [
        ["encoder", "decoder", "mask round trip, mean Dice", "image round trip, mean PSNR (dB)"],
        ["---"] * 4,
    ]
    for pair, score in scores["dice"].items():
        encoder, decoder = (titles[name] for name in pair)
        pairs.append([encoder, decoder, f"{score:.4f}", f"{scores['psnr'][pair]:.2f}"])
    return "\n\n".join(
        "\n".join(f"| {' | '.join(row)} |" for row in rows) for rows in (networks, pairs)
    )


@torch.no_grad()
def picture(vaes: list[Any], image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGB picture: image above mask, each beside its round trip through every VAE; uint8."""
    rows = []
    for source in (image, mask_input(mask[None])[0]):
        tiles = [source]
        for vae in vaes:
            decoded = vae.decoder(vae.encoder(to_input(source[None])))[0].clamp(-1, 1)
            tiles.append(((decoded + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
        rows.append(np.hstack(tiles))
    return np.vstack(rows)
