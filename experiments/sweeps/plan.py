"""The plan of a sweep: made, described before anything runs, and reported."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import suppress

from datasets.cases import open_data_set
from engine.runs.seen_cases import known_held_out_cases
from engine.training_cases import training_cases_from
from experiments.sweeps.base import Plan
from experiments.sweeps.report import find_best, write_best, write_report
from experiments.sweeps.scores import SettingScores, score_setting
from experiments.sweeps.settings import Range, Sweep
from experiments.sweeps.trials import (
    Setting,
    best_config,
    check_inputs,
    check_search,
    check_unlike,
    list_settings,
    make_setting,
)
from experiments.trials.earlier_runs import (
    check_earlier_runs,
    check_settings,
    other_settings,
    own_record,
    trained_alike,
)
from experiments.trials.records import RECORD
from experiments.trials.trial import Trial
from utils.errors import UserError, listed

log = logging.getLogger("wavegms")

NAMED = 5  # trials in a message


def make_plan(sweep: Sweep, owner: str, retry_failed: bool) -> Plan:
    """The plan of a sweep whose slot is held under the identity `owner`."""
    if sweep.settings.search:
        from experiments.sweeps.search import SearchPlan

        return SearchPlan(sweep, owner, retry_failed)
    return ListedPlan(sweep, list_settings(sweep))


def make_report_plan(sweep: Sweep) -> Plan:
    """The plan of a sweep of which only the scores are wanted, also while another process runs it.

    UserError where nothing of it has been run, or all of it with other settings.
    """
    if sweep.settings.search:
        from experiments.sweeps.search import SearchPlan

        return SearchPlan(sweep, owner="", retry_failed=False, only_report=True)
    settings = list_settings(sweep)
    trials = [trial for setting in settings for trial in setting.trials]
    if not any(trial.folder.is_dir() for trial in trials):
        raise UserError(f"no trial of this sweep lies in {sweep.folder}: run it without --report")
    check_earlier_runs(trials)
    others = [f"{t.name}: {other}" for t in trials if (other := other_settings(t)) is not None]
    if others and not any(own_record(trial) for trial in trials):
        remedy = (
            "run the sweep without --report: nothing is trained again"
            if all(trained_alike(trial) for trial in trials)
            else "run the sweep without --report in another snapshot_path"
        )
        raise UserError(
            f"no run in {sweep.folder} was made with the settings of this sweep:\n  "
            + listed(others, NAMED, "\n  ")
            + f"\nThe report that lies there is left as it is. Restore the settings, or {remedy}"
        )
    for line in _left_out(sweep, trials):
        log.warning(line)
    return ListedPlan(sweep, settings)


def check_sweep(sweep: Sweep) -> list[Trial]:
    """Build every config, and return the trials that will be run; of a search, those of one setting.

    UserError if a config does not fit or lacks its weights, or if a run is there that was trained otherwise.
    """
    settings = sweep.settings
    if settings.search:
        from experiments.sweeps.optuna_study import check_earlier_search, distribution

        check_search(sweep)
        check_earlier_search(sweep)
        with suppress(ImportError):  # a search can be described without Optuna
            for key in settings.search:
                distribution(sweep, key)
        return list(make_setting(sweep, {}, named=[]).trials)
    every = list_settings(sweep)
    check_unlike(sweep, every)
    for setting in every:
        check_inputs(sweep, setting.trials[0].config)
    trials = [trial for setting in every for trial in setting.trials]
    check_earlier_runs(trials, settings.workers)
    check_settings(trials)
    return trials


def describe_plan(sweep: Sweep, trials: list[Trial]) -> str:
    """What the sweep would run; `trials` are those of `check_sweep`."""
    settings = sweep.settings
    runs_of_setting = max(1, len(settings.seeds)) * (settings.folds or 1)
    if settings.search:
        lines = [f"{settings.trials} settings, searched in:"]
        for key, values in settings.search.items():
            lines.append(f"  {key}: {values.text() if isinstance(values, Range) else values}")
        lines.append(f"runs of a setting: {runs_of_setting}")
    else:
        lines = [f"{len(trials) // runs_of_setting} setting(s), {len(trials)} trial(s):"]
        lines += [f"  {trial.name}" for trial in trials]
        lines += [f"warning: {line}" for line in _left_out(sweep, trials)]
    lines += [f"trials at a time: {settings.workers}", f"writes to: {sweep.folder}"]
    return "\n".join([*lines, *_size_warning(sweep), *_held_out_warning(trials)])


def _left_out(sweep: Sweep, trials: list[Trial]) -> list[str]:
    """A line where the sweep's folder has trials that are none of these."""
    folders = {trial.folder for trial in trials}
    found = sorted(path.parent for path in sweep.folder.glob(f"*/epochs_*/{RECORD}"))
    names = [str(path.relative_to(sweep.folder)) for path in found if path not in folders]
    if not names:
        return []
    return [
        f"{len(names)} trial(s) in {sweep.folder} are not of this sweep, so that its report leaves them out: "
        + listed(names, NAMED)
    ]


def _size_warning(sweep: Sweep) -> list[str]:
    """A line where settings of different image sizes are ranked."""
    settings = sweep.settings
    sizes = {
        *settings.grid,
        *settings.search,
        *(key for v in settings.variants.values() for key in v),
    }
    if "image_size" not in sizes:
        return []
    return [
        "warning: the settings are ranked by Dice at their own image_size, and masks of another size are other "
        "masks: Dice differs for that alone. evaluation_size, with validate: true, makes the test scores comparable"
    ]


def _held_out_warning(trials: list[Trial]) -> list[str]:
    """A line where initial weights or teachers know cases that a trial holds out, as far as the data is
    prepared.
    """
    open_once = functools.cache(open_data_set)
    concerned = []
    for trial in trials:
        if not trial.config.builds_on:
            continue
        with suppress(UserError):
            data_set = open_once(trial.config.pickle_file_path)
            held_out = training_cases_from(trial.config, data_set).val
            if any(known_held_out_cases(w, held_out, data_set) for w in trial.config.builds_on):
                concerned.append(trial)
    if not concerned:
        return []
    return [
        f"warning: in {len(concerned)} of {len(trials)} trial(s), as {concerned[0].name}, the initial weights, or teachers, were "
        "trained on cases that the trial holds out to choose by, so that its val_dice is too high: take weights "
        "of other data, or keep the seed, val_fraction and folds of their run"
    ]


class ListedPlan(Plan):
    """A sweep over a grid, variants, seeds and folds: all trials are known beforehand."""

    def __init__(self, sweep: Sweep, settings: list[Setting]) -> None:
        self.settings = settings
        variant_keys = (key for keys in sweep.settings.variants.values() for key in keys)
        self.keys = list(dict.fromkeys([*variant_keys, *sweep.settings.grid]))

    def trials(self) -> Iterator[Trial]:
        """The first trial of every setting, then the second, and so on: they can be compared early."""
        for trials in zip(*(setting.trials for setting in self.settings), strict=True):
            yield from trials

    def scores(self) -> list[tuple[Setting, SettingScores]]:
        return [(setting, score_setting(setting, self.keys)) for setting in self.settings]


def write_sweep_report(sweep: Sweep, plan: Plan) -> list[SettingScores]:
    """Write sweep.csv, sweep.md, sweep.png and best.yaml; the latter is removed where no setting is best."""
    scores = plan.scores()
    rows = [row for _, row in scores]
    title = f"Sweep {sweep.path.stem}"
    write_report(
        sweep.folder, title, rows, select_on=sweep.base.select_on, figure=plan.figure(title)
    )
    best = find_best(rows)
    if best is None:
        (sweep.folder / "best.yaml").unlink(missing_ok=True)
    for setting, row in scores:
        if row is best:
            write_best(sweep.folder, row, best_config(sweep, setting))
    return rows
