"""Searching for settings with Optuna: TPE proposes them, and those below the median are pruned.

A trial of Optuna (`optuna_trial`, or `frozen_trial` as it is read from the study) is a setting here. Its
value is the mean over the setting's runs of their best Dice on the cases that choose the checkpoint.

A setting that was running when its sweep was stopped or killed stays so in the study, under the name
of its sweep's slot, until a sweep in the same folder resumes it.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.sweeps.base import Plan
from experiments.sweeps.optuna_figure import draw_search
from experiments.sweeps.optuna_study import (
    distribution,
    make_sampler,
    open_optuna_study,
    other_search_error,
    set_at_creation,
    value_of,
)
from experiments.sweeps.scores import (
    OpenElsewhere,
    SettingScores,
    best_validation,
    outdated_steps,
    score_setting,
    validation_curve,
    values_of,
)
from experiments.sweeps.settings import Sweep
from experiments.sweeps.slots import free_slots
from experiments.sweeps.trials import Setting, make_setting, text_of
from experiments.trials.earlier_runs import inputs_are_the_same, own_record, trained_alike
from experiments.trials.records import Status
from experiments.trials.trial import Outcome, Trial
from utils.errors import UserError

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

log = logging.getLogger("wavegms")

MAX_NAMED_KEYS = 4  # more would make the folders' names too long

# attributes of a setting in the study
OWNER = "owner"  # slot of the sweep that tries it
PLACE = "place"  # host and folder of that sweep
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


class SearchPlan(Plan):
    """The trials of a study, asked for one setting at a time.

    `owner` names the slot that this process holds (`experiments.sweeps.slots`). With `only_report` the study
    must be there and is left as it is: `trials` are not asked for.
    """

    def __init__(
        self, sweep: Sweep, owner: str, retry_failed: bool, *, only_report: bool = False
    ) -> None:
        self.sweep, self.owner = sweep, owner
        self.keys = list(sweep.settings.search)
        self.optuna_study = open_optuna_study(sweep, only_report)
        self.distributions = {key: distribution(sweep, key) for key in self.keys}
        self.running_settings: dict[str, RunningSetting] = {}  # by the name of a run
        place = f"{socket.gethostname()}:{sweep.folder.absolute()}"
        self._mine = {OWNER: owner, PLACE: place}
        set_at_creation(self.optuna_study, self._mine)
        self._failed_before = self._failed() if retry_failed else []

    def trials(self) -> Iterator[Trial]:
        """First what earlier sweeps left running or unscored, then new settings until there are enough.

        At the end also what other sweeps in this folder have left running meanwhile.
        """
        for frozen_trial in self._left_by_earlier():
            yield from self._resume(frozen_trial)
        yield from self._unscored()
        for frozen_trial in self._failed_before:
            if (optuna_trial := self._retry(frozen_trial)) is not None:
                yield from self._runs(optuna_trial, set())
        while (optuna_trial := self._ask()) is not None:
            yield from self._runs(optuna_trial, set())
        while left := self._left_by_ended():
            for frozen_trial in left:
                yield from self._resume(frozen_trial)

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
        for frozen_trial in latest_tries(self.optuna_study.get_trials(deepcopy=False)):
            if not self._is_drawn(frozen_trial):
                continue
            setting = self._setting(frozen_trial)
            if setting.refused:
                scores.append((setting, _scores_of_refused(setting)))
                continue
            row = score_setting(setting, self.keys)
            here = any(trial.folder.is_dir() for trial in setting.trials)
            if not here or (frozen_trial.state.name == "COMPLETE" and row.statuses["waiting"]):
                row = self._scores_elsewhere(setting, frozen_trial)
            elif frozen_trial.state.name == "PRUNED":  # the runs that were not started will not be
                row.statuses["pruned"] += row.statuses.pop("waiting", 0)
            scores.append((setting, row))
        return scores

    def open_elsewhere(self) -> OpenElsewhere:
        abandoned, tried = [], []
        if self._is_shared:
            with free_slots(self.sweep.folder) as ended:
                for each in filter(self._is_drawn, self._running()):
                    name, owner = self._setting(each).name, each.user_attrs.get(OWNER)
                    if owner in ended:
                        abandoned.append(name)
                    elif owner != self.owner:
                        tried.append(f"{name} in {each.user_attrs.get(PLACE, 'an unknown folder')}")
        return OpenElsewhere(abandoned, tried)

    def figure(self, title: str) -> Figure:
        return draw_search(self.optuna_study, self.sweep.base.select_on, title)

    @property
    def _is_shared(self) -> bool:
        return self.sweep.settings.storage is not None

    def _running(self) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        return self.optuna_study.get_trials(states=[TrialState.RUNNING])

    def _left_by_earlier(self) -> list[FrozenTrial]:
        """Settings that were running before this process began and that no other one is working on.

        Those without an owner were queued in Optuna by hand, and nobody has begun them.
        """
        left = [
            each
            for each in self._running()
            if not self._is_shared or each.user_attrs.get(OWNER) in (self.owner, None)
        ]
        return left + self._left_by_ended()

    def _left_by_ended(self) -> list[FrozenTrial]:
        """Settings that sweeps in this folder were trying when they ended; they become this one's."""
        if not self._is_shared:
            return []
        with free_slots(self.sweep.folder) as ended:
            left = [each for each in self._running() if each.user_attrs.get(OWNER) in ended]
            for each in left:
                self._make_mine(each)
        return left

    def _make_mine(self, frozen_trial: FrozenTrial) -> None:
        for key, value in self._mine.items():
            self.optuna_study._storage.set_trial_user_attr(frozen_trial._trial_id, key, value)

    def _resume(self, frozen_trial: FrozenTrial) -> Iterator[Trial]:
        import optuna

        if self._is_drawn(frozen_trial):
            self._make_mine(frozen_trial)
            optuna_trial = optuna.trial.Trial(self.optuna_study, frozen_trial._trial_id)
            yield from self._runs(optuna_trial, set(frozen_trial.intermediate_values))
        else:  # killed while it was being asked for
            self.optuna_study.tell(frozen_trial.number, state=optuna.trial.TrialState.FAIL)

    def _unscored(self) -> Iterator[Trial]:
        """Runs of finished settings that lie here and are not validated as the sweep asks."""
        from optuna.trial import TrialState

        wanted = {"valid"} if self.sweep.settings.validate_runs else set()
        finished = self.optuna_study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        for frozen_trial in filter(self._is_drawn, finished):
            for trial in self._setting(frozen_trial).trials:
                record = own_record(trial)
                if record is None:
                    # keys of the scoring were changed since
                    if wanted and trained_alike(trial) and inputs_are_the_same(trial):
                        yield trial
                    continue
                done = set(record.done) - (outdated_steps(trial) & wanted)
                if record.status != "finished" or not wanted <= done:
                    yield trial

    def _ask(self) -> optuna.Trial | None:
        """A new setting to try; None when there are enough.

        Seeded by its number, so that a search that was stopped proposes what it would have.
        """
        from optuna.trial import TrialState

        frozen_trials = self.optuna_study.get_trials(deepcopy=False)
        queued = any(each.state == TrialState.WAITING for each in frozen_trials)
        count = sum(map(self._is_drawn, latest_tries(frozen_trials)))
        if not queued and count >= (self.sweep.settings.trials or 0):
            return None
        seed = (self.sweep.base.seed + len(frozen_trials)) % 2**32
        self.optuna_study.sampler = make_sampler(self.sweep, None if self._is_shared else seed)
        try:
            optuna_trial = self.optuna_study.ask(self.distributions)
        except ValueError as error:
            raise other_search_error(self.sweep, [str(error)]) from error
        if OWNER not in optuna_trial.user_attrs:  # it was queued by hand
            for key, value in self._mine.items():
                optuna_trial.set_user_attr(key, value)
        if self._is_surplus(optuna_trial):
            self._give_back(optuna_trial)
            return None
        return optuna_trial

    def _retry(self, failed: FrozenTrial) -> optuna.Trial | None:
        """A new try of a failed setting, in its folder, where the runs resume; None where there is one."""
        import optuna

        def other_tries() -> list[int]:
            tried = self.optuna_study.get_trials(deepcopy=False)
            return [each.number for each in tried if each.user_attrs.get(RETRY_OF) == failed.number]

        if other_tries():
            return None
        number = failed.user_attrs.get(NUMBER, failed.number)
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=failed.params,
            distributions=failed.distributions,
            user_attrs=self._mine | {RETRY_OF: failed.number, NUMBER: number},
        )
        storage = self.optuna_study._storage
        trial_id = storage.create_new_trial(self.optuna_study._study_id, template_trial=template)
        optuna_trial = optuna.trial.Trial(self.optuna_study, trial_id)
        if min(other_tries()) < optuna_trial.number:  # another sweep has begun one at the same time
            self._give_back(optuna_trial)
            return None
        return optuna_trial

    def _is_surplus(self, optuna_trial: optuna.Trial) -> bool:
        """Whether there are enough settings before this one: other sweeps may have asked at the same time."""
        if not self._is_shared or RETRY_OF in optuna_trial.user_attrs:
            return False
        settings = filter(
            self._is_drawn, latest_tries(self.optuna_study.get_trials(deepcopy=False))
        )
        before = sum(setting.number < optuna_trial.number for setting in settings)
        return before >= (self.sweep.settings.trials or 0)

    def _give_back(self, optuna_trial: optuna.Trial) -> None:
        """End a setting that other sweeps have made superfluous; it counts for nothing."""
        from optuna.trial import TrialState

        optuna_trial.set_user_attr(SURPLUS, True)
        self.optuna_study.tell(optuna_trial.number, state=TrialState.FAIL)

    def _is_drawn(self, frozen_trial: FrozenTrial) -> bool:
        """Whether it has a value for every key."""
        return self.distributions.keys() <= frozen_trial.params.keys()

    def _runs(self, optuna_trial: optuna.Trial, reported: set[int]) -> Iterator[Trial]:
        from optuna.trial import TrialState

        setting = self._setting(optuna_trial)
        if setting.refused:
            log.warning("setting %s has failed: %s", setting.name, setting.refused)
            self.optuna_study.tell(optuna_trial.number, state=TrialState.FAIL)
            return
        running = RunningSetting(setting, optuna_trial, reported)
        self.running_settings |= {trial.name: running for trial in running.setting.trials}
        for trial in running.setting.trials:
            if running.given_up:
                return
            running.started += 1
            yield trial

    def _setting(self, tried: FrozenTrial | optuna.Trial) -> Setting:
        search = self.sweep.settings.search
        values = {key: value_of(search[key], tried.params[key]) for key in self.keys}
        name = f"{tried.user_attrs.get(NUMBER, tried.number):03d}"
        named = self.keys if len(self.keys) <= MAX_NAMED_KEYS else []
        try:
            return make_setting(self.sweep, values, name=name, named=named)
        except UserError as error:
            return Setting(name, values, trials=(), refused=str(error))

    def _report_curve(self, running: RunningSetting) -> None:
        """Tell the study what the setting's first run has reached so far, epoch by epoch."""
        if self._is_ended(running):
            return
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
        if self._is_ended(running):
            name = running.setting.name
            log.warning("%s has been ended in the study by another process: its result stays", name)
            return
        records = [outcome.record for outcome in running.outcomes]
        optuna_trial.set_user_attr(WALL, sum(sum(r.wall_seconds.values()) for r in records))
        optuna_trial.set_user_attr(CPU, sum(sum(r.cpu_seconds.values()) for r in records))
        self._report_curve(running)
        trained = [outcome.trial for outcome in running.outcomes if outcome.record.trained]
        dice = [best for trial in trained if (best := best_validation(trial)) is not None]
        if len(dice) == len(running.setting.trials):
            optuna_trial.set_user_attr(SCORES, dice)
            self.optuna_study.tell(optuna_trial.number, sum(dice) / len(dice))
        else:
            state = TrialState.PRUNED if running.pruned else TrialState.FAIL
            self.optuna_study.tell(optuna_trial.number, state=state)

    def _is_ended(self, running: RunningSetting) -> bool:
        """Whether the study has a result of the setting, which then cannot be changed."""
        trial_id = running.optuna_trial._trial_id
        return bool(self.optuna_study._storage.get_trial(trial_id).state.is_finished())

    def _failed(self) -> list[FrozenTrial]:
        """The failed settings, without those that are tried again."""
        from optuna.trial import TrialState

        tried = filter(self._is_drawn, latest_tries(self.optuna_study.get_trials()))
        return [each for each in tried if each.state == TrialState.FAIL]

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


def _scores_of_refused(setting: Setting) -> SettingScores:
    """Those of a setting that has no runs: one failure."""
    return SettingScores(
        name=setting.name,
        values={key: text_of(value) for key, value in setting.values.items()},
        planned=1,
        statuses=Counter({"failed": 1}),
        val=[],
        errors={setting.name: setting.refused or ""},
    )


def latest_tries(frozen_trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without the failed ones that a later one tries again, and without surplus ones."""
    retried = {frozen_trial.user_attrs.get(RETRY_OF) for frozen_trial in frozen_trials}
    return [
        each
        for each in frozen_trials
        if each.number not in retried and not each.user_attrs.get(SURPLUS)
    ]
