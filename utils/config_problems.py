"""What is said of YAML values that are wrong, and of a config's keys that other frameworks have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from utils.yaml_files import shown, unknown_key

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

OTHER_NAMES = {
    "learning_rate": "lr", "base_lr": "lr", "wd": "weight_decay", "bs": "batch_size", "max_epochs": "epochs",
    "num_epochs": "epochs", "img_size": "image_size", "resolution": "image_size", "output_dir": "snapshot_path",
    "device": "GPUs", "amp": "precision", "checkpoint": "model_weight", "pretrained": "init_weights",
    "augmentation": "augment", "augmentations": "augment", "data_augmentation": "augment", "clip_grad": "clip_norm",
    "grad_clip": "clip_norm", "max_grad_norm": "clip_norm", "mixed_precision": "precision", "backbone": "model",
    "network": "model", "arch": "model", "workers": "num_workers", "k_folds": "folds", "random_seed": "seed",
    "gradient_accumulation_steps": "accumulate", "dataset": "pickle_file_path", "data": "pickle_file_path",
}  # fmt: skip
"""What other frameworks call a key, for the message about one that is unknown."""
WITH_OTHER_VALUES = {"GPUs", "init_weights", "model", "pickle_file_path", "precision"}
"""Those of these keys that other frameworks also give other values, such as `amp: true`."""

_LOSSES = "the losses of Wave-GMS are weighted by w_rec, w_dice and w_tversky; a network of your own may bring its own"
_BEST_IS_KEPT = "training does not stop early: the weights of the best epoch are kept, best_model.pth (with select_on: last, those of the last); epochs says how many"
_SCHEDULE = "the learning rate always rises over warmup_epochs to lr, then falls by a cosine to 0"
_ONE_CLASS = "a mask is foreground or not; `python -m datasets.prepare --label` says which of its values are foreground"
_FIXED = "it is fixed for each optimizer, see engine/training/optimizers.py"
NO_KEY = {
    "loss": _LOSSES, "losses": _LOSSES, "loss_function": _LOSSES, "criterion": _LOSSES,
    "early_stopping": _BEST_IS_KEPT, "early_stop": _BEST_IS_KEPT, "patience": _BEST_IS_KEPT,
    "scheduler": _SCHEDULE, "lr_scheduler": _SCHEDULE, "lr_schedule": _SCHEDULE, "min_lr": _SCHEDULE,
    "num_classes": _ONE_CLASS, "n_classes": _ONE_CLASS, "classes": _ONE_CLASS,
    "momentum": _FIXED, "betas": _FIXED,
}  # fmt: skip
"""What to say of keys that other frameworks have and none here corresponds to."""


def explain(error: ValidationError, fields: Mapping[str, FieldInfo], where: str) -> str:
    """The message that lists every problem of a config, of which `fields` are the keys."""
    lines = []
    for problem in error.errors(include_url=False):
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if key == "sweep":
            lines.append("it has a `sweep:` section, so it is run by sweep.py")
        elif problem["type"] == "extra_forbidden" and key in NO_KEY:
            lines.append(f"unknown key {key!r}: {NO_KEY[key]}")
        elif problem["type"] == "extra_forbidden":
            lines.append(unknown_key(key, fields, "docs/config.md", OTHER_NAMES))
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing: {fields[key].description}")
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        elif problem["type"] == "tuple_type":
            lines.append(f"{key}: expected a list, as [1, 1, 1], got {shown(problem['input'])}")
        else:
            lines.append(wrong_value(problem, key, key))
    return listed_below(where, lines)


def wrong_value(problem: ErrorDetails, where: str, key: str) -> str:
    """What is wrong with the value of the `key`, which stands at `where` in the file."""
    kind, value = problem["type"], problem["input"]
    if kind == "dict_type" and value is None:
        return f"{where}: `{key}:` is empty, write {key}: {{}}"
    if kind in ("tuple_type", "list_type"):
        return f"{where}: {key} is a list, such as [1, 2, 3], got {shown(value)}"
    return f"{where}: {problem['msg']}, got {shown(value)}"


def listed_below(where: str, problems: Iterable[str]) -> str:
    """Each problem once, a line below `where` it is."""
    return f"{where}:\n" + "\n".join(f"  {problem}" for problem in dict.fromkeys(problems))
