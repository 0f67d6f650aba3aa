"""Scores of finished and running trials, read from their run folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engine.runs.history import read_scores
from experiments.sweeps.trials import Setting, text_of
from experiments.trials.earlier_runs import fitting_results, other_settings, own_record
from experiments.trials.records import Record, Status
from experiments.trials.trial import Trial
from scoring.groups import joined
from scoring.results import Results, recorded_groups
from utils.runs import BEST_WEIGHTS, RESULTS_PREFIX

CHOOSING = {"val": "val Dice", "test": "best test Dice"}
"""By `select_on`: what the reports call a run's best Dice on the cases that chose its checkpoint."""


class Repeat(NamedTuple):
    """What tells the runs of a setting apart."""

    seed: int
    fold: int


@dataclass(frozen=True)
class SettingScores:
    """A row of the report: one setting over its runs.

    `val` is each trained run's best Dice on the cases that choose its checkpoint (`CHOOSING`), `test` the
    mean Dice on the test split of those that are also scored there, `cases` (N,) the Dice of every test case
    averaged over the trained runs, where all of them are scored, and `groups` (N,) which of these cases show
    the same source.
    """

    name: str
    values: dict[str, str]
    planned: int
    statuses: Counter[Status]
    val: list[float]
    test: list[float] = field(default_factory=list)
    cases: np.ndarray | None = None
    groups: list[str] | None = None
    grouped_by: str | None = None  # how these groups are known; None where nothing is
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    untimed_attempts: int = 0  # attempts whose seconds are missing in these sums
    errors: dict[str, str] = field(default_factory=dict)  # of failed trials, by name
    others: dict[str, str] = field(default_factory=dict)
    """What other settings runs that do not count were made with, by the trial's name."""
    val_of: dict[Repeat, float] = field(default_factory=dict)
    """`val` by repeat, to pair settings by; `test_of` likewise `test`."""
    test_of: dict[Repeat, float] = field(default_factory=dict)
    across_folds: bool = False  # whether the runs hold out different folds of one train part

    @property
    def complete(self) -> bool:
        """Whether every run of it is trained."""
        return len(self.val) == self.planned


class OpenElsewhere(NamedTuple):
    """Names of the settings that other sweeps of a shared search have begun and not ended."""

    abandoned: list[str]
    """By a sweep in this folder that has ended."""
    tried: list[str]
    """By all others, with their hosts and folders; whether they still run is not known here."""


def validation_curve(trial: Trial) -> dict[int, float]:
    """Dice so far, by epoch, on the cases that choose the checkpoint."""
    try:
        return read_scores(trial.folder / "history.csv", f"{trial.config.select_on}_dice")
    except FileNotFoundError:
        return {}


def best_validation(trial: Trial) -> float | None:
    """The Dice that chose the checkpoint; None before the first validation."""
    return max(validation_curve(trial).values(), default=None)


def results_on_test(trial: Trial) -> Results | None:
    """The scores of the test cases; None if the trial was not validated as its config says."""
    folder = trial.folder / f"{RESULTS_PREFIX}{trial.config.dataset}"
    return fitting_results(folder, trial.config, trial.folder / BEST_WEIGHTS)


def outdated_steps(trial: Trial) -> set[str]:
    """The validation, where the scores that lie there are not those that the trial asks for."""
    return {"valid"} if results_on_test(trial) is None else set()


def score_setting(setting: Setting, keys: Sequence[str]) -> SettingScores:
    """What the runs of a setting have scored so far; `keys` are those whose values the report shows.

    A run that was made with other settings counts as waiting: it will be made again, or refused.
    """
    records = {trial: own_record(trial) for trial in setting.trials}
    known = {trial: record for trial, record in records.items() if record is not None}
    trained = [trial for trial, record in known.items() if record.trained]
    validated = [trial for trial in trained if "valid" in known[trial].done]
    results_of = {trial: results_on_test(trial) for trial in validated}
    tested = {trial: results for trial, results in results_of.items() if results is not None}
    tests = list(tested.values())
    test_dice = [results.values("DSC") for results in tests]
    best = {trial: dice for trial in trained if (dice := best_validation(trial)) is not None}
    same_cases = len(tests) == len(trained) > 0 and all(
        results.names == tests[0].names for results in tests
    )
    groups = joined([recorded_groups(results.summary) for results in tests])
    return SettingScores(
        name=setting.name,
        values=values_of(setting, keys),
        planned=len(setting.trials),
        statuses=Counter(_status(record) for record in records.values()),
        val=list(best.values()),
        test=[float(of_run.mean()) for of_run in test_dice],
        cases=np.mean(test_dice, axis=0) if same_cases else None,
        groups=groups.labels(tests[0].names) if same_cases else None,
        grouped_by=groups.by,
        wall_seconds=sum(sum(record.wall_seconds.values()) for record in known.values()),
        cpu_seconds=sum(sum(record.cpu_seconds.values()) for record in known.values()),
        untimed_attempts=sum(record.untimed_attempts for record in known.values()),
        errors={
            trial.name: record.error or ""
            for trial, record in known.items()
            if record.status == "failed"
        },
        others={
            trial.name: other
            for trial in setting.trials
            if (other := other_settings(trial)) is not None
        },
        val_of={_repeat(trial): dice for trial, dice in best.items()},
        test_of={
            _repeat(trial): float(dice.mean())
            for trial, dice in zip(tested, test_dice, strict=True)
        },
        across_folds=len({trial.config.fold for trial in setting.trials if trial.config.folds}) > 1,
    )


def values_of(setting: Setting, keys: Sequence[str]) -> dict[str, str]:
    """The setting's values of `keys`, as text."""
    return {key: text_of(getattr(setting.trials[0].config, key)) for key in keys}


def _repeat(trial: Trial) -> Repeat:
    return Repeat(trial.config.seed, trial.config.fold)


def _status(record: Record | None) -> Status:
    return "waiting" if record is None else record.status
