"""Searching for settings with Optuna: TPE proposes, the median of the earlier ones prunes.

A trial of Optuna is a setting here; its value is the mean of the runs' best Dice on the cases that
choose the checkpoint. The study lies in the sweep's folder (SQLite) or in a storage that several
machines share. A setting that was running when its sweep was stopped or killed stays so in the study,
under the name of its sweep's slot; the next sweep that holds the slot resumes it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datasets.cases import find_split_file
from experiments.records import Status
from experiments.runner import Outcome, Trial
from experiments.sweep_scores import (
    CHOOSING,
    SettingScores,
    best_validation,
    own_record,
    score_setting,
    validation_curve,
    values_of,
)
from experiments.sweep_settings import Range, Sweep
from experiments.sweep_trials import Setting, make_setting, text_of, weights_folder
from utils.config import CHANGEABLE_ON_RESUME, Config
from utils.errors import UserError
from utils.files import sha256

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MAX_NAMED_KEYS = 4  # more would make the folders' names too long
COMPARED = {
    "validate_every",
    "vae_weights",
}  # a run may change them as it resumes, a search may not
MIN_FOR_IMPORTANCE = 10  # different scores: it compares the best tenth of them with the rest
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
        """The values in the order of the trials, and which keys matter."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained")
        history, importance = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_history(history, self.study, self.sweep.base.select_on)
        _draw_importance(importance, importances(self.study))
        figure.suptitle(title)
        return figure

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
            raise UserError(_other_search(self.sweep, [str(error)])) from error
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


def distribution(sweep: Sweep, key: str) -> BaseDistribution:
    """What Optuna draws a key's values from; choices are drawn by their names.

    UserError where Optuna has none of that kind.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    values = sweep.settings.search[key]
    try:
        if not isinstance(values, Range):
            return CategoricalDistribution([text_of(each) for each in values])
        if isinstance(getattr(sweep.config({key: values.low}), key), int):
            low, high, step = int(values.low), int(values.high), int(values.step or 1)
            return IntDistribution(low, high, log=values.log, step=step)
        return FloatDistribution(values.low, values.high, log=values.log, step=values.step)
    except ValueError as error:
        raise UserError(f"{sweep.path}: sweep.search.{key}: {error}") from error


def value_of(values: Range | list[Any], drawn: Any) -> Any:
    """The config's value for what was drawn."""
    if isinstance(values, Range):
        return drawn
    return next(each for each in values if text_of(each) == drawn)


def make_sampler(sweep: Sweep, seed: int | None) -> optuna.samplers.BaseSampler:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # settings in parallel do not see each other's scores: constant_liar keeps them apart
        return optuna.samplers.TPESampler(
            n_startup_trials=sweep.settings.startup_trials, constant_liar=True, seed=seed
        )


def open_study(sweep: Sweep) -> optuna.Study:
    """The sweep's study, made if there is none. UserError if it is one of another experiment."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "a search needs Optuna, which is not installed: pip install 'optuna>=4.0' "
            "(or list the values in a `grid:`)"
        ) from error
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = sweep.settings
    storage = settings.storage or f"sqlite:///{sweep.folder / 'study.db'}"
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=settings.study or sweep.folder.name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=settings.prune_startup_trials,
                n_warmup_steps=settings.prune_warmup_epochs + 1,  # epochs count from 1
            ),
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        # the storage's address may hold a password, so it is not shown
        raise UserError(
            f"cannot open the storage of the study ({type(error).__name__}). Check `storage:`, "
            "whether its server answers, and whether its driver is installed"
        ) from error
    _check_same_search(sweep, study)
    return study


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each key matters for the value, summing to 1; empty where that is not known yet."""
    import optuna

    finished = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    if len({each.value for each in finished}) < MIN_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # too little variation in some key
            return {}


def _check_same_search(sweep: Sweep, study: optuna.Study) -> None:
    """UserError if the study's values were reached with other settings, and so do not compare."""
    shared = sweep.base.model_dump(mode="json") | {"vae_weights": _weights(sweep.base.vae_weights)}
    free = (CHANGEABLE_ON_RESUME - COMPARED) | sweep.settings.search.keys()
    current = {key: value for key, value in shared.items() if key not in free}
    if "pickle_file_path" not in sweep.settings.search:
        current |= _data(sweep.base)
    current |= {"seeds": list(sweep.settings.seeds), "number of folds": sweep.settings.folds}
    current["search"] = {
        key: values.model_dump()
        if isinstance(values, Range)
        else [text_of(each) for each in values]
        for key, values in sweep.settings.search.items()
    }
    recorded = study.user_attrs.get("sweep")
    if recorded is None:
        study.set_user_attr("sweep", current)
        return
    changed = [
        f"{key}: {recorded.get(key)!r} in the study, {value!r} now"
        for key, value in current.items()
        if key in recorded and recorded[key] != value
    ]
    if changed:
        raise UserError(_other_search(sweep, changed))
    if current.keys() - recorded.keys():  # what was not known where the search began
        study.set_user_attr("sweep", recorded | current)


def _data(base: Config) -> dict[str, str]:
    """The data set by its name, and by the hash of its split file where it is prepared here."""
    found = {"data set": base.dataset}
    with suppress(UserError):
        found["split file (SHA-256)"] = sha256(find_split_file(base.pickle_file_path))
    return found


def _weights(name: str) -> str:
    """The VAE's weights: a folder, which may lie elsewhere on each machine, by the hash of its file."""
    folder = weights_folder(name)
    file = folder / "diffusion_pytorch_model.safetensors" if folder else None
    return f"SHA-256 {sha256(file)}" if file and file.is_file() else name


def _other_search(sweep: Sweep, reasons: list[str]) -> str:
    listed = "\n  ".join(reasons)
    return (
        f"{sweep.folder} holds a search with other settings, whose scores do not compare:\n  {listed}\n"
        "Set them back, or set another snapshot_path (and with storage: another study)"
    )


def _draw_history(axes: Axes, study: optuna.Study, select_on: str) -> None:
    from matplotlib.ticker import MaxNLocator
    from optuna.trial import TrialState

    found = study.get_trials(deepcopy=False)
    done = [each for each in found if each.state == TrialState.COMPLETE and each.value is not None]
    pruned = [
        each for each in found if each.state == TrialState.PRUNED and each.intermediate_values
    ]
    numbers, values = [each.number for each in done], [100 * (each.value or 0) for each in done]
    best = [max(values[: i + 1]) for i in range(len(values))]
    axes.plot(numbers, values, "o", color="#0072b2", label="finished")
    axes.step(numbers, best, where="post", color="#d55e00", label="best so far")
    if pruned:
        last = [100 * max(each.intermediate_values.values()) for each in pruned]
        axes.plot([each.number for each in pruned], last, "x", color="0.5", label="pruned")
    axes.set(xlabel="setting", ylabel=f"{CHOOSING[select_on]}, %", title="history")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _draw_importance(axes: Axes, found: dict[str, float]) -> None:
    axes.set_title("importance (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    if not found:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"from {MIN_FOR_IMPORTANCE} different scores on", ha="center")
        return
    axes.barh(list(found), list(found.values()), color="#0072b2")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
