"""Searching for settings with Optuna: TPE proposes, the median of the earlier ones prunes.

A trial of Optuna is a setting here; its value is the mean of the runs' best Dice on the cases that
choose the checkpoint. The study lies in the sweep's folder (SQLite) or in a storage that several
machines share. A setting that was running when its sweep was stopped or killed stays so in the study,
under the name of its sweep's slot; the next sweep that holds the slot resumes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from experiments.records import Status
from experiments.runner import Outcome, Trial
from experiments.sweep_scores import (
    SettingScores,
    best_validation,
    own_record,
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
OWNER, NUMBER, RETRY_OF, SCORES, WALL, CPU = (
    "owner", "number", "retry_of", "scores", "wall_seconds", "cpu_seconds",
)  # attributes of a setting in the study  # fmt: skip
STATUS_OF_STATE: dict[str, Status] = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


@dataclass
class Candidate:
    """A setting that is being tried."""

    number: int  # of the setting in the study
    setting: Setting
    handle: optuna.Trial
    reported: set[int]  # epochs that the study knows
    unstarted: int
    outcomes: list[Outcome] = field(default_factory=list)
    pruned: bool = False
    seen: int = 0  # time stamp of the history that was read last

    @property
    def over(self) -> bool:
        """Whether no run of it will still start: one of them was pruned or has failed."""
        return self.pruned or any(each.record.status == "failed" for each in self.outcomes)


class SearchPlan:
    """The trials of a study, asked for one setting at a time.

    `owner` names the slot that this process holds (`experiments.sweep_slots`).
    """

    def __init__(self, sweep: Sweep, owner: str, retry_failed: bool) -> None:
        self.sweep, self.owner = sweep, owner
        self.keys = list(sweep.settings.search)
        self.study = open_study(sweep)
        self.distributions = {key: distribution(sweep, key) for key in self.keys}
        self.candidates: dict[str, Candidate] = {}  # by the name of a run
        if retry_failed:
            self._enqueue_failed()

    def trials(self) -> Iterator[Trial]:
        """What an earlier sweep left running or unscored, then new settings until there are enough."""
        import optuna

        for found in self.study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            if self.sweep.settings.storage and found.user_attrs.get(OWNER) != self.owner:
                continue
            if self._is_drawn(found):
                left = optuna.trial.Trial(self.study, found._trial_id)
                yield from self._runs(left, set(found.intermediate_values))
            else:  # killed while it was being asked for
                self.study.tell(found.number, state=optuna.trial.TrialState.FAIL)
        yield from self._unscored()
        while (asked := self._ask()) is not None:
            yield from self._runs(asked, set())

    def should_prune(self, trial: Trial) -> bool:
        """Whether the setting's first run falls behind the median of the other settings' first runs.

        The other runs of a setting that was given up are pruned, too.
        """
        candidate = self.candidates.get(trial.name)
        if candidate is None:  # the study knows its value
            return False
        if not self.sweep.settings.prune or candidate.pruned:
            return candidate.pruned
        if trial is not candidate.setting.trials[0]:
            return False
        with suppress(FileNotFoundError):
            stamp = (trial.folder / "history.csv").stat().st_mtime_ns
            if stamp != candidate.seen:
                candidate.seen = stamp
                candidate.pruned = self._falls_behind(candidate)
        return candidate.pruned

    def ended(self, outcome: Outcome) -> None:
        """When the setting's last run has ended, tell the study; one that was stopped stays open."""
        candidate = self.candidates.get(outcome.trial.name)
        if candidate is None:  # the study knows its value
            return
        candidate.outcomes.append(outcome)
        statuses = {each.record.status for each in candidate.outcomes}
        candidate.pruned |= "pruned" in statuses
        if candidate.unstarted and not candidate.over:
            return
        started = len(candidate.setting.trials) - candidate.unstarted
        if len(candidate.outcomes) == started and statuses <= {"finished", "pruned", "failed"}:
            self._tell(candidate)

    def scores(self) -> list[tuple[Setting, SettingScores]]:
        """From the run folders that lie here, else from the study.

        The latter for another machine's, and for finished ones whose folders here hold other runs.
        """
        found = self.study.get_trials(deepcopy=False)
        retried = {each.user_attrs.get(RETRY_OF) for each in found}
        scores = []
        for each in found:
            if each.number in retried or not self._is_drawn(each):
                continue
            setting = self._setting(each)
            row = score_setting(setting, self.keys)
            here = any(trial.folder.is_dir() for trial in setting.trials)
            if not here or (each.state.name == "COMPLETE" and row.statuses["waiting"]):
                row = self._scores_elsewhere(setting, each)
            scores.append((setting, row))
        return scores

    def figure(self, title: str) -> Figure:
        return draw_search(self.study, self.sweep.base.select_on, title)

    def _unscored(self) -> Iterator[Trial]:
        """Runs of finished settings that lie here, where a step that was added later is missing."""
        from optuna.trial import TrialState

        wanted = {"valid"} if self.sweep.settings.validate_runs else set()
        for each in self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
            for trial in self._setting(each).trials if self._is_drawn(each) else ():
                record = own_record(trial)
                if record and not (record.status == "finished" and wanted <= set(record.done)):
                    yield trial

    def _ask(self) -> optuna.Trial | None:
        """A new setting to try; None when there are enough.

        Seeded by its number, so that a search that was stopped proposes what it would have.
        """
        from optuna.trial import TrialState

        found = self.study.get_trials(deepcopy=False)
        retried = {each.user_attrs.get(RETRY_OF) for each in found}
        queued = any(each.state == TrialState.WAITING for each in found)
        count = sum(each.number not in retried and self._is_drawn(each) for each in found)
        if not queued and count >= (self.sweep.settings.trials or 0):
            return None
        shared = self.sweep.settings.storage is not None
        self.study.sampler = make_sampler(
            self.sweep, None if shared else (self.sweep.base.seed + len(found)) % 2**32
        )
        try:
            handle = self.study.ask(self.distributions)
        except ValueError as error:
            raise other_search_error(self.sweep, [str(error)]) from error
        handle.set_user_attr(OWNER, self.owner)
        return handle

    def _is_drawn(self, found: FrozenTrial) -> bool:
        """Whether it has a value for every key."""
        return self.distributions.keys() <= found.params.keys()

    def _runs(self, handle: optuna.Trial, reported: set[int]) -> Iterator[Trial]:
        setting = self._setting(handle)
        candidate = Candidate(handle.number, setting, handle, reported, len(setting.trials))
        self.candidates |= {trial.name: candidate for trial in setting.trials}
        for trial in setting.trials:
            if candidate.over:
                return
            candidate.unstarted -= 1
            yield trial

    def _setting(self, found: FrozenTrial | optuna.Trial) -> Setting:
        values = {
            key: value_of(self.sweep.settings.search[key], found.params[key]) for key in self.keys
        }
        number = found.user_attrs.get(NUMBER, found.number)
        named = self.keys if len(self.keys) <= MAX_NAMED_KEYS else []
        return make_setting(self.sweep, values, name=f"{number:03d}", named=named)

    def _report_curve(self, candidate: Candidate) -> None:
        """Tell the study what the setting's first run has reached so far, epoch by epoch."""
        for epoch, dice in sorted(validation_curve(candidate.setting.trials[0]).items()):
            if epoch not in candidate.reported:
                candidate.reported.add(epoch)
                candidate.handle.report(dice, epoch)

    def _falls_behind(self, candidate: Candidate) -> bool:
        self._report_curve(candidate)
        finished = candidate.setting.trials[0].config.epochs in candidate.reported
        return not finished and bool(candidate.handle.should_prune())

    def _tell(self, candidate: Candidate) -> None:
        """End the setting in the study, with its value where all of its runs have one."""
        from optuna.trial import TrialState

        records = [outcome.record for outcome in candidate.outcomes]
        handle = candidate.handle
        handle.set_user_attr(WALL, sum(sum(each.wall_seconds.values()) for each in records))
        handle.set_user_attr(CPU, sum(sum(each.cpu_seconds.values()) for each in records))
        self._report_curve(candidate)
        ended_well = [each for each in candidate.outcomes if each.record.status == "finished"]
        scores = [best_validation(each.trial) for each in ended_well]
        values = [each for each in scores if each is not None]
        if len(values) == len(candidate.setting.trials):
            handle.set_user_attr(SCORES, values)
            self.study.tell(candidate.number, sum(values) / len(values))
        else:
            state = TrialState.PRUNED if candidate.pruned else TrialState.FAIL
            self.study.tell(candidate.number, state=state)

    def _enqueue_failed(self) -> None:
        """Try the failed settings again, in their folders, where the runs resume."""
        from optuna.trial import TrialState

        found = self.study.get_trials()
        retried = {each.user_attrs.get(RETRY_OF) for each in found}
        for each in found:
            if each.state == TrialState.FAIL and each.number not in retried:
                number = each.user_attrs.get(NUMBER, each.number)
                attributes = {RETRY_OF: each.number, NUMBER: number}
                self.study.enqueue_trial(each.params, user_attrs=attributes)

    def _scores_elsewhere(self, setting: Setting, found: FrozenTrial) -> SettingScores:
        scores = found.user_attrs.get(SCORES, [])
        return SettingScores(
            name=setting.name,
            values=values_of(setting, self.keys),
            planned=len(setting.trials),
            statuses=Counter({STATUS_OF_STATE[found.state.name]: len(scores) or 1}),
            val=scores,
            wall_seconds=found.user_attrs.get(WALL, 0.0),
            cpu_seconds=found.user_attrs.get(CPU, 0.0),
        )
