"""A cross-validation as one result: folds pooled, and what is no cross-validation refused."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
from engine.runs.run_cases import RunCases
from engine.runs.training_record import TrainingRecord
from experiments import cross_validation
from experiments.folds import read_folds
from scoring.case_scores import score_cases
from scoring.groups import NOTHING_KNOWN, KnownGroups, named_groups
from scoring.results import read_results, write_results
from scoring.statistics import bootstrap_interval
from tests.run_on_disk import ROOT
from utils.config import dump_config, load_config
from utils.errors import UserError
from utils.files import sha256

CASES = [f"case_{index}" for index in range(8)]
PARTS = (CASES[:3], CASES[3:6], CASES[6:])
CHOSEN = "checkpoint chosen on a held-out part of train; scored on the held-out cases, which choose the checkpoint"
LAST = "epoch_2.pth of the run, which no score chose; scored on the held-out cases"


def write_fold(
    root: Path,
    fold: int,
    *overrides: str,
    parts: tuple[list[str], ...] = PARTS,
    scored: list[str] | None = None,
    missed: tuple[str, ...] = (),
    healthy: tuple[str, ...] = (),
    leaked: tuple[str, ...] = (),
    made_with: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    hd95_empty: Any = "diagonal",
    known: KnownGroups = NOTHING_KNOWN,
    shift: int = 0,
) -> Path:
    """A run that held out `parts[fold]`, and its scores; predictions are off by `shift` or more.

    There is no lesion in the cases `healthy`.
    """
    run = root / f"fold_{fold}" / "epochs_2"
    run.mkdir(parents=True)
    settings = [f"folds={len(parts)}", f"fold={fold}", f"snapshot_path={run.parent}", *overrides]
    split = "pickle_file_path=blobs_train_test_names.json"
    config = load_config(ROOT / "configs" / "base.yaml", [split, *settings])
    (run / "config.yaml").write_text(dump_config(config))
    train = tuple(name for part in parts for name in part if part is not parts[fold])
    (run / "cases.json").write_text(RunCases(train, tuple(parts[fold]), ("test",)).to_json())
    inputs = {"sha256": {"split file": f"of {run}", "VAE": "of all"}, "processes": 1}
    (run / "environment.json").write_text(json.dumps(inputs | dict(environment or {})))
    (run / "best_model.pth").write_bytes(f"weights of fold {fold}".encode())
    cases = []
    for name in scored or parts[fold]:
        truth = np.zeros((32, 32), bool)
        truth[8:24, 4 : 12 + int(name[-1])] = name not in healthy
        cases.append(
            (name, np.roll(truth, shift + int(name[-1]) % 4, 1) & (name not in missed), truth)
        )
    provenance = {
        "selection": CHOSEN,
        "trained_on": "blobs",
        "data_set": "blobs",
        "test_cases_trained_on": sorted(leaked),
        "trained_on_another_split": bool(leaked),
        "checkpoint": f"/where/it/was/trained/fold_{fold}/epochs_2/best_model.pth",
        "sha256": {"checkpoint": sha256(run / "best_model.pth"), "split file": f"of {run}"},
        "image_size": 32,
        "evaluation_size": 32,
        "threshold": 0.5,
        "tta": False,
        "model": "wave-gms",
        "init_weights": config.init_weights and str(config.init_weights),
        "environment": {"commit": fold},
    }
    write_results(
        run / "held_out_results_blobs",
        score_cases(cases, hd95_empty=hd95_empty),
        provenance=provenance | dict(made_with or {}),
        leaked=leaked,
        known=known,
        hd95_empty=hd95_empty,
    )
    return run


def write_folds(root: Path, **options: Any) -> list[Path]:
    return [write_fold(root, fold, **options) for fold in range(3)]


def test_where_all_cases_leaked_the_page_says_that_no_dice_is_left(tmp_path: Path) -> None:
    """As where all folds started from weights that were trained on the same cases."""
    parts = (["case_1", "case_2"], ["case_3", "case_4"], ["case_5", "case_6"])
    runs = [write_fold(tmp_path, f, parts=parts, leaked=tuple(parts[f])) for f in range(3)]
    run_program(*runs, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "cross_validation.md").read_text()
    assert "There is no DSC without leaked: each of the 6 cases is one that their fold's" in page
    assert "leaves out" not in page


def run_program(*arguments: object) -> None:
    cross_validation.main(list(map(str, arguments)))


def test_all_cases_are_pooled_and_each_fold_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = write_folds(tmp_path, missed=("case_4",)), tmp_path / "out"
    run_program(runs[2], runs[0], runs[1], "--out", out)
    told = capsys.readouterr().out
    pooled = read_results(out)
    by_fold = [read_results(run / "held_out_results_blobs") for run in runs]
    assert pooled.names == CASES
    for results in by_fold:
        assert results.scores.items() <= pooled.scores.items()

    summary: Any = pooled.summary
    dice = np.array([results.values("DSC").mean() for results in by_fold])
    folds = summary["folds"]
    assert [fold["dice"] for fold in folds["each"]] == pytest.approx(dice)
    assert [fold["count"] for fold in folds["each"]] == [3, 3, 2]
    assert [fold["misses"] for fold in folds["each"]] == [0, 1, 0]
    assert [fold["fold"] for fold in folds["each"]] == [0, 1, 2]
    assert [Path(fold["checkpoint"]).parent for fold in folds["each"]] == runs
    assert folds["each"][1]["sha256"] == sha256(runs[1] / "best_model.pth")
    assert folds["mean"] == pytest.approx(dice.mean())
    assert folds["std"] == pytest.approx(dice.std(ddof=1))

    of_cases = summary["metrics"]["DSC"]
    assert of_cases["mean"] == pytest.approx(pooled.values("DSC").mean())
    assert of_cases["mean"] != pytest.approx(dice.mean()), "the folds differ in size"
    assert of_cases["ci95"] == pytest.approx(bootstrap_interval(pooled.values("DSC")))
    assert summary["missed_cases"] == ["case_4"] and summary["without_leaked"] is None
    hd95 = summary["hd95"]
    assert hd95["diagonal"]["mean"] > hd95["detected"]["mean"] > hd95["zero"]["mean"]

    assert "blobs: 8 held-out cases, 1 missed" in told
    assert re.search(rf"^  Dice +{100 * of_cases['mean']:.2f} %", told, re.MULTILINE)
    for fold, mean in enumerate(dice):
        assert re.search(rf"^  fold {fold} +{100 * mean:.2f} % .*fold_{fold}", told, re.MULTILINE)
    spread = rf"^  mean of the folds +{100 * dice.mean():.2f} % .*deviation {100 * dice.std(ddof=1):.2f}\)"
    assert re.search(spread, told, re.MULTILINE)


def test_what_the_folds_share_is_kept_and_the_choice_of_the_epoch_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_program(*write_folds(tmp_path), "--out", tmp_path / "out")
    made_with: Any = read_results(tmp_path / "out").summary["provenance"]
    assert made_with["selection"] == (
        f"cross-validation, in each of 3 folds: {CHOSEN} (the best epoch), so that the scores are a little too high"
    )
    assert made_with["selection"] in capsys.readouterr().out
    assert made_with["data_set"] == "blobs" and made_with["threshold"] == 0.5
    assert not {"checkpoint", "sha256", "environment"} & made_with.keys(), "each fold's own"


def test_the_last_epoch_of_each_fold_is_not_called_optimistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_with = {"selection": LAST, "checkpoint": "epoch_2.pth", "sha256": {}}
    folders = []
    for run in write_folds(tmp_path, made_with=made_with):
        folders.append(run / "epoch_2")
        folders[-1].mkdir()
        (run / "held_out_results_blobs").rename(folders[-1] / "held_out_results_blobs")
    run_program(*folders, "--out", tmp_path / "out")
    told = capsys.readouterr().out
    assert f"in each of 3 folds: {LAST}\n" in told and "too high" not in told
    summary: Any = read_results(tmp_path / "out").summary
    assert summary["folds"]["each"][0]["checkpoint"].endswith("fold_0/epochs_2/epoch_2.pth")


def test_scores_of_a_name_are_pooled_and_told_with_their_command(tmp_path: Path) -> None:
    """Of the run, and of another of its checkpoints."""
    made_with = {"selection": LAST, "checkpoint": "epoch_2.pth", "sha256": {}}
    for at, options in (("tta", {}), ("epoch_2/tta", {"made_with": made_with})):
        root = tmp_path / at.replace("/", "_")
        folders = [run / at for run in write_folds(root, **options)]
        for folder in folders:
            folder.mkdir(parents=True)
            run = root / folder.relative_to(root).parts[0] / "epochs_2"
            (run / "held_out_results_blobs").rename(folder / "held_out_results_blobs")
        folds = read_folds(folders)
        run = folds[0].folder
        assert run.name == "epochs_2"
        weights = "" if at == "tta" else f" model_weight={run / 'epoch_2.pth'}"
        assert folds[0].command == f"python valid.py --run {run} --held-out --name tta{weights}"


def test_folds_that_keep_the_last_epoch_may_be_validated_at_other_times(tmp_path: Path) -> None:
    for select_on, alike in (("last", True), ("val", False)):
        root = tmp_path / select_on
        often = [f"validate_every={1 + fold}" for fold in range(3)]
        runs = [write_fold(root, i, f"select_on={select_on}", often[i]) for i in range(3)]
        if alike:
            assert len(read_folds(runs)) == 3
        else:
            with pytest.raises(UserError, match="validate_every: 1 and 2"):
                read_folds(runs)


def test_leaked_cases_of_the_folds_are_left_out_together(tmp_path: Path) -> None:
    runs = [
        write_fold(tmp_path, fold, leaked=leaked)
        for fold, leaked in enumerate((("case_1",), (), ("case_6", "case_7")))
    ]
    run_program(*runs, "--out", tmp_path / "out")
    summary: Any = read_results(tmp_path / "out").summary
    assert summary["without_leaked"]["dropped"] == ["case_1", "case_6", "case_7"]
    assert summary["without_leaked"]["count"] == 5
    assert summary["provenance"]["test_cases_trained_on"] == ["case_1", "case_6", "case_7"]
    assert summary["provenance"]["trained_on_another_split"] is True


def test_cases_of_one_source_are_one_across_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = named_groups(
        "near-duplicates", [["case_0", "case_4"], ["case_6", "case_7"], ["case_5", "in_test"]]
    )
    runs = write_folds(tmp_path, known=known, missed=("case_0", "case_4"))
    run_program(*runs, "--out", tmp_path / "out")
    pooled = read_results(tmp_path / "out")
    labels = ["a", "b", "c", "d", "a", "e", "f", "f"]
    dice = pooled.values("DSC")
    by_group, by_case = bootstrap_interval(dice, labels), bootstrap_interval(dice)
    assert pooled.summary["metrics"]["DSC"]["ci95"] == pytest.approx(by_group)
    assert np.ptp(by_group) > 1.1 * np.ptp(by_case)
    assert pooled.summary["bootstrap"]["groups"] == 6
    assert pooled.summary["group_of"] == {
        name: known.group_of[name] for name in CASES if name in known.group_of
    }
    assert "bootstrap over 8 cases in 6 groups (by near-duplicates)" in capsys.readouterr().out


def test_the_rule_of_hd95_is_that_of_the_folds(tmp_path: Path) -> None:
    runs = write_folds(tmp_path, missed=("case_4",), hd95_empty="zero")
    run_program(*runs, "--out", tmp_path / "out")
    summary: Any = read_results(tmp_path / "out").summary
    assert summary["hd95"]["rule"] == "zero"
    assert summary["metrics"]["HD95"] == summary["hd95"]["zero"] != summary["hd95"]["diagonal"]


def test_the_page_has_the_pooled_means_and_those_of_the_folds(tmp_path: Path) -> None:
    runs = write_folds(tmp_path, missed=("case_4",))
    run_program(*runs, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "cross_validation.md").read_text()
    latex = (tmp_path / "out" / "cross_validation.tex").read_text()
    assert page.startswith("# Cross-validation on blobs: 8 cases in 3 folds\n")
    pooled = read_results(tmp_path / "out")
    low, high = bootstrap_interval(pooled.values("DSC"))
    mean = f"{100 * pooled.values('DSC').mean():.2f} [{100 * low:.2f}, {100 * high:.2f}]"
    assert f"| DSC ↑ | {mean} |\n" in page and f"\nall cases & {mean} & " in latex
    by_fold = [read_results(run / "held_out_results_blobs") for run in runs]
    spreads = []
    for metric, scale in (("DSC", 100), ("IoU", 100), ("HD95", 1)):
        of_folds = [scale * results.values(metric).mean() for results in by_fold]
        spreads.append(f"{np.mean(of_folds):.2f} ± {np.std(of_folds, ddof=1):.2f}")
    assert f"| mean ± SD |  |  | {' | '.join(spreads)} |\n" in page
    told = f"{' & '.join(spreads)} ".replace("±", r"$\pm$")
    assert rf"mean $\pm$ SD &  &  & {told}" in latex
    assert f"| fold 1 | 3 | 1 | {100 * by_fold[1].values('DSC').mean():.2f} | " in page
    assert "\nThe intervals are over 8 cases, taken as independent" in page
    assert f"\ncross-validation, in each of 3 folds: {CHOSEN} (the best epoch)" in page
    assert f"- fold 2: {runs[2] / 'best_model.pth'}\n" in page
    assert "lesion" not in page and "leaked" not in page


def test_the_page_tells_cases_without_a_lesion_and_leaked_ones(tmp_path: Path) -> None:
    healthy, leaked = ("case_1", "case_6", "case_7"), ((), (), ("case_6",))
    runs = [write_fold(tmp_path, fold, healthy=healthy, leaked=leaked[fold]) for fold in range(3)]
    run_program(*runs, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "cross_validation.md").read_text()
    found = [read_results(run / "held_out_results_blobs").values("DSC") for run in runs]
    of_folds = [100 * np.delete(found[0], 1).mean(), 100 * found[1].mean()]
    spread = f"{np.mean(of_folds):.2f} ± {np.std(of_folds, ddof=1):.2f}"
    assert "| without a lesion | false alarms | DSC (%) | Dice, with lesion (%) | IoU" in page
    assert f"| fold 0 | 3 | 0 | 1 | 0 | {100 * found[0].mean():.2f} | {of_folds[0]:.2f} | " in page
    assert "| fold 2 | 2 | 0 | 2 | 0 | 100.00 | - | " in page
    assert re.search(rf"^\| mean ± SD \|(  \|){{4}} [^|]+ \| {spread} \|", page, re.MULTILINE)
    assert "\n3 of 8 cases have no lesion: " in page and "\n| DSC without leaked ↑ | " in page
    assert "\nDSC without leaked leaves out 1 of 8 cases: those that" in page
    latex = (tmp_path / "out" / "cross_validation.tex").read_text()
    assert "8 cases, 3 of them without a lesion\n" in latex


def test_each_fold_may_have_its_own_teachers(tmp_path: Path) -> None:
    hashes = {"split file": "of all", "VAE": "of all"}
    runs = [
        write_fold(
            tmp_path,
            fold,
            f"teachers=[of_all.pth,of_fold_{fold}.pth]",
            environment={"sha256": hashes | {"file of one of the teachers": f"{fold}"}},
            made_with={"teachers": ["of_all.pth", f"of_fold_{fold}.pth"]},
        )
        for fold in range(3)
    ]
    run_program(*runs, "--out", tmp_path / "out")
    teachers = ["of_all.pth", *(f"of_fold_{fold}.pth" for fold in range(3))]
    assert read_results(tmp_path / "out").summary["provenance"]["teachers"] == teachers
    page = (tmp_path / "out" / "cross_validation.md").read_text()
    assert f"learned from the predictions of {', '.join(teachers)}" in page


def test_a_mean_that_one_fold_alone_has_is_without_a_deviation(tmp_path: Path) -> None:
    healthy = (*PARTS[1], *PARTS[2])
    run_program(*write_folds(tmp_path, healthy=healthy), "--out", tmp_path / "out")
    page = (tmp_path / "out" / "cross_validation.md").read_text()
    assert re.search(r"^\| mean ± SD \|(  \|){4} [\d.]+ ± [\d.]+ \| - \| ", page, re.MULTILINE)


def test_two_systems_are_compared_over_all_folds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shift in (("good", 0), ("bad", 3)):
        run_program(*write_folds(tmp_path / name, shift=shift), "--out", tmp_path / "cv" / name)
    good, bad = tmp_path / "cv" / "good", tmp_path / "cv" / "bad"
    compare.main([str(good), str(bad), "--out", str(tmp_path / "comparison")])
    told = capsys.readouterr().out
    assert "# Comparison on 8 cases" in told and "- bad: cross-validation, in each of 3" in told
    with (tmp_path / "comparison" / "comparison.csv").open(newline="") as file:
        dice = [row for row in csv.DictReader(file) if row["metric"] == "DSC"]
    expected = read_results(bad).values("DSC") - read_results(good).values("DSC")
    assert float(dice[1]["difference_mean"]) == pytest.approx(expected.mean())
    assert expected.mean() < 0


def test_pooled_folds_whose_weights_were_replaced_since_are_not_compared(tmp_path: Path) -> None:
    runs = {name: write_folds(tmp_path / name) for name in ("one", "two")}
    for name, of_name in runs.items():
        run_program(*of_name, "--out", tmp_path / "cv" / name)
    command = [*(str(tmp_path / "cv" / name) for name in runs), "--out", str(tmp_path / "out")]
    (runs["two"][0] / "best_model.pth").unlink()
    compare.main(command)
    (runs["two"][1] / "best_model.pth").write_bytes(b"trained on")
    expected = r"cv/two holds the scores of earlier weights than .*two/fold_1.*: score .* pool"
    with pytest.raises(UserError, match=expected):
        compare.main(command)


def test_pooled_folds_are_of_the_data_set_whose_cases_they_score(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_program(*write_folds(tmp_path / name), "--out", tmp_path / "cv" / name)
    pooled = [str(tmp_path / "cv" / name) for name in ("one", "two")]
    out = str(tmp_path / "comparison")
    compare.main([*pooled, "--dataset", "blobs", "--out", out])
    with pytest.raises(UserError, match=r"cv/one is not of --dataset spots.*or results on spots"):
        compare.main([*pooled, "--dataset", "spots", "--out", out])


def test_a_run_without_held_out_scores_is_told_the_command(tmp_path: Path) -> None:
    runs = write_folds(tmp_path)
    scores = runs[1] / "held_out_results_blobs"
    scores.rename(runs[1] / "valid_results_blobs")
    command = f"python valid.py --run {runs[1]} --held-out"
    with pytest.raises(UserError, match=rf"no held_out_results_\*; run {re.escape(command)}$"):
        read_folds(runs)


def test_which_data_set_is_asked_where_two_were_scored(tmp_path: Path) -> None:
    runs = write_folds(tmp_path)
    for run in runs:
        (run / "held_out_results_spots").mkdir()
        (run / "held_out_results_spots" / "results.csv").touch()
    with pytest.raises(UserError, match="blobs, spots; choose one with --dataset"):
        run_program(*runs, "--out", tmp_path / "out")
    run_program(*runs, "--dataset", "blobs", "--out", tmp_path / "out")
    assert read_results(tmp_path / "out").names == CASES


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"made_with": {"threshold": 0.4}}, r"threshold: 0\.5 and 0\.4: score them alike"),
        ({"made_with": {"tta": True}}, "tta: False and True: score them alike"),
        ({"made_with": {"evaluation_size": 64}}, "evaluation_size: 32 and 64: score them alike"),
        ({"made_with": {"image_size": 64}}, "image_size: 32 and 64: score them alike"),
        ({"made_with": {"data_set": "spots"}}, "data_set: 'blobs' and 'spots': score them alike"),
        ({"made_with": {"model": "smp/Unet"}}, "model: 'wave-gms' and 'smp/Unet': score"),
        ({"made_with": {"selection": LAST}}, "selection: 'checkpoint chosen .*' and 'epoch_2.pth"),
        ({"hd95_empty": "zero"}, "hd95_empty: 'diagonal' and 'zero': score them alike"),
        (
            {"known": KnownGroups("near-duplicates")},
            "groups of cases known by: None and 'near-duplicates': score them alike",
        ),
        ({"environment": {"processes": 2}}, "processes: 1 and 2: train all folds"),
        (
            {"environment": {"sha256": {"VAE": "other"}}},
            "VAE: 'of all' and 'other': train all folds",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_fold_scored_or_trained_otherwise_is_refused(
    tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    runs = [write_fold(tmp_path, 0), write_fold(tmp_path, 1), write_fold(tmp_path, 2, **how)]
    with pytest.raises(UserError, match=rf"fold_0.*fold_2.*differ in {message}"):
        read_folds(runs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed: 2333 and 1: train all folds with the same settings apart from fold"),
        ("lr=0.5", r"lr: 0\.002 and 0\.5"),
        ("validate_every=5", "validate_every: 1 and 5"),
        ("pickle_file_path=spots_train_test_names.json", "data set: 'blobs' and 'spots'"),
        ("init_weights=start.pth", r"init_weights differs \(.*fold_2/epochs_2: start\.pth\)"),
    ],
)
def test_other_training_settings_are_refused(tmp_path: Path, override: str, message: str) -> None:
    runs = [write_fold(tmp_path, fold, *([override] if fold == 2 else [])) for fold in range(3)]
    with pytest.raises(UserError, match=message):
        read_folds(runs)


def test_settings_of_the_machine_may_differ_and_each_fold_may_have_its_own_start(
    tmp_path: Path,
) -> None:
    own = [["num_workers=0", "tta=true"], ["GPUs=[1]"], ["cache_mb=1"]]
    runs = [
        write_fold(tmp_path, fold, f"init_weights=start_{fold}.pth", *own[fold])
        for fold in range(3)
    ]
    assert [fold.config.fold for fold in read_folds(runs[::-1])] == [0, 1, 2]
    run_program(*runs, "--out", tmp_path / "out")
    made_with: Any = read_results(tmp_path / "out").summary["provenance"]
    assert made_with["init_weights"] == "start_0.pth, start_1.pth, start_2.pth"


def test_a_start_that_only_some_folds_share_is_refused(tmp_path: Path) -> None:
    starts = ("a.pth", "a.pth", "b.pth")
    runs = [write_fold(tmp_path, fold, f"init_weights={starts[fold]}") for fold in range(3)]
    with pytest.raises(UserError, match=r"fold_1/epochs_2: a\.pth; .*fold_2/epochs_2: b\.pth"):
        read_folds(runs)


def test_random_weights_and_a_file_are_no_start_of_each_fold_s_own(tmp_path: Path) -> None:
    halves = (CASES[:4], CASES[4:])
    runs = [
        write_fold(tmp_path, 0, parts=halves),
        write_fold(tmp_path, 1, "init_weights=a.pth", parts=halves),
    ]
    with pytest.raises(UserError, match=r"fold_0/epochs_2: None; .*fold_1/epochs_2: a\.pth"):
        read_folds(runs)


def test_starts_are_compared_by_what_the_files_hold(tmp_path: Path) -> None:
    def folds(name: str, *starts: tuple[str, str]) -> list[Path]:
        return [
            write_fold(
                tmp_path / name,
                fold,
                f"init_weights={path}",
                environment={"sha256": {"file of initial weights": content}},
            )
            for fold, (path, content) in enumerate(starts)
        ]

    assert len(read_folds(folds("moved", ("a.pth", "1"), ("b.pth", "1"), ("b.pth", "1")))) == 3
    replaced = folds("replaced", ("a.pth", "1"), ("a.pth", "1"), ("a.pth", "2"))
    with pytest.raises(UserError, match="the folds did not start alike"):
        read_folds(replaced)


def test_every_fold_has_to_be_there_once(tmp_path: Path) -> None:
    runs = write_folds(tmp_path)
    with pytest.raises(UserError, match=r"of 3 folds, 1, 2 are missing.*folds=3 fold=1"):
        read_folds(runs[:1])
    with pytest.raises(UserError, match=r"of 3 folds, 0 is missing"):
        read_folds(runs[1:])
    again = write_fold(tmp_path / "again", 1)
    with pytest.raises(UserError, match=r"fold_1/epochs_2 and .*again.* are both fold 1 of 3"):
        read_folds([*runs, again])
    without = write_fold(tmp_path / "without", 0, "folds=0")
    with pytest.raises(UserError, match=r"was trained without folds \(folds: 0\)"):
        read_folds([without, *runs])


def test_cases_that_do_not_make_up_train_once_are_refused(tmp_path: Path) -> None:
    runs = write_folds(tmp_path / "whole")
    short = write_fold(tmp_path / "short", 1, scored=["case_3", "case_5"])
    with pytest.raises(UserError, match=r"short.*: 1 \(case_4\) not scored, none not held out"):
        read_folds([runs[0], short, runs[2]])
    more = write_fold(tmp_path / "more", 1, scored=["case_0", *PARTS[1]])
    with pytest.raises(UserError, match=r"more.*: none not scored, 1 \(case_0\) not held out"):
        read_folds([runs[0], more, runs[2]])
    twice = write_fold(tmp_path / "twice", 1, parts=(CASES[:2], CASES[2:6], CASES[6:]))
    with pytest.raises(UserError, match=r"whole/fold_0.* and .*twice.* both held out case_2"):
        read_folds([runs[0], twice, runs[2]])
    larger = write_fold(tmp_path / "larger", 1, parts=([*CASES[:3], "case_9"], *PARTS[1:]))
    with pytest.raises(UserError, match=r"larger.* had other cases in train .*\(1 \(case_9\)\)"):
        read_folds([runs[0], larger, runs[2]])


def test_scores_of_earlier_weights_and_results_without_their_run_are_refused(
    tmp_path: Path,
) -> None:
    runs = write_folds(tmp_path)
    (runs[1] / "best_model.pth").write_bytes(b"trained on")
    with pytest.raises(UserError, match=r"holds the scores of earlier weights .*--held-out again"):
        read_folds(runs)
    (runs[1] / "best_model.pth").unlink()
    assert len(read_folds(runs)) == 3, "weights that are elsewhere are taken to be the same"
    (runs[1] / "cases.json").unlink()
    with pytest.raises(UserError, match=r"does not lie in the folder of a run.*cases\.json"):
        read_folds(runs)


@pytest.mark.parametrize("select_on", ["val", "last"])
def test_a_fold_whose_training_was_cut_off_is_refused(tmp_path: Path, select_on: str) -> None:
    settings = ("epochs=2", f"select_on={select_on}")
    runs = [write_fold(tmp_path, fold, *settings) for fold in range(3)]
    (runs[1] / "history.csv").write_text("epoch,lr,val_dice\n1,0.1,0.5\n2,0.1,0.4\n")
    assert len(read_folds(runs)) == 3, "the other ones have no history"
    (runs[1] / "history.csv").write_text("epoch,lr,val_dice\n1,0.1,0.5\n")
    expected = r"fold_1/epochs_2 has done 1 of 2 epochs.*resume .* then run python valid.py"
    with pytest.raises(UserError, match=expected):
        read_folds(runs)
    said = TrainingRecord.read(runs[1] / "best_model.pth").selection()
    assert "epoch 1 of 2 of an unfinished run" in said
    assert ("held-out part of train" in said) == (select_on == "val")


def test_kept_epochs_of_trainings_that_were_cut_off_are_pooled(tmp_path: Path) -> None:
    made_with = {"selection": LAST, "checkpoint": "epoch_2.pth", "sha256": {}}
    runs = write_folds(tmp_path, made_with=made_with)
    for run in runs:
        (run / "history.csv").write_text("epoch,lr,val_dice\n1,0.1,0.5\n2,0.1,0.4\n")
        (run / "epoch_2").mkdir()
        (run / "held_out_results_blobs").rename(run / "epoch_2" / "held_out_results_blobs")
    assert len(read_folds([run / "epoch_2" for run in runs])) == 3
