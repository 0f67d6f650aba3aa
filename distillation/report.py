"""How well a Tiny-VAE stands in for its teacher, on images neither was distilled from.

Shapes: image (N, S, S, 3) uint8, mask (N, S, S) of 0 and 1.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from distillation.scores import encode, mask_input, mask_round_trip, r_squared, round_trip, to_input
from utils.arithmetic import multiply_adds
from utils.files import atomic_write
from utils.images import encode_png


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


def compare_vaes(
    teacher: Any, student: Any, images: np.ndarray, masks: np.ndarray
) -> dict[str, Any]:
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
            name: [multiply_adds(p, [y])[0] / 1e9 for p, y in ((v.encoder, x), (v.decoder, z))]
            for name, v in vaes.items()
        },
        "milliseconds": {
            name: [milliseconds(v.encoder, x), milliseconds(v.decoder, z)]
            for name, v in vaes.items()
        },
    }


def table(scores: dict[str, Any]) -> str:
    """The scores of `compare_vaes` as two Markdown tables: each network, and each pair of parts."""

    def cells(key: str, form: str) -> list[str]:
        return [" / ".join(format(v, form) for v in scores[key][name]) for name in "ts"]

    titles = {"t": "TAESD", "s": "Tiny-VAE"}
    networks = [
        ["encoder / decoder", *titles.values()],
        ["---"] * 3,
        ["parameters", *cells("parameters", ",")],
        ["GMACs per image", *cells("giga_macs", ".2f")],
        ["CPU time per image (ms)", *cells("milliseconds", ".0f")],
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


def write_picture(path: Path, vaes: list[Any], image: np.ndarray, mask: np.ndarray) -> None:
    """The `picture` of a case as a PNG file."""
    drawn = cv2.cvtColor(picture(vaes, image, mask), cv2.COLOR_RGB2BGR)
    atomic_write(path, encode_png(drawn))
