"""Weights that are passed on: those in the repository do what their cards say, others know their split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import cv2
import numpy as np
import pytest

import export
import train
import valid
from datasets.phantom import phantom_case
from datasets.splits import random_split, read_split
from engine.prediction.backends import TorchBackend
from engine.runs.run_cases import names_sha256
from engine.runs.trained_run import find_run
from tests.small_run import arguments
from utils.checkpoints import read_metadata
from utils.config import dump_config, load_config
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PROVIDED = sorted((ROOT / "ckpt" / "provided_models").iterdir())
OTHER_SEED = 11  # no phantom of this seed took part in training


@pytest.mark.parametrize("folder", PROVIDED, ids=lambda folder: folder.name)
def test_a_folder_is_small_and_has_a_card(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} >= {"best_model.safetensors", "config.yaml"}
    card = (folder / "README.md").read_text()
    for part in ("training data", "measured", "limitations", "licence", "not for clinical use"):
        assert part in card
    assert (folder / "best_model.safetensors").stat().st_size < 6e6
    config = load_config(folder / "config.yaml")
    for path in (config.pickle_file_path, config.snapshot_path, Path(config.vae_weights)):
        assert not path.is_absolute(), path


def test_the_weights_trained_on_phantoms_know_their_cases() -> None:
    folder = ROOT / "ckpt" / "provided_models"
    small = json.loads((folder / "phantom" / "environment.json").read_text())
    large = read_metadata(folder / "phantom_large" / "best_model.safetensors")
    for record, count in ((small, 5600), (large, 16000)):
        names = [f"phantom_{index:04}" for index in range(count)]
        assert record["training_cases"] == names_sha256(random_split(names, seed=7).train)


@pytest.mark.parametrize("name", ["phantom", "phantom_large"])
def test_the_weights_trained_on_phantoms_segment_others(name: str) -> None:
    backend = TorchBackend(*find_run(ROOT / "ckpt" / "provided_models" / name))
    size = backend.image_size
    cases = [phantom_case(index, seed=OTHER_SEED) for index in range(14)]
    cases = [case for case in cases if case.kind != "normal"][:12]
    images = [cv2.resize(case.image, (size, size), interpolation=cv2.INTER_AREA) for case in cases]
    masks = [cv2.resize(case.mask, (size, size), interpolation=cv2.INTER_NEAREST) for case in cases]
    batch = np.stack([np.repeat(image[None], 3, axis=0) for image in images]) / np.float32(255)
    found = backend(batch) >= backend.threshold
    assert np.mean([dice(each, mask > 0) for each, mask in zip(found, masks, strict=True)]) > 0.85


def test_the_weights_trained_on_busi_segment_its_published_test_cases(shared: Path) -> None:
    folder = ROOT / "ckpt" / "provided_models" / "busi"
    split = read_split(shared / "splits" / "busi_train_test_names.pkl")
    assert read_metadata(folder / "best_model.safetensors") == {
        "selection": "checkpoint chosen on a held-out part of train",
        "data_set": "busi",
        "training_cases": names_sha256(split.train),
        **dict.fromkeys(("window", "label"), ""),
    }
    backend = TorchBackend(*find_run(folder, overrides=[f"vae_weights={shared / 'taesd'}"]))
    side = (backend.image_size, backend.image_size)
    images, masks = [], []
    with ZipFile(shared / "data" / "Dataset_BUSI_with_GT.zip") as archive:

        def read(name: str, suffix: str, flag: int) -> np.ndarray:
            kind, number = name.split("_")
            content = archive.read(f"Dataset_BUSI_with_GT/{kind}/{kind} ({number}){suffix}.png")
            return cv2.imdecode(np.frombuffer(content, np.uint8), flag)

        for name in split.test[:6]:
            images.append(cv2.resize(read(name, "", cv2.IMREAD_COLOR), side)[..., ::-1])
            mask = read(name, "_mask", cv2.IMREAD_GRAYSCALE)
            masks.append(cv2.resize(mask, side, interpolation=cv2.INTER_NEAREST))
    found = backend(np.stack(images).transpose(0, 3, 1, 2) / np.float32(255)) >= backend.threshold
    assert np.mean([dice(each, mask > 0) for each, mask in zip(found, masks, strict=True)]) > 0.7


def dice(prediction: np.ndarray, mask: np.ndarray) -> float:
    return float(2 * np.sum(prediction & mask) / (prediction.sum() + mask.sum()))


def passed_on(run: Path, folder: Path) -> Path:
    """The folder with the exported weights of a run."""
    export.main(["--run", str(run), "--out", str(folder / "best_model.safetensors")])
    return folder


def summary_in(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(
        (folder / "valid_results_blobs" / "summary.json").read_text()
    )
    return summary


def test_what_is_passed_on_again_keeps_its_record(finished: Path, tmp_path: Path) -> None:
    """Whatever data this machine has by then, and under whatever name."""
    first = passed_on(finished, tmp_path / "first") / "best_model.safetensors"
    record = read_metadata(first)
    assert record.keys() == {"data_set", "training_cases", "selection"}
    assert record["selection"] == "checkpoint chosen on a held-out part of train"
    split, beside = (
        tmp_path / "blobs" / "blobs_train_test_names.json",
        first.with_name("config.yaml"),
    )
    config = load_config(beside).model_copy(update={"pickle_file_path": split})
    beside.write_text(dump_config(config))
    for change in ("another split", "no data"):
        if change == "no data":
            split.unlink()
        else:
            content = json.loads(split.read_text())
            content["train"]["name_list"].pop()
            split.write_text(json.dumps(content))
        again = tmp_path / change / "blobs.safetensors"
        export.main(["--run", str(first.parent), "--out", str(again)])
        assert read_metadata(again) == record


def test_weights_that_no_score_chose_say_so_when_passed_on(finished: Path, tmp_path: Path) -> None:
    other, out = finished / "epoch_1.pth", tmp_path / "shared" / "best_model.safetensors"
    other.write_bytes((finished / "best_model.pth").read_bytes())
    export.main(["--run", str(finished), "--weights", str(other), "--out", str(out)])
    valid.main(["--run", str(out.parent)])
    said = summary_in(out.parent)["provenance"]["selection"]
    assert said == "epoch_1.pth of the run, which no score chose"

    unknown = tmp_path / "downloaded.pth"
    unknown.write_bytes(other.read_bytes())
    run = ["--config", str(finished / "config.yaml"), "--weights", str(unknown)]
    export.main([*run, "--out", str(tmp_path / "unknown" / "best_model.safetensors")])
    record = read_metadata(tmp_path / "unknown" / "best_model.safetensors")
    assert record.keys() == {"selection"} and "no record" in record["selection"]


def test_exported_weights_know_another_split(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, split = passed_on(finished, tmp_path / "shared"), tmp_path / "blobs"
    split /= "blobs_train_test_names.json"
    data = f"pickle_file_path={split}"
    valid.main(["--run", str(shared), data])
    assert summary_in(shared)["provenance"]["trained_on_another_split"] is False
    assert "another split" not in capsys.readouterr().out

    content = json.loads(split.read_text())
    train_names, test_names = (content[part]["name_list"] for part in ("train", "test"))
    train_names[0], test_names[0] = test_names[0], train_names[0]
    split.write_text(json.dumps(content))
    valid.main(["--run", str(shared), data])
    assert summary_in(shared)["provenance"]["trained_on_another_split"] is True
    assert "was trained on another split of blobs" in capsys.readouterr().out
    start = f"init_weights={shared / 'best_model.safetensors'}"
    with pytest.raises(UserError, match="was trained on another split of blobs"):
        train.main(arguments(tmp_path, vae, start, "seed=5", out="next"))


def test_weights_alone_know_another_split_file_of_their_data_set(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    shared, split = passed_on(finished, tmp_path / "shared"), tmp_path / "blobs"
    (shared / "config.yaml").unlink()
    content = json.loads((split / "blobs_train_test_names.json").read_text())
    train_names, test_names = (content[part]["name_list"] for part in ("train", "test"))
    train_names[0], test_names[0] = test_names[0], train_names[0]
    grouped = split / "blobs_grouped_train_test_names.json"
    grouped.write_text(json.dumps(content))
    start = (f"init_weights={shared / 'best_model.safetensors'}", f"pickle_file_path={grouped}")
    with pytest.raises(UserError, match="was trained on another split of blobs_grouped"):
        train.main(arguments(tmp_path, vae, *start, "seed=5", out="next"))


def test_the_order_of_the_names_is_no_other_split(finished: Path, tmp_path: Path) -> None:
    shared, split = passed_on(finished, tmp_path / "shared"), tmp_path / "blobs"
    split /= "blobs_train_test_names.json"
    content = json.loads(split.read_text())
    content["train"]["name_list"].reverse()
    split.write_text(json.dumps(content))
    valid.main(["--run", str(shared), f"pickle_file_path={split}"])
    assert summary_in(shared)["provenance"]["trained_on_another_split"] is False


def test_provided_weights_take_the_split_file_of_the_config_whatever_its_path(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_on(finished, tmp_path / "provided" / "blobs")
    monkeypatch.setattr("engine.runs.trained_run.PROVIDED_MODELS", tmp_path / "provided")
    split = tmp_path / "set #2: no comment" / "blobs_train_test_names.json"
    own = {"pickle_file_path": str(split), "snapshot_path": str(tmp_path / "wave_gms_blobs")}
    file = tmp_path / "blobs_valid.yaml"
    file.write_text(json.dumps(own))
    assert find_run(config_file=file).config.pickle_file_path == split


def test_the_only_run_of_an_experiment_is_meant_where_no_epochs_are_given(tmp_path: Path) -> None:
    """As after a training with other epochs than the config's."""
    file = tmp_path / "blobs_valid.yaml"
    experiment = tmp_path / "mine"
    keys = {"pickle_file_path": "blobs_train_test_names.json", "snapshot_path": str(experiment)}
    file.write_text(json.dumps(keys | {"epochs": 1000}))
    for name in ("epochs_4", "epochs_9", "epochs_36_old"):
        (experiment / name).mkdir(parents=True)
    (experiment / "epochs_4" / "best_model.pth").touch()

    def found(*overrides: str) -> tuple[int, str]:
        run = find_run(config_file=file, overrides=overrides)
        return run.config.epochs, run.checkpoint.parent.name

    assert found() == (4, "epochs_4")
    elsewhere = tmp_path / "elsewhere" / "weights.pth"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    named = (1000, "elsewhere")
    assert found(f"model_weight={elsewhere}") == named, "the run is not meant"
    run = find_run(config_file=file, weights=elsewhere)
    assert (run.config.epochs, run.checkpoint) == (1000, elsewhere)
    with pytest.raises(UserError, match=r"no checkpoint at .*epochs_5/"):
        found("epochs=5")
    (experiment / "epochs_9" / "best_model.pth").touch()
    with pytest.raises(UserError, match=r"no checkpoint at .*epochs_1000/"):
        found()
    (experiment / "epochs_1000").mkdir()
    (experiment / "epochs_1000" / "best_model.pth").touch()
    assert found() == (1000, "epochs_1000")
    shutil.rmtree(experiment)
    (experiment / "epochs_36_old").mkdir(parents=True)
    (experiment / "epochs_36_old" / "best_model.pth").touch()
    with pytest.raises(UserError, match=r"no checkpoint at .*epochs_1000/"):
        found()


def test_provided_weights_stand_in_until_there_is_a_run(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provided = passed_on(finished, tmp_path / "provided" / "blobs")
    monkeypatch.setattr("engine.runs.trained_run.PROVIDED_MODELS", tmp_path / "provided")
    own, other = (arguments(tmp_path, vae, out=out) for out in ("wave_gms_blobs", "my_experiment"))
    valid.main(own)
    assert summary_in(provided)["provenance"]["checkpoint"] == str(
        provided / "best_model.safetensors"
    )
    with pytest.raises(UserError, match=r"no checkpoint at .*my_experiment"):
        valid.main(other)

    run = tmp_path / "wave_gms_blobs" / "epochs_2"
    shutil.copytree(finished, run)
    valid.main(own)
    assert summary_in(run)["provenance"]["checkpoint"] == str(run / "best_model.pth")
    with pytest.raises(UserError, match=r"no checkpoint at .*epochs_7"):  # a typo, say
        valid.main([*own, "epochs=7"])
