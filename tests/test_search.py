"""Searches with Optuna: proposals, pruning, resuming, and sharing a study."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sweep
from experiments.sweeps.scores import results_on_test
from experiments.sweeps.settings import load_sweep
from experiments.sweeps.slots import held_slot
from experiments.trials.records import Record, write_record
from experiments.trials.trial import Outcome, Steps, Trial
from scoring.metrics import METRICS, SIZES
from scoring.results import write_results
from tests.quick_training import make_sweeps_quick, quick_steps, starts
from tests.test_sweep import run, validated_steps, write_sweep
from utils.config import load_config
from utils.errors import UserError
from utils.interruption import Interrupted

optuna = pytest.importorskip("optuna", reason="searches need Optuna (optional)")

from optuna.exceptions import StorageInternalError  # noqa: E402
from sqlalchemy.exc import IntegrityError, OperationalError  # noqa: E402

from experiments.sweeps.optuna_figure import importances  # noqa: E402
from experiments.sweeps.search import SearchPlan  # noqa: E402

RATES = {"lr": {"low": 1e-4, "high": 0.1, "log": True}}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_sweeps_quick(monkeypatch)
    monkeypatch.setattr(SearchPlan, "figure", lambda *_: None)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.sweeps.optuna_storage.time.sleep", lambda _: None)


def plan_of(
    path: Path, owner: str = "me", retry_failed: bool = False, overrides: Sequence[str] = ()
) -> SearchPlan:
    loaded = load_sweep(path, overrides)
    loaded.folder.mkdir(exist_ok=True)
    return SearchPlan(loaded, owner, retry_failed)


def write_curve(trial: Trial, *dice: float) -> None:
    """A history whose Dice is on the cases that choose the trial's checkpoint."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{epoch},{value}" for epoch, value in enumerate(dice, 1)]
    (trial.folder / "history.csv").write_text(
        "\n".join([f"epoch,{trial.config.select_on}_dice", *rows]) + "\n"
    )


def end(plan: SearchPlan, trial: Trial, status: Any) -> None:
    done = ["train"] if status == "finished" else []
    plan.ended(Outcome(trial, Record(trial.name, {}, status, done), ran=True))


def drawn(folder: Path) -> list[float]:
    """The learning rates of a finished search, in the order in which they were proposed."""
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")
    return [trial.params["lr"] for trial in study.trials]


def states(plan: SearchPlan) -> list[str]:
    return [trial.state.name for trial in plan.optuna_study.trials]


def test_a_search_ends_with_its_best_config(tmp_path: Path, quick: None) -> None:
    settings = {"search": RATES | {"image_size": {"low": 32, "high": 64, "step": 8}}, "trials": 6}
    path = write_sweep(tmp_path, settings | {"seeds": [2, 3], "workers": 2})
    assert run(path) == 0
    folder = tmp_path / "out"
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and all(row["finished"] == "2" for row in rows)
    (best,) = (row for row in rows if row["best"] == "1")
    assert float(best["val_dice_mean"]) == max(float(row["val_dice_mean"]) for row in rows)
    study = optuna.load_study(study_name="out", storage=f"sqlite:///{folder / 'study.db'}")
    assert study.best_value == pytest.approx(float(best["val_dice_mean"]))
    config = load_config(folder / "best.yaml")
    assert {"lr": config.lr, "image_size": config.image_size} == study.best_params
    assert (config.seed, config.snapshot_path) == (2, folder / "best")


def test_the_drawing_shows_every_setting_and_what_matters(tmp_path: Path) -> None:
    search = RATES | {"w_dice": {"low": 1, "high": 3}}
    plan = plan_of(write_sweep(tmp_path, {"search": search, "trials": 12}))
    rates = []
    for number, trial in enumerate(plan.trials()):
        rates.append(trial.config.lr)
        write_curve(trial, 0.07 * (number * 5 % 12))
        end(plan, trial, "pruned" if number == 11 else "finished")
    assert sum(rate < 0.01 for rate in rates) > 4, "two thirds of the decades"
    history, importance = plan.figure("title").axes
    points, best, pruned = (np.array(line.get_ydata()) for line in history.lines)
    assert len(points) == 11 and len(pruned) == 1
    assert best == pytest.approx(np.maximum.accumulate(points))
    assert len(importance.patches) == 2
    assert sum(importances(plan.optuna_study).values()) == pytest.approx(1)


def test_the_drawing_names_the_cases_that_choose(tmp_path: Path) -> None:
    labels = []
    for select_on in ("val", "test"):
        (tmp_path / select_on).mkdir()
        settings = {"search": RATES, "trials": 1}
        plan = plan_of(write_sweep(tmp_path / select_on, settings, select_on=select_on))
        (trial,) = plan.trials()
        write_curve(trial, 0.5)
        end(plan, trial, "finished")
        labels.append(plan.figure("title").axes[0].get_ylabel())
        assert plan.optuna_study.best_value == 0.5
    assert labels == ["val Dice, %", "best test Dice, %"]


@pytest.mark.parametrize(("settings", "step"), [(5, 0.1), (12, 0)])
def test_importance_is_not_told_of_a_few_scores(tmp_path: Path, settings: int, step: float) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": settings}))
    for number, trial in enumerate(plan.trials()):
        write_curve(trial, step * number)
        end(plan, trial, "finished")
    assert importances(plan.optuna_study) == {}
    (text,) = plan.figure("title").axes[1].texts
    assert text.get_text() == "from 10 different scores on"


def test_a_search_that_was_stopped_proposes_what_it_would_have(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"search": RATES, "trials": 5, "startup_trials": 2}
    path = write_sweep(tmp_path, settings)
    assert run(path) == 0

    parts = [f"snapshot_path={tmp_path / 'parts'}"]
    ended = []

    def interrupt(outcome: Outcome) -> str:
        ended.append(outcome)
        if len(ended) in (1, 3):
            os.kill(os.getpid(), signal.SIGTERM)
        return ""

    monkeypatch.setattr(sweep, "describe_outcome", interrupt)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(path, *parts)
    assert run(path, *parts) == 0
    assert len(set(drawn(tmp_path / "out"))) == 5
    assert drawn(tmp_path / "parts") == drawn(tmp_path / "out")


def test_what_was_running_when_the_sweep_was_killed_goes_on(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2, "seeds": [1, 2]})
    first = next(plan_of(path).trials())  # asked for and never told
    plan = plan_of(path, owner="after the restart")
    for number, trial in enumerate(plan.trials()):
        if number == 0:
            assert trial == first
        write_curve(trial, 0.1, 0.5)
        end(plan, trial, "finished")
    assert number == 3
    assert states(plan) == ["COMPLETE", "COMPLETE"]


def test_a_stopped_setting_stays_open(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 2}))
    end(plan, next(plan.trials()), "interrupted")
    assert states(plan) == ["RUNNING"]


@pytest.mark.parametrize(("prune", "expected"), [(True, "PRUNED"), (False, "RUNNING")])
def test_a_setting_below_the_median_is_pruned_with_all_its_runs(
    tmp_path: Path, prune: bool, expected: str
) -> None:
    settings = {"search": RATES, "trials": 3, "seeds": [1, 2], "prune": prune}
    settings |= {"prune_startup_trials": 2, "prune_warmup_epochs": 1}
    plan = plan_of(write_sweep(tmp_path, settings, epochs=4))
    trials = plan.trials()
    for _ in range(4):
        good = next(trials)
        assert not plan.should_prune(good)  # nothing is known of it yet
        write_curve(good, 0.6, 0.7, 0.8, 0.9)
        assert not plan.should_prune(good)
        end(plan, good, "finished")
    bad, second = next(trials), next(trials)
    write_curve(second, 0.1, 0.1)
    assert not plan.should_prune(second)  # the first run decides
    write_curve(bad, 0.1)
    assert not plan.should_prune(bad)  # within the warm-up
    write_curve(bad, 0.1, 0.2)
    os.utime(bad.folder / "history.csv", ns=(1, 1))
    assert plan.should_prune(bad) is prune
    assert plan.should_prune(second) is prune
    if prune:
        end(plan, bad, "pruned")
        assert states(plan)[-1] == "RUNNING"  # until its other run has ended
        end(plan, second, "pruned")
    assert states(plan) == ["COMPLETE", "COMPLETE", expected]


def test_a_setting_of_which_one_run_failed_has_no_value(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1, "seeds": [1, 2]}))
    trials = plan.trials()
    for status in ("finished", "failed"):
        trial = next(trials)
        write_curve(trial, 0.5)
        end(plan, trial, status)
    assert states(plan) == ["FAIL"]


def test_a_run_that_has_reached_its_last_epoch_is_not_pruned(tmp_path: Path) -> None:
    settings = {"search": RATES, "trials": 3, "prune_startup_trials": 2, "prune_warmup_epochs": 0}
    plan = plan_of(write_sweep(tmp_path, settings, epochs=3))
    trials = plan.trials()
    for _ in range(2):
        good = next(trials)
        write_curve(good, 0.7, 0.8, 0.9)
        end(plan, good, "finished")
    bad = next(trials)
    write_curve(bad, 0.1, 0.1, 0.2)
    assert not plan.should_prune(bad), "what is left to do is its validation"


def test_runs_of_a_pruned_setting_are_not_started(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1, "seeds": [1, 2, 3]}))
    trials = plan.trials()
    end(plan, next(trials), "pruned")
    assert list(trials) == [] and states(plan) == ["PRUNED"]


def test_runs_that_a_pruning_leaves_out_are_not_waiting(tmp_path: Path) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1, "seeds": [1, 2, 3]}))
    trial = next(plan.trials())
    record = Record(trial.name, trial.config.model_dump(mode="json"), "pruned")
    write_record(trial.folder, record)
    ((_, row),) = plan.scores()
    assert row.statuses == {"pruned": 1, "waiting": 2}
    plan.ended(Outcome(trial, record, ran=True))
    ((_, row),) = plan.scores()
    assert row.statuses == {"pruned": 3}


def test_a_failed_setting_is_tried_again_in_its_folder(tmp_path: Path, quick: None) -> None:
    search = {"save_minutes": [13], "lr": [0.003]}
    path = write_sweep(tmp_path, {"search": search, "trials": 1})
    assert run(path) == 1
    plan = plan_of(path)
    (setting, _) = plan.scores()[0]
    (trial,) = setting.trials
    assert run(path) == 1 and starts(trial) == 1
    (trial.folder / "mended").touch()
    assert run(path, "--retry-failed") == 0
    assert starts(trial) == 2 and states(plan) == ["FAIL", "COMPLETE"]
    ((setting, row),) = plan.scores()
    assert setting.trials == (trial,) and row.complete


def test_a_setting_whose_config_is_refused_has_failed(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Combinations of many choices are not all built before the search begins."""
    monkeypatch.setattr("experiments.sweeps.trials.MAX_CORNERS", 1)
    search = RATES | {"vae_model": ["litevae", "tiny_vae"], "guidance_method": ["wavelet"]}
    settings = {"search": search, "trials": 4, "seeds": [1, 2]}
    path = write_sweep(tmp_path, settings, vae_model="tiny_vae")
    told = "guidance_method: wavelet needs vae_model: tiny_vae"
    for more in ([], ["sweep.trials=5"]):
        assert run(path, *more) == 1
        rows = [row for _, row in plan_of(path).scores()]
        refused = [row.name for row in rows if told in row.errors.get(row.name, "")]
        good = [row for row in rows if row.complete]
        assert refused and good and len(refused) + len(good) == len(rows)
    assert len(rows) == 5
    assert f"warning: setting {refused[0]} has failed: " in capsys.readouterr().out
    assert f"- `{refused[0]}`: " in (tmp_path / "out" / "sweep.md").read_text()
    assert (tmp_path / "out" / "best.yaml").is_file()


def test_a_search_in_which_nothing_works_is_not_used_up(tmp_path: Path, quick: None) -> None:
    path = write_sweep(tmp_path, {"search": RATES, "trials": 9}, save_minutes=13)
    with pytest.raises(UserError, match="3 trials have failed"):
        run(path)
    assert states(plan_of(path)) == ["FAIL"] * 3


def test_machines_share_a_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 3, "storage": storage, "study": "s"})
    one, other = plan_of(path, "one"), plan_of(path, "other")
    started = [next(one.trials()), next(other.trials())]
    assert started[0].name.startswith("000_") and started[1].name.startswith("001_")
    restarted = plan_of(path, "one")  # takes up its own, and leaves the other's alone
    names = []
    for trial in restarted.trials():
        names.append(trial.name[:3])
        write_curve(trial, 0.5, 0.6)
        end(restarted, trial, "finished")
    assert names == ["000", "002"]
    assert states(restarted) == ["COMPLETE", "RUNNING", "COMPLETE"]


def test_a_second_sweep_of_a_shared_study_joins_in(tmp_path: Path, quick: None) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 3, "storage": storage})
    with held_slot(tmp_path / "out", shared=True) as owner:
        elsewhere = next(plan_of(path, owner).trials())
        assert run(path) == 0
    done = [row.name for _, row in plan_of(path).scores() if row.complete]
    assert len(done) == 2 and elsewhere.name not in done


def test_of_settings_asked_for_at_once_the_surplus_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 1, "storage": storage, "study": "s"})
    one, other = plan_of(path, "one"), plan_of(path, "other")
    started, ask = [], other.optuna_study.ask

    def ask_after_one(*arguments: Any) -> Any:
        started.append(next(one.trials()))
        return ask(*arguments)

    monkeypatch.setattr(other.optuna_study, "ask", ask_after_one)
    assert list(other.trials()) == []
    write_curve(started[0], 0.5)
    end(one, started[0], "finished")
    assert states(one) == ["COMPLETE", "FAIL"]
    assert [row.name[:3] for _, row in plan_of(path, retry_failed=True).scores()] == ["000"]
    assert list(plan_of(path, "third").trials()) == []


def test_processes_that_start_at_once_share_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    """All but one of those that make its tables get an error."""
    errors = [IntegrityError("", None, Exception()), OperationalError("", None, Exception())]
    errors += [StorageInternalError("locked")]
    create = optuna.create_study

    def create_study(**arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return create(**arguments)

    monkeypatch.setattr(optuna, "create_study", create_study)
    plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1}))


def test_a_storage_may_be_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None
) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1}))
    (trial,) = plan.trials()
    write_curve(trial, 0.5)
    storage, errors = optuna.storages.RDBStorage, [StorageInternalError("locked")] * 3

    def locked(name: str) -> Callable[..., Any]:
        operation = getattr(storage, name)

        def fail_first(*arguments: Any, **named: Any) -> Any:
            if errors:
                raise errors.pop()
            return operation(*arguments, **named)

        return fail_first

    for name in ("set_trial_user_attr", "set_trial_state_values"):
        monkeypatch.setattr(storage, name, locked(name))
    end(plan, trial, "finished")
    assert states(plan) == ["COMPLETE"] and not errors

    monkeypatch.setattr("experiments.sweeps.optuna_storage.PATIENCE", 0.0)
    errors += [StorageInternalError("locked")]
    with pytest.raises(UserError, match=r"StorageInternalError.*the same command resumes"):
        plan.optuna_study.tell(plan.optuna_study.ask(), 0.5)
    assert not errors


@pytest.mark.parametrize("shared", [False, True])
def test_a_storage_that_is_full_is_told_with_its_cause_where_that_holds_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pauses: None, shared: bool
) -> None:
    storage = {"storage": f"sqlite:///{tmp_path / 'shared.db'}"} if shared else {}
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1} | storage))
    monkeypatch.setattr("experiments.sweeps.optuna_storage.PATIENCE", 0.0)
    error = OperationalError("INSERT", None, Exception("database or disk is full"))

    def fail(*_: Any, **__: Any) -> None:
        raise StorageInternalError("during the commit") from error

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", fail)
    named = r"storage of the study .*\(OperationalError\)"
    if not shared:
        named = r"study\.db .*\(OperationalError: database or disk is full\)"
    with pytest.raises(UserError, match=rf"{named}\. Once it can, the same command resumes"):
        plan.optuna_study.tell(plan.optuna_study.ask(), 0.5)


def test_scores_of_another_machine_come_from_the_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    settings = {"search": RATES, "trials": 1, "seeds": [1, 2], "storage": storage}
    plan = plan_of(write_sweep(tmp_path, settings))
    for trial, dice in zip(plan.trials(), (0.5, 0.7), strict=True):
        write_curve(trial, dice)
        end(plan, trial, "finished")
    shutil.rmtree(tmp_path / "out")
    ((_, row),) = plan.scores()
    assert row.val == [0.5, 0.7] and row.complete


def test_a_finished_setting_keeps_its_value_when_its_folder_has_another_run(
    tmp_path: Path, quick: None
) -> None:
    settings = {"search": RATES, "trials": 1}
    assert run(write_sweep(tmp_path, settings)) == 0
    plan = plan_of(write_sweep(tmp_path, settings, tta=True))  # which chooses no checkpoint
    ((_, row),) = plan.scores()
    assert row.complete and row.val == [plan.optuna_study.best_value] and not row.test


def validation_steps(code: str) -> Callable[[Trial], Steps]:
    """Quick steps whose validation runs `code` in the run folder."""
    command = [sys.executable, "-I", "-S", "-c", "import os, sys; os.chdir(sys.argv[1])\n" + code]
    return lambda trial: {**quick_steps(trial), "valid": [*command, str(trial.folder)]}


def test_validation_can_be_added_to_a_finished_search(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = dict.fromkeys((*METRICS, *SIZES), 0.5)
    write_results(tmp_path / "scores", {"case": metrics}, provenance={})
    count = validation_steps(
        f"import shutil; shutil.copytree({str(tmp_path / 'scores')!r}, 'valid_results_x')\n"
        "open('validated', 'a').write('x')"
    )
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", count)
    path = write_sweep(tmp_path, {"search": RATES, "trials": 3, "seeds": [1, 2]})
    assert run(path) == 0
    plan = plan_of(path)
    *here, elsewhere = (setting for setting, _ in plan.scores())
    values = [trial.value for trial in plan.optuna_study.trials]
    for trial in elsewhere.trials:
        shutil.rmtree(trial.folder.parent)
    for _ in range(2):
        assert run(path, "sweep.validate=true") == 0
        for trial in (trial for setting in here for trial in setting.trials):
            assert (trial.folder / "validated").read_text() == "x" and starts(trial) == 1
    assert not any(trial.folder.exists() for trial in elsewhere.trials)
    plan = plan_of(path)
    assert (
        states(plan) == ["COMPLETE"] * 3 and [t.value for t in plan.optuna_study.trials] == values
    )
    assert all(row.complete for _, row in plan.scores())
    for trial in (trial for setting in here for trial in setting.trials):
        results = results_on_test(trial)
        assert results is not None and results.names == ["case"] and results.values("DSC") == [0.5]


@pytest.mark.parametrize(
    "change", [{"tta": True}, {"evaluation_size": "native"}, {"hd95_empty": "zero"}]
)
def test_a_finished_search_is_scored_anew_when_scoring_is_changed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", validated_steps)
    settings = {"search": RATES, "trials": 2, "validate": True}
    values: list[list[float | None]] = []
    for changed in ({}, change):
        path = write_sweep(tmp_path, settings, **changed)
        assert run(path) == 0
        plan = plan_of(path)
        assert [len(row.test) for _, row in plan.scores()] == [1, 1], changed
        values.append([trial.value for trial in plan.optuna_study.trials])
    assert values[0] == values[1] and states(plan) == ["COMPLETE"] * 2


def test_finished_settings_are_not_trained_again_to_be_scored(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", validated_steps)
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2})
    assert run(path) == 0
    training_fails, more = "save_minutes=13", ["sweep.validate=true", "tta=true"]
    assert run(path, training_fails, *more) == 0
    rows = [row for _, row in plan_of(path, overrides=more).scores()]
    assert [(len(row.val), len(row.test)) for row in rows] == [(1, 1), (1, 1)]

    more.append("skip_nonfinite=2")
    assert run(path, training_fails, *more) == 1, "train.py decides, and fails"
    assert [len(row.val) for _, row in plan_of(path, overrides=more).scores()] == [1, 1]


def test_a_validation_that_was_added_and_fails_is_told(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = validation_steps("sys.exit('error: no such case')")
    monkeypatch.setattr("experiments.trials.trial.training_and_validation_steps", fail)
    path = write_sweep(tmp_path, {"search": RATES, "trials": 1})
    assert run(path) == 0
    assert run(path, "sweep.validate=true") == 1
    assert "error: no such case" in (tmp_path / "out" / "sweep.md").read_text()
    new = [f"snapshot_path={tmp_path / 'new'}", "sweep.validate=true"]
    assert run(path, *new) == 1
    ((_, row),) = plan_of(path, overrides=new).scores()
    assert row.complete and row.statuses["failed"] == 1, "its training is complete"
    assert run(path) == 0, "without validation there is nothing that failed"
    ((_, row),) = plan_of(path).scores()
    assert row.complete and row.statuses["finished"] == 1


def test_choices_are_given_back_as_written(tmp_path: Path) -> None:
    choices = {"ch_mult": [[1, 1, 2, 2], [1, 2, 4, 4]], "guidance_method": [None]}
    plan = plan_of(write_sweep(tmp_path, {"search": choices, "trials": 1}))
    trial = next(plan.trials())
    assert trial.config.ch_mult in [(1, 1, 2, 2), (1, 2, 4, 4)]
    assert trial.config.guidance_method is None


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"epochs": 3}, {"search": RATES}, "epochs: 2 in the study, 3 now"),
        ({"save_freq": 2}, {"search": RATES}, "save_freq: None in the study, 2 now"),
        ({"precision": "bf16"}, {"search": RATES}, "precision: 'auto' in the study, 'bf16' now"),
        ({"validate_every": 2}, {"search": RATES}, "validate_every: 1 in the study, 2 now"),
        ({"vae_weights": "me/other"}, {"search": RATES}, "vae_weights: .*taesd' in .*other' now"),
        ({"pickle_file_path": "y_train_test_names.json"}, {"search": RATES}, "data set: 'x' in"),
        ({}, {"search": RATES, "seeds": [4]}, "seeds"),
        ({}, {"search": {"lr": [0.1]}}, "search"),
    ],
)
def test_scores_that_do_not_compare_are_not_mixed(
    tmp_path: Path, values: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 2}))
    free = {"num_workers": 5, "skip_nonfinite": 3}
    plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 9, "workers": 2}, **free))
    before = (tmp_path / "out" / "study.db").read_bytes()
    assert run(write_sweep(tmp_path, {"search": RATES, "trials": 9}), "--dry-run") == 0
    changed = write_sweep(tmp_path, {"trials": 2} | settings, **values)
    with pytest.raises(UserError, match=message):
        run(changed, "--dry-run")
    assert (tmp_path / "out" / "study.db").read_bytes() == before
    with pytest.raises(UserError, match=message):
        plan_of(changed)


def test_a_search_keeps_its_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2}, GPUs=[0, 1])
    plan_of(path)
    with pytest.raises(UserError, match="processes that train a run: 2 in the study, 1 now"):
        plan_of(path, overrides=["sweep.workers=2"])
    plan_of(path, overrides=["GPUs=[2, 3]"])


def test_data_and_weights_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    """Machines have them in different folders; the same folder may hold others."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"

    def plan(machine: str) -> SearchPlan:
        folder = tmp_path / machine
        settings = {"search": RATES, "trials": 2, "storage": storage, "study": "s"}
        split = str(folder / "data" / "x_train_test_names.json")
        path = write_sweep(tmp_path, settings, vae_weights=str(folder), pickle_file_path=split)
        return plan_of(path)

    def write(machine: str, weights: str, split: str | None) -> None:
        folder = tmp_path / machine
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "diffusion_pytorch_model.safetensors").write_text(weights)
        if split is not None:
            (folder / "data" / "x_train_test_names.json").write_text(split)

    for machine, split in (("a", None), ("b", "one"), ("c", "one")):  # a: not prepared yet
        write(machine, "w", split)
        plan(machine)
    write("c", "w", "other")
    with pytest.raises(UserError, match="split file"):
        plan("c")
    write("c", "v", "one")
    with pytest.raises(UserError, match="vae_weights: 'SHA-256"):
        plan("c")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("groups.json", '{"a": "lesion 1"}', r"groups \(SHA-256\): None in the study, '\w+' now"),
        (
            "dataset.json",
            '{"train": 1, "test": 1, "window": "0,4000"}',
            "--window of the images: '' in the study, '0,4000' now",
        ),
        (
            "dataset.json",
            '{"train": 1, "test": 1, "label": [1, 2]}',
            "--label of the masks: '' in the study, '1,2' now",
        ),
    ],
)
def test_how_the_data_was_prepared_is_compared(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    split = tmp_path / "x_train_test_names.json"
    split.write_text("{}")
    (tmp_path / "dataset.json").write_text('{"train": 1, "test": 1}')
    settings = {"search": RATES, "trials": 2}
    path = write_sweep(tmp_path, settings, pickle_file_path=str(split))
    for _ in range(2):
        plan_of(path)
    (tmp_path / name).write_text(content)
    for arguments in (["--dry-run"], ["--report"], []):
        with pytest.raises(UserError, match=told):
            run(path, *arguments)


@pytest.mark.parametrize(
    ("values", "search", "changed"),
    [
        ({"teachers": ["t.pth", "u.pth"]}, {}, "u.pth"),
        ({}, {"teachers": [["t.pth"], ["t.pth", "u.pth"]]}, "u.pth"),
        ({}, {"vae_weights": ["a", "b"]}, "b/diffusion_pytorch_model.safetensors"),
    ],
)
def test_teachers_and_searched_vaes_are_compared_by_what_they_hold(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    search: dict[str, Any],
    changed: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.pth", "u.pth", *(f"{v}/diffusion_pytorch_model.safetensors" for v in "ab")):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("one")
    path = write_sweep(tmp_path, {"search": RATES | search, "trials": 2}, **values)
    for _ in range(2):
        plan_of(path)
    Path(changed).write_text("another")
    with pytest.raises(UserError, match=rf"files of \w+ \(SHA-256\): {changed[0]}.* in the study"):
        run(path, "--dry-run", "sweep.trials=4")


@pytest.mark.parametrize("searched", [False, True])
def test_initial_weights_are_compared_by_what_they_hold(tmp_path: Path, searched: bool) -> None:
    weights = tmp_path / "w.pth"
    weights.write_text("one")
    search: dict[str, Any] = RATES | ({"init_weights": [str(weights), None]} if searched else {})
    values = {} if searched else {"init_weights": str(weights)}
    path = write_sweep(tmp_path, {"search": search, "trials": 2}, **values)
    for _ in range(2):
        plan_of(path)
    weights.write_text("another")
    with pytest.raises(UserError, match=r"files of initial weights \(SHA-256\): .* in the study"):
        plan_of(path)


@pytest.mark.parametrize("seed", [2**32 - 1, 2**32, 2**63 - 1])
def test_any_seed_of_a_run_seeds_a_search(tmp_path: Path, seed: int) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 2}, seed=seed))
    for trial in plan.trials():
        assert trial.config.seed == seed
        end(plan, trial, "failed")
    assert states(plan) == ["FAIL", "FAIL"]


def test_a_storage_that_cannot_be_opened_is_told_without_its_password(
    tmp_path: Path, no_pauses: None
) -> None:
    storage = f"sqlite:////{tmp_path}/missing/secret.db"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2, "storage": storage})
    with pytest.raises(UserError, match="cannot open the storage") as caught:
        plan_of(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("part", [slice(None), slice(4096, None)], ids=["all", "tables"])
def test_a_damaged_study_in_the_folder_is_told_with_its_cause(
    tmp_path: Path, no_pauses: None, part: slice
) -> None:
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2})
    plan_of(path)
    file = tmp_path / "out" / "study.db"
    content = bytearray(file.read_bytes())
    content[part] = b"x" * len(content[part])
    file.write_bytes(content)
    expected = r"study\.db, .*\(DatabaseError: (file is not a database|.*malformed)\).*from a copy"
    for arguments in ([], ["--dry-run"], ["--report"]):
        with pytest.raises(UserError, match=expected) as caught:
            run(path, *arguments)
        assert "storage:" not in str(caught.value)


@pytest.mark.parametrize("shared", [False, True])
def test_a_study_of_another_optuna_says_how_to_bring_it_up_to_date(
    tmp_path: Path, shared: bool
) -> None:
    file = tmp_path / "secret.db" if shared else tmp_path / "out" / "study.db"
    storage = {"storage": f"sqlite:///{file}"} if shared else {}
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2} | storage)
    plan_of(path)
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
        database.commit()
    with pytest.raises(UserError, match=r"compatible.*optuna storage upgrade") as caught:
        plan_of(path)
    assert "secret" not in str(caught.value)


def test_without_optuna_a_search_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match="pip install 'optuna"):
        plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 2}))


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_the_study_lies_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    plan_of(
        write_sweep(tmp_path, {"search": RATES, "trials": 1}, snapshot_path=str(tmp_path / name))
    )
    assert (tmp_path / name / "study.db").is_file()


def test_one_restart_resumes_what_all_sweeps_of_the_folder_left(
    tmp_path: Path, quick: None
) -> None:
    """Two sweeps die at once; one of them is started again."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 3, "storage": storage})
    folder = tmp_path / "out"
    with held_slot(folder, shared=True) as first, held_slot(folder, shared=True) as second:
        left = [next(plan_of(path, owner).trials()) for owner in (first, second)]
    assert run(path) == 0
    assert states(plan_of(path)) == ["COMPLETE"] * 3
    assert [starts(trial) for trial in left] == [1, 1]


def test_a_search_that_was_stopped_goes_on_shared(tmp_path: Path, quick: None) -> None:
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2})
    folder = tmp_path / "out"
    with held_slot(folder, shared=False) as owner:
        left = next(plan_of(path, owner).trials())
    shared = f"sweep.storage=sqlite:///{folder / 'study.db'}"
    with held_slot(folder, shared=True) as other:  # has the slot of the first
        names = [trial.name for trial in plan_of(path, other, overrides=[shared]).trials()]
    assert names[0] == left.name and len(names) == 2


def test_a_setting_that_was_ended_elsewhere_keeps_its_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(write_sweep(tmp_path, {"search": RATES, "trials": 1}))
    (trial,) = plan.trials()
    plan.optuna_study.tell(0, 0.25)
    write_curve(trial, 0.5)
    assert not plan.should_prune(trial)
    end(plan, trial, "finished")
    assert plan.optuna_study.best_value == 0.25
    assert f"{trial.name} has been ended in the study by another process" in caplog.text


def test_what_a_sweep_leaves_meanwhile_is_resumed_by_the_other(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2, "storage": storage})
    names = []
    with held_slot(tmp_path / "out", shared=True) as owner:
        with held_slot(tmp_path / "out", shared=True) as other:
            trials = plan_of(path, owner).trials()
            next(trials)
            left = next(plan_of(path, other).trials())
        names += [trial.name for trial in trials]
    assert names == [left.name]


def test_a_report_leaves_the_search_as_it_is(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    path = write_sweep(tmp_path, {"search": RATES, "trials": 2}, GPUs=[0, 1])
    with pytest.raises(UserError, match="no study out of this search yet"):
        run(path, "--report")
    assert not (tmp_path / "out").exists()
    shared = f"sweep.storage=sqlite:///{tmp_path / 'shared.db'}"
    with pytest.raises(UserError, match="no study out of this search yet"):
        run(path, "--report", shared)

    plan = plan_of(path)
    trials = plan.trials()
    for _ in range(2):
        trial = next(trials)
        write_curve(trial, 0.5)
    before = (
        [(each.state, each.user_attrs) for each in plan.optuna_study.trials],
        plan.optuna_study.user_attrs,
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with held_slot(tmp_path / "out", shared=False):
        assert run(path, "--report") == 0
    assert "2 setting(s)" in (tmp_path / "out" / "sweep.md").read_text()
    after = (
        [(each.state, each.user_attrs) for each in plan.optuna_study.trials],
        plan.optuna_study.user_attrs,
    )
    assert before == after
    with pytest.raises(UserError, match="epochs: 2 in the study, 3 now"):
        run(path, "--report", "epochs=3")


def test_settings_that_nobody_works_on_are_told(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    settings = {"search": RATES, "trials": 2, "storage": storage, "study": "s"}
    path = write_sweep(tmp_path, settings)
    with held_slot(tmp_path / "out", shared=True), held_slot(tmp_path / "out", True) as other:
        left = next(plan_of(path, other).trials())
    with monkeypatch.context() as patch:  # it ends when this sweep has looked for the last time
        patch.setattr(SearchPlan, "_left_by_ended", lambda _: [])
        assert run(path) == 1
    printed = capsys.readouterr().out
    assert (
        f"1 setting(s) were left by another sweep in this folder that has ended: {left.name}. The"
        in printed
    )
    assert run(path) == 0 and starts(left) == 1

    elsewhere = [f"snapshot_path={tmp_path / 'elsewhere'}"]
    with held_slot(tmp_path / "elsewhere", shared=True) as there:
        more = [*elsewhere, "sweep.trials=3"]
        next(plan_of(path, there, overrides=more).trials())
    assert run(path, "sweep.trials=3") == 0, "whether that one still runs is not known here"
    printed = capsys.readouterr().out
    assert "1 setting(s) are open in the study under other sweeps: 002_lr=" in printed
    assert f":{tmp_path / 'elsewhere'}. Where such a sweep has ended" in printed


def test_a_setting_has_its_owner_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 1, "storage": storage})
    plan = plan_of(path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Trial, "_suggest", killed)
        next(plan.trials())
    assert [trial.user_attrs["owner"] for trial in plan.optuna_study.trials] == ["me"]
    restarted = plan_of(path)
    for trial in restarted.trials():
        write_curve(trial, 0.5)
        end(restarted, trial, "finished")
    assert states(restarted) == ["FAIL", "COMPLETE"]


def test_a_failed_setting_is_tried_again_by_one_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    path = write_sweep(tmp_path, {"search": RATES, "trials": 1, "storage": storage, "study": "s"})
    first = plan_of(path)
    (trial,) = first.trials()
    end(first, trial, "failed")
    plans = [plan_of(path, owner, retry_failed=True) for owner in ("one", "other", "third")]
    assert [row.name for _, row in first.scores()] == [trial.name], "shown until it is tried again"

    started, create = [], plans[1].optuna_study._storage.create_new_trial

    def create_after_one(*arguments: Any, **named: Any) -> int:
        started.append(next(plans[0].trials()))
        return create(*arguments, **named)

    monkeypatch.setattr(plans[1].optuna_study._storage, "create_new_trial", create_after_one)
    assert list(plans[1].trials()) == [] and list(plans[2].trials()) == []
    assert started == [trial]
    write_curve(trial, 0.5)
    end(plans[0], trial, "finished")
    assert states(first) == ["FAIL", "COMPLETE", "FAIL"]
    ((_, row),) = plan_of(path, retry_failed=True).scores()
    assert row.complete and not plan_of(path, retry_failed=True)._failed_before
