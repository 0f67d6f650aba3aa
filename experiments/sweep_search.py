"""Searching for settings with Optuna: TPE proposes them, and those below the median are pruned.

A trial of Optuna (`optuna_trial`, or `frozen_trial` as it is read from the study) is a setting here. Its
value is the mean over the setting's runs of their best Dice on the cases that choose the checkpoint.

A setting that was running when its sweep was stopped or killed stays so in the study, under the name
of its sweep's slot; the next sweep that holds the slot resumes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.earlier_runs import own_record
from experiments.records import Status
from experiments.runner import Outcome, Trial
from experiments.sweep_scores import (
    SettingScores,
    best_validation,
    outdated_steps,
    score_setting,
    validation_curve,
    values_of,
)
from experiments.sweep_search_figure import draw_search
from experiments.sweep_search_study import (
    distribution,
    make_sampler,
    open_study,
    other_search_error,
    value_of,
)
from experiments.sweep_settings import Sweep
from experiments.sweep_trials import Setting, make_setting

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

MAX_NAMED_KEYS = 4  # more would make the folders' names too long

# attributes of a setting in the study
OWNER = "owner"  # slot of the sweep that asked for it
NUMBER = "number"  # in the name of its folder, where that is not its own
RETRY_OF = "retry_of"  # number of the failed setting that it tries again
SURPLUS = "surplus"  # whether other sweeps have asked for enough settings before it
SCORES = "scores"  # best Dice of each run on the cases that choose its checkpoint
WALL, CPU = "wall_seconds", "cpu_seconds"

STATUS_OF_STATE: dict[str, Status] = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass
class RunningSetting:
    """A setting that is being tried."""

    setting: Setting
    optuna_trial: optuna.Trial
    reported: set[int]  # epochs of the first run that the study knows
    started: int = 0  # runs
    outcomes: list[Outcome] = field(default_factory=list)
    pruned: bool = False
    history_stamp: int = 0  # of the first run's history when it was last read

    @property
    def given_up(self) -> bool:
        """Whether no run of it will still start: one of them was pruned, or has failed in training."""
        records = [outcome.record for outcome in self.outcomes]
        return self.pruned or any(r.status == "failed" and not r.trained for r in records)


class SearchPlan:
    """The trials of a study, asked for one setting at a time.

    `owner` names the slot that this process holds (`experiments.sweep_slots`).
    """

    def __init__(self, sweep: Sweep, owner: str, retry_failed: bool) -> None:
        self.sweep, self.owner = sweep, owner
        self.keys = list(sweep.settings.search)
        self.study = open_study(sweep)
        self.distributions = {key: distribution(sweep, key) for key in self.keys}
        self.running_settings: dict[str, RunningSetting] = {}  # by the name of a run
        if retry_failed:
            self._enqueue_failed()

    def trials(self) -> Iterator[Trial]:
        """First what an earlier sweep left running or unscored, then new settings until there are enough."""
        import optuna

        left_running = self.study.get_trials(states=[optuna.trial.TrialState.RUNNING])
        for frozen_trial in left_running:
            if self.sweep.settings.storage and frozen_trial.user_attrs.get(OWNER) != self.owner:
                continue
            if self._is_drawn(frozen_trial):
                optuna_trial = optuna.trial.Trial(self.study, frozen_trial._trial_id)
                yield from self._runs(optuna_trial, set(frozen_trial.intermediate_values))
            else:  # killed while it was being asked for
                self.study.tell(frozen_trial.number, state=optuna.trial.TrialState.FAIL)
        yield from self._unscored()
        while (optuna_trial := self._ask()) is not None:
            yield from self._runs(optuna_trial, set())

    def should_prune(self, trial: Trial) -> bool:
        """Whether the setting's first run falls behind the median of the other settings' first runs.

        The other runs of a pruned setting are pruned, too.
        """
        running = self.running_settings.get(trial.name)
        if running is None:  # the study knows its value
            return False
        if not self.sweep.settings.prune or running.pruned:
            return running.pruned
        if trial is not running.setting.trials[0]:
            return False
        with suppress(FileNotFoundError):
            stamp = (trial.folder / "history.csv").stat().st_mtime_ns
            if stamp != running.history_stamp:
                running.history_stamp = stamp
                running.pruned = self._falls_behind(running)
        return running.pruned

    def ended(self, outcome: Outcome) -> None:
        """When the setting's last run has ended, tell the study; one that was stopped stays open."""
        running = self.running_settings.get(outcome.trial.name)
        if running is None:  # the study knows its value
            return
        running.outcomes.append(outcome)
        statuses = {outcome.record.status for outcome in running.outcomes}
        running.pruned |= "pruned" in statuses
        if running.started < len(running.setting.trials) and not running.given_up:
            return
        all_ended = len(running.outcomes) == running.started
        if all_ended and statuses <= {"finished", "pruned", "failed"}:
            self._tell(running)

    def scores(self) -> list[tuple[Setting, SettingScores]]:
        """Scores from the run folders, else from the study.

        The study has those of settings from other machines, and of finished ones whose folders here hold
        other runs by now.
        """
        scores = []
        for frozen_trial in latest_tries(self.study.get_trials(deepcopy=False)):
            if not self._is_drawn(frozen_trial):
                continue
            setting = self._setting(frozen_trial)
            row = score_setting(setting, self.keys)
            here = any(trial.folder.is_dir() for trial in setting.trials)
            if not here or (frozen_trial.state.name == "COMPLETE" and row.statuses["waiting"]):
                row = self._scores_elsewhere(setting, frozen_trial)
            scores.append((setting, row))
        return scores

    def figure(self, title: str) -> Figure:
        return draw_search(self.study, self.sweep.base.select_on, title)

    def _unscored(self) -> Iterator[Trial]:
        """Runs of finished settings that lie here and are not validated as the sweep asks."""
        from optuna.trial import TrialState

        wanted = {"valid"} if self.sweep.settings.validate_runs else set()
        finished = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        for frozen_trial in filter(self._is_drawn, finished):
            for trial in self._setting(frozen_trial).trials:
                record = own_record(trial)
                if record is None:
                    continue
                done = set(record.done) - (outdated_steps(trial) & wanted)
                if record.status != "finished" or not wanted <= done:
                    yield trial

    def _ask(self) -> optuna.Trial | None:
        """A new setting to try; None when there are enough.

        Seeded by its number, so that a search that was stopped proposes what it would have.
        """
        from optuna.trial import TrialState

        frozen_trials = self.study.get_trials(deepcopy=False)
        queued = any(each.state == TrialState.WAITING for each in frozen_trials)
        count = sum(map(self._is_drawn, latest_tries(frozen_trials)))
        if not queued and count >= (self.sweep.settings.trials or 0):
            return None
        shared = self.sweep.settings.storage is not None
        self.study.sampler = make_sampler(
            self.sweep, None if shared else (self.sweep.base.seed + len(frozen_trials)) % 2**32
        )
        try:
            optuna_trial = self.study.ask(self.distributions)
        except ValueError as error:
            raise other_search_error(self.sweep, [str(error)]) from error
        optuna_trial.set_user_attr(OWNER, self.owner)
        if shared and RETRY_OF not in optuna_trial.user_attrs and self._is_surplus(optuna_trial):
            optuna_trial.set_user_attr(SURPLUS, True)
            self.study.tell(optuna_trial.number, state=TrialState.FAIL)
            return None
        return optuna_trial

    def _is_surplus(self, optuna_trial: optuna.Trial) -> bool:
        """Whether there are enough settings before this one: other sweeps may have asked at the same time."""
        settings = filter(self._is_drawn, latest_tries(self.study.get_trials(deepcopy=False)))
        before = sum(setting.number < optuna_trial.number for setting in settings)
        return before >= (self.sweep.settings.trials or 0)

    def _is_drawn(self, frozen_trial: FrozenTrial) -> bool:
        """Whether it has a value for every key."""
        return self.distributions.keys() <= frozen_trial.params.keys()

    def _runs(self, optuna_trial: optuna.Trial, reported: set[int]) -> Iterator[Trial]:
        running = RunningSetting(self._setting(optuna_trial), optuna_trial, reported)
        self.running_settings |= {trial.name: running for trial in running.setting.trials}
        for trial in running.setting.trials:
            if running.given_up:
                return
            running.started += 1
            yield trial

    def _setting(self, tried: FrozenTrial | optuna.Trial) -> Setting:
        search = self.sweep.settings.search
        values = {key: value_of(search[key], tried.params[key]) for key in self.keys}
        number = tried.user_attrs.get(NUMBER, tried.number)
        named = self.keys if len(self.keys) <= MAX_NAMED_KEYS else []
        return make_setting(self.sweep, values, name=f"{number:03d}", named=named)

    def _report_curve(self, running: RunningSetting) -> None:
        """Tell the study what the setting's first run has reached so far, epoch by epoch."""
        for epoch, dice in sorted(validation_curve(running.setting.trials[0]).items()):
            if epoch not in running.reported:
                running.reported.add(epoch)
                running.optuna_trial.report(dice, epoch)

    def _falls_behind(self, running: RunningSetting) -> bool:
        self._report_curve(running)
        finished = running.setting.trials[0].config.epochs in running.reported
        return not finished and bool(running.optuna_trial.should_prune())

    def _tell(self, running: RunningSetting) -> None:
        """End the setting in the study, with its value where all of its runs have one."""
        from optuna.trial import TrialState

        optuna_trial = running.optuna_trial
        records = [outcome.record for outcome in running.outcomes]
        optuna_trial.set_user_attr(WALL, sum(sum(r.wall_seconds.values()) for r in records))
        optuna_trial.set_user_attr(CPU, sum(sum(r.cpu_seconds.values()) for r in records))
        self._report_curve(running)
        trained = [outcome.trial for outcome in running.outcomes if outcome.record.trained]
        dice = [best for trial in trained if (best := best_validation(trial)) is not None]
        if len(dice) == len(running.setting.trials):
            optuna_trial.set_user_attr(SCORES, dice)
            self.study.tell(optuna_trial.number, sum(dice) / len(dice))
        else:
            state = TrialState.PRUNED if running.pruned else TrialState.FAIL
            self.study.tell(optuna_trial.number, state=state)

    def _enqueue_failed(self) -> None:
        """Try the failed settings again, in their folders, where the runs resume."""
        from optuna.trial import TrialState

        for failed in latest_tries(self.study.get_trials()):
            if failed.state == TrialState.FAIL:
                number = failed.user_attrs.get(NUMBER, failed.number)
                attributes = {RETRY_OF: failed.number, NUMBER: number}
                self.study.enqueue_trial(failed.params, user_attrs=attributes)

    def _scores_elsewhere(self, setting: Setting, frozen_trial: FrozenTrial) -> SettingScores:
        dice = frozen_trial.user_attrs.get(SCORES, [])
        return SettingScores(
            name=setting.name,
            values=values_of(setting, self.keys),
            planned=len(setting.trials),
            statuses=Counter({STATUS_OF_STATE[frozen_trial.state.name]: len(dice) or 1}),
            val=dice,
            wall_seconds=frozen_trial.user_attrs.get(WALL, 0.0),
            cpu_seconds=frozen_trial.user_attrs.get(CPU, 0.0),
        )


def latest_tries(frozen_trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without the failed ones that a later one tries again, and without surplus ones."""
    retried = {frozen_trial.user_attrs.get(RETRY_OF) for frozen_trial in frozen_trials}
    return [
        each
        for each in frozen_trials
        if each.number not in retried and not each.user_attrs.get(SURPLUS)
    ]
