"""The folder of a run: names in it; made, written to, and cleared of what a kill left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.files import try_to_write

BEST_WEIGHTS = "best_model.pth"
"""Weights of the best validation, or of the last epoch where the config's `select_on` is `last`."""
RESULTS_PREFIX, MASKS_PREFIX = "valid_results_", "predicted_masks_"
HELD_OUT_PREFIX, HELD_OUT_MASKS_PREFIX = "held_out_results_", "held_out_masks_"
"""How the names of the folders that valid.py writes begin; the name of the data set follows. The latter two
are for the cases that a run held out."""
RESULT_FOLDERS = tuple(
    f"{prefix}*"
    for prefix in (RESULTS_PREFIX, MASKS_PREFIX, HELD_OUT_PREFIX, HELD_OUT_MASKS_PREFIX)
)
"""Patterns of these folders, which lie beside a checkpoint or in a folder of a name there."""


def create_run_folder(folder: Path) -> None:
    """Make `folder` and make sure that it can be written to; UserError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder}: {error.strerror}. "
            "Free the space, change its permissions, or set snapshot_path to another folder"
        ) from error


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a write that fails (disk full, quota, gone read-only) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}. What was saved before is kept: "
            "free space or fix the permissions there, then resume by the same command"
        ) from error


def holds_results(folder: Path) -> bool:
    """Whether valid.py has written scores or masks into the folder."""
    return any(True for pattern in RESULT_FOLDERS for _ in folder.glob(pattern))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writes that a kill cut short; call it under the lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
