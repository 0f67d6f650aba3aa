"""The checkpoint of a part in training: what it holds, and what is refused when it is read.

`distillation.training.Distiller` writes it: the weights, their moving average, the optimiser, the
counters, and the origin: "teacher", "seed", and as "initial" the SHA-256 of the weights of another run
that it started from, None for the first weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import UserError, listed
from utils.runs import writing_to
from utils.tensor_files import load_tensors, save_tensors

COUNTERS = ("step", "epoch", "position", "seconds", "history")
KEYS = ("module", "optimiser", "average", *COUNTERS)
REMEDY = "delete it, or put a copy in its place, and run distill.py again"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint. UserError if that fails; the one before it is then still there."""
    with writing_to(path.parent):
        save_tensors(path, content)


def load_checkpoint(path: Path, part: nn.Module) -> dict[str, Any]:
    """Read a checkpoint of `part`, the student's encoder or decoder.

    Raises:
        UserError: the file is damaged or not a checkpoint of a distillation, or its weights do not fit
            `part` or are not finite.
    """
    try:
        content = load_tensors(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error
    saved = content if isinstance(content, dict) else {}
    if missing := [key for key in KEYS if key not in saved]:
        raise UserError(
            f"{path} is no checkpoint of a distillation, it lacks {listed(missing, 3)}: move it away, "
            "or give another --work"
        )
    for weights in (saved["module"], saved["average"]):
        check_weights(path, weights, part)
    return saved


def check_weights(path: Path, weights: Any, part: nn.Module) -> None:
    """Raise UserError unless `weights` is a state dict that fits `part` and holds finite numbers."""
    expected = {name: value.shape for name, value in part.state_dict().items()}
    pairs = weights.items() if isinstance(weights, dict) else ()
    shapes = {name: getattr(value, "shape", None) for name, value in pairs}
    if shapes != expected:
        name = next(n for n in [*expected, *shapes] if shapes.get(n) != expected.get(n))
        raise UserError(
            f"{path} holds the weights of another network: {name} is {_shape(shapes.get(name))}, the "
            f"student's {type(part).__name__} has {_shape(expected.get(name))}; {REMEDY}"
        )
    if broken := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise UserError(
            f"{path} comes from a training that diverged, weights in it are not finite: "
            f"{listed(broken, 1)}. Delete it and distil again with a lower --lr"
        )


def check_origin(path: Path, saved: dict[str, Any], origin: dict[str, Any]) -> None:
    """Raise UserError unless the checkpoint was distilled with this teacher and this seed."""
    for name, expected in origin.items():
        found = saved.get(name, "none")
        if found != expected:
            raise UserError(
                f"{path} was saved with another {name} ({found}, not {expected}): "
                f"give that --{name} again to resume it, or start afresh in another --work"
            )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))
