"""The mean of the weights of several runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import export
from datasets.cases import open_data_set
from engine.runs.provenance import provenance
from engine.runs.trained_run import find_run, load_run
from engine.runs.training_record import TrainingRecord
from tests.cases_on_disk import write_data_set
from tests.run_on_disk import write_run, write_vae
from utils.errors import UserError

FILE = "best_model.safetensors"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def runs(tmp_path: Path, vae: Path) -> list[Path]:
    """Three untrained runs that differ in their seeds and, by their configs, have a common start."""
    folders = [tmp_path / f"seed_{seed}" / "epochs_1" for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, 1):
        write_run(folder, vae, f"seed={seed}", "init_weights=start.pth")
    return folders


def average(runs: list[Path], out: Path, *options: str) -> dict[str, torch.Tensor]:
    first, *others = map(str, runs)
    arguments = ["--run", first, "--average", *others, "--out", str(out / FILE), *options]
    export.main(arguments)
    return load_file(out / FILE)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    parts = torch.load(run / "best_model.pth", weights_only=True)
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def test_the_weights_are_the_mean(runs: list[Path], tmp_path: Path) -> None:
    found = average(runs, tmp_path / "mean")
    originals = [weights_of(run) for run in runs]
    assert found.keys() == originals[0].keys()
    for key, value in found.items():
        expected = torch.stack([weights[key] for weights in originals]).mean(0)
        torch.testing.assert_close(value.float(), expected, rtol=1e-3, atol=1e-6)


def test_a_mean_counts_as_its_runs(runs: list[Path], tmp_path: Path) -> None:
    at_once = average(runs, tmp_path / "at_once")
    average(runs[:2], tmp_path / "two")
    in_turn = average([runs[2], tmp_path / "two"], tmp_path / "in_turn")
    assert (
        TrainingRecord.read(tmp_path / "in_turn" / FILE).averaged_runs
        == TrainingRecord.read(tmp_path / "at_once" / FILE).averaged_runs
        == 3
    )
    for key, value in at_once.items():
        torch.testing.assert_close(in_turn[key].float(), value.float(), rtol=2e-3, atol=1e-4)


def test_scores_say_that_weights_were_averaged(runs: list[Path], tmp_path: Path) -> None:
    data_set = open_data_set(write_data_set(tmp_path / "data", train=2, test=1, size=32))
    average(runs, tmp_path / "mean")
    config, checkpoint = find_run(tmp_path / "mean")
    said = "mean of the weights of 3 runs, each checkpoint chosen on a held-out part of train"
    assert provenance(load_run(config, checkpoint), data_set, "fp32")["selection"] == said
    again = tmp_path / "again"
    export.main(["--run", str(tmp_path / "mean"), "--out", str(again / FILE)])
    assert provenance(load_run(config, again / FILE), data_set, "fp32")["selection"] == said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("init_weights=other.pth", "another init_weights"),
        ("select_on=test", "another selection"),
        ("pickle_file_path=other_train_test_names.json", "another data_set, training_cases"),
        ("image_size=40", "another image_size"),
        ("keep_upright=true", "another keep_upright"),
    ],
)
def test_runs_that_do_not_fit_are_refused(
    runs: list[Path], tmp_path: Path, vae: Path, change: str, named: str
) -> None:
    data_set = write_data_set(tmp_path / "data", train=2, test=1, size=32)
    write_run(runs[0], vae, "init_weights=start.pth", f"pickle_file_path={data_set}")
    own = [] if change.startswith("pickle") else [f"pickle_file_path={data_set}"]
    write_run(runs[1], vae, "init_weights=start.pth", *own, change)
    with pytest.raises(UserError, match=named):
        average(runs[:2], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_runs_from_two_files_of_one_name_are_refused(runs: list[Path], tmp_path: Path) -> None:
    """As where the pretraining was done again, or still replaced its best weights."""
    for digests in (("a", "a"), ("a", "b")):
        for run, digest in zip(runs, digests, strict=False):
            record = {"sha256": {"file of initial weights": digest}}
            (run / "environment.json").write_text(json.dumps(record))
        if digests == ("a", "a"):
            average(runs, tmp_path / "mean")
    with pytest.raises(UserError, match="another file of init_weights, though of the same name"):
        average(runs[:2], tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_that_learned_from_other_data_is_refused(
    runs: list[Path], tmp_path: Path, vae: Path
) -> None:
    """The mean would not name its teachers, and so not tell the cases that they have seen."""
    teacher = tmp_path / "teacher" / "epochs_1"
    spots = write_data_set(tmp_path / "data", train=2, test=1, size=32, name="spots")
    write_run(teacher, vae, f"pickle_file_path={spots}")
    taught = f"teachers={teacher / 'best_model.pth'}"
    write_run(runs[1], vae, "seed=2", "init_weights=start.pth", taught)
    with pytest.raises(UserError, match="learned from weights that were trained on different data"):
        average(runs[:2], tmp_path / "mean")


def test_runs_from_random_weights_are_refused(tmp_path: Path, vae: Path) -> None:
    runs = [tmp_path / f"seed_{seed}" / "epochs_1" for seed in (1, 2)]
    for run in runs:
        write_run(run, vae)
    with pytest.raises(UserError, match="started from the same trained weights"):
        average(runs, tmp_path / "mean")


def test_a_run_named_twice_is_refused(runs: list[Path], tmp_path: Path) -> None:
    copied = shutil.copytree(runs[0], tmp_path / "copied")
    exported = tmp_path / "exported"
    export.main(["--run", str(runs[0]), "--out", str(exported / FILE)])
    average(runs[:2], tmp_path / "two")
    passed_on = tmp_path / "passed_on"
    export.main(["--run", str(tmp_path / "two"), "--out", str(passed_on / FILE)])
    for again in (runs[0], copied, exported, tmp_path / "two", passed_on):
        with pytest.raises(UserError, match=r"averaged already: name each once"):
            average([runs[0], runs[2], again], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_batch_normalisation_is_refused(runs: list[Path], tmp_path: Path) -> None:
    from engine.runs.combined_runs import load_average

    system: Any = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    with pytest.raises(UserError, match="batch normalisation"):
        load_average(system, [find_run(runs[0]), find_run(runs[1])])


def test_a_graph_is_not_averaged(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        export.main(["--run", str(runs[0]), "--average", str(runs[1])])


@pytest.mark.parametrize("option", ["--average", "--ensemble"])
def test_a_graph_of_several_runs_is_refused_before_anything_is_loaded(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("engine.runs.trained_run.load_system", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        export.main(["--run", str(runs[0]), option, str(runs[1]), "--out", "model.onnx"])


def test_every_run_is_compared_with_the_first(runs: list[Path], tmp_path: Path, vae: Path) -> None:
    write_run(runs[2], vae, "init_weights=other.pth", "seed=3")
    with pytest.raises(UserError, match="another init_weights"):
        average(runs, tmp_path / "mean")
