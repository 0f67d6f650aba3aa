"""What earlier commands left in the folders of trials, compared with what is asked of these trials now."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from datasets.cases import find_split_file
from engine.training_record import TrainingRecord
from experiments.records import Record, is_record_of, read_record, recorded_config
from experiments.runner import Trial
from utils.config import Config
from utils.errors import UserError, listed
from utils.files import sha256
from utils.results import Results, read_results

CHANGED_IN_VAIN = ("validate_every", "save_freq")
"""Keys that train.py accepts for a finished run, which it leaves as it is: they would then be
recorded of a run that was made with other values.
"""

NAMED = 5  # problems in the message


def check_earlier_runs(trials: Iterable[Trial]) -> None:
    """UserError where runs in the trials' folders were trained on another split file than there is
    now, or have finished with other values of CHANGED_IN_VAIN.
    """
    problems = []
    for trial in trials:
        if trained_on_old_split(trial):
            problems.append(
                f"{trial.name}: trained on another split file than {trial.config.pickle_file_path} is now"
            )
        record = read_record(trial.folder)
        made_with = recorded_config(record) if record is not None and record.trained else None
        for key in CHANGED_IN_VAIN if made_with is not None else ():
            before, now = getattr(made_with, key), getattr(trial.config, key)
            if before != now:
                problems.append(f"{trial.name}: {key}: {before} in the finished run, {now} now")
    if problems:
        raise UserError(
            "there are runs that were trained otherwise, whose scores do not compare with those of new ones:\n  "
            + listed(problems, NAMED, "\n  ")
            + "\nRestore the split file or the settings, or set another folder (snapshot_path of a sweep, "
            "folder of a study)"
        )


def own_record(trial: Trial) -> Record | None:
    """The trial's record; None where there is none, or one of a run with other settings or on
    another split.
    """
    record = read_record(trial.folder)
    if record is None or not is_record_of(record, trial.config) or trained_on_old_split(trial):
        return None
    return record


def trained_on_old_split(trial: Trial) -> bool:
    """Whether the trial has weights, from another split file than its config names now."""
    weights = trial.folder / "best_model.pth"
    split_file = trial.config.pickle_file_path
    return weights.is_file() and TrainingRecord.read(weights).split_has_changed(split_file)


def fitting_results(folder: Path, config: Config, checkpoint: Path) -> Results | None:
    """The scores in `folder`, if they are those of this checkpoint, scored as `config` says on its
    test split.

    Otherwise None: nothing readable is there, or a user has scored the run in another way since. What the
    summary does not record, and files that are not here, are taken to fit.
    """
    try:
        results = read_results(folder)
    except UserError:
        return None
    made_with = results.summary["provenance"]
    asked = {
        "threshold": config.threshold,
        "tta": config.tta,
        "image_size": config.image_size,
        "evaluation_size": config.evaluation_size or config.image_size,
        "vae_weights": config.vae_weights if config.model == "wave-gms" else None,
    }
    files = {"checkpoint": checkpoint}
    with suppress(UserError):  # the data may be elsewhere
        files["split file"] = find_split_file(config.pickle_file_path)
    hashes = made_with.get("sha256") or {}
    fits = (
        results.summary["hd95"]["rule"] == config.hd95_empty
        and all(made_with.get(key, value) == value for key, value in asked.items())
        and all(
            hashes[name] == _sha256_of(path)
            for name, path in files.items()
            if name in hashes and path.is_file()
        )
    )
    return results if fits else None


def _sha256_of(path: Path) -> str:
    """SHA-256 of a file, read again only when it has changed: reports are written after every trial."""
    status = path.stat()
    return _sha256_at(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256_at(path: Path, modified: int, size: int) -> str:
    return sha256(path)
