"""From a sweep to its settings, and from a setting to its runs.

A setting is what is compared: values for some keys of the config. Its runs are trials that differ
only in seed and fold. Names are readable: `lr=0.001_seed=1`, `sft_lr=0.001_seed=1_fold=0`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.cases import find_split_file
from datasets.prepared import read_metadata_groups
from datasets.splits import hold_out_fold, read_split
from experiments.sweeps.settings import BEST_NAME, Range, Sweep
from experiments.trials.earlier_runs import trained_processes
from experiments.trials.inputs import check_weights
from experiments.trials.trial import Trial
from utils.config import Config, check_used
from utils.config_keys import IDLE, MACHINE_SETTINGS, NOT_INHERITED
from utils.errors import UserError

BASE_NAME = "base"  # of the setting that changes nothing
MAX_NAME = 120
MAX_CORNERS = 1024


@dataclass(frozen=True)
class Setting:
    """The values of some keys of the config, and the runs that have them."""

    name: str
    values: dict[str, Any]
    trials: tuple[Trial, ...]
    refused: str | None = None
    """Why there is no config with these values; such a setting has no runs."""


def list_settings(sweep: Sweep) -> list[Setting]:
    """All variants with all combinations of the grid, each with its runs.

    Every config is built here; UserError if one does not fit, two have the same name, or one has a key
    that its model does not use.
    """
    variants = sweep.settings.variants or {"": {}}
    settings = [
        make_setting(sweep, variants[name] | values, name=name, named=list(values))
        for name, values in itertools.product(variants, _combinations(sweep.settings.grid))
    ]
    for setting in settings:
        where = f"{sweep.path}: setting {setting.name}"
        check_used(setting.trials[0].config, setting.values, where)
    names = [setting.name for setting in settings]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{sweep.path}: two settings are {twice}; list each value once")
    return settings


def check_unlike(sweep: Sweep, settings: Iterable[Setting]) -> None:
    """UserError where two settings would train the same network."""
    known: dict[str, Setting] = {}
    for setting in settings:
        config = setting.trials[0].config
        learned = config.model_dump(mode="json", exclude=set(IDLE)) | {
            "GPUs": 1 if sweep.settings.workers > 1 else len(config.GPUs)
        }
        other = known.setdefault(json.dumps(learned, sort_keys=True), setting)
        if other is setting:
            continue
        before, now = other.trials[0].config, config
        idle = [key for key in setting.values | other.values if key in IDLE]
        differ = [key for key in dict.fromkeys(idle) if getattr(before, key) != getattr(now, key)]
        why = "; ".join(map(_why_idle, differ)) or "they are equal, leave one out"
        raise UserError(
            f"{sweep.path}: the settings {other.name} and {setting.name} would train the same network: {why}"
        )


def _why_idle(key: str) -> str:
    if key in MACHINE_SETTINGS:
        what = "only changes where and how fast a run is computed, or what else is reported"
        return f"{key} {what}: set it outside of `sweep:`"
    return f"{key} only changes what is scored or kept: give it to valid.py, or set it outside of `sweep:`"


def make_setting(
    sweep: Sweep, values: dict[str, Any], *, name: str = "", named: Iterable[str]
) -> Setting:
    """The setting with `values`; its name is `name`, then `key=value` for the keys in `named`."""
    config = sweep.config(values)
    parts = [name] if name else []
    parts += [f"{key}={text_of(getattr(config, key))}" for key in named]
    label = "_".join(parts)
    if len(label) > MAX_NAME:
        raise UserError(
            f"{sweep.path}: the name {label[:MAX_NAME]}... is too long for a folder; "
            "name the settings by `variants:`"
        )
    trials = [
        make_trial(sweep, "_".join([*parts, *suffixes]), values | repeat)
        for suffixes, repeat in _repeats(sweep)
    ]
    return Setting(label or BASE_NAME, values, tuple(trials))


def make_trial(sweep: Sweep, name: str, values: dict[str, Any]) -> Trial:
    """The trial that runs in the folder `name` of the sweep."""
    folder = sweep.folder / (name or BASE_NAME)
    return Trial(
        name or BASE_NAME, sweep.config(values | NOT_INHERITED | {"snapshot_path": folder})
    )


def best_config(sweep: Sweep, setting: Setting) -> Config:
    """The config of best.yaml: the setting with its first seed, in a folder of its own, on one GPU where each
    of its trials had one. None of the sweep's folds is held out.
    """
    repeat: dict[str, Any] = {"folds": 0, "fold": 0} if sweep.settings.folds else {}
    if sweep.settings.seeds:
        repeat["seed"] = sweep.settings.seeds[0]
    place = NOT_INHERITED | {"snapshot_path": sweep.folder / BEST_NAME}
    config = sweep.config(setting.values | repeat | place)
    processes = _processes_of(sweep, setting.trials[0])
    return config.model_copy(update={"GPUs": config.GPUs[:processes]})


def _processes_of(sweep: Sweep, trial: Trial) -> int:
    """How many processes have trained the trial; of one that ran on another machine, as the sweep would."""
    if trial.folder.is_dir():
        return trained_processes(trial.folder)
    return 1 if sweep.settings.workers > 1 else len(trial.config.GPUs)


def check_inputs(sweep: Sweep, config: Config) -> None:
    """UserError where the folder of the VAE's weights or the file of initial weights is missing, or
    where folds would cut a split that names its own cases to choose by, or has fewer cases than folds.

    Weights that may be on the Hugging Face hub are left to the trials.
    """
    check_weights(config, str(sweep.path))
    if config.folds:
        _check_folds(sweep, config)


def _check_folds(sweep: Sweep, config: Config) -> None:
    try:
        split_file = find_split_file(config.pickle_file_path)
        split = read_split(split_file)
        groups = read_metadata_groups(split_file.parent)
    except UserError:  # the data may not be prepared yet
        return
    if split.val:
        raise UserError(
            f"{sweep.path}: sweep.folds cut train, but {config.pickle_file_path} names {len(split.val)} cases to "
            "choose the checkpoint by (`val`): leave out folds, or move these cases into train"
        )
    try:
        hold_out_fold(split.train, config.folds, config.fold, config.seed, groups)
    except UserError as error:
        raise UserError(f"{sweep.path}: sweep.folds: {error}") from error


def check_search(sweep: Sweep) -> None:
    """Build the configs at the ends of all ranges and for all choices; UserError if one does not fit.

    All their combinations are built; where these are more than MAX_CORNERS, each value on its own. Also
    refused: two choices of one name, a step that is a fraction of a whole number or reaches numbers that do
    not fit, missing weights, a key that one of the models does not use, and one that changes no training.
    """
    search = sweep.settings.search
    ends = {key: ends_of(values) for key, values in search.items()}
    for model in ends.get("model", [sweep.base.model]):
        check_used(sweep.config({"model": model}), search, f"{sweep.path}: sweep.search")
    if math.prod(map(len, ends.values())) <= MAX_CORNERS:
        combinations = _combinations(ends)
    else:
        combinations = [{key: value} for key, values in ends.items() for value in values]
    for combination in combinations:
        check_inputs(sweep, make_setting(sweep, combination, named=[]).trials[0].config)
    for key, values in search.items():
        _check_values(sweep, key, values)


def _check_values(sweep: Sweep, key: str, values: Range | list[Any]) -> None:
    where = f"{sweep.path}: sweep.search.{key}"
    if key in IDLE - {"GPUs"} and len(ends_of(values)) > 1:
        raise UserError(f"{where}: all settings would train the same network: {_why_idle(key)}")
    if isinstance(values, Range):
        value = getattr(sweep.config({key: values.low}), key)
        if not isinstance(value, (int, float)):
            raise UserError(f"{where}: a range is one of numbers; list the values")
        if isinstance(value, int) and values.step is not None and values.step % 1:
            raise UserError(f"{where}: step is {values.step:g}, expected a whole number")
        if isinstance(value, int):
            _check_steps(sweep, key, values)
        return
    names = [text_of(value) for value in values]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: two choices are {twice}; list each value once")


def _check_steps(sweep: Sweep, key: str, values: Range) -> None:
    """UserError where the first step of a range of whole numbers does not fit, as where 8 must divide them.

    If it fits, so do the others: the ends of the range are known to fit.
    """
    low, high = int(values.low), int(values.high)

    def fits(step: int) -> bool:
        with suppress(UserError):
            sweep.config({key: low + step})
            return True
        return False

    step = int(values.step or 1)
    if not fits(step):
        fitting = next(filter(fits, range(1, high - low + 1)))
        raise UserError(
            f"{sweep.path}: sweep.search.{key}: {low + step} is in the range, which {key} cannot be: set step: "
            f"{fitting}{' in place of log: true' if values.log else ''}, or list the values"
        )


def ends_of(values: Range | list[Any]) -> list[Any]:
    """The extreme values of a range, or all of a list."""
    return [values.low, values.high] if isinstance(values, Range) else values


def text_of(value: object) -> str:
    """A value as a part of a folder's name: 0.001, litevae, 1-2-4-4, none."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list)):
        return "-".join(map(text_of, value))
    text = value.as_posix() if isinstance(value, Path) else str(value)
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")


def _repeats(sweep: Sweep) -> list[tuple[list[str], dict[str, int]]]:
    """For each run of a setting: what it adds to the name, and the keys that it sets."""
    folds, seeds = sweep.settings.folds, sweep.settings.seeds
    by_seed = [([f"seed={seed}"], {"seed": seed}) for seed in seeds] or [([], {})]
    by_fold: list[tuple[list[str], dict[str, int]]] = [
        ([f"fold={fold}"], {"folds": folds, "fold": fold}) for fold in range(folds or 0) if folds
    ]
    return [
        (seed_name + fold_name, seed_values | fold_values)
        for (seed_name, seed_values), (fold_name, fold_values) in itertools.product(
            by_seed, by_fold or [([], {})]
        )
    ]


def _combinations(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [
        dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
    ]
