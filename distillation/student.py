"""The student: a narrow `AutoencoderTiny`, from its first weights to the folder that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from distillation.crops import Pool
from distillation.narrowing import shrink
from distillation.scores import to_input
from models.vae import LATENT_CHANNELS
from utils.errors import UserError
from utils.files import atomic_write

EXAMPLES = 256  # crops that the first weights are fitted on


def make_student(width: int = 32) -> Any:
    """AutoencoderTiny with TAESD's block counts and `width` channels everywhere."""
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        latent_channels=LATENT_CHANNELS,
    )


def start_student(pool: Pool, part: str) -> Any:
    """A student whose `part` starts from the teacher's weights, refitted on the first chunk."""
    torch.manual_seed(pool.seed)
    student = make_student()
    crops, latents = pool.latents(0)
    # What diffusers does to the input before the layers: [0, 1] images, tanh-limited latents.
    if part == "encoder":
        x = (to_input(crops[:EXAMPLES]) + 1) / 2
    else:
        x = torch.tanh(torch.from_numpy(latents[:EXAMPLES]) / 3) * 3
    shrink(getattr(pool.teacher, part).layers, getattr(student, part).layers, x)
    return student


def export_student(checkpoints: dict[str, Path], out: Path) -> None:
    """Join the averaged parts into a diffusers folder with half-precision weights.

    Args:
        checkpoints: of "encoder" and "decoder", as `distillation.training` saves them.

    Raises:
        UserError: a part has not been trained, or they have two teachers.
    """
    student = make_student()
    teachers = {}
    for part, path in checkpoints.items():
        if not path.exists():
            raise UserError(
                f"no {path}: train it first, python distill.py {part} --work {path.parent}"
            )
        saved = torch.load(path, weights_only=True)
        getattr(student, part).load_state_dict(saved["average"])
        teachers[part] = saved.get("teacher")
        print(f"{part}: step {saved['step']}, {saved['seconds'] / 60:.1f} minutes")
    if len(set(teachers.values())) > 1:
        raise UserError(
            "the parts were distilled from different teachers, so their latents do not meet: "
            f"{teachers} (SHA-256 of the weights); distil both from one in another --work"
        )
    student.half().save_pretrained(out)
    # AutoencoderTiny notes an attribute that its own constructor does not take and warns about.
    config = json.loads((out / "config.json").read_text())
    config.pop("block_out_channels", None)
    atomic_write(out / "config.json", json.dumps(config, indent=2) + "\n")
    print(f"Tiny-VAE written to {out}")
