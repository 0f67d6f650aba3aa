"""Runs keep the `--window` and the `--label` that their data was prepared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import export
import predict
import train
import valid
from datasets import prepare
from datasets.prepared import prepared_with
from engine.prediction.backends import TorchBackend, window_for
from engine.runs.resuming import check_resumable
from engine.runs.trained_run import find_run
from engine.runs.training_record import TrainingRecord
from tests.cases_on_disk import blob_case
from tests.small_run import arguments
from utils.checkpoints import read_metadata
from utils.config import load_config
from utils.errors import UserError


def deep_image(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A 16-bit image that is nearly black by its upper 8 bits, and its mask."""
    image, mask = blob_case(index, 32)
    return image.astype(np.uint16) * 4, mask


def prepare_deep(folder: Path, name: str, *options: str) -> Path:
    """Prepare a data set of six 16-bit images; returns the folder of the images as they came."""
    raw = folder / f"raw_{name}"
    for kind in ("images", "masks"):
        (raw / kind).mkdir(parents=True)
    for index in range(6):
        image, mask = deep_image(index)
        cv2.imwrite(str(raw / "images" / f"{index}.png"), image)
        cv2.imwrite(str(raw / "masks" / f"{index}.png"), mask)
    own = ["--images", str(raw / "images"), "--masks", str(raw / "masks")]
    prepare.main([name, *own, "--root", str(folder / "datasets"), *options])
    return raw / "images"


def trained(folder: Path, vae: Path, name: str) -> Path:
    """The folder of a run of one epoch on a prepared data set."""
    split = folder / "datasets" / name / f"{name}_train_test_names.json"
    own = [f"pickle_file_path={split}", f"snapshot_path={folder / name}", "epochs=1"]
    train.main(arguments(folder, vae, "vae_model=tiny_vae", *own))
    return folder / name / "epochs_1"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """Raw images `raw_windowed`, and a run on them with `--window 200,800`."""
    folder = tmp_path_factory.mktemp("work")
    prepare_deep(folder, "windowed", "--window", "200,800")
    trained(folder, vae, "windowed")
    return folder


def predicted(folder: Path, out: Path, *options: object) -> tuple[Any, list[np.ndarray]]:
    """The settings of a prediction of all raw images, and their probabilities."""
    images = folder / "raw_windowed" / "images"
    assert predict.main([*map(str, options), str(images), "--out", str(out)]) == 0
    maps = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(out.glob("prob*/*.png"))]
    return json.loads((out / "settings.json").read_text()), maps


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    assert len(one) == len(other) == 6
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_raw_images_are_predicted_as_the_prepared_ones(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("--run", work / "windowed" / "epochs_1")
    settings, maps = predicted(work, tmp_path / "default", *run)
    assert settings["window"] == "200,800"
    assert capsys.readouterr().out.count("by --window 200,800") == 1
    assert predict.main([*map(str, run), str(work / "datasets" / "windowed" / "images")] +
                        ["--out", str(tmp_path / "prepared")]) == 0  # fmt: skip
    prepared = [
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for path in sorted((tmp_path / "prepared").glob("prob*/*.png"))
    ]
    assert same(maps, prepared), "8-bit images are taken as they are, the others as prepared"
    capsys.readouterr()
    settings, others = predicted(work, tmp_path / "given", *run, "--window", "0,4000")
    assert settings["window"] == "0,4000" and not same(maps, others)
    told = [line for line in capsys.readouterr().out.splitlines() if "--window" in line]
    assert told == [
        "warning: the training images of this model were prepared with --window 200,800, these are scaled by 0,4000: "
        "leave out --window to scale them as in training"
    ]
    assert same(maps, predicted(work, tmp_path / "same", *run, "--window", "200,800.0")[1])
    assert "--window" not in capsys.readouterr().out


def test_exported_weights_hold_the_window(work: Path, tmp_path: Path) -> None:
    run = str(work / "windowed" / "epochs_1")
    weights = tmp_path / "shared" / "best_model.safetensors"
    export.main(["--run", run, "--out", str(weights)])
    assert read_metadata(weights)["window"] == "200,800"
    again = tmp_path / "again" / "best_model.safetensors"
    export.main(["--run", str(weights.parent), "--out", str(again)])
    assert window_for(TorchBackend(*find_run(again.parent)), None) == (200, 800)


def test_an_onnx_file_holds_the_window(work: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="exporting needs onnx (optional)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (optional)")
    run, model = str(work / "windowed" / "epochs_1"), tmp_path / "model.onnx"
    export.main(["--run", run, "--out", str(model), "--tolerance", "1"])
    settings, _ = predicted(work, tmp_path / "out", "--onnx", model)
    assert settings["window"] == "200,800"


def test_the_page_scales_images_as_in_training(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio (optional)")
    import app

    taken: list[object] = []

    class Stop(Exception):
        pass

    def build_page(backend: object, max_megapixels: float, window: object) -> None:
        taken.append(window)
        raise Stop

    monkeypatch.setattr("engine.prediction.web_page.build_page", build_page)
    for more in ([], ["--window", "auto"]):
        with pytest.raises(Stop):
            app.main(["--run", str(work / "windowed" / "epochs_1"), *more])
    assert taken == [(200, 800), "auto"]


def test_without_a_window_the_default_scaling_is_that_of_training(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = prepare_deep(tmp_path, "plain")
    run = trained(tmp_path, vae, "plain")
    assert TrainingRecord.read(run / "best_model.pth").window == ""
    capsys.readouterr()
    for name, images in (("raw", raw), ("prepared", tmp_path / "datasets" / "plain" / "images")):
        command = ["--run", str(run), str(images), "--out", str(tmp_path / name)]
        assert predict.main(command) == 0
    assert json.loads((tmp_path / "raw" / "settings.json").read_text())["window"] is None
    for path in (tmp_path / "raw" / "probabilities").iterdir():
        assert (
            path.read_bytes() == (tmp_path / "prepared" / "probabilities" / path.name).read_bytes()
        )
    assert "by --window" not in capsys.readouterr().out


def test_a_run_without_the_record_predicts_as_before(work: Path, tmp_path: Path) -> None:
    run = work / "windowed" / "epochs_1"
    older = tmp_path / "epochs_1"
    older.mkdir()
    for name in ("config.yaml", "best_model.pth"):
        (older / name).write_bytes((run / name).read_bytes())
    settings, _ = predicted(work, tmp_path / "out", "--run", older)
    assert settings["window"] is None
    older_record = json.loads((run / "environment.json").read_text())
    del older_record["window"]
    (older / "environment.json").write_text(json.dumps(older_record))
    out = str(tmp_path / "mean" / "best_model.safetensors")
    export.main(["--run", str(run), "--ensemble", str(_perturbed(older)), "--out", out])


def _perturbed(run: Path) -> Path:
    """The run with other weights, which an ensemble would else refuse as the same."""
    import torch

    weights = torch.load(run / "best_model.pth")
    for part in weights.values():
        for value in part.values():
            value.add_(0.01)
    torch.save(weights, run / "best_model.pth")
    return run


def test_a_run_goes_on_with_images_of_the_same_window_only(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "epochs_1"
    shutil.copytree(work / "windowed" / "epochs_1", run)
    config = load_config(run / "config.yaml")
    recorded = json.loads((run / "environment.json").read_text())
    unknown = {key: value for key, value in recorded.items() if key != "window"}
    check_resumable(run, config, recorded | {"window": "200,800"})
    check_resumable(run, config, unknown)
    with pytest.raises(
        UserError,
        match=r"images: prepared with --window 200,800 in the saved run, with no --window now; prepare",
    ):
        check_resumable(run, config, recorded | {"window": ""})
    (run / "environment.json").write_text(json.dumps(unknown))
    check_resumable(run, config, recorded | {"window": "auto"})
    resumed = unknown | {"resumed": [{}, {"window": "auto"}]}
    (run / "environment.json").write_text(json.dumps(resumed))
    with pytest.raises(UserError, match="prepared with --window auto in the saved run"):
        check_resumable(run, config, recorded | {"window": "200,800"})


def test_training_on_images_prepared_again_with_another_window_is_refused(
    work: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.runs.run_folder.prepared_with", lambda _: {"window": "0,4000"})
    with pytest.raises(UserError, match=r"--window 200,800 in the saved run, with --window 0,4000"):
        trained(work, vae, "windowed")


def test_a_run_goes_on_with_masks_of_the_same_labels_only(work: Path, tmp_path: Path) -> None:
    run = tmp_path / "epochs_1"
    shutil.copytree(work / "windowed" / "epochs_1", run)
    config = load_config(run / "config.yaml")
    recorded = json.loads((run / "environment.json").read_text())
    assert recorded["label"] == ""
    for label, option in (("2", "--label 2"), ("any", "--any-label")):
        expected = f"masks: prepared with no --label in the saved run, with {option} now; prepare"
        with pytest.raises(UserError, match=expected):
            check_resumable(run, config, recorded | {"label": label})
    del recorded["label"]  # an earlier version did not record it
    (run / "environment.json").write_text(json.dumps(recorded))
    check_resumable(run, config, recorded | {"label": "2"})


def test_a_set_prepared_anew_with_other_labels_is_told(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not of another data set, whose masks have numbers of their own."""
    run = str(work / "windowed" / "epochs_1")
    folder = work / "prepared_anew" / "windowed"
    shutil.copytree(work / "datasets" / "windowed", folder)
    shutil.copytree(folder, folder.with_name("elsewhere"))
    for each in (folder, folder.with_name("elsewhere")):
        manifest = json.loads((each / "dataset.json").read_text())
        (each / "dataset.json").write_text(json.dumps(manifest | {"label": [1, 255]}))
    split = folder.with_name("elsewhere") / "windowed_train_test_names.json"
    split.rename(split.with_name("elsewhere_train_test_names.json"))
    capsys.readouterr()
    names = [folder / split.name, split.with_name("elsewhere_train_test_names.json")]
    valid.main(["--run", run, "--datasets", *map(str, names)])
    told = [line for line in capsys.readouterr().out.splitlines() if "--label" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "warning: the masks of windowed were prepared with --label 1,255, those that these weights were trained on "
        "with no --label"
    )


def test_preparation_tells_labels_apart(tmp_path: Path) -> None:
    prepare_deep(tmp_path, "plain")
    prepare_deep(tmp_path, "some", "--label", "255")
    prepare_deep(tmp_path, "all", "--any-label")
    sets = tmp_path / "datasets"
    assert [prepared_with(sets / name)["label"] for name in ("plain", "some", "all")] == [
        "",
        "255",
        "any",
    ]
    assert prepared_with(tmp_path) == {}


def test_validation_on_images_of_another_window_tells(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_deep(work, "other", "--window", "auto")
    run, sets = str(work / "windowed" / "epochs_1"), work / "datasets"
    names = [str(sets / name / f"{name}_train_test_names.json") for name in ("windowed", "other")]
    capsys.readouterr()
    valid.main(["--run", run, "--datasets", *names])
    told = [line for line in capsys.readouterr().out.splitlines() if "--window" in line]
    assert len(told) == 1
    assert told[0].startswith(
        "warning: the images of other were prepared with --window auto, those that these weights were trained on with "
        "--window 200,800"
    )
