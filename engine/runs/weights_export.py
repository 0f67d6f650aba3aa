"""Trained weights as a file to pass on, in 16 bits, with the config that says what they belong to."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.runs.combined_runs import gather_ensemble, load_average
from engine.runs.trained_run import TrainedRun
from engine.runs.training_record import AVERAGED_RUNS, TrainingRecord
from utils.checkpoints import save_weights
from utils.config import Config, dump_config, load_config
from utils.errors import UserError
from utils.files import atomic_write, try_to_write

if TYPE_CHECKING:
    from models.base import SegmentationModel

log = logging.getLogger("wavegms")


def write_weights(
    path: Path, runs: Sequence[TrainedRun], system: SegmentationModel, ensemble: bool
) -> None:
    """Write the weights (16 bits) and their config.yaml; several runs become an `ensemble` or are averaged.

    The config is the one that the first run was trained with, without `model_weight`; where none lies
    beside its checkpoint, the one in `runs`. The file's metadata say how the checkpoint was chosen and
    on which split it was trained. UserError if the folder holds another run's config.
    """
    config, checkpoint = runs[0]
    record = TrainingRecord.read(checkpoint)
    trained = record.config or config
    described = trained.model_copy(update={"model_weight": None})
    beside = path.with_name("config.yaml")
    if beside.exists() and not _holds(beside, described):
        raise UserError(
            f"{beside} is the config of another run, and would be replaced: write the weights into "
            "another folder"
        )
    origin, what = record.to_pass_on(), ""
    if len(runs) > 1 and ensemble:
        system, members = gather_ensemble(runs)
        origin, what = origin | members, f"ensemble of {len(runs)} runs, "
    elif len(runs) > 1:
        origin |= load_average(system, runs)
        what = f"mean of {origin[AVERAGED_RUNS]} runs, "
    with writing_file(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(path, system, half=True, metadata=origin)
        atomic_write(beside, dump_config(described))
    log.info(
        "%s: %s%.1f MB, 16 bits, with its config.yaml",
        path,
        what,
        path.stat().st_size / 1e6,
    )


def _holds(path: Path, config: Config) -> bool:
    try:
        return load_config(path) == config
    except UserError:
        return False


def check_target(path: Path) -> None:
    """UserError where the file cannot be written; folders that are missing are not left behind."""
    with writing_file(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try_to_write(path.parent)


@contextmanager
def writing_file(path: Path) -> Iterator[None]:
    """Turn a file that cannot be written into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; name another file by --out"
        ) from error
