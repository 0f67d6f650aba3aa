"""How well a Tiny-VAE stands in for its teacher, on images neither was distilled from.

Shapes: image (N, S, S, 3) uint8, mask (N, S, S) of 0 and 1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from utils.tables import markdown_table

TITLES = {"teacher": "TAESD", "student": "Tiny-VAE"}


@dataclass(frozen=True)
class VaeComparison:
    """Scores of "teacher" and "student", by name or by the names of an encoder and a decoder."""

    r2_images: float
    """R² of the student's latents with the teacher's."""
    r2_masks: float
    psnr: dict[tuple[str, str], float]
    """Mean over the images of one round trip each, in dB."""
    dice: dict[tuple[str, str], float]
    """Mean over the masks of one round trip each."""
    parameters: dict[str, list[int]]
    """Of encoder and decoder, as the two below."""
    giga_macs: dict[str, list[float]]
    milliseconds: dict[str, list[float]]


@torch.no_grad()
def milliseconds(module: nn.Module, x: Tensor) -> float:
    """CPU time of one call, median over nine after one to warm up.

    Processor time of this process rather than time on the clock, which other programs lengthen;
    with one thread the two are the same on an idle machine.
    """
    module(x)
    times = []
    for _ in range(9):
        start = time.process_time()
        module(x)
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times))


def compare_vaes(
    teacher: Any, student: Any, images: np.ndarray, masks: np.ndarray
) -> VaeComparison:
    """Scores of both on `images` (N, S, S, 3) uint8 and `masks` (N, S, S) of 0 and 1."""
    vaes = {"teacher": teacher, "student": student}
    parts = {name: (vae.encoder, vae.decoder) for name, vae in vaes.items()}
    image_latents = {name: encode(vae, images) for name, vae in vaes.items()}
    mask_latents = {name: encode(vae, mask_input(masks)) for name, vae in vaes.items()}
    pairs = [(encoder, decoder) for encoder in vaes for decoder in vaes]
    inputs = (to_input(images[:1]), torch.from_numpy(image_latents["teacher"][:1]))
    return VaeComparison(
        r2_images=r_squared(image_latents["student"], image_latents["teacher"]),
        r2_masks=r_squared(mask_latents["student"], mask_latents["teacher"]),
        psnr={(e, d): round_trip(vaes[d], image_latents[e], images).mean() for e, d in pairs},
        dice={(e, d): mask_round_trip(vaes[d], mask_latents[e], masks).mean() for e, d in pairs},
        parameters={
            name: [sum(p.numel() for p in part.parameters()) for part in both]
            for name, both in parts.items()
        },
        giga_macs={
            name: [multiply_adds(part, [x])[0] / 1e9 for part, x in zip(both, inputs, strict=True)]
            for name, both in parts.items()
        },
        milliseconds={
            name: [milliseconds(part, x) for part, x in zip(both, inputs, strict=True)]
            for name, both in parts.items()
        },
    )


def table(scores: VaeComparison) -> str:
    """The scores as two Markdown tables: of each network, and of each encoder with each decoder."""

    def cells(costs: Mapping[str, Sequence[float]], form: str) -> list[str]:
        return [" / ".join(format(cost, form) for cost in costs[name]) for name in TITLES]

    networks = [
        ["parameters", *cells(scores.parameters, ",")],
        ["GMACs per image", *cells(scores.giga_macs, ".2f")],
        ["CPU time per image (ms)", *cells(scores.milliseconds, ".0f")],
        ["R² of latents with TAESD's: images", "1", f"{scores.r2_images:.4f}"],
        ["R² of latents with TAESD's: masks", "1", f"{scores.r2_masks:.4f}"],
    ]
    pairs = [
        [TITLES[encoder], TITLES[decoder], f"{dice:.4f}", f"{scores.psnr[encoder, decoder]:.2f}"]
        for (encoder, decoder), dice in scores.dice.items()
    ]
    columns = [
        "encoder",
        "decoder",
        "mask round trip, mean Dice",
        "image round trip, mean PSNR (dB)",
    ]
    return "\n\n".join(
        [
            markdown_table(["encoder / decoder", *TITLES.values()], networks),
            markdown_table(columns, pairs, left=2),
        ]
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
