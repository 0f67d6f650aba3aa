from __future__ import annotations

import csv
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import train
import valid
from datasets.splits import hold_out
from engine.device import make_accelerator
from engine.runs.history import EpochRow, draw_curves, sample_panel
from engine.runs.resuming import check_cases_unchanged, check_resumable
from engine.runs.run_cases import RunCases
from engine.runs.run_folder import RunFolder
from engine.runs.saved_state import load_state
from engine.runs.training_record import GROUPS
from engine.training import trainer as training
from engine.training.epoch_losses import write_nonfinite
from engine.training.epoch_scores import mean_scores
from engine.training.schedule import warmup_then_cosine
from models.losses import dice_and_iou
from tests.cases_on_disk import write_data_set
from tests.drawn_figures import keep_figures
from tests.small_run import arguments
from utils.config import dump_config, load_config
from utils.environment import describe_environment
from utils.errors import UserError
from utils.interruption import Interrupted
from utils.logs import log_to

ROOT = Path(__file__).resolve().parents[1]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "last.pth", weights_only=True)["weights"]
    return {f"{part}.{k}": v for part, state in saved.items() for k, v in state.items()}


def assert_same_end(one: Path, other: Path) -> None:
    assert (one / "history.csv").read_text() == (other / "history.csv").read_text()
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_writes_what_it_promises(a_run: Path) -> None:
    folder = a_run / "run" / "epochs_2"
    rows = history(folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row[key]) > 0 for row in rows for key in ("loss", "lm", "seg", "align", "lr"))
    assert 0 <= float(rows[1]["val_dice"]) <= 1
    for name in (
        "config.yaml",
        "curves.png",
        "curves.pdf",
        "best_model.pth",
        "epoch_1.pth",
        "logs/train.log",
    ):
        assert (folder / name).stat().st_size > 0
    best = torch.load(folder / "best_model.pth", weights_only=True)
    assert set(best) == {"model", "vae_model"}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["seed"] == 2333 and len(environment["sha256"]["split file"]) == 64
    assert any(folder.glob("logs/events*"))
    assert not list(folder.glob("**/*.tmp"))


def keep_cases(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A list that the names of the cases of each training step from here on are added to."""
    from engine.training.step import TrainingStep
    from engine.training.trainer import Trainer

    step, fit = TrainingStep.__call__, Trainer.fit
    kept: list[list[str]] = []
    training: list[Trainer] = []

    def noting_fit(self):
        training.append(self)
        fit(self)

    def keeping_step(self, batch):
        cases = training[-1].train_set.cases
        kept.append([cases[index].name for index in batch["index"].tolist()])
        return step(self, batch)

    monkeypatch.setattr(Trainer, "fit", noting_fit)
    monkeypatch.setattr(TrainingStep, "__call__", keeping_step)
    return kept


def test_a_seed_fixes_the_run_and_workers_change_nothing(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # the same cases for both seeds
        "datasets.held_out.hold_out",
        lambda names, part, _, groups: hold_out(names, part, 2333, groups),
    )
    cases = keep_cases(monkeypatch)
    train.main(arguments(tmp_path, vae, "num_workers=2", out="b"))
    train.main(arguments(tmp_path, vae, "seed=7", out="c"))
    b, c = (tmp_path / name / "epochs_2" for name in "bc")
    assert_same_end(finished, b)
    assert (b / "history.csv").read_text() != (c / "history.csv").read_text()
    assert len(cases) == 12 and cases[:6] != cases[6:]


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make a SIGTERM arrive during the given training step."""
    from engine.training.step import TrainingStep

    step, left = TrainingStep.__call__, [number]

    def stopping_step(self, batch):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(TrainingStep, "__call__", stopping_step)


def end_of(folder: Path) -> torch.Tensor:
    """The weights of a run's last.pth in one row."""
    return torch.cat([weight.flatten().cpu() for weight in weights(folder / "epochs_2").values()])


def stop_and_resume(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, *settings: str, later: str = ""
) -> tuple[float, float]:
    """Stop a run in its fourth step and go on, `later` with another setting.

    Returns how far the weights move after the stop in a run that was not stopped, and how far from its
    end the resumed one ends.
    """
    parts = arguments(tmp_path, vae, *settings, out="parts")
    train.main(arguments(tmp_path, vae, *settings, out="whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        with pytest.raises(Interrupted):
            train.main(parts)
    at_stop = end_of(tmp_path / "parts")
    train.main([*parts, later] if later else parts)
    whole, resumed = end_of(tmp_path / "whole"), end_of(tmp_path / "parts")
    return (whole - at_stop).norm().item(), (whole - resumed).norm().item()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_in_another_memory_layout(
    optimizer: str, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moments of the optimiser go with their own weights; rounding alone differs."""
    settings = ("lr=1e-4", f"optimizer={optimizer}")
    moved, differs = stop_and_resume(
        tmp_path, vae, monkeypatch, *settings, later="channels_last=false"
    )
    assert moved > 0
    assert differs < 0.1 * moved


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_stopped_run_ends_like_one_that_was_not(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, number)
        with pytest.raises(Interrupted) as caught:
            train.main(arguments(tmp_path, vae, out="parts"))
        assert caught.value.exit_code == 143
    train.main(arguments(tmp_path, vae, out="parts"))
    assert_same_end(finished, tmp_path / "parts" / "epochs_2")


def test_averages_clipping_and_accumulation_resume_too(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # six batches an epoch, which make three steps
    settings = ("batch_size=1", "accumulate=2", "ema_decay=0.9", "clip_norm=1")
    train.main(arguments(tmp_path, vae, *settings, out="whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, 9)  # the third batch of the second epoch, the first one of its step
        with pytest.raises(Interrupted):
            train.main(arguments(tmp_path, vae, *settings, out="parts"))
    whole, parts = (tmp_path / out / "epochs_2" for out in ("whole", "parts"))
    stopped = load_state(parts)
    assert stopped is not None and stopped["progress"]["batch"] == 4
    assert stopped["average"]["n_averaged"].dtype == torch.int64, (
        "a tensor, as torch's average kept it"
    )
    train.main(arguments(tmp_path, vae, *settings, out="parts"))
    assert_same_end(whole, parts)
    rates = [float(row["lr"]) for row in history(whole)]
    rate_factor = warmup_then_cosine(3, 6)
    assert rates == pytest.approx([2e-3 * rate_factor(step) for step in (2, 5)])
    best, last = (
        [torch.load(folder / name, weights_only=True) for folder in (whole, parts)]
        for name in ("best_model.pth", "last.pth")
    )
    for one, other in (best, [state["average"] for state in last]):
        parts_of = [p for p in one if p != "n_averaged"]
        assert all(torch.equal(one[p][k], other[p][k]) for p in parts_of for k in one[p])


def test_the_best_is_kept_through_equal_and_worse_epochs(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.5, 0.4])
    monkeypatch.setattr("engine.training.trainer.mean_scores", lambda *_: (next(scores), 0.0))
    command = arguments(tmp_path, vae, "epochs=3", "save_freq=1", "ema_decay=0.9", "ch=16")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)  # the best before the stop counts after it
        with pytest.raises(Interrupted):
            train.main(command)
    train.main(command)
    folder = tmp_path / "run" / "epochs_3"
    best, first = (
        torch.load(folder / name, weights_only=True) for name in ("best_model.pth", "epoch_1.pth")
    )
    assert all(torch.equal(best[p][k], first[p][k]) for p in best for k in best[p])


def test_epochs_are_validated_when_it_is_their_turn_and_the_last_one_always(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.4, 0.6])
    monkeypatch.setattr(training, "mean_scores", lambda *_: (next(scores), 0.0))
    train.main(arguments(tmp_path, vae, "epochs=3", "validate_every=2", "ch=16"))
    rows = history(tmp_path / "run" / "epochs_3")
    assert [row["val_dice"] for row in rows] == ["", "0.4", "0.6"]


def test_a_long_epoch_is_saved_after_so_many_minutes(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.training.step import TrainingStep

    step, seconds, saved = TrainingStep.__call__, [0.0], []

    def slow_step(self, batch):
        seconds[0] += 100
        return step(self, batch)

    monkeypatch.setattr(TrainingStep, "__call__", slow_step)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(
        training,
        "save_state",
        lambda _, state: saved.append((state["progress"]["epoch"], state["progress"]["batch"])),
    )
    train.main(arguments(tmp_path, vae, "save_minutes=3", "ch=16"))
    assert saved == [(0, 2), (1, 0), (1, 2), (2, 0)]


def test_the_warm_up_rises_evenly_and_does_not_begin_at_zero() -> None:
    factor = warmup_then_cosine(10, 100)
    assert [factor(step) for step in range(10)] == pytest.approx([n / 11 for n in range(1, 11)])


def test_validation_counts_each_case_alike() -> None:
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    dice, iou = dice_and_iou(torch.cat([empty, full, empty]), torch.cat([empty, empty, full]), 0.5)
    assert dice.tolist() == iou.tolist() == [1, 0, 0]

    class Echo:
        system = torch.nn.Identity()
        accelerator = SimpleNamespace(gather_for_metrics=lambda scores: scores)

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return image

    predict: Any = Echo()
    both = torch.cat([full, full])
    loader: Any = [{"image": both, "mask": both}, {"image": full, "mask": empty}]
    assert mean_scores(predict, loader, 0.5) == pytest.approx((2 / 3, 2 / 3))
    faint: Any = [{"image": 0.35 * full, "mask": full}]
    assert mean_scores(predict, faint, 0.3) == (1, 1) and mean_scores(predict, faint, 0.4) == (0, 0)


def test_validation_is_in_evaluation_mode_and_training_goes_on_in_its_own() -> None:
    class Dropping:
        system = torch.nn.Dropout(0.9)
        accelerator = SimpleNamespace(gather_for_metrics=lambda scores: scores)

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            return self.system(image)

    predict: Any = Dropping()
    full = torch.ones(2, 1, 8, 8)
    loader: Any = [{"image": full, "mask": full}]
    assert mean_scores(predict, loader, 0.5) == (1, 1)
    assert predict.system.training


def test_optimiser_average_and_threshold_follow_the_config(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[dict[str, torch.Tensor]] = []

    def better_each_time(predict, _: object, threshold: float) -> tuple[float, float]:
        assert threshold == 0.3
        validated.append(
            {
                f"{name}.{key}": value.clone()
                for name, part in predict.system.parts().items()
                for key, value in part.state_dict().items()
            }
        )
        return float(len(validated)), 0.0

    monkeypatch.setattr("engine.training.trainer.mean_scores", better_each_time)
    settings = ("batch_size=7", "ema_decay=0.9", "weight_decay=0.3", "clip_norm=0.001")
    train.main(arguments(tmp_path, vae, *settings, "threshold=0.3", "ch=16"))
    folder = tmp_path / "run" / "epochs_2"
    first, second = validated
    last, best = weights(folder), torch.load(folder / "best_model.pth", weights_only=True)
    for key in last:  # of two steps
        torch.testing.assert_close(second[key], 0.9 * first[key] + 0.1 * last[key])
        part, _, name = key.partition(".")
        assert torch.equal(best[part][name], second[key])
    optimizer = torch.load(folder / "last.pth", weights_only=True)["optimizer"]
    assert optimizer["param_groups"][0]["weight_decay"] == 0.3
    momenta = [state["exp_avg"].norm() for state in optimizer["state"].values()]
    assert 0 < torch.stack(momenta).norm() <= 0.001


def test_dropout_of_a_baseline_resumes_too(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.wave_gms import WaveGMS

    losses = WaveGMS.losses

    def with_dropout(self, image, mask, noise):
        return losses(self, torch.nn.functional.dropout(image), mask, noise)

    monkeypatch.setattr(WaveGMS, "losses", with_dropout)
    train.main(arguments(tmp_path, vae, out="whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted):
            train.main(arguments(tmp_path, vae, out="parts"))
    torch.rand(3)
    train.main(arguments(tmp_path, vae, out="parts"))
    assert_same_end(tmp_path / "whole" / "epochs_2", tmp_path / "parts" / "epochs_2")


def test_what_a_network_draws_from_python_and_numpy_resumes_too(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = "model=tests.own_networks:stochastic_depth"
    train.main(arguments(tmp_path, vae, model, out="whole"))
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted):
            train.main(arguments(tmp_path, vae, model, out="parts"))
    train.main(arguments(tmp_path, vae, model, out="parts"))
    assert_same_end(tmp_path / "whole" / "epochs_2", tmp_path / "parts" / "epochs_2")


def test_a_network_does_not_draw_what_the_augmentation_drew(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.training.step import TrainingStep

    step = TrainingStep.__call__
    noise: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []

    def drawing_step(self, batch):
        noise.extend(batch["noise"])
        drawn.append(torch.randn(batch["noise"].shape[1:]))
        return step(self, batch)

    monkeypatch.setattr(TrainingStep, "__call__", drawing_step)
    train.main(arguments(tmp_path, vae, "epochs=2"))
    monkeypatch.setattr("accelerate.Accelerator.process_index", 1)
    train.main(arguments(tmp_path, vae, "epochs=1", out="of_another_process"))
    assert len(noise) > len(drawn) == 9
    assert not any(torch.equal(one, other) for one in drawn for other in noise)
    assert not any(torch.equal(*two) for two in itertools.combinations(drawn, 2))


def test_a_finished_run_is_left_as_it_is(finished: Path, tmp_path: Path, vae: Path) -> None:
    before = (finished / "last.pth").read_bytes()
    train.main(arguments(tmp_path, vae))
    assert (finished / "last.pth").read_bytes() == before


def test_the_config_of_a_new_start_does_not_delete_the_run(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_in_step(patch, 4)
        with pytest.raises(Interrupted) as stopped:
            train.main(arguments(tmp_path, vae, "lr=0.1", "resume=never"))
    advice = "to resume from here, leave out resume=never"
    assert stopped.value.advice == advice
    log = (finished / "logs" / "train.log").read_text()
    assert log.endswith(f" INFO stopped by SIGTERM; {advice}\n")
    saved = finished / "config.yaml"
    assert "resume: auto" in saved.read_text()
    train.main(["--config", str(saved)])
    assert len(history(finished)) == 2
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2)
        with pytest.raises(Interrupted) as stopped:
            train.main(arguments(tmp_path, vae, out="other"))
    assert stopped.value.advice == "the same command resumes from here"


def test_the_record_of_versions_is_that_of_the_training(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment() -> dict:
        return json.loads((tmp_path / "run" / "epochs_2" / "environment.json").read_text())

    def at_commit(commit: str) -> None:
        described = describe_environment() | {"commit": commit}
        monkeypatch.setattr("engine.runs.run_folder.describe_environment", lambda: described)

    at_commit("first")
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_in_step(patch, 2)
            with pytest.raises(Interrupted):
                train.main(arguments(tmp_path, vae))
    assert environment()["commit"] == "first" and "resumed" not in environment()
    at_commit("second")
    train.main(arguments(tmp_path, vae))
    at_commit("third")
    train.main(arguments(tmp_path, vae))  # has nothing left to do
    recorded = environment()
    assert recorded["commit"] == "first"
    assert [resumed["commit"] for resumed in recorded["resumed"]] == ["second"]
    assert recorded["resumed"][0]["sha256"] == recorded["sha256"]


def test_each_change_of_versions_is_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(
        ROOT / "configs" / "base.yaml", ["pickle_file_path=x_train_test_names.json"]
    )
    folder = RunFolder(tmp_path, config, RunCases((), (), ()), {"precision": "fp32"})
    for commit in ("first", "second", "third", "third", "second"):
        described = {"commit": commit}
        monkeypatch.setattr("engine.runs.run_folder.describe_environment", described.copy)
        folder.begin()
        (tmp_path / "last.pth").touch()
    recorded = json.loads((tmp_path / "environment.json").read_text())
    assert recorded["commit"] == "first"
    assert [each["commit"] for each in recorded["resumed"]] == ["second", "third", "second"]


def test_what_a_kill_left_goes_when_the_run_begins(tmp_path: Path) -> None:
    left = tmp_path / ".best_model.pth.0a1b2c3d.tmp"
    left.write_bytes(b"half")
    config = load_config(
        ROOT / "configs" / "base.yaml", ["pickle_file_path=x_train_test_names.json"]
    )
    RunFolder(tmp_path, config, RunCases((), (), ()), {}).begin()
    assert not left.exists()


def test_a_new_start_leaves_no_masks_of_the_old_run(tmp_path: Path) -> None:
    old = (
        "predicted_masks_x",
        "held_out_masks_x",
        "tta/held_out_masks_x",
        "epoch_1/held_out_masks_x",
    )
    for name in old:
        (tmp_path / name / "binary").mkdir(parents=True)
    given = ["pickle_file_path=x_train_test_names.json", "resume=never"]
    config = load_config(ROOT / "configs" / "base.yaml", given)
    RunFolder(tmp_path, config, RunCases((), (), ()), {}).begin()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_going_on_with_other_numbers_of_processes_is_refused(finished: Path) -> None:
    config = load_config(finished / "config.yaml")
    recorded = json.loads((finished / "environment.json").read_text())
    check_resumable(finished, config, recorded)
    with pytest.raises(UserError, match="processes: 1 in the saved run, 2 now, each with batches"):
        check_resumable(finished, config, recorded | {"processes": 2})


def test_batch_normalisation_and_batches_of_one(tmp_path: Path, vae: Path) -> None:
    model = "model=tests.own_networks:normalised_mean"
    with pytest.raises(UserError, match=r"cannot train on a batch of 1 .*: set batch_size to 2"):
        train.main(arguments(tmp_path, vae, model, "batch_size=1"))


def test_going_on_with_other_settings_is_refused(finished: Path, tmp_path: Path, vae: Path) -> None:
    before = (finished / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"lr: 0\.002 in the saved run, 0\.1 now"):
        train.main(arguments(tmp_path, vae, "lr=0.1"))
    assert (finished / "config.yaml").read_text() == before
    train.main(arguments(tmp_path, vae, "num_workers=1", "log_every=3"))
    for folder in ("tta/valid_results_blobs", "native/predicted_masks_blobs", "notes/my_masks_1"):
        (finished / folder).mkdir(parents=True)
    train.main(arguments(tmp_path, vae, "lr=0.1", "resume=never"))
    assert "lr: 0.1" in (finished / "config.yaml").read_text()
    left = [name for name in ("tta", "native", "notes") if (finished / name).exists()]
    assert left == ["notes"], "scores of the weights that are gone are deleted, whatever their name"


def test_the_log_file_says_why_a_run_ended(
    finished: Path,
    tmp_path: Path,
    vae: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = finished / "logs" / "train.log"
    with pytest.raises(UserError, match="other settings"):
        train.main(arguments(tmp_path, vae, "lr=0.1"))
    assert f" ERROR {finished} holds a run with other settings" in log.read_text()
    assert "Traceback" not in log.read_text()

    def fail(self) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("engine.training.trainer.Trainer.fit", fail)
    with pytest.raises(ZeroDivisionError):
        train.main(arguments(tmp_path, vae))
    assert "Traceback" in log.read_text()
    assert log.read_text().endswith("ZeroDivisionError: a bug\n")
    told = "".join(capsys.readouterr())  # `exit_from` tells the terminal
    assert "other settings" not in told and "a bug" not in told


def test_going_on_in_another_precision_is_refused(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    train.main(arguments(tmp_path, vae, "precision=fp32"))  # what auto is here
    environment = finished / "environment.json"
    environment.write_text(environment.read_text().replace('"fp32"', '"bf16"'))
    with pytest.raises(UserError, match="precision: bf16 in the saved run, fp32 here"):
        train.main(arguments(tmp_path, vae))


def test_a_trained_run_without_state_is_not_overwritten(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    for path in finished.glob("last*"):
        path.unlink()
    best = (finished / "best_model.pth").read_bytes()
    with pytest.raises(
        UserError, match=r"no last\.pth to resume from.*snapshot_path.*resume=never"
    ):
        train.main(arguments(tmp_path, vae, "lr=0.1"))
    assert (finished / "best_model.pth").read_bytes() == best
    assert "lr: 0.002" in (finished / "config.yaml").read_text()


def test_a_new_start_leaves_no_weights_of_the_old_run(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (finished / "epoch_1.pth").exists()
    events = set(finished.glob("logs/events.*"))
    stop_in_step(monkeypatch, 1)
    with pytest.raises(Interrupted):
        train.main(arguments(tmp_path, vae, "lr=0.1", "resume=never"))
    assert not list(finished.glob("best*")) and not list(finished.glob("epoch_*"))
    assert not (finished / "curves.png").exists()
    assert events and not any(path.exists() for path in events), "TensorBoard would join both runs"
    assert "starts afresh" in (finished / "logs" / "train.log").read_text()


def test_a_new_start_that_fails_spares_the_old_run(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.glob("*.*") if path.suffix != ".lock"}
    with pytest.raises(UserError, match="do not fill a batch"):
        train.main(arguments(tmp_path, vae, "resume=never", "batch_size=100"))
    (tmp_path / "blobs" / "images" / "case_1.png").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"case_1\.png"):
        train.main(arguments(tmp_path, vae, "resume=never", "lr=0.1"))
    assert {path: path.read_bytes() for path in before} == before


def test_a_new_start_leaves_no_results_of_the_old_run(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    for name in (
        "valid_results_blobs",
        "predicted_masks_blobs",
        "cross_domain",
        "epoch_1/valid_results_blobs",
    ):
        (finished / name).mkdir(parents=True)
        (finished / name / "results.csv").write_text("of the old weights")
    exported = [finished / "model.onnx", finished / "epoch_1.onnx"]
    for path in exported:
        path.touch()
    train.main(arguments(tmp_path, vae, "lr=0.1", "resume=never", "save_freq=5"))
    assert not list(finished.glob("**/results.csv"))
    assert not any(path.exists() for path in exported)
    assert not list(finished.glob("epoch_*"))


def test_a_new_start_deletes_no_run_on_another_data_set(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    split = write_data_set(tmp_path, train=9, test=3, size=32, name="others")
    given = arguments(tmp_path, vae, f"pickle_file_path={split}")
    with pytest.raises(
        UserError, match="run on blobs, which resume=never would delete: set another"
    ):
        train.main([*given, "resume=never"])
    with pytest.raises(UserError, match="another snapshot_path, or delete this run on blobs"):
        train.main([*given, "lr=0.1"])
    for path in finished.glob("*.pth"):
        path.rename(finished / "epoch_2.pth")  # the only weights that are left
    with pytest.raises(UserError, match="run on blobs, which resume=never would delete"):
        train.main([*given, "resume=never"])
    assert (finished / "epoch_2.pth").exists()


def test_going_on_with_another_split_is_refused(finished: Path, tmp_path: Path, vae: Path) -> None:
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    names = json.loads(split.read_text())
    names["train"]["name_list"].pop()
    split.write_text(json.dumps(names))
    with pytest.raises(UserError, match="split file is another"):
        train.main(arguments(tmp_path, vae))


def test_going_on_without_the_groups_of_the_data_set_is_refused(finished: Path) -> None:
    """Without them other cases are held out; a frozen part of an older version is no file."""
    config = load_config(finished / "config.yaml")
    path = finished / "environment.json"
    now = json.loads(path.read_text())
    recorded = now | {"sha256": now["sha256"] | {"part of an older version": "0"}}
    path.write_text(json.dumps(recorded))
    check_resumable(finished, config, now)
    path.write_text(json.dumps(recorded | {"sha256": recorded["sha256"] | {GROUPS: "1"}}))
    with pytest.raises(UserError, match="the file of groups is gone, which the saved run had"):
        check_resumable(finished, config, now)


def test_going_on_with_other_cases_is_refused(finished: Path, tmp_path: Path, vae: Path) -> None:
    path = finished / "cases.json"
    recorded = json.loads(path.read_text())
    recorded["held_out"].append(recorded["train"].pop())
    path.write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=r"trains on other cases, or holds out others.*never"):
        train.main(arguments(tmp_path, vae))
    assert json.loads(path.read_text()) == recorded


def test_the_cases_of_a_run_without_a_state_do_not_count(tmp_path: Path) -> None:
    config = load_config(
        ROOT / "configs" / "base.yaml", ["pickle_file_path=x_train_test_names.json"]
    )
    recorded = RunCases(("a", "b"), ("c",), ("d",))
    (tmp_path / "cases.json").write_text(recorded.to_json())
    check_cases_unchanged(tmp_path, config, RunCases(("a",), (), ()))
    (tmp_path / "last.pth").touch()
    check_cases_unchanged(tmp_path, config, RunCases(("b", "a"), ("c",), ()))
    for train_names, held_out in ((("a",), ("c",)), (("a", "b"), ())):
        with pytest.raises(UserError, match="trains on other cases"):
            check_cases_unchanged(tmp_path, config, RunCases(train_names, held_out, ("d",)))


def test_a_damaged_state_falls_back(finished: Path, a_run: Path, tmp_path: Path, vae: Path) -> None:
    last = (finished / "last.pth").read_bytes()
    (finished / "last.pth").write_bytes(last[: len(last) // 2])
    train.main(arguments(tmp_path, vae))
    assert_same_end(finished, a_run / "run" / "epochs_2")
    for name in ("last.pth", "last.previous.pth"):
        (finished / name).write_bytes(b"rubbish")
    with pytest.raises(UserError, match="resume=never"):
        train.main(arguments(tmp_path, vae))


def change_state(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` alter the saved state of a run."""
    state = torch.load(folder / "last.pth", weights_only=True)
    change(state)
    torch.save(state, folder / "last.pth")


@pytest.mark.parametrize("averaged", [False, True])
def test_missing_weights_of_the_last_epoch_are_written_again(
    finished: Path, tmp_path: Path, vae: Path, averaged: bool
) -> None:
    def change(state: dict[str, Any]) -> None:
        state["progress"]["best_epoch"] = 2
        halves = {p: {k: v / 2 for k, v in part.items()} for p, part in state["weights"].items()}
        state["average"] = halves | {"n_averaged": torch.tensor(6)} if averaged else None

    given = arguments(tmp_path, vae, f"ema_decay={0.9 if averaged else 0}")
    config = finished / "config.yaml"
    config.write_text(dump_config(load_config(given[1], given[2:])))
    change_state(finished, change)
    (finished / "best_model.pth").unlink()
    train.main(given)
    best = torch.load(finished / "best_model.pth", weights_only=True)
    last = torch.load(finished / "epoch_2.pth", weights_only=True)
    assert best.keys() == last.keys()
    for part, values in last.items():
        assert all(best[part][k].equal(v / 2 if averaged else v) for k, v in values.items())


def test_a_run_whose_best_weights_are_gone_is_not_taken_for_whole(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    change_state(finished, lambda state: state["progress"].update(best_epoch=1))
    (finished / "best_model.pth").unlink()
    with pytest.raises(UserError, match=r"best_model\.pth is missing.*copy epoch_1\.pth.*never"):
        train.main(arguments(tmp_path, vae))
    shutil.copy(finished / "epoch_1.pth", finished / "best_model.pth")
    train.main(arguments(tmp_path, vae))


def test_a_state_of_an_older_version_is_refused_before_anything_is_written(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    change_state(finished, lambda state: state.pop("loss_names"))
    environment = json.loads((finished / "environment.json").read_text())
    (finished / "environment.json").write_text(json.dumps(environment | {"commit": "1a2b"}))
    before = {path: path.read_bytes() for path in finished.glob("*.[jy]*")}
    with pytest.raises(UserError, match=r"older version .*\(the run was started .* 1a2b\).*never"):
        train.main(arguments(tmp_path, vae, "num_workers=1"))
    assert before and {path: path.read_bytes() for path in before} == before


def test_select_on_test_says_so_everywhere(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(arguments(tmp_path, vae, "select_on=test", "epochs=1"))
    folder = tmp_path / "run" / "epochs_1"
    assert "chosen on the TEST split" in capsys.readouterr().out
    assert "chosen on the TEST split" in (folder / "logs" / "train.log").read_text()
    assert "test_dice" in history(folder)[0] and "val_dice" not in history(folder)[0]


def test_the_last_epoch_is_kept_after_training_on_all_cases(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path, vae, "select_on=last", "val_fraction=0")
    train.main([*given, "--dry-run"])
    assert "9 train, 0 held out, 3 test" in capsys.readouterr().out
    train.main(given)
    folder = tmp_path / "run" / "epochs_2"
    assert json.loads((folder / "cases.json").read_text())["held_out"] == []
    assert [row["val_dice"] for row in history(folder)] == ["", ""]
    log_text = (folder / "logs" / "train.log").read_text()
    assert "epoch 2, the last: " in log_text and "best" not in log_text.replace("best_model", "")

    valid.main(["--run", str(folder)])

    def selection() -> str:
        results = folder / "valid_results_blobs"
        return json.loads((results / "summary.json").read_text())["provenance"]["selection"]

    assert selection() == "the last epoch of the run, which no score chose"
    first, *_ = (folder / "history.csv").read_text().splitlines(keepends=True)
    (folder / "history.csv").write_text(first + "1,0.1" + "," * (first.count(",") - 1) + "\n")
    valid.main(["--run", str(folder)])
    assert selection() == "epoch 1 of 2 of an unfinished run, which no score chose"
    with pytest.raises(UserError, match="held out no case of train"):
        valid.main(["--run", str(folder), "--held-out"])


def test_the_last_epoch_is_kept_where_an_earlier_one_scores_better(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([(0.9, 0.8), (0.1, 0.05), (0.9, 0.8), (0.1, 0.05)])
    monkeypatch.setattr(training, "mean_scores", lambda *_: next(scores))
    for select_on, epoch in (("last", 2), ("val", 1)):
        train.main(arguments(tmp_path, vae, f"select_on={select_on}", "save_freq=1", out=select_on))
        folder = tmp_path / select_on / "epochs_2"
        assert [float(row["val_dice"]) for row in history(folder)] == [0.9, 0.1]
        kept = torch.load(folder / "best_model.pth", weights_only=True)
        of_epoch = torch.load(folder / f"epoch_{epoch}.pth", weights_only=True)
        assert all(v.equal(of_epoch[p][k]) for p in kept for k, v in kept[p].items())


def test_dry_run_plans_and_writes_nothing(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main([*arguments(tmp_path, vae), "--dry-run"])
    plan = capsys.readouterr().out
    assert "trainable parameters: 2,600,668" in plan
    assert "7 train, 2 val for choosing, 3 test" in plan
    assert "steps per epoch: 3" in plan
    assert str(tmp_path / "run" / "epochs_2") in plan
    assert not (tmp_path / "run").exists()


def test_dry_run_tells_of_a_warm_up_that_never_ends(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs, told in ((2, True), (3, False)):
        train.main([*arguments(tmp_path, vae, f"epochs={epochs}", "warmup_epochs=2"), "--dry-run"])
        assert ("the peak rate is never reached" in capsys.readouterr().out) == told


def test_overrides_may_stand_on_both_sides_of_an_option(tmp_path: Path, vae: Path) -> None:
    first, *others = arguments(tmp_path, vae)[2:]
    config = arguments(tmp_path, vae)[:2]
    parsed = train.parse_arguments([first, *config, *others[:2], "--dry-run", *others[2:]])
    assert parsed.overrides == [first, *others] and parsed.dry_run
    assert train.parse_arguments(config).overrides == []


def test_a_score_of_0_is_told(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "engine.training.trainer.mean_scores", lambda model, cases, threshold: (0.0, threshold)
    )
    train.main(
        arguments(tmp_path, vae, "epochs=1", "w_tversky=0", "validate_every=2", "threshold=0.3")
    )
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1/1")
    ]
    assert "val_dice 0  val_iou 0.3" in line
    assert "tversky" not in line
    assert (tmp_path / "run" / "epochs_1" / "best_model.pth").exists()


def test_no_case_to_choose_by(tmp_path: Path, vae: Path) -> None:
    with pytest.raises(UserError, match="held out to choose the checkpoint: raise val_fraction"):
        train.main(arguments(tmp_path, vae, "val_fraction=0"))


def test_a_split_that_names_its_cases_to_choose_by_needs_no_fraction(
    tmp_path: Path, vae: Path
) -> None:
    command = arguments(tmp_path, vae, "val_fraction=0", "epochs=1")
    split_file = tmp_path / "blobs" / "blobs_train_test_names.json"
    split = json.loads(split_file.read_text())
    split["val"] = {"name_list": [split["train"]["name_list"].pop()]}
    split_file.write_text(json.dumps(split))
    train.main(command)
    assert (tmp_path / "run" / "epochs_1" / "best_model.pth").exists()


def test_dry_run_checks_the_test_cases_too(tmp_path: Path, vae: Path) -> None:
    command = [*arguments(tmp_path, vae), "--dry-run"]
    (tmp_path / "blobs" / "images" / "case_10.png").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"case_10\.png"):
        train.main(command)


def test_too_few_cases_for_a_batch(tmp_path: Path, vae: Path) -> None:
    for command in ([], ["--dry-run"]):
        with pytest.raises(UserError, match="7 training cases do not fill a batch of 8"):
            train.main([*arguments(tmp_path, vae, "batch_size=8"), *command])
    with pytest.raises(UserError, match=r"do not fill 4 of 2 .* batch_size or accumulate"):
        train.main(arguments(tmp_path, vae, "accumulate=4"))


def test_accumulated_batches_make_the_steps_of_a_large_one(tmp_path: Path, vae: Path) -> None:
    """Also at the end of an epoch, where cases are left over: of 10 cases, 8 make the two steps."""
    write_data_set(tmp_path, train=12, test=3, size=32)
    settings = ("lr=1e-4", "warmup_epochs=0")  # at a larger one AdamW lifts rounding errors
    train.main(arguments(tmp_path, vae, *settings, "batch_size=4", out="large"))
    train.main(arguments(tmp_path, vae, *settings, "accumulate=2", out="small"))
    large, small = (history(tmp_path / out / "epochs_2") for out in ("large", "small"))
    for row, other in zip(small, large, strict=True):
        for name in ("lr", "loss", "lm", "align", "train_dice"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name


def poison(monkeypatch: pytest.MonkeyPatch, bad_calls: set[int]) -> list[dict[str, float]]:
    """Make the loss of the given training steps NaN; returns a list that the losses are added to."""
    from models.wave_gms import WaveGMS

    losses = WaveGMS.losses
    seen: list[dict[str, float]] = []

    def poisoned(self, *args):
        result = losses(self, *args)
        if len(seen) + 1 in bad_calls:
            result["loss"] = result["loss"] * float("nan")
        seen.append({name: value.item() for name, value in result.items()})
        return result

    monkeypatch.setattr(WaveGMS, "losses", poisoned)
    return seen


def test_a_nan_loss_stops_after_the_last_good_state(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {5})
    cases = keep_cases(monkeypatch)
    with pytest.raises(UserError, match=r"nonfinite\.json"):
        train.main(arguments(tmp_path, vae))
    folder = tmp_path / "run" / "epochs_2"
    report = json.loads((folder / "nonfinite.json").read_text())
    assert report["epoch"] == 2
    assert [batch["cases"] for batch in report["batches"]] == [cases[4]]
    assert torch.load(folder / "last.pth", weights_only=True)["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in weights(folder).values())


def test_the_report_on_a_nan_loss_has_the_norms_of_all_parts(tmp_path: Path) -> None:
    layer = torch.nn.Conv2d(3, 4, 1)
    write_nonfinite(tmp_path / "report.json", 2, [], {"model": layer, "fixed": torch.nn.ReLU()})
    norms = json.loads((tmp_path / "report.json").read_text())["weight_norms"]
    flat = torch.cat([weight.flatten() for weight in layer.parameters()])
    assert norms == {"model": pytest.approx(flat.norm().item(), rel=1e-6), "fixed": 0.0}


@pytest.mark.parametrize(("step", "save_minutes"), [(2, 10), (5, 10), (1, 1e-9)])
def test_weights_that_are_no_numbers_replace_no_good_ones(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, step: int, save_minutes: float
) -> None:
    """The loss of a step is finite, its gradients are not: the epoch's last one, or one that is saved."""
    from models.wave_gms import WaveGMS

    losses, calls = WaveGMS.losses, [0]

    def steep(self, *args):
        calls[0] += 1
        result = losses(self, *args)
        if calls[0] == step + 1:
            weight = next(self.mapping.parameters())
            result["loss"] = result["loss"] + ((weight - weight.detach()).abs().sum() * 1e30) ** 0.5
        return result

    monkeypatch.setattr(WaveGMS, "losses", steep)
    with pytest.raises(UserError, match=f"weights became NaN or infinite in epoch {step // 3 + 1}"):
        train.main(arguments(tmp_path, vae, f"save_minutes={save_minutes}"))
    folder = tmp_path / "run" / "epochs_2"
    assert (folder / "last.pth").exists() == (step != 2)
    if step != 2:
        assert all(value.isfinite().all() for value in weights(folder).values())


def test_nan_losses_can_be_skipped(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a skipped batch is learned, and the means of its epoch are over the others."""
    with monkeypatch.context() as patch:
        losses = poison(patch, {2, 4, 5, 6})
        stop_in_step(patch, 3)  # so that the count is resumed, too
        with pytest.raises(Interrupted):
            train.main(arguments(tmp_path, vae, "skip_nonfinite=4"))
        train.main(arguments(tmp_path, vae, "skip_nonfinite=4"))
    folder = tmp_path / "run" / "epochs_2"
    assert all(value.isfinite().all() for value in weights(folder).values())
    first, second = history(folder)
    for name, column in (("loss", "loss"), ("seg", "seg"), ("dice", "train_dice")):
        assert float(first[column]) == pytest.approx((losses[0][name] + losses[2][name]) / 2)
        assert second[column] == ""
    assert second["val_dice"]


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_a_nan_loss_spoils_its_whole_step(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Wherever in it: the weights are those after the other step, and the schedule goes on."""
    write_data_set(tmp_path, train=10, test=3, size=32)
    poison(monkeypatch, {batch})
    settings = ("accumulate=4", "batch_size=1", "epochs=1", "skip_nonfinite=1", "ema_decay=0.5")
    train.main(arguments(tmp_path, vae, *settings))
    state = load_state(tmp_path / "run" / "epochs_1")
    assert state is not None
    steps = {int(each["step"]) for each in state["optimizer"]["state"].values()}
    assert steps == {1} and state["average"]["n_averaged"] == 1
    assert state["scheduler"]["last_epoch"] == 2
    assert state["progress"]["skipped"] == 1


def test_a_skipped_batch_leaves_no_statistics(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An overflow reaches batch normalisation before the loss is known."""
    from models.baseline import Baseline

    forward, calls = Baseline.forward, [0]

    def overflowing(self, image, mask=None, noise=None):
        calls[0] += mask is not None
        bad = mask is not None and calls[0] == 2
        return forward(self, image * float("inf") if bad else image, mask, noise)

    monkeypatch.setattr(Baseline, "forward", overflowing)
    model = "model=tests.own_networks:build"
    train.main(arguments(tmp_path, vae, model, "skip_nonfinite=1", "epochs=1"))
    kept = weights(tmp_path / "run" / "epochs_1")
    assert all(value.isfinite().all() for value in kept.values())
    (counted,) = (value for key, value in kept.items() if "num_batches_tracked" in key)
    assert counted == 2


def test_fewer_skips_may_be_allowed_later(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was skipped when that was allowed is no reason to stop."""
    with monkeypatch.context() as patch:
        poison(patch, {2})
        stop_in_step(patch, 3)
        with pytest.raises(Interrupted):
            train.main(arguments(tmp_path, vae, "skip_nonfinite=1"))
    train.main(arguments(tmp_path, vae))
    assert len(history(tmp_path / "run" / "epochs_2")) == 2


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path, vae: Path) -> None:
    from utils.locks import locked

    folder = tmp_path / "run" / "epochs_2"
    folder.mkdir(parents=True)
    with locked(folder), pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        train.main(arguments(tmp_path, vae))


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("utils.locks.fcntl.flock", refuse)
    with pytest.raises(UserError, match=r"run\.lock cannot be locked.*another disk"):
        train.main(arguments(tmp_path, vae))


def test_problems_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "train.py", "--config", str(tmp_path / "none.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot read the config")
    assert "Traceback" not in result.stderr


def test_schedule_warms_up_and_ends_near_zero() -> None:
    factor = warmup_then_cosine(10, 100)
    values = [factor(step) for step in range(100)]
    assert 0 < values[0] < values[5] < 1
    assert values[10] == 1.0 == max(values)
    assert values[99] < 1e-3
    assert [values[40], values[55]] == pytest.approx([0.75, 0.5]), "a third and half of the way"
    assert all(a > b for a, b in itertools.pairwise(values[10:]))
    assert warmup_then_cosine(0, 5)(0) == 1.0


def test_pictures_are_drawn_now_and_then_and_at_the_end(
    tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, int]] = []
    shown: list[int] = []
    monkeypatch.setattr(
        "engine.runs.history.draw_curves",
        lambda path, history, title: drawn.append((path.name, len(history))),
    )
    monkeypatch.setattr(
        "torch.utils.tensorboard.SummaryWriter.add_image",
        lambda _, tag, image, epoch, dataformats: shown.append(epoch),
    )
    monkeypatch.setattr("engine.runs.history.PICTURE_SECONDS", 1e6)
    train.main(arguments(tmp_path, vae, "epochs=4"))
    assert drawn == [("curves.png", 1), ("curves.png", 4), ("curves.pdf", 4)]
    assert shown == [1, 4]


def test_samples_show_image_truth_and_probability() -> None:
    black, white = torch.zeros(2, 3, 4, 4), torch.ones(2, 1, 4, 4)
    panel = sample_panel(black, white, 0.5 * white)
    assert panel.shape == (8, 12, 3)
    thirds = (set(panel[:, left : left + 4].flatten().tolist()) for left in (0, 4, 8))
    assert list(thirds) == [{0}, {255}, {128}]


def test_curves_are_drawn_with_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = keep_figures(monkeypatch, "engine.runs.history")
    rows: list[EpochRow] = [
        {"epoch": 1, "loss": 2.0, "lr": 0.1, "val_dice": None},
        {"epoch": 2, "loss": 1.0, "lr": 0.1, "val_dice": 0.5},
    ]
    draw_curves(tmp_path / "curves.png", rows, "title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    (val_dice,) = drawn[0].axes[1].lines
    assert list(val_dice.get_xdata()) == [2] and val_dice.get_marker() == "o", "a point is seen"
    draw_curves(tmp_path / "curves.png", rows[:1], "title")
    low, high = drawn[1].axes[0].get_xlim()
    assert [tick for tick in drawn[1].axes[0].get_xticks() if low <= tick <= high] == [1]


def test_drawing_the_curves_leaves_no_line_in_the_log(finished: Path, tmp_path: Path) -> None:
    assert "pruned" not in (finished / "logs" / "train.log").read_text(), "of fontTools"
    log_to(tmp_path / "train.log")
    rows: list[EpochRow] = [{"epoch": 1, "loss": 2.0, "lr": 0.1, "val_dice": 0.5}]
    draw_curves(tmp_path / "curves.pdf", rows, "title")
    draw_curves(tmp_path / "curves.png", rows, "title")
    assert (tmp_path / "train.log").read_text() == ""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_the_scaler_skips_leaves_the_average(
    optimizer: str, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_scaler(*settings: Any) -> Accelerator:
        accelerator = make_accelerator(*settings)
        # the first loss overflows, the others do not
        accelerator.scaler = torch.amp.GradScaler("cpu", 2.0**127, backoff_factor=2.0**-60)
        return accelerator

    monkeypatch.setattr(train, "make_accelerator", with_scaler)
    changes = ("epochs=1", "ema_decay=0.9", f"optimizer={optimizer}")
    train.main(arguments(tmp_path, vae, *changes))
    state = torch.load(tmp_path / "run" / "epochs_1" / "last.pth", weights_only=True)
    assert state["scaler"]["scale"] == 2.0**67, "one of three steps was skipped"
    assert state["average"]["n_averaged"] == 2
