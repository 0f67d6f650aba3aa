"""results.csv and summary.json: what is written, read back, and refused."""

from __future__ import annotations

import csv
import json
import math
import re
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
import pytest

from scoring.case_scores import score_cases
from scoring.groups import named_groups
from scoring.metrics import METRICS
from scoring.results import (
    COLUMNS,
    Results,
    column,
    read_results,
    summarise,
    write_results,
)
from scoring.statistics import bootstrap_interval
from scoring.validated_runs import check_same_cases
from utils.errors import UserError
from utils.files import atomic_write

PROVENANCE = {"model": "litevae", "checkpoint_chosen_by": "validation Dice", "threshold": 0.5}


@pytest.fixture
def scores():
    """Twelve detected cases, one miss, one false alarm, one correctly empty; 30 x 40 pixels."""
    rng = np.random.default_rng(0)
    empty, spot = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    spot[10:20, 10:20] = True
    cases = [(f"case_{i:02}", np.roll(spot, rng.integers(0, 5), 1), spot) for i in range(12)]
    cases += [("missed, twice", empty, spot), ("alarm", spot, empty), ("normal", empty, empty)]
    return score_cases(cases)


def test_csv_has_a_row_a_case_sorted_then_avg_and_std(tmp_path, scores):
    write_results(tmp_path / "new", dict(reversed(scores.items())), provenance=PROVENANCE)
    with (tmp_path / "new/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [line["Name"] for line in lines] == [*scores, "Avg", "Std"]
    dice = [float(line["DSC"]) for line in lines]
    assert dice[:-2] == column(scores, "DSC").tolist()
    assert dice[-2] == pytest.approx(np.mean(dice[:-2]))
    assert dice[-1] == pytest.approx(np.std(dice[:-2], ddof=1))
    assert lines[-1]["Height"] == ""


def test_summary_counts_misses_and_gives_hd95_by_each_rule(tmp_path, scores):
    summary = write_results(tmp_path, scores, provenance=PROVENANCE)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["count"] == 15
    assert (summary["misses"], summary["missed_cases"]) == (1, ["missed, twice"])
    assert (summary["false_alarms"], summary["false_alarm_cases"]) == (1, ["alarm"])
    detected = [scores[name]["HD95"] for name in scores if name.startswith("case_")]
    hd95 = summary["hd95"]
    assert hd95["rule"] == "diagonal"
    assert hd95["detected"]["count"] == 12
    assert hd95["detected"]["mean"] == pytest.approx(np.mean(detected))
    assert hd95["diagonal"]["mean"] == pytest.approx((sum(detected) + 100) / 15)
    assert hd95["zero"]["mean"] == pytest.approx(sum(detected) / 15)
    assert summary["metrics"]["HD95"] == hd95["diagonal"]
    dice = summary["metrics"]["DSC"]
    assert dice["median"] == np.median(column(scores, "DSC")) != dice["mean"]
    low, high = dice["ci95"]
    assert low and dice["mean"] and high and low < dice["mean"] < high
    assert summary["provenance"] == PROVENANCE


def test_dice_of_the_cases_with_a_lesion_is_told_beside_the_mean_of_all(tmp_path, scores):
    """A network that finds nothing gets a Dice of 1 wherever there is nothing."""
    known = named_groups("metadata", [["case_00", "case_01", "normal"], ["alarm", "case_02"]])
    summary = write_results(
        tmp_path, scores, provenance={}, known=known, leaked=["case_03", "alarm"]
    )
    with_lesion = [name for name in scores if name not in ("alarm", "normal")]
    dice = np.array([scores[name]["DSC"] for name in with_lesion])
    found, of_all = summary["dice_with_lesion"], summary["metrics"]["DSC"]
    assert (summary["empty_truths"], found["count"], found["groups"]) == (2, 13, 12)
    assert found["mean"] == pytest.approx(dice.mean()) != of_all["mean"]
    assert found["ci95"] == pytest.approx(bootstrap_interval(dice, known.labels(with_lesion)))
    without = summary["without_leaked"]
    assert without is not None
    assert (without["empty_truths"], without["dice_with_lesion"]["count"]) == (1, 12)
    lesions = {name: scores[name] for name in with_lesion}
    alone = summarise(lesions, known=known.among(lesions))
    assert alone["empty_truths"] == 0 and alone["dice_with_lesion"] == alone["metrics"]["DSC"]
    none = summarise({"normal": scores["normal"]})
    assert (none["empty_truths"], none["dice_with_lesion"]["mean"]) == (1, None)


def test_both_rules_are_told_whichever_was_scored(scores):
    zero = {
        name: of_case | ({"HD95": 0.0} if of_case["HD95"] == 50 else {})
        for name, of_case in scores.items()
    }
    published = summarise(zero, "zero")
    assert published["metrics"]["HD95"] == published["hd95"]["zero"]
    assert published["hd95"] | {"rule": "diagonal"} == summarise(scores)["hd95"]


def test_leaked_cases_are_told_apart(tmp_path, scores):
    leaked = ["case_03", "alarm", "not in this test set"]
    summary = write_results(tmp_path, scores, provenance={}, leaked=leaked)
    without = summary["without_leaked"]
    assert without is not None
    assert without["dropped"] == ["alarm", "case_03"]
    assert (without["count"], without["false_alarms"], summary["false_alarms"]) == (13, 0, 1)
    kept = [scores[name]["DSC"] for name in scores if name not in leaked]
    assert without["metrics"]["DSC"]["mean"] == pytest.approx(np.mean(kept))


def test_what_is_left_without_leaked_cases_is_by_the_same_rule(tmp_path, scores):
    summary = write_results(tmp_path, scores, provenance={}, leaked=["alarm"], hd95_empty="zero")
    without = summary["without_leaked"]
    assert without is not None
    assert without["hd95"]["rule"] == summary["hd95"]["rule"] == "zero"


@pytest.mark.parametrize("size", ["Height", "Width", "TruthPixels"])
def test_each_size_of_the_truth_tells_other_masks(tmp_path, scores, size):
    summary: Any = {}
    other = {name: dict(of_case) for name, of_case in scores.items()}
    other["case_03"][size] += 1
    runs = {name: Results(tmp_path, of, summary) for name, of in (("a", scores), ("b", other))}
    with pytest.raises(UserError, match=r"different masks .* in 1 cases \(case_03\)"):
        check_same_cases(runs)


def test_summary_stands_without_a_leak_and_when_all_leaked(tmp_path, scores):
    assert write_results(tmp_path, scores, provenance={})["without_leaked"] is None
    without = write_results(tmp_path, scores, provenance={}, leaked=scores)["without_leaked"]
    assert without is not None
    assert without["count"] == 0
    assert without["metrics"]["DSC"]["mean"] is None


def test_one_case_has_no_deviation_and_no_interval(tmp_path, scores):
    one = {"alarm": scores["alarm"]}
    found = write_results(tmp_path, one, provenance={})["metrics"]["DSC"]
    assert found["std"] is None and found["ci95"] == [None, None]
    assert read_results(tmp_path).scores == one


def test_what_is_read_is_what_was_written(tmp_path, scores):
    names = ['say "hi"', "a,b", "Avg", "ünï", "=1+1"]
    renamed = dict(zip(names, scores.values(), strict=False))
    summary = write_results(tmp_path, renamed, provenance=PROVENANCE)
    results = read_results(tmp_path)
    assert results.scores == renamed
    assert results.summary == summary
    assert results.names == sorted(names)
    assert results.values("DSC").tolist() == [renamed[name]["DSC"] for name in sorted(names)]


def test_rows_in_another_order_are_read_by_name(tmp_path, scores):
    """A table program may have sorted them; runs are compared case by case in the order that is read."""
    write_results(tmp_path, scores, provenance=PROVENANCE)
    path = tmp_path / "results.csv"
    header, *rows, average, deviation = path.read_text().splitlines(keepends=True)
    path.write_text("".join((header, *reversed(rows), average, deviation)))
    results = read_results(tmp_path)
    assert results.names == sorted(scores)
    assert results.values("DSC").tolist() == [scores[name]["DSC"] for name in sorted(scores)]


def test_nothing_is_written_without_cases_or_with_provenance_that_is_not_json(tmp_path, scores):
    with pytest.raises(UserError, match="no case"):
        write_results(tmp_path, {}, provenance={})
    with pytest.raises((TypeError, ValueError)):
        write_results(tmp_path, scores, provenance={"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_results_whole(tmp_path, scores, monkeypatch):
    write_results(tmp_path, scores, provenance=PROVENANCE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_results(tmp_path, {"alarm": scores["alarm"]}, provenance=PROVENANCE)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def first_case(text: str, old: str, new: str) -> str:
    head, line, rest = text.split("\n", 2)
    return "\n".join((head, line.replace(old, new, 1), rest))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "", "expected the columns Name, DSC.*got nothing"),
        (lambda text: text.replace("DSC", "Dice", 1), "expected the columns.*got Name, Dice"),
        (lambda text: text[: text.index("Avg")], "does not end in the rows Avg and Std"),
        (lambda text: text[: text.index("\n") + 1] + text[text.index("Avg") :], "has no case"),
        (lambda text: first_case(text, ",", ",x"), "row 2: could not convert"),
        (lambda text: first_case(text, ",0.0", ",nan"), "row 2: DSC is nan"),
        (lambda text: first_case(text, ",", ",1,"), "row 2: 14 columns, expected 13"),
        (lambda text: text.replace("case_01", "case_02"), "'case_02' more than once"),
        (lambda text: first_case(text, "alarm", '"alarm'), "not a CSV file"),
    ],
)
def test_spoilt_results_are_refused_with_the_reason(tmp_path, scores, spoil, message):
    write_results(tmp_path, scores, provenance=PROVENANCE)
    path = tmp_path / "results.csv"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


def test_missing_or_foreign_files_are_refused_with_the_reason(tmp_path, scores):
    with pytest.raises(UserError, match=r"holds no results\.csv.*valid\.py"):
        read_results(tmp_path)
    write_results(tmp_path, scores, provenance=PROVENANCE)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_results(tmp_path)
    (tmp_path / "summary.json").write_text('{"count": 3}')
    with pytest.raises(UserError, match=r"does not belong to results\.csv.*15 cases"):
        read_results(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(UserError, match=r"holds no summary\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("provenance", None, r"summary\.json has no mapping provenance.*run valid\.py again"),
        ("hd95", None, "no mapping hd95"),
        ("metrics", [], "no mapping metrics"),
        ("hd95", {"rule": "none"}, r"hd95\.rule is 'none', expected diagonal or zero"),
        ("hd95", {}, r"hd95\.rule is None"),
    ],
)
def test_a_summary_without_its_parts_is_refused(tmp_path, scores, key, value, message):
    summary = write_results(tmp_path, scores, provenance=PROVENANCE) | {key: value}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=message):
        read_results(tmp_path)


MISSING = object()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("misses", MISSING),
        ("missed_cases", [1]),
        ("without_leaked", MISSING),
        ("without_leaked", {"dropped": []}),
        ("bootstrap.by", MISSING),
        ("bootstrap.groups", None),
        ("hd95.detected", []),
        ("metrics.DSC", []),
        ("metrics.DSC.mean", None),
        ("metrics.DSC.ci95", MISSING),
        ("metrics.IoU.ci95", [0.1, "high"]),
        ("provenance.threshold", "0.5"),
        ("provenance.sha256", None),
        ("group_of.case_01", 3),
    ],
)
def test_an_edited_summary_is_refused_with_what_does_not_fit(tmp_path, scores, where, value):
    summary: Any = write_results(tmp_path, scores, provenance=PROVENANCE)
    *sections, key = where.split(".")
    section = reduce(getitem, sections, summary)
    section.pop(key, None)
    if value is not MISSING:
        section[key] = value
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    named = where if where != "metrics.DSC.mean" else "the mean of DSC is None there"
    with pytest.raises(
        UserError, match=rf"summary\.json .*{re.escape(named)}.*Run valid\.py again"
    ):
        read_results(tmp_path)


def test_scores_beside_the_summary_of_others_are_refused(tmp_path, scores, monkeypatch):
    """As after a kill, or on a full disk, between the two files."""
    write_results(tmp_path, scores, provenance=PROVENANCE)
    before = (tmp_path / "summary.json").read_text()
    better = {name: {**each, "DSC": 1.0} for name, each in scores.items()}
    write_results(tmp_path, better, provenance=PROVENANCE)
    assert read_results(tmp_path).values("DSC").min() == 1
    (tmp_path / "summary.json").write_text(before)
    with pytest.raises(
        UserError, match=r"the mean of DSC is .* there and 1\.0 here.*run valid\.py|Run valid"
    ):
        read_results(tmp_path)


def test_two_writers_never_share_a_temporary_file(tmp_path):
    """Also where they have the same process number, on two hosts with a common disk."""
    seen = []

    def write(temporary):
        seen.append(temporary.name)
        temporary.write_text("whole")

    for _ in range(2):
        atomic_write(tmp_path / "file", write)
    assert seen[0] != seen[1] and all(name.startswith(".file.") for name in seen)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_metric_is_summarised(scores):
    assert tuple(summarise(scores)["metrics"]) == METRICS
