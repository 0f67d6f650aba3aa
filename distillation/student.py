"""The student: a narrow `AutoencoderTiny`, from its first weights to the folder that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from distillation.checkpoints import load_checkpoint
from distillation.crops import Pool
from distillation.narrowing import shrink
from distillation.scores import to_input
from models.vae import LATENT_CHANNELS
from utils.checkpoints import weights_sha256
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


def check_teacher(teacher: Any) -> None:
    """Raise UserError unless the student can start from the layers of this `AutoencoderTiny`."""
    student = make_student()
    for name in ("num_encoder_blocks", "num_decoder_blocks", "act_fn"):
        got, expected = (_plain(vae.config[name]) for vae in (teacher, student))
        if got != expected:
            raise UserError(
                f"the teacher has {name} {got}, the student {expected}: give a --teacher of TAESD's layout"
            )
    for name in ("encoder_block_out_channels", "decoder_block_out_channels"):
        got, least = _plain(teacher.config[name]), student.config[name][0]
        if min(got) < least or len(set(got)) > 1:
            raise UserError(
                f"the teacher has {name} {got}, expected one number from {least} up throughout: give a "
                "--teacher of TAESD's layout that is no narrower than the student"
            )


def _plain(value: Any) -> Any:
    """A value of a config; a tuple becomes the list that it is once the config was saved."""
    return list(value) if isinstance(value, tuple) else value


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
        checkpoints: those of "encoder", of its tuning "encoder_tuned" and of "decoder". That of
            "encoder" may be absent, as the tuned one is written.

    Raises:
        UserError: a part has not been trained or cannot be used (see `load_checkpoint`); the parts
            have two teachers; the encoder was trained further since it was tuned; or a weight is too
            large for half precision.
    """
    student = make_student()
    parts = {
        "encoder": student.encoder,
        "encoder_tuned": student.encoder,
        "decoder": student.decoder,
    }
    saved = {}
    for name, path in checkpoints.items():
        if path.exists():
            saved[name] = load_checkpoint(path, parts[name])
        elif name != "encoder":
            part = name.removesuffix("_tuned")
            raise UserError(
                f"no {path}: train it first, python distill.py {part} --work {path.parent}"
            )
    if "encoder" in saved:
        check_tuning(checkpoints, saved, student.encoder)
    check_one_teacher({name: saved[name].get("teacher") for name in ("encoder_tuned", "decoder")})
    for name, content in saved.items():  # the tuned encoder after the one it was tuned from
        parts[name].load_state_dict(content["average"])
        print(f"{name}: step {content['step']}, {content['seconds'] / 60:.1f} minutes")
    write_student(student, out)


def check_tuning(checkpoints: dict[str, Path], saved: dict[str, Any], encoder: nn.Module) -> None:
    """Raise UserError if the encoder was trained further since it was tuned; overwrites `encoder`."""
    encoder.load_state_dict(saved["encoder"]["average"])
    if saved["encoder_tuned"].get("initial") == weights_sha256(encoder):
        return
    runs = [
        f"{checkpoints[name]} (step {run['step']}, {run['seconds'] / 60:.1f} minutes)"
        for name, run in saved.items()
        if name != "decoder"
    ]
    raise UserError(
        f"{runs[1]} was not tuned from {runs[0]} as that now is, which was trained further since: tune "
        f"it by the command that trained it, python distill.py encoder --work "
        f"{checkpoints['encoder'].parent}, or move {checkpoints['encoder'].name} away to export the older"
    )


def check_one_teacher(teachers: dict[str, str | None]) -> None:
    """Raise UserError unless the parts have one teacher, given by the SHA-256 of its weights."""
    if len(set(teachers.values())) > 1:
        raise UserError(
            "the parts were distilled from different teachers, so their latents do not meet: "
            f"{teachers} (SHA-256 of the weights); distil both from one in another --work"
        )


def write_student(student: Any, out: Path) -> None:
    """Write a diffusers folder in half precision; UserError if a weight does not fit into it."""
    for name, value in student.half().state_dict().items():
        if not value.isfinite().all():
            raise UserError(
                f"the weight {name} is beyond 65504, the most that 16 bits hold: the training diverged; "
                "delete the checkpoint of this part and distil it again with a lower --lr"
            )
    student.save_pretrained(out)
    weights = out / SAFETENSORS_WEIGHTS_NAME
    # safetensors lets the owner alone read them
    atomic_write(weights, weights.read_bytes())
    # AutoencoderTiny notes an attribute that its own constructor does not take and warns about.
    config = json.loads((out / "config.json").read_bytes())
    config.pop("block_out_channels", None)
    atomic_write(out / "config.json", json.dumps(config, indent=2) + "\n")
    print(f"Tiny-VAE written to {out}")
