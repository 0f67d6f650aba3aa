"""Several runs as one model that predicts the mean of their probabilities."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import compare
import export
import predict
import valid
from engine.prediction.backends import TorchBackend
from engine.runs.trained_run import find_run, load_run
from tests.cases_on_disk import write_data_set
from tests.run_on_disk import write_run
from utils.errors import UserError

FILE = "best_model.safetensors"


@pytest.fixture
def runs(tmp_path: Path, vae: Path) -> list[Path]:
    """Three untrained runs from random weights, of three seeds."""
    split = write_data_set(tmp_path / "data", train=6, test=3, size=32)
    folders = [tmp_path / f"seed_{seed}" / "epochs_1" for seed in (1, 2, 3)]
    for seed, folder in enumerate(folders, 1):
        write_run(folder, vae, f"seed={seed}", f"pickle_file_path={split}", "num_workers=0")
    return folders


def gather(runs: list[Path], out: Path, option: str = "--ensemble") -> Path:
    first, *others = map(str, runs)
    export.main(["--run", first, option, *others, "--out", str(out / FILE)])
    return out


def predicted(run: Path, images: np.ndarray) -> np.ndarray:
    return TorchBackend(*find_run(run))(images)


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 3, 32, 32), np.float32)


def test_it_predicts_the_mean_of_the_probabilities(runs: list[Path], tmp_path: Path) -> None:
    images = images_of(2)
    alone = np.stack([predicted(run, images) for run in runs])
    together = predicted(gather(runs, tmp_path / "all"), images)
    assert alone.std(axis=0).max() > 0.01
    np.testing.assert_allclose(together, alone.mean(axis=0), atol=2e-3)  # weights of 16 bits

    again = tmp_path / "again"
    export.main(["--run", str(tmp_path / "all"), "--out", str(again / FILE)])
    np.testing.assert_array_equal(predicted(again, images), together)


def test_networks_with_batch_normalisation_can_be_members(tmp_path: Path, vae: Path) -> None:
    folders = [tmp_path / f"seed_{seed}" / "epochs_1" for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        write_run(folder, vae, "model=tests.own_networks:build", f"seed={seed}")
    images = images_of(1)
    alone = [predicted(run, images) for run in folders]
    together = predicted(gather(folders, tmp_path / "both"), images)
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=2e-3)


def test_it_is_scored_and_compared_like_a_run(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    together = gather(runs, tmp_path / "all")
    for run in (together, runs[0]):
        valid.main(["--run", str(run), "tta=true"])
    summary = json.loads((together / "valid_results_blobs" / "summary.json").read_text())
    assert summary["provenance"]["selection"] == (
        "mean of the probabilities of 3 runs, each checkpoint chosen on a held-out part of train"
    )
    assert summary["provenance"]["test_cases_trained_on"] == []
    compare.main([str(together), str(runs[0]), "--out", str(tmp_path / "comparison")])
    assert "mean of the probabilities of 3 runs" in capsys.readouterr().out


def test_it_is_used_and_exported_like_a_run(runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    together, graph = gather(runs, tmp_path / "all"), tmp_path / "all.onnx"
    export.main(["--run", str(together), "--out", str(graph), "--tolerance", "1e-3"])
    cv2.imwrite(str(tmp_path / "a.png"), (images_of(1)[0, 0] * 255).astype(np.uint8))
    maps = []
    for model in (["--run", str(together)], ["--onnx", str(graph)]):
        out = tmp_path / model[0].strip("-")
        assert predict.main([*model, str(tmp_path / "a.png"), "--out", str(out)]) == 0
        maps.append(cv2.imread(str(out / "probabilities" / "a.png"), cv2.IMREAD_UNCHANGED))
    assert np.abs(maps[0].astype(int) - maps[1]).max() < 70


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("image_size=40", "another image_size"),
        ("keep_upright=true", "another keep_upright"),
        ("vae_model=tiny_vae", "another vae_model"),
        ("select_on=test", "another selection"),
        (
            "init_weights=start.pth",
            "started or learned from weights that were trained on different data",
        ),
    ],
)
def test_runs_that_do_not_go_together_are_refused(
    runs: list[Path], tmp_path: Path, vae: Path, change: str, named: str
) -> None:
    split = find_run(runs[0])[0].pickle_file_path
    write_run(runs[1], vae, f"pickle_file_path={split}", change)
    with pytest.raises(UserError, match=named):
        gather(runs, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_one_vae_in_two_places_is_one(
    runs: list[Path], tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = runs[:2]
    split, linked = find_run(first)[0].pickle_file_path, tmp_path / "linked"
    linked.symlink_to(vae)
    write_run(second, linked, "seed=2", f"pickle_file_path={split}")
    with pytest.raises(UserError, match="another vae_weights"):
        gather(runs[:2], tmp_path / "unknown")
    for run in (first, second):
        inputs = {"file of groups": str(run), **load_run(*find_run(run)).frozen}
        (run / "environment.json").write_text(json.dumps({"sha256": inputs}))
    assert (gather(runs[:2], tmp_path / "both") / FILE).is_file()
    assert "trained with" not in capsys.readouterr().out
    changed = {"sha256": {"Tiny-VAE decoder": "0" * 64}}
    (second / "environment.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match="another vae_weights"):
        gather(runs[:2], tmp_path / "changed")


def test_each_member_may_have_its_own_start_on_the_same_data(
    runs: list[Path], tmp_path: Path, vae: Path
) -> None:
    split = find_run(runs[0])[0].pickle_file_path
    later = [tmp_path / f"later_{number}" for number in (1, 2)]
    for folder, start in zip(later, runs, strict=False):
        start_of = f"init_weights={start / 'best_model.pth'}"
        write_run(folder, vae, f"pickle_file_path={split}", start_of)
        (folder / "best_model.pth").write_bytes((start / "best_model.pth").read_bytes())
    assert (gather(later, tmp_path / "all") / FILE).is_file()


def test_members_are_single_runs_each_named_once(runs: list[Path], tmp_path: Path) -> None:
    copied = shutil.copytree(runs[0], tmp_path / "copied")
    with pytest.raises(UserError, match=r"holds the same weights as .*name each run once"):
        gather([*runs, copied], tmp_path / "all")
    two = gather(runs[:2], tmp_path / "two")
    with pytest.raises(UserError, match="is itself made of several runs"):
        gather([runs[2], two], tmp_path / "all")


def test_a_mean_of_runs_is_no_member(runs: list[Path], tmp_path: Path, vae: Path) -> None:
    for seed, run in enumerate(runs):
        split = find_run(run)[0].pickle_file_path
        own = (f"seed={seed}", f"pickle_file_path={split}", "init_weights=start.pth")
        write_run(run, vae, *own)
    mean = gather(runs[:2], tmp_path / "mean", option="--average")
    with pytest.raises(UserError, match="is itself made of several runs"):
        gather([runs[2], mean], tmp_path / "all")


def test_an_ensemble_is_not_averaged(runs: list[Path], tmp_path: Path, vae: Path) -> None:
    for seed, run in enumerate(runs):
        split = find_run(run)[0].pickle_file_path
        own = (f"seed={seed}", f"pickle_file_path={split}", "init_weights=start.pth")
        write_run(run, vae, *own)
    two = gather(runs[:2], tmp_path / "two")
    for named in ([runs[2], two], [two, runs[2]]):
        with pytest.raises(UserError, match="is an ensemble: name the runs"):
            gather(named, tmp_path / "mean", option="--average")


def test_a_graph_of_several_runs_comes_from_their_file(runs: list[Path]) -> None:
    with pytest.raises(UserError, match=r"ending in \.safetensors"):
        export.main(["--run", str(runs[0]), "--ensemble", str(runs[1])])
