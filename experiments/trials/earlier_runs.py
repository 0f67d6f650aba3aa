"""What earlier commands left in the folders of trials, compared with what is asked of these trials now."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from datasets.cases import find_split_file
from datasets.prepared import METADATA_GROUPS, prepared_otherwise, prepared_with
from engine.runs.saved_state import state_files
from engine.runs.training_record import (
    GROUPS,
    INITIAL_WEIGHTS,
    SPLIT_FILE,
    TEACHERS,
    TrainingRecord,
)
from experiments.trials.hardware import process_count
from experiments.trials.inputs import sha256_of, vae_file, vae_sha256
from experiments.trials.records import (
    Record,
    is_of_same_training,
    is_record_of,
    read_record,
    recorded_config,
    scored_settings,
)
from experiments.trials.trial import Trial
from scoring.results import Results, read_results
from utils.config import Config, load_config
from utils.config_keys import CHANGEABLE_ON_RESUME
from utils.errors import UserError, listed
from utils.files import joined_sha256
from utils.mappings import differing
from utils.runs import BEST_WEIGHTS
from utils.yaml_files import shown

NAMED = 5  # problems in the message

CHANGED_IN_VAIN = ("validate_every", "save_freq")
"""Changing these keys has no effect on a finished run; train.py would record the new value for a run made
with the old."""


def check_earlier_runs(trials: Collection[Trial], workers: int | None = None) -> None:
    """UserError where runs in the trials' folders were trained on another split file than there is now, on
    data prepared otherwise or from another file of initial weights or groups, have finished with other values
    of CHANGED_IN_VAIN, or were trained by other numbers of processes than the others.

    `workers` is how many will train the runs that are missing; None if no run will be trained.
    """
    check_processes(processes_of(trials, workers))
    problems = []
    for trial in trials:
        if trained_on_old_split(trial):
            problems.append(
                f"{trial.name}: trained on another split file than {trial.config.pickle_file_path} is now"
            )
        problems += [
            f"{trial.name}: trained with another {name} than {path} is now"
            for name, path in changed_inputs(trial).items()
        ]
        problems += [
            f"{trial.name}: trained on {files} prepared with {before}, with {now} now"
            for files, before, now in other_preparation(trial)
        ]
        record = read_record(trial.folder)
        made_with = recorded_config(record) if record is not None and record.trained else None
        for key in CHANGED_IN_VAIN if made_with is not None else ():
            before, now = getattr(made_with, key), getattr(trial.config, key)
            if before != now:
                problems.append(f"{trial.name}: {key}: {before} in the finished run, {now} now")
    _refuse(problems)


def check_settings(trials: Iterable[Trial]) -> None:
    """UserError where runs that are trained or begun in the trials' folders have another precision, or other
    values of keys that cannot change on resume: train.py would refuse them one by one.
    """
    _refuse(
        f"{trial.name}: {key}: {shown(before)} in the {state} run, {shown(now)} now"
        for trial in trials
        for state, run in _runs_in(trial)
        for key, (before, now) in _differences(trial, run).items()
    )


def _refuse(problems: Iterable[str]) -> None:
    """UserError that lists the problems, if there are any."""
    if text := listed(problems, NAMED, "\n  "):
        raise UserError(
            "there are runs that were trained otherwise, whose scores do not compare with those of new ones:\n  "
            f"{text}\nRestore the files or the settings, or set another folder (snapshot_path of a sweep, "
            "folder and --out of a study)"
        )


def _runs_in(trial: Trial) -> list[tuple[str, Config]]:
    """State, `finished` or `saved`, and config of the run in the trial's folder; empty if there is none."""
    record = read_record(trial.folder)
    if record is not None and record.trained:
        config = recorded_config(record)
        return [("finished", config)] if config is not None else []
    if not any(path.exists() for path in state_files(trial.folder)):
        return []
    try:
        return [("saved", load_config(trial.folder / "config.yaml"))]
    except UserError:  # train.py says what is wrong with it
        return []


def _differences(trial: Trial, run: Config) -> dict[str, tuple[object, object]]:
    """Both values of the keys in which the trial's run differs from what is asked, though they cannot change
    on resume.
    """
    asked, ignored = trial.config, set(CHANGEABLE_ON_RESUME)
    before, now = (config.model_dump(mode="json", exclude=ignored) for config in (run, asked))
    different = differing(before, now)
    if run.dataset != asked.dataset:
        different["data set"] = (run.dataset, asked.dataset)
    if not _has_asked_precision(trial, run):
        different["precision"] = (run.precision, asked.precision)
    return different


def _has_asked_precision(trial: Trial, run: Config) -> bool:
    """Whether the trial's run was asked for the precision that the trial asks for, or computed in that."""
    if run.precision == trial.config.precision:
        return True
    environment = TrainingRecord.read(trial.folder / BEST_WEIGHTS).environment
    return environment.get("precision") == trial.config.precision


def other_settings(trial: Trial) -> str | None:
    """How the run in the trial's folder differs from what is asked; None if it does not, or there is no run.

    Such as `trained with lr 0.02, asked 0.05`, or `scored with tta False, asked True` if only its scoring is
    another.
    """
    record = read_record(trial.folder)
    if record is None or is_record_of(record, trial.config):
        return None
    made = "trained" if record.trained else "begun"
    if trained_alike(trial):
        made = "scored"
    recorded = recorded_config(record)
    if recorded is None:
        return f"{made} by a version with other keys"
    before, now = scored_settings(recorded), scored_settings(trial.config)
    return f"{made} with " + "; ".join(
        f"{key} {shown(_value(recorded, key))}, asked {shown(_value(trial.config, key))}"
        for key in differing(before, now, sorted(before.keys() | now.keys()))
    )


def trained_alike(trial: Trial) -> bool:
    """Whether the run in the trial's folder is trained with the settings that the trial asks for.

    It may be scored in another way, such as without test-time augmentation. For the files that it was
    trained on, see `inputs_are_the_same`.
    """
    record = read_record(trial.folder)
    if record is None or not record.trained or not is_of_same_training(record, trial.config):
        return False
    recorded = recorded_config(record)
    return recorded is not None and _has_asked_precision(trial, recorded)


def _value(config: Config, key: str) -> Any:
    return config.dataset if key == "data set" else config.model_dump(mode="json")[key]


class Trained(NamedTuple):
    """A run, and how many processes have trained it, or will."""

    name: str
    config: Config
    processes: int


def check_processes(runs: Iterable[Trained]) -> None:
    """UserError where runs whose configs name as many GPUs are trained by different numbers of processes.

    Each process has batches of its own, so that the effective batch is another one.
    """
    known: dict[int, Trained] = {}
    for run in runs:
        other = known.setdefault(len(run.config.GPUs), run)
        if run.processes != other.processes:
            raise UserError(
                f"{other.name} is trained by {other.processes} process(es) and {run.name} by {run.processes}, each "
                "with batches of batch_size, so that their scores do not compare. A single worker trains a run on "
                "all GPUs of the config, one process each, several workers on one GPU: keep the number of workers "
                "and of GPUs, or set another folder (snapshot_path of a sweep, folder and --out of a study)"
            )


def trained_processes(folder: Path) -> int:
    """How many processes have trained the run in the folder; 1 where that is not recorded."""
    return int(TrainingRecord.read(folder / BEST_WEIGHTS).environment.get("processes", 1))


def processes_of(trials: Iterable[Trial], workers: int | None) -> list[Trained]:
    """The trained runs first, then those to be trained."""
    trained, missing = [], []
    for trial in trials:
        record = read_record(trial.folder)
        if record is not None and record.trained:
            processes = trained_processes(trial.folder)
            trained.append(Trained(trial.name, trial.config, processes))
        elif workers is not None:
            missing.append(Trained(trial.name, trial.config, process_count(trial.config, workers)))
    return trained + missing


def own_record(trial: Trial) -> Record | None:
    """The trial's record; None if there is none, or its run had other settings, another split or other
    input files.
    """
    record = read_record(trial.folder)
    if record is None or not is_record_of(record, trial.config):
        return None
    return record if inputs_are_the_same(trial) else None


def inputs_are_the_same(trial: Trial) -> bool:
    """Whether the trial's run was trained on the split file, images and other files that are there now."""
    return (
        not trained_on_old_split(trial)
        and not other_preparation(trial)
        and not changed_inputs(trial)
    )


def changed_inputs(trial: Trial) -> dict[str, Path]:
    """The files of initial weights, teachers, groups and VAE that have changed since the trial was trained.

    As far as they are recorded and here.
    """
    weights = trial.folder / BEST_WEIGHTS
    if not weights.is_file():
        return {}
    files = {INITIAL_WEIGHTS: trial.config.init_weights}
    with suppress(UserError):  # the data may be elsewhere
        files[GROUPS] = find_split_file(trial.config.pickle_file_path).parent / METADATA_GROUPS
    recorded = TrainingRecord.read(weights).hashes
    changed = {
        name: path
        for name, path in files.items()
        if name in recorded and path and path.is_file() and sha256_of(path) != recorded[name]
    }
    teachers = trial.config.teachers
    are_here = bool(teachers) and all(teacher.is_file() for teacher in teachers)
    if are_here and recorded.get(TEACHERS) not in (None, joined_sha256(map(sha256_of, teachers))):
        changed[TEACHERS] = teachers[0]
    # environment.json has the VAE's weights as they were loaded, which would take long here
    record, vae = read_record(trial.folder), vae_file(trial.config.vae_weights)
    recorded_vae = record.vae_sha256 if record else None
    if vae and recorded_vae and recorded_vae != vae_sha256(trial.config):
        changed["file of the VAE's weights"] = vae
    return changed


def trained_on_old_split(trial: Trial) -> bool:
    """Whether the trial has weights, from another split file than its config names now."""
    weights = trial.folder / BEST_WEIGHTS
    split_file = trial.config.pickle_file_path
    return weights.is_file() and TrainingRecord.read(weights).split_has_changed(split_file)


def other_preparation(trial: Trial) -> list[tuple[str, str, str]]:
    """Where the data that the trial was trained on was `prepared_otherwise` than that here."""
    weights = trial.folder / BEST_WEIGHTS
    if not weights.is_file():
        return []
    with suppress(UserError):  # the data may be elsewhere
        here = prepared_with(find_split_file(trial.config.pickle_file_path).parent)
        return prepared_otherwise(TrainingRecord.read(weights).prepared_with, here)
    return []


def fitting_results(folder: Path, config: Config, checkpoint: Path) -> Results | None:
    """The scores in `folder`, if they are those of this checkpoint, scored as `config` says on its
    test split.

    None if nothing readable is there, or the run has been scored in another way since. What the
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
        **({"keep_upright": config.keep_upright} if config.tta else {}),
        "image_size": config.image_size,
        "evaluation_size": config.evaluation_size or config.image_size,
        "vae_weights": config.vae_weights if config.is_wave_gms else None,
    }
    on_cpu = (made_with.get("environment") or {}).get("device") == "CPU"
    if config.precision != "auto" or on_cpu:  # on a GPU, what `auto` means depends on which it is
        asked["precision"] = "fp32" if config.precision == "auto" else config.precision
    files = {"checkpoint": checkpoint}
    with suppress(UserError):  # the data may be elsewhere
        files[SPLIT_FILE] = find_split_file(config.pickle_file_path)
    hashes = made_with.get("sha256") or {}
    fits = (
        results.summary["hd95"]["rule"] == config.hd95_empty
        and all(made_with.get(key, value) == value for key, value in asked.items())
        and all(
            hashes[name] == sha256_of(path)
            for name, path in files.items()
            if name in hashes and path.is_file()
        )
    )
    return results if fits else None
