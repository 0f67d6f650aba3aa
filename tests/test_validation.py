from __future__ import annotations

import csv
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch

import compare
import export
import train
import valid
from datasets.cases import Case, open_data_set
from engine.prediction.backends import TorchBackend
from engine.runs import trained_run
from engine.runs.network_settings import trained_values_that_differ
from engine.runs.provenance import provenance
from engine.runs.seen_cases import seen_test_cases
from engine.runs.trained_run import find_run
from engine.validation.case_predictions import (
    Prediction,
    locked_for_writing,
    mean_over_orientations,
    remove_other_predictions,
    save_each,
    save_prediction,
)
from experiments import cross_validation
from experiments.folds import read_folds
from models.losses import dice_and_iou
from scoring.examples import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    TRUTH_LINE,
    draw_examples,
    names_by_quantile,
    outline_both,
    reduced,
    trace_outline,
)
from scoring.in_words import how_scored
from scoring.report import ReportCase
from scoring.results import Summary, read_results
from scoring.statistics import bootstrap_interval
from tests.cases_on_disk import write_data_set
from tests.drawn_figures import keep_figures
from tests.run_on_disk import write_vae
from tests.small_run import arguments
from utils.config import dump_config, load_config, make_config
from utils.errors import UserError
from utils.files import sha256


def scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "valid_results_blobs" / "results.csv").open() as file:
        return list(csv.DictReader(file))


def read(path: Path) -> np.ndarray:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels


def test_validation_writes_what_it_promises(finished: Path, tmp_path: Path, vae: Path) -> None:
    of_another_split = finished / "valid_results_blobs" / "overlays" / "case_99.jpg"
    masks = [
        finished / "predicted_masks_blobs" / kind / "case_99.png" for kind in ("binary", "logits")
    ]
    for path in (of_another_split, *masks):
        path.parent.mkdir(parents=True)
        path.touch()
    valid.main(arguments(tmp_path, vae))
    assert not any(path.exists() for path in (of_another_split, *masks))
    rows = scores(finished)
    assert [row["Name"] for row in rows] == ["case_10", "case_11", "case_9", "Avg", "Std"]
    for row in rows[:3]:
        mask = read(finished / "predicted_masks_blobs" / "binary" / f"{row['Name']}.png")
        steps = read(finished / "predicted_masks_blobs" / "logits" / f"{row['Name']}.png")
        assert mask.shape == steps.shape == (32, 32)
        assert mask.dtype == np.uint8 and steps.dtype == np.uint16
        assert set(np.unique(mask)) <= {0, 255}
        assert ((steps / 65535 >= 0.5) == (mask > 0)).mean() > 0.999
        truth = read(tmp_path / "blobs" / "masks" / f"{row['Name']}.png") > 0
        dice = 2 * (truth & (mask > 0)).sum() / (truth.sum() + (mask > 0).sum())
        assert float(row["DSC"]) == pytest.approx(dice)
    examples = read(finished / "valid_results_blobs" / "examples.png")
    assert examples.std() > 10
    above_legend = examples[:-60, :, :3]
    assert (above_legend == TRUTH_COLOUR[::-1]).all(-1).any(), "no outline of the truth"
    overlay = read(finished / "valid_results_blobs" / "overlays" / "case_10.jpg")
    off = np.abs(overlay.astype(int) - TRUTH_COLOUR[::-1]).max(-1)
    assert (off < 20).any(), "no outline of the truth"
    colour = "[{}, {}, {}]".format(*TRUTH_COLOUR)
    report = (finished / "valid_results_blobs" / "report.html").read_text()
    assert all(row["Name"] in report for row in rows[:3])
    assert f"FN = {colour}" in report, "the report and the overlays agree in what is blue"
    summary = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    assert summary["count"] == 3
    for rule, label in (
        ("diagonal", "HD95, one mask empty counts the diagonal (px)"),
        ("zero", "HD95, one mask empty counts 0 (published rule) (px)"),
    ):
        assert f"{label}</th><td>{summary['hd95'][rule]['mean']:.2f}</td>" in report
    assert summary["provenance"]["trained_on_another_split"] is False
    assert summary["provenance"]["selection"] == "checkpoint chosen on a held-out part of train"
    assert len(summary["provenance"]["sha256"]["checkpoint"]) == 64
    assert summary["provenance"]["precision"] == "fp32"


def test_batches_and_workers_change_no_score(finished: Path, tmp_path: Path, vae: Path) -> None:
    valid.main(arguments(tmp_path, vae))
    first = (finished / "valid_results_blobs" / "results.csv").read_bytes()
    valid.main(arguments(tmp_path, vae, "batch_size=3", "num_workers=2"))
    assert (finished / "valid_results_blobs" / "results.csv").read_bytes() == first


def test_a_split_that_changed_since_the_training_is_told(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(arguments(tmp_path, vae, "epochs=1"))
    split_file = tmp_path / "blobs" / "blobs_train_test_names.json"
    split = json.loads(split_file.read_text())
    split_file.write_text(json.dumps(split, indent=3))
    valid.main(arguments(tmp_path, vae, "epochs=1"))
    assert "another split" not in capsys.readouterr().out, "the names are the same"
    trained, tested = (split[part]["name_list"] for part in ("train", "test"))
    trained[0], tested[0] = tested[0], trained[0]
    split_file.write_text(json.dumps(split))
    valid.main(arguments(tmp_path, vae, "epochs=1"))
    assert "was trained on another split of blobs" in capsys.readouterr().out
    results = tmp_path / "run" / "epochs_1" / "valid_results_blobs"
    summary = json.loads((results / "summary.json").read_text())
    assert summary["provenance"]["trained_on_another_split"] is True

    run = tmp_path / "run" / "epochs_1"
    passed_on = tmp_path / "passed_on" / "best_model.safetensors"
    export.main(["--run", str(run), "--out", str(passed_on)])
    valid.main(["--run", str(passed_on.parent)])
    assert "was trained on another split of blobs" in capsys.readouterr().out


def redrawn(split_file: Path, *moved: str, name: str = "other") -> Path:
    """Another split file of the same data, in which the cases `moved` change sides."""
    split = json.loads(split_file.read_text())
    every = [case for part in split.values() for case in part["name_list"]]
    test = set(split["test"]["name_list"]) ^ set(moved)
    parts = {
        "train": [case for case in every if case not in test],
        "test": [case for case in every if case in test],
    }
    path = split_file.with_name(f"{name}_train_test_names.json")
    path.write_text(json.dumps({part: {"name_list": names} for part, names in parts.items()}))
    return path


def test_test_cases_that_a_run_was_trained_on_are_told_and_left_out(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(arguments(tmp_path, vae, "epochs=1"))
    run, data = tmp_path / "run" / "epochs_1", tmp_path / "blobs"

    def summary_on(split: Path, *overrides: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        valid.main(["--run", str(run), f"pickle_file_path={split}", *overrides])
        name = split.stem.removesuffix("_train_test_names")
        summary = json.loads((run / f"valid_results_{name}" / "summary.json").read_text())
        return summary, capsys.readouterr().out

    own = data / "blobs_train_test_names.json"
    summary, told = summary_on(own)
    assert summary["provenance"]["test_cases_trained_on"] == []
    assert summary["without_leaked"] is None and "training data" not in told

    other = redrawn(own, "case_0", "case_1", "case_9")
    summary, told = summary_on(other)
    said = summary["provenance"]
    assert said["test_cases_trained_on"] == ["case_0", "case_1"]
    assert said["trained_on_another_split"] is True
    assert summary["without_leaked"]["dropped"] == ["case_0", "case_1"]
    assert "2 of its 4 test cases (case_0, case_1) were in the training data" in told
    assert "the scores are too high" in told
    assert "2 cases that were not in the training data" in told and "duplicate" not in told
    assert "trained on 2 of the 4 scored cases, scores" in how_scored(cast(Summary, summary))
    report = (run / "valid_results_other" / "report.html").read_text()
    assert "The weights were trained on 2 of these cases" in report

    summary, told = summary_on(other, "drop_leaked=false")
    assert summary["without_leaked"] is None and "2 of its 4 test cases" in told
    assert summary["provenance"]["test_cases_trained_on"] == ["case_0", "case_1"]

    groups = {"by": "near-duplicates", "groups": [["case_2", "case_10"]]}
    (data / "check").mkdir()
    (data / "check" / "same_source_groups.json").write_text(json.dumps(groups))
    summary, told = summary_on(other)
    assert summary["without_leaked"]["dropped"] == ["case_0", "case_1", "case_10"]
    assert "1 cases neither in the training data nor found to have a near-duplicate there" in told

    smaller = redrawn(own, "case_9", name="smaller")
    summary, told = summary_on(smaller, "drop_leaked=false")
    assert summary["provenance"]["test_cases_trained_on"] == [], "none of these was trained on"
    assert "too high" not in told


def test_the_cases_of_a_run_are_known_where_its_split_file_has_changed(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(arguments(tmp_path, vae, "epochs=1"))
    run, split_file = (
        tmp_path / "run" / "epochs_1",
        tmp_path / "blobs" / "blobs_train_test_names.json",
    )
    cases = json.loads((run / "cases.json").read_text())
    split = json.loads(split_file.read_text())
    assert sorted(cases["train"] + cases["held_out"]) == sorted(split["train"]["name_list"])
    assert cases["held_out"] and cases["test"] == split["test"]["name_list"]

    def seen(*moved: str) -> list[str]:
        split_file.write_bytes(redrawn(split_file, *moved).read_bytes())
        valid.main(["--run", str(run)])
        summary = json.loads((run / "valid_results_blobs" / "summary.json").read_text())
        return summary["provenance"]["test_cases_trained_on"]

    assert seen("case_0", "case_9") == ["case_0"]
    assert "1 of its 3 test cases (case_0)" in capsys.readouterr().out
    assert seen("case_0") == [], "one fewer to test on, and none that was trained on"
    assert "another split" not in capsys.readouterr().out


def test_the_held_out_cases_are_scored(
    tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folds = ("epochs=1", "folds=3", "save_freq=1")
    scored: list[str] = []
    for fold in range(3):
        train.main(arguments(tmp_path, vae, *folds, f"fold={fold}", out=f"fold_{fold}"))
        run = tmp_path / f"fold_{fold}" / "epochs_1"
        capsys.readouterr()
        valid.main(["--run", str(run), "--held-out"])
        told = capsys.readouterr().out
        assert "blobs: 3 held-out cases" in told and "warning" not in told
        results = run / "held_out_results_blobs"
        with (results / "results.csv").open() as file:
            scored += [
                row["Name"] for row in csv.DictReader(file) if row["Name"].startswith("case")
            ]
        summary = json.loads((results / "summary.json").read_text())
        assert summary["provenance"]["selection"].endswith(
            "; scored on the held-out cases, which choose the checkpoint"
        )
        assert summary["provenance"]["test_cases_trained_on"] == []
        assert len(list((run / "held_out_masks_blobs" / "binary").iterdir())) == 3
        assert not list(run.glob("valid_results_*"))
        with (run / "history.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert summary["metrics"]["DSC"]["mean"] == pytest.approx(float(row["val_dice"]), abs=1e-6)
    data_set = open_data_set(tmp_path / "blobs" / "blobs_train_test_names.json")
    assert sorted(scored) == sorted(case.name for case in data_set.train), "each of them once"

    runs = [tmp_path / f"fold_{fold}" / "epochs_1" for fold in range(3)]
    cross_validation.main([*map(str, runs), "--out", str(tmp_path / "pooled")])
    assert "blobs: 9 held-out cases" in capsys.readouterr().out
    pooled = read_results(tmp_path / "pooled")
    assert pooled.names == sorted(scored)
    assert pooled.summary["provenance"]["selection"].startswith("cross-validation, in each of 3")

    valid.main(["--run", str(run), "--held-out", f"model_weight={run / 'epoch_1.pth'}"])
    of_epoch = read_results(run / "epoch_1" / "held_out_results_blobs").summary["provenance"]
    assert of_epoch["selection"] == (
        "epoch_1.pth of the run, which no score chose; scored on the held-out cases"
    )
    with pytest.raises(UserError, match=r"differ in selection: .* and 'epoch_1\.pth"):
        read_folds([*runs[:2], run / "epoch_1"])

    held_out = json.loads((run / "cases.json").read_text())["held_out"]
    start = f"init_weights={run / 'best_model.pth'}"
    train.main(arguments(tmp_path, vae, *folds, "fold=0", start, out="again"))
    valid.main(["--run", str(tmp_path / "again" / "epochs_1"), "--held-out"])
    assert "were trained on 3 of the 3 held-out cases" in capsys.readouterr().out

    alike = held_out[1:]  # near-duplicates of one another, none of them trained on
    groups = {"by": "near-duplicates", "groups": [[held_out[0], scored[0]], alike]}
    (tmp_path / "blobs" / "check").mkdir()
    (tmp_path / "blobs" / "check" / "same_source_groups.json").write_text(json.dumps(groups))
    valid.main(["--run", str(run), "--held-out"])
    summary = json.loads((results / "summary.json").read_text())
    assert summary["without_leaked"]["dropped"] == [held_out[0]]
    assert summary["bootstrap"]["by"] == "near-duplicates"
    assert summary["group_of"] == {
        held_out[0]: min(held_out[0], scored[0]),
        **dict.fromkeys(alike, min(alike)),
    }

    (run / "cases.json").unlink()
    with pytest.raises(
        UserError, match=r"no record \(cases\.json beside it\) of which cases of blobs"
    ):
        valid.main(["--run", str(run), "--held-out"])
    train.main(arguments(tmp_path, vae, "epochs=1", "select_on=test", out="on_test"))
    with pytest.raises(UserError, match="held out no case of train; it was chosen on test"):
        valid.main(["--run", str(tmp_path / "on_test" / "epochs_1"), "--held-out"])


def test_seen_test_cases_need_the_split_of_the_same_data(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    """The run in `finished` names the split in the folder of `a_run`."""
    checkpoint = finished / "best_model.pth"

    def seen(folder: Path, name: str, other_images: bool = False) -> list[str] | None:
        split = write_data_set(folder, train=9, test=3, size=32, name=name)
        for image in (folder / name / "images").iterdir() if other_images else ():
            cv2.imwrite(str(image), 255 - read(image))
        return seen_test_cases(checkpoint, open_data_set(redrawn(split, "case_3", name=name)))

    assert seen(tmp_path / "prepared_again", "blobs") == ["case_3"]
    assert seen(tmp_path / "grouped", "blobs_grouped") == ["case_3"]
    assert seen(tmp_path / "copied", "spots") == ["case_3"], "the same image in another set"
    assert seen(tmp_path, "spots", other_images=True) == [], "other data, sharing the names"

    (finished / "cases.json").unlink()  # as earlier versions left it
    record = finished / "environment.json"
    trained_on = json.loads(record.read_text())
    record.write_text(json.dumps(trained_on | {"training_cases": "those of another split"}))
    assert seen(tmp_path / "changed", "blobs") is None, "the split has changed since"
    (finished / "config.yaml").unlink()
    assert seen(tmp_path / "unknown", "blobs") is None


def test_scores_at_native_size(finished: Path, tmp_path: Path, vae: Path) -> None:
    for kind in ("images", "masks"):
        path = tmp_path / "blobs" / kind / "case_9.png"
        cv2.imwrite(str(path), cv2.resize(read(path), (50, 40), interpolation=cv2.INTER_NEAREST))
    valid.main(arguments(tmp_path, vae, "evaluation_size=native"))
    masks = finished / "predicted_masks_blobs" / "binary"
    assert read(masks / "case_9.png").shape == (40, 50)
    assert read(masks / "case_10.png").shape == (32, 32)
    row = next(row for row in scores(finished) if row["Name"] == "case_9")
    assert (row["Height"], row["Width"]) == ("40", "50")


def test_scores_at_a_chosen_size_and_by_the_published_rule(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid.main(arguments(tmp_path, vae))
    probability = finished / "predicted_masks_blobs" / "logits" / "case_9.png"
    small = read(probability)
    healthy = np.zeros((32, 32), np.uint8)
    cv2.imwrite(str(tmp_path / "blobs" / "masks" / "case_10.png"), healthy)
    valid.main(arguments(tmp_path, vae, "evaluation_size=64", "hd95_empty=zero"))
    enlarged = cv2.resize(small.astype(np.float32), (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(read(probability) - enlarged).max() <= 1
    assert [row["Height"] for row in scores(finished)[:3]] == ["64"] * 3

    summary = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    assert summary["provenance"]["evaluation_size"] == 64
    metrics, hd95 = summary["metrics"], summary["hd95"]
    assert summary["false_alarms"] == 1 and hd95["rule"] == "zero"
    assert metrics["HD95"] == hd95["zero"] != hd95["diagonal"]
    told = capsys.readouterr().out
    for name, mean in (
        ("Dice", 100 * metrics["DSC"]["mean"]),
        ("IoU", 100 * metrics["IoU"]["mean"]),
        ("HD95, misses as 0", hd95["zero"]["mean"]),
        ("HD95, misses as diagonal", hd95["diagonal"]["mean"]),
    ):
        assert re.search(rf"^  {name} +{mean:.2f} ", told, re.MULTILINE), name


def test_the_threshold_is_inclusive_and_used(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("case", tmp_path / "image.png", tmp_path / "mask.png")
    probability = np.array([[0.3, 0.9, 0.3, 0.0]], np.float32)
    truth, threshold = np.array([[True, False, False, True]]), float(probability[0, 0])
    mask = Prediction(case, probability, truth).mask(threshold)
    assert mask.tolist() == [[True, True, True, False]]
    batch = torch.from_numpy(probability)[None, None], torch.from_numpy(truth)[None, None]
    dice, iou = dice_and_iou(*batch, threshold)
    assert (dice.item(), iou.item()) == (2 / 5, 1 / 4)

    valid.main(arguments(tmp_path, vae, "threshold=0.0001"))
    low = sum(float(row["PredictedPixels"]) for row in scores(finished)[:3])
    pictured = []
    for name in ("write_report", "write_overlays", "draw_examples"):
        monkeypatch.setattr(
            f"engine.validation.validate_data_set.{name}",
            lambda *given, threshold=None, **_: pictured.append(threshold or given[-1]),
        )
    valid.main(arguments(tmp_path, vae, "threshold=0.9999"))
    assert sum(float(row["PredictedPixels"]) for row in scores(finished)[:3]) < low
    assert pictured == [0.9999] * 3


def test_the_saved_mask_is_the_one_that_is_scored(tmp_path: Path) -> None:
    case = Case("case", tmp_path / "image.png", tmp_path / "mask.png")
    probability = np.array([[0.2, 0.4, 0.6, 0.8]], np.float32)
    prediction = Prediction(case, probability, np.zeros((1, 4), bool))
    ((_, mask, _),) = save_each([prediction], tmp_path, 0.3)
    assert mask.tolist() == [[False, True, True, True]]
    assert np.array_equal(read(tmp_path / "binary" / "case.png") > 0, mask)


def test_scores_without_leaked_cases(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"has not been checked for leaks.*--check blobs"):
        valid.main(arguments(tmp_path, vae, "drop_leaked=true"))
    run = finished / "config.yaml"

    def trained_on(split_file: Path) -> None:
        (finished / "cases.json").unlink(missing_ok=True)  # of the training that there was
        config = load_config(run).model_copy(update={"pickle_file_path": split_file})
        run.write_text(dump_config(config))

    trained_on(tmp_path / "blobs" / "blobs_train_test_names.json")
    groups = {"by": "near-duplicates", "groups": [["case_0", "case_9"], ["case_10", "case_11"]]}
    (tmp_path / "blobs" / "check").mkdir()
    valid.main(arguments(tmp_path, vae))
    before = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    assert before["without_leaked"] is None, "the data set has not been checked"
    (tmp_path / "blobs" / "check" / "same_source_groups.json").write_text(json.dumps(groups))
    valid.main(arguments(tmp_path, vae, "drop_leaked=false"))
    off = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    assert off["without_leaked"] is None
    valid.main(arguments(tmp_path, vae))
    summary = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    kept = summary["without_leaked"]
    assert (summary["count"], kept["count"], kept["dropped"]) == (3, 2, ["case_9"])
    dice = [float(row["DSC"]) for row in scores(finished) if row["Name"] in ("case_10", "case_11")]
    assert kept["metrics"]["DSC"]["mean"] == pytest.approx(np.mean(dice))
    assert (
        "2 cases without those found to have a near-duplicate in train" in capsys.readouterr().out
    )

    split = json.loads((tmp_path / "blobs" / "blobs_train_test_names.json").read_text())
    split["train"]["name_list"].remove("case_0")
    other = tmp_path / "blobs" / "blobs_apart_train_test_names.json"
    other.write_text(json.dumps(split))
    valid.main(arguments(tmp_path, vae, "drop_leaked=true", f"pickle_file_path={other}"))
    apart = finished / "valid_results_blobs_apart" / "summary.json"
    dropped = json.loads(apart.read_text())["without_leaked"]["dropped"]
    assert dropped == ["case_9"], "case_0 was trained on, whatever this split says"

    trained_on(other)
    valid.main(arguments(tmp_path, vae, "drop_leaked=true", f"pickle_file_path={other}"))
    assert json.loads(apart.read_text())["without_leaked"] is None, "case_0 was not trained on"
    split["train"]["name_list"][0], split["test"]["name_list"][0] = "case_9", "case_1"
    other.write_text(json.dumps(split))
    valid.main(arguments(tmp_path, vae, "drop_leaked=true"))
    blobs = finished / "valid_results_blobs" / "summary.json"
    assert json.loads(blobs.read_text())["without_leaked"]["dropped"] == ["case_9"], (
        "it was trained on"
    )

    trained_on(tmp_path / "elsewhere" / "elsewhere_train_test_names.json")
    valid.main(arguments(tmp_path, vae, "drop_leaked=true"))
    assert json.loads(blobs.read_text())["without_leaked"] is None, "it was trained on other data"


def test_images_of_one_patient_are_one_for_the_intervals(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "blobs"
    split_file = data / "blobs_train_test_names.json"
    split = json.loads(split_file.read_text())
    tested = split["test"]["name_list"]
    again = [f"{name}_again" for name in tested]
    for name, copied in zip(tested, again, strict=True):
        for kind in ("images", "masks"):
            shutil.copyfile(data / kind / f"{name}.png", data / kind / f"{copied}.png")
    split_file.write_text(json.dumps(split | {"test": {"name_list": tested + again}}))

    def width(interval: Any) -> float:
        return interval[1] - interval[0]

    def told_and_summary() -> tuple[str, str, Summary]:
        capsys.readouterr()
        valid.main(arguments(tmp_path, vae))
        report = (finished / "valid_results_blobs" / "report.html").read_text()
        summary = read_results(finished / "valid_results_blobs").summary
        return capsys.readouterr().out, report, summary

    told, report, by_case = told_and_summary()
    for text in (told, report):
        assert "95 % intervals: bootstrap over 6 cases, taken as independent; with fewer" in text

    patients = {name: name.removesuffix("_again") for name in (*tested, *again)}
    (data / "groups.json").write_text(json.dumps(patients))
    told, report, summary = told_and_summary()
    dice = summary["metrics"]["DSC"]
    assert dice["mean"] == by_case["metrics"]["DSC"]["mean"]
    assert width(dice["ci95"]) > 1.2 * width(by_case["metrics"]["DSC"]["ci95"])
    values = read_results(finished / "valid_results_blobs").values("DSC")
    assert dice["ci95"] == pytest.approx(bootstrap_interval(values[::2])), "one of each pair"
    assert summary["bootstrap"]["groups"] == 3 and summary["group_of"] == patients
    for text in (told, report):
        assert "95 % intervals: bootstrap over 6 cases in 3 groups (by metadata); with f" in text
    low, high = (bound for bound in dice["ci95"] if bound is not None)
    assert f"(95 % interval {100 * low:.2f} to {100 * high:.2f})" in told
    assert f"{low:.4f} to {high:.4f}" in report


def test_test_time_augmentation(finished: Path, tmp_path: Path, vae: Path) -> None:
    images = torch.rand(2, 3, 8, 8)
    slanted = torch.rand(8, 8)

    def network(images: torch.Tensor) -> torch.Tensor:
        return images[:, :1] * slanted  # depends on where in the image a pixel lies

    mean = mean_over_orientations(network, images)
    turned = mean_over_orientations(network, images.rot90(1, (2, 3)))
    torch.testing.assert_close(turned, mean.rot90(1, (2, 3)))
    mirrored = mean_over_orientations(network, images.flip(3))
    torch.testing.assert_close(mirrored, mean.flip(3))
    torch.testing.assert_close(mean_over_orientations(lambda x: x, images), images)
    upright = mean_over_orientations(network, images, keep_upright=True)
    torch.testing.assert_close(upright, images[:, :1] * (slanted + slanted.flip(1)) / 2)

    def first() -> np.ndarray:
        return read(finished / "predicted_masks_blobs" / "logits" / "case_9.png")

    valid.main(arguments(tmp_path, vae))
    plain = first()
    valid.main(arguments(tmp_path, vae, "tta=true"))
    augmented = first()
    assert (augmented != plain).any()
    valid.main(arguments(tmp_path, vae, "tta=true", "keep_upright=true"))
    assert (first() != plain).any() and (first() != augmented).any()


def test_settings_that_are_not_the_defaults_are_told_and_scores_of_others_that_they_replace(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*overrides: str) -> tuple[str | None, str | None]:
        capsys.readouterr()
        valid.main(arguments(tmp_path, vae, *overrides))
        printed = capsys.readouterr().out
        how = re.search("^  scored with: (.*)$", printed, re.MULTILINE)
        replaced = re.search(
            f"^these scores replace others in {finished}/valid_results_blobs, made with (.*)$",
            printed,
            re.MULTILINE,
        )
        return how and how[1], replaced and replaced[1]

    assert told() == (None, None)
    assert told() == (None, None), "the same scores once more"
    native = ("evaluation_size=native", "tta=true", "threshold=0.45")
    assert told(*native) == (
        "test-time augmentation, threshold 0.45, native size",
        "evaluation_size=32 threshold=0.5 tta=false",
    )
    assert told("evaluation_size=48", "hd95_empty=zero") == (
        "size 48 px",
        "evaluation_size=native threshold=0.45 tta=true hd95_empty=diagonal",
    )
    copy = shutil.copytree(vae, tmp_path / "other_vae")
    vae_before = f"vae_weights={vae} evaluation_size=48 hd95_empty=zero"
    assert told(f"vae_weights={copy}")[1] == vae_before
    other = finished / "epoch_7.pth"
    other.write_bytes((finished / "best_model.pth").read_bytes())
    assert told(f"model_weight={other}") == ("checkpoint epoch_7.pth", None), "in another folder"


def test_scores_of_a_name_do_not_replace_others(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = ["--run", str(finished)]
    valid.main(run)
    plain = (finished / "valid_results_blobs" / "results.csv").read_text()
    capsys.readouterr()
    for threshold in (0.4, 0.3):
        valid.main([*run, "--name", "low", f"threshold={threshold}"])
    assert "made with threshold=0.4" in capsys.readouterr().out, "within the name they are replaced"
    assert (finished / "valid_results_blobs" / "results.csv").read_text() == plain
    low = json.loads((finished / "low" / "valid_results_blobs" / "summary.json").read_text())
    assert low["provenance"]["threshold"] == 0.3
    assert list((finished / "low" / "predicted_masks_blobs" / "binary").glob("*.png"))
    valid.main([*run, "--held-out", "--name", "low"])
    assert (finished / "low" / "held_out_results_blobs").is_dir()
    compare.main([str(finished), str(finished / "low"), "--out", str(tmp_path / "out")])
    assert "threshold 0.3" in (tmp_path / "out" / "comparison.md").read_text()

    comparison = (tmp_path / "out" / "comparison.md").read_text()
    assert "| epochs_2 (reference) | epochs_2/low |" in comparison

    (finished / "epoch_1.pth").touch()
    (finished / "empty").mkdir()
    valid.main([*run, "--name", "empty"])
    for name in ("logs", "../low", ".hidden", "a b", "epoch_1", "valid_results_x", "cross_domain"):
        with pytest.raises(UserError, match="name"):
            valid.main([*run, "--name", name])


def test_a_checkpoint_elsewhere(finished: Path, tmp_path: Path, vae: Path) -> None:
    other = tmp_path / "elsewhere" / "weights.pth"
    other.parent.mkdir()
    (finished / "best_model.pth").rename(other)
    valid.main(arguments(tmp_path, vae, f"model_weight={other}"))
    apart = other.with_suffix("")  # two of them in one folder do not share their results
    summary = json.loads((apart / "valid_results_blobs" / "summary.json").read_text())
    assert "no record" in summary["provenance"]["selection"]
    with pytest.raises(UserError, match=r"no checkpoint at .*best_model\.pth.*train\.py"):
        valid.main(arguments(tmp_path, vae))
    with pytest.raises(UserError, match=r"no checkpoint at .*Runs near by: .*run/epochs_2$"):
        valid.main(arguments(tmp_path, vae, "epochs=7"))


def test_another_checkpoint_of_a_run_spares_the_results_of_its_best(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    other = finished / "epoch_7.pth"
    other.write_bytes((finished / "best_model.pth").read_bytes())
    valid.main(["--run", str(finished), f"model_weight={other}"])
    assert not list(finished.glob("valid_results_*")) and not list(finished.glob("predicted_*"))
    apart = finished / "epoch_7"
    summary = json.loads((apart / "valid_results_blobs" / "summary.json").read_text())
    assert summary["provenance"]["selection"] == "epoch_7.pth of the run, which no score chose"
    assert summary["provenance"]["trained_on"] == "blobs"
    assert len(list((apart / "predicted_masks_blobs" / "binary").iterdir())) == 3


def test_a_checkpoint_of_another_model(finished: Path, tmp_path: Path, vae: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)vae_model"):
        valid.main(arguments(tmp_path, vae, "vae_model=litevae-b"))
    assert not (finished / "valid_results_blobs").exists()


def test_other_settings_than_in_training_are_told(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid.main(arguments(tmp_path, vae))
    summary = finished / "valid_results_blobs" / "summary.json"
    assert json.loads(summary.read_text())["provenance"]["trained_otherwise"] == {}
    assert "were trained with" not in capsys.readouterr().out
    same, other = tmp_path / "same_vae", write_vae(tmp_path / "other_vae", seed=1)
    same.symlink_to(vae)
    for vae_here, differing in ((same, {}), (other, {"vae_weights": str(vae)})):
        valid.main([*arguments(tmp_path, vae), "image_size=40", f"vae_weights={vae_here}"])
        trained_otherwise = json.loads(summary.read_text())["provenance"]["trained_otherwise"]
        assert trained_otherwise == differing | {"image_size": 32}
    told = capsys.readouterr().out
    assert "were trained with image_size=32:" in told
    assert f"were trained with vae_weights={vae} image_size=32:" in told

    record = finished / "environment.json"
    hashes = json.loads(record.read_text())["sha256"]
    changed = {name: "0" * 64 if "VAE" in name else value for name, value in hashes.items()}
    assert changed != hashes
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": changed}))
    valid.main(arguments(tmp_path, vae))
    told = capsys.readouterr().out
    assert f"the frozen VAE at {vae} is not the one of the training any more" in told
    assert "were trained with" not in told


def test_keys_that_the_model_does_not_use_are_no_other_settings() -> None:
    values = {"pickle_file_path": "x", "model": "smp/Unet?encoder=resnet18"}
    run = make_config(values | {"vae_weights": "a/vae", "ch": 64})
    assert trained_values_that_differ(make_config(values), run) == {}
    now = make_config(values | {"image_size": 64})
    assert trained_values_that_differ(now, run) == {"image_size": 224}


def test_a_vae_is_the_same_by_its_weights_where_these_are_known() -> None:
    run, now = (make_config({"pickle_file_path": "x", "vae_weights": each}) for each in ("a", "b"))
    assert trained_values_that_differ(now, run) == {"vae_weights": "a"}
    assert trained_values_that_differ(now, run, same_vae=True) == {}
    assert trained_values_that_differ(now, run, same_vae=False) == {"vae_weights": "a"}
    assert trained_values_that_differ(run, run) == {}
    assert trained_values_that_differ(run, run, same_vae=False) == {
        "vae_weights": "a as it was then"
    }


def test_the_hash_is_that_of_the_weights_that_are_scored(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the training goes on, and replaces its best weights, while they are loaded and later."""
    best = finished / "best_model.pth"
    load, versions = trained_run.load_system, [0]

    def replaced(version: int) -> None:
        weights = torch.load(best, weights_only=True)
        weights["model"]["convds0.2.weight"].fill_(version)
        torch.save(weights, best)

    def replaced_meanwhile(*given: Any) -> Any:
        system = load(*given)
        if versions:
            replaced(versions.pop())
        return system

    monkeypatch.setattr(trained_run, "load_system", replaced_meanwhile)
    loaded = trained_run.load_run(*find_run(finished))
    assert loaded.sha256 == sha256(best), "read again"
    bias = loaded.system.parts()["model"].state_dict()["convds0.2.weight"]
    assert (bias == 0).all(), "the newer ones"
    replaced(1)
    data_set = open_data_set(tmp_path / "blobs" / "blobs_train_test_names.json")
    assert provenance(loaded, data_set, "fp32")["sha256"]["checkpoint"] == loaded.sha256
    versions += [3, 2]
    with pytest.raises(UserError, match=r"best_model\.pth was replaced twice"):
        trained_run.load_run(*find_run(finished))
    before = sha256(best)
    versions.append(4)
    origin = TorchBackend(*find_run(finished)).origin
    assert origin["weights_sha256"] == sha256(best) != before


def test_a_config_of_another_program_beside_the_weights_is_no_obstacle(
    finished: Path, tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "config.yaml").write_text("title: a model card\n")
    valid.main(arguments(tmp_path, vae))
    printed = capsys.readouterr().out
    assert printed.count("it is not known how these weights were trained") == 1
    assert "no record beside the checkpoint of how it was chosen" in printed


def test_a_run_is_validated_by_its_folder(finished: Path, tmp_path: Path) -> None:
    valid.main(["--run", str(finished), "evaluation_size=native"])
    rows = scores(finished)
    assert [row["Name"] for row in rows] == ["case_10", "case_11", "case_9", "Avg", "Std"]
    summary = json.loads((finished / "valid_results_blobs" / "summary.json").read_text())
    assert summary["provenance"]["trained_otherwise"] == {}

    other = tmp_path / "elsewhere" / "best_model.pth"
    other.parent.mkdir()
    other.write_bytes((finished / "best_model.pth").read_bytes())
    valid.main(["--run", str(finished), f"model_weight={other}"])
    assert (other.parent / "valid_results_blobs" / "results.csv").exists()
    with pytest.raises(UserError, match="is not the folder of a run: it has no config"):
        valid.main(["--run", str(tmp_path)])
    for near in (finished.parent, finished / "best_model.pth", finished.with_name("epochs_7")):
        with pytest.raises(
            UserError, match=rf"is not the folder of a run.*Runs near by: {finished}"
        ):
            valid.main(["--run", str(near)])


def test_the_checkpoint_of_a_copied_run_is_its_own(finished: Path, tmp_path: Path) -> None:
    """Its config.yaml names the place that it was copied from, see `finished`."""
    assert load_config(finished / "config.yaml").run_folder != finished
    other = finished / "epoch_1.pth"
    for overrides, checkpoint in (
        (["model_weight=null"], finished / "best_model.pth"),
        (["model_weight="], finished / "best_model.pth"),
        (["model_weight=none"], finished / "best_model.pth"),
        ([f"model_weight={other}", "model_weight=null"], finished / "best_model.pth"),
        ([f"model_weight ={other}"], other),
    ):
        assert find_run(finished, overrides=overrides).checkpoint == checkpoint, overrides


def test_the_checkpoint_that_the_config_of_a_run_names_does_not_count(finished: Path) -> None:
    config = finished / "config.yaml"
    text = config.read_text()
    assert "model_weight: null" in text
    config.write_text(text.replace("model_weight: null", f"model_weight: {finished}/epoch_1.pth"))
    assert find_run(finished).checkpoint == finished / "best_model.pth"
    assert find_run(config_file=config).checkpoint == finished / "epoch_1.pth"


def test_an_output_that_is_not_a_number(finished: Path, tmp_path: Path, vae: Path) -> None:
    weights = torch.load(finished / "best_model.pth", weights_only=True)
    weights["model"]["convds0.2.weight"].fill_(float("nan"))
    torch.save(weights, finished / "best_model.pth")
    with pytest.raises(UserError, match="output for case_9 is not a number"):
        valid.main(arguments(tmp_path, vae))
    assert not list(finished.glob("valid_results_blobs/*"))


def test_too_little_memory_is_told(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GB")

    monkeypatch.setattr("models.wave_gms.WaveGMS.forward", too_large)
    with pytest.raises(UserError, match="out of memory with 2 images of 32 px"):
        valid.main(arguments(tmp_path, vae))


def test_a_full_disk_leaves_nothing_half_written(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid.main(arguments(tmp_path, vae))
    (finished / "predicted_masks_blobs" / "binary" / "case_99.png").touch()
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"cannot write to .*No space left.*by the same command"):
        valid.main(arguments(tmp_path, vae))
    after = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_several_data_sets_become_a_matrix(
    finished: Path, tmp_path: Path, vae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_data_set(tmp_path / "datasets", train=2, test=2, size=32, name=name)
    valid.main([*arguments(tmp_path, vae), "--datasets", "one", "two"])
    assert (finished / "valid_results_one" / "results.csv").exists()
    rows = list(csv.reader((finished / "cross_domain" / "cross_domain_DSC.csv").open()))
    assert rows[0] == ["train set", "one", "two"] and rows[1][0] == "blobs"
    two = str(Path("datasets", "two", "two_train_test_names.json"))  # by its path, too
    valid.main([*arguments(tmp_path, vae, "save_seg_img_path=masks"), "--datasets", "one", two])
    masks = {path.parent.parent.name for path in (tmp_path / "masks").rglob("binary/*.png")}
    assert masks == {"one", "two"}, "cases of the same name would replace each other"


def test_data_sets_of_one_name_do_not_replace_each_others_scores(
    finished: Path, tmp_path: Path
) -> None:
    first = tmp_path / "blobs" / "blobs_train_test_names.json"
    second = write_data_set(tmp_path / "elsewhere", train=2, test=2, size=32)
    files = re.escape(f"2 data sets of the name blobs ({first}, {second})")
    before = sorted(finished.rglob("*"))
    for options in ([], ["--held-out"]):
        with pytest.raises(UserError, match=rf"{files}.*name each data set once.*another --name"):
            valid.main(["--run", str(finished), *options, "--datasets", str(first), str(second)])
    assert sorted(finished.rglob("*")) == before, "nothing is scored"


def test_a_folder_for_masks_keeps_test_and_held_out_cases_apart(
    finished: Path, tmp_path: Path, vae: Path
) -> None:
    masks = tmp_path / "masks"
    of_the_user = masks / "binary" / "mine.png"
    of_the_user.parent.mkdir(parents=True)
    of_the_user.touch()
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    run = ["--run", str(finished), f"save_seg_img_path={masks}", f"pickle_file_path={split}"]
    valid.main(run)
    valid.main([*run, "--held-out"])
    held_out = json.loads((finished / "cases.json").read_text())["held_out"]
    for kind in ("binary", "logits"):
        tested = {path.stem for path in (masks / kind).iterdir()} - {"mine"}
        assert tested == {"case_9", "case_10", "case_11"}
        others = {path.stem for path in (masks / "held_out_masks" / kind).iterdir()}
        assert others == set(held_out)
    assert of_the_user.exists() and not list(finished.glob("*_masks_*"))

    (tmp_path / "blobs" / "images" / f"{held_out[0]}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="in held-out cases:"):
        valid.main([*run, "--held-out"])


def test_a_folder_for_masks_keeps_names_and_checkpoints_apart(
    finished: Path, tmp_path: Path
) -> None:
    masks, other = tmp_path / "masks", finished / "epoch_7.pth"
    shutil.copy(finished / "best_model.pth", other)
    run = ["--run", str(finished), f"save_seg_img_path={masks}"]
    valid.main([*run, "--name", "low", "threshold=0.0001"])
    valid.main([*run, "--name", "low", f"model_weight={other}"])
    valid.main([*run, "--held-out", "--name", "low"])
    written = {path.parent.parent for path in masks.rglob("binary/*.png")}
    apart = {"low", "epoch_7/low", "low/held_out_masks"}
    assert written == {masks / folder for folder in apart}


def test_a_second_validation_into_the_same_masks_is_refused(finished: Path, tmp_path: Path) -> None:
    run = ["--run", str(finished)]
    with locked_for_writing(finished / "predicted_masks_blobs"):
        with pytest.raises(UserError, match=r"writes masks into .*predicted_masks_blobs.*--name"):
            valid.main(run)
        assert not list(finished.glob("valid_results_*"))
        valid.main([*run, "--name", "second"])
        valid.main([*run, "--held-out"])
    valid.main(run)


def test_an_interrupted_validation_says_that_masks_are_mixed(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path, prediction: Prediction, threshold: float) -> None:
        if prediction.case.name == "case_11":
            raise KeyboardInterrupt
        save_prediction(folder, prediction, threshold)

    def told(*options: str) -> bool:
        monkeypatch.setattr("engine.validation.case_predictions.save_prediction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            valid.main(["--run", str(finished), *options])
        monkeypatch.undo()
        text = capsys.readouterr().out
        return "warning: stopped before its end: the masks in" in text and "same command" in text

    assert not told(), "there are no scores that the masks may differ from"
    valid.main(["--run", str(finished)])
    assert told("threshold=0.0001")
    assert not told("--name", "other")


def test_held_out_cases_are_no_test_sets_of_a_matrix(finished: Path, tmp_path: Path) -> None:
    split = tmp_path / "blobs" / "blobs_train_test_names.json"
    grouped = Path(shutil.copy(split, split.with_name("blobs_grouped_train_test_names.json")))
    valid.main(["--run", str(finished), "--held-out", "--datasets", str(split), str(grouped)])
    results = {path.name for path in finished.glob("*results*")}
    assert results == {"held_out_results_blobs", "held_out_results_blobs_grouped"}
    assert not (finished / "cross_domain").exists()


def test_settings_may_stand_before_and_after_the_names_of_data_sets() -> None:
    command = ["--run", "r", "tta=true", "--datasets", "one", "two", "threshold=0.4"]
    given = valid.parse_arguments(command)
    assert given.datasets == ["one", "two"]
    assert given.overrides == ["tta=true", "threshold=0.4"]


def test_masks_and_probabilities_of_other_cases_go_together(tmp_path: Path) -> None:
    for kind in ("binary", "logits"):
        (tmp_path / kind).mkdir()
        for name in ("kept.png", "gone.png", "notes.txt"):
            (tmp_path / kind / name).touch()
    remove_other_predictions(tmp_path, [Case("kept", tmp_path, tmp_path)])
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert left == {
        f"{kind}/{name}" for kind in ("binary", "logits") for name in ("kept.png", "notes.txt")
    }


def test_examples_span_best_to_worst() -> None:
    scores = {f"c{i}": {"DSC": i / 10, "TruthPixels": 9.0} for i in range(11)}
    normal = {"normal": {"DSC": 1.0, "TruthPixels": 0.0}}
    assert names_by_quantile(normal) == {"best": "normal"}
    assert list(names_by_quantile(scores | normal).values()) == ["c10", "c8", "c5", "c2", "c0"]
    two = {name: scores[name] for name in ("c0", "c1")}
    assert names_by_quantile(two) == {"best": "c1", "worst": "c0"}
    assert names_by_quantile({"c0": scores["c0"]}) == {"best": "c0"}
    false_alarm = {"normal": {"DSC": 0.0, "TruthPixels": 0.0}}
    with_lesion = {name: scores[name] for name in ("c1", "c2")}
    assert names_by_quantile(with_lesion | false_alarm) == {
        "best": "c2",
        "worst with lesion": "c1",
    }
    assert "worst" in names_by_quantile(scores | false_alarm), "none is worse than c0"


def test_truth_and_prediction_are_outlined_in_their_colours() -> None:
    truth, prediction = np.zeros((2, 64, 64), bool)
    truth[20:40, 5:25], prediction[20:40, 40:60] = True, True
    picture = outline_both(np.zeros((64, 64, 3), np.uint8), truth, prediction)
    half = picture.shape[1] // 2
    assert (picture[:, :half] == TRUTH_COLOUR).all(-1).any()
    assert (picture[:, half:] == PREDICTION_COLOUR).all(-1).any()


def test_examples_show_both_outlines_on_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a lesion at the border, of one that was missed, and of none."""
    square = np.zeros((40, 60), bool)
    square[20:40, 5:25] = True
    none = np.zeros((40, 60), bool)
    drawn = keep_figures(monkeypatch, "scoring.examples")

    def picture(name: str, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        grey = np.full((40, 60, 3), 90, np.uint8)
        case = ReportCase(name, grey, truth, np.where(mask, 0.3, 0.1))
        dice = float(np.array_equal(truth, mask))
        counts = {"TruthPixels": float(truth.sum()), "PredictedPixels": float(mask.sum())}
        draw_examples(tmp_path / "one.png", {name: {"DSC": dice} | counts}, {name: case}, 0.3)
        return read(tmp_path / "one.png")[:, :, 2::-1]  # RGB

    def spans(axis: Any) -> list[list[float]]:
        boxes = [c.get_paths()[0].get_extents() for c in axis.collections]
        return [[box.x0, box.x1, box.y0, box.y1] for box in boxes]

    around = [4.5, 24.5, 19.5, 39.5]
    name = "a case of a long name, $x^2$, 腫瘍"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case, truth, mask, outlines, title in (
            ("hit", square, square, [around, around], "best: Dice 1.000\nhit"),
            ("lost", square, none, [around], "best: Dice 0.000\nlost, missed"),
            (
                name,
                none,
                square,
                [around],
                "best: Dice 0.000\na case of a …me, $x^2$, 腫瘍, no lesion",
            ),
        ):
            pixels = picture(case, truth, mask)
            above, below = drawn[-1].axes
            assert above.get_title() == title
            assert not above.collections and spans(below) == outlines
            pixels = pixels[: round(len(pixels) * (1 - below.get_position().y0))]  # not the legend
            for colour, outlined in ((TRUTH_COLOUR, truth), (PREDICTION_COLOUR, mask)):
                assert (pixels == colour).all(-1).any() == outlined.any()
    (legend,) = drawn[-1].legends
    assert [text.get_text() for text in legend.get_texts()] == ["truth", "prediction"]
    solid, dashed = (line.get_linestyle() for line in legend.get_lines())
    assert solid == "-" != dashed, "told apart in grey too"


def test_examples_take_no_more_pixels_than_they_show() -> None:
    mask = np.zeros((1500, 2048), np.float32)
    mask[200:400, 100:300] = 1
    small = reduced(mask)
    assert small.shape == (750, 1024) and small.sum() == pytest.approx(mask.sum() / 4)
    assert reduced(small) is small
    assert reduced(np.zeros((1, 5000, 3), np.uint8)).shape == (1, 1024, 3)


def test_a_tiny_lesion_in_a_large_image_is_outlined() -> None:
    from matplotlib.figure import Figure

    mask = np.zeros((3000, 3000), np.float32)
    mask[1500, 1500:1502] = 1
    coverage = reduced(mask)
    assert 0 < coverage.max() < 0.5
    axis = Figure().subplots()
    trace_outline(axis, coverage, TRUTH_LINE)
    (outline,) = axis.collections
    box = outline.get_paths()[0].get_extents()
    scale = 1024 / 3000
    assert box.x0 < 1501 * scale - 0.5 < box.x1 and box.y0 < 1500.5 * scale - 0.5 < box.y1
    assert 0 < box.width < 2 and 0 < box.height < 2
    trace_outline(axis, np.zeros_like(coverage), TRUTH_LINE)
    assert len(axis.collections) == 1
