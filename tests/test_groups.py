"""Cases that show the same source: what is known of a data set, joined, and said of an interval."""

from __future__ import annotations

import json
import pathlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
from datasets.checks.leaks import known_groups
from scoring import cross_domain_matrix
from scoring.cross_domain_cells import collect_cells
from scoring.groups import NOTHING_KNOWN, KnownGroups, joined, named_groups, unit_text
from scoring.in_words import interval_unit
from scoring.metrics import METRICS, SIZES, CaseScores
from scoring.report import _notes
from scoring.results import read_results, recorded_groups, summarise, write_results
from scoring.statistics import describe, paired_difference
from scoring.summary_text import format_summary

NAMES = [f"case_{index:02}" for index in range(40)]
PAIRS = named_groups(
    "metadata", [NAMES[index : index + 2] for index in range(0, 40, 2)]
)  # case_00 and case_01, ...
IN_PAIRS = PAIRS.labels(NAMES)


def scores_of_pairs(seed: int = 0, mean: float = 0.8) -> dict[str, CaseScores]:
    """Scores that the two cases of a pair share but for a little."""
    rng = np.random.default_rng(seed)
    dice = mean + rng.normal(0, 0.05, 20).repeat(2) + rng.normal(0, 0.002, 40)
    return {
        name: dict.fromkeys(METRICS, float(value)) | dict.fromkeys(SIZES, 32.0)
        for name, value in zip(NAMES, dice, strict=True)
    }


def write(folder: Path, seed: int = 0, known: KnownGroups = PAIRS, **more: Any) -> Path:
    made_with = {"selection": "chosen", "test_cases_trained_on": [], "data_set": "pairs"}
    made_with |= more.pop("made_with", {})
    write_results(folder, scores_of_pairs(seed), provenance=made_with, known=known, **more)
    return folder


def test_groups_are_those_of_the_check_else_of_the_metadata(tmp_path: Path) -> None:
    assert known_groups(tmp_path) == NOTHING_KNOWN
    patients = {"b": "1", "c": "1", "d": "2", "a": "2", "alone": "3"}
    (tmp_path / "groups.json").write_text(json.dumps(patients))
    of_metadata = {"b": "b", "c": "b", "d": "a", "a": "a"}
    assert known_groups(tmp_path) == KnownGroups("metadata", of_metadata)
    (tmp_path / "check").mkdir()
    checked = {"by": "metadata and near-duplicates", "groups": [["a", "b", "c", "d"], ["e", "f"]]}
    (tmp_path / "check" / "same_source_groups.json").write_text(json.dumps(checked))
    known = known_groups(tmp_path)
    assert known.by == "metadata and near-duplicates"
    assert known.group_of == dict.fromkeys("abcd", "a") | dict.fromkeys("ef", "e")
    assert known.labels(["f", "alone", "a", "e", "d"]) == ["e", "alone", "a", "e", "a"]


def test_what_is_known_in_several_places_is_joined() -> None:
    one = named_groups("metadata", [["a", "b"], ["d", "e"]])
    two = named_groups("metadata and near-duplicates", [["b", "c"], ["f", "g"]])
    both = joined([one, NOTHING_KNOWN, two])
    assert both.by == "metadata and near-duplicates"
    assert both.group_of == dict.fromkeys("abc", "a") | dict.fromkeys("de", "d") | dict.fromkeys(
        "fg", "f"
    )
    assert joined([two, one]) == both
    assert joined([NOTHING_KNOWN]) == NOTHING_KNOWN
    parts = [both.among(names) for names in ("ac", "bdf", "eg")]
    assert joined(parts) == both, "cut apart as by folds"


@pytest.mark.parametrize(
    ("groups", "cases", "by", "said"),
    [
        (115, 130, "near-duplicates", "over 130 cases in 115 groups (by near-duplicates)"),
        (130, 130, "metadata", "over 130 cases, no two known to be of one source (by metadata)"),
        (130, 130, None, "over 130 cases, taken as independent"),
        (20, 20, None, "over 20 cases, taken as independent"),
        (19, 40, "metadata", "over 40 cases in 19 groups (by metadata); with fewer than 20"),
        (2, 3, "metadata", "over 3 cases in 2 groups (by metadata); with fewer than 20"),
    ],
)
def test_an_interval_says_over_what_it_is(
    groups: int, cases: int, by: str | None, said: str
) -> None:
    told = unit_text(groups, cases, by)
    assert told.startswith(said) and ("too narrow" in told) == (groups < 20)


def test_the_intervals_of_a_summary_are_over_groups(tmp_path: Path) -> None:
    leaked = [*NAMES[:3], NAMES[5]]
    summary: Any = read_results(write(tmp_path, leaked=leaked)).summary
    dice = np.array([scores["DSC"] for scores in scores_of_pairs().values()])
    by_group, by_case = describe(dice, IN_PAIRS), describe(dice)
    assert summary["metrics"]["DSC"]["ci95"] == [by_group.low, by_group.high]
    assert by_group.high - by_group.low > 1.3 * (by_case.high - by_case.low)
    assert summary["metrics"]["DSC"]["mean"] == by_case.mean
    assert (summary["bootstrap"]["groups"], summary["bootstrap"]["cases"]) == (20, 40)
    assert summary["bootstrap"]["by"] == "metadata" and summary["group_of"] == PAIRS.group_of
    kept = [name not in leaked for name in NAMES]
    of_kept = describe(
        dice[kept], [g for g, is_kept in zip(IN_PAIRS, kept, strict=True) if is_kept]
    )
    without = summary["without_leaked"]["metrics"]["DSC"]
    assert without["ci95"] == [of_kept.low, of_kept.high]
    assert (without["count"], without["groups"]) == (36, 19)


def test_an_interval_can_be_recomputed_from_the_files_as_metrics_md_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pandas = pytest.importorskip("pandas")
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for known in (PAIRS, named_groups("metadata", [["case_02", "case_09", "a"]]), NOTHING_KNOWN):
        summary = read_results(write(tmp_path, known=known)).summary
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {"json": json, "pathlib": pathlib, "pandas": pandas, "numpy": np}
        exec(snippet, names)
        assert names["interval"] == pytest.approx(summary["metrics"]["DSC"]["ci95"])


def test_hd95_of_detected_cases_is_over_their_groups() -> None:
    scores = scores_of_pairs()
    scores[NAMES[0]] |= {"PredictedPixels": 0.0}
    scores[NAMES[2]] |= {"PredictedPixels": 0.0}
    scores[NAMES[3]] |= {"PredictedPixels": 0.0}
    hd95 = summarise(scores, known=PAIRS)["hd95"]
    detected = [name for name in NAMES if name not in (NAMES[0], NAMES[2], NAMES[3])]
    expected = describe([scores[name]["HD95"] for name in detected], PAIRS.labels(detected))
    assert hd95["detected"]["ci95"] == [expected.low, expected.high]
    assert (hd95["detected"]["count"], hd95["detected"]["groups"]) == (37, 19)
    assert hd95["zero"]["groups"] == hd95["diagonal"]["groups"] == 20


def test_a_group_of_which_one_case_is_scored_is_recorded(tmp_path: Path) -> None:
    known = named_groups("near-duplicates", [["case_07", "elsewhere"], ["not", "here"]])
    summary = read_results(write(tmp_path, known=known)).summary
    assert recorded_groups(summary) == KnownGroups("near-duplicates", {"case_07": "case_07"})
    assert summary["bootstrap"]["groups"] == 40
    assert "no two known to be of one source (by near-duplicates)" in format_summary("x", summary)


def test_terminal_and_report_say_the_unit_once(tmp_path: Path) -> None:
    for known, said in (
        (PAIRS, "95 % intervals: bootstrap over 40 cases in 20 groups (by metadata)"),
        (NOTHING_KNOWN, "95 % intervals: bootstrap over 40 cases, taken as independent"),
    ):
        summary = read_results(write(tmp_path, known=known)).summary
        told = format_summary("pairs", summary)
        assert told.count(f"  {said}\n") == 1 == told.count("bootstrap")
        assert f"{said}." in _notes(summary)
        assert "narrow" not in told + _notes(summary)
    few = named_groups("metadata", [NAMES[:22]])
    told = format_summary("pairs", read_results(write(tmp_path, known=few)).summary)
    assert "over 40 cases in 19 groups (by metadata); with fewer than 20, " in told


@pytest.mark.parametrize(
    ("count", "known", "reason"),
    [
        (40, named_groups("metadata", [NAMES]), "all 40 cases are of one group (by metadata)"),
        (1, NOTHING_KNOWN, "1 case"),
        (1, PAIRS, "1 case"),
    ],
)
def test_of_one_group_there_are_no_intervals(
    tmp_path: Path, count: int, known: KnownGroups, reason: str
) -> None:
    scores = dict(list(scores_of_pairs().items())[:count])
    made_with: Any = {"selection": "chosen", "test_cases_trained_on": [], "data_set": "pairs"}
    write_results(tmp_path, scores, provenance=made_with, known=known)
    summary = read_results(tmp_path).summary
    told = format_summary("pairs", summary)
    assert f"  no intervals: {reason}\n" in told and "no interval)" in told
    assert f">no intervals: {reason}.<" in _notes(summary)
    assert interval_unit(summary) == f"none: {reason}"
    assert "bootstrap" not in told + _notes(summary)
    assert "narrow" not in told + _notes(summary)


def test_two_runs_are_compared_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write(tmp_path / name, seed, leaked=NAMES[:1]) for seed, name in enumerate("ab")]
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    page = capsys.readouterr().out
    a, b = (read_results(run).values("DSC") for run in runs)
    expected = paired_difference(b, a, IN_PAIRS)
    difference = (
        f"{100 * expected.mean:+.2f} [{100 * expected.low:+.2f}, {100 * expected.high:+.2f}]"
    )
    assert f"| b | DSC | {difference} | {expected.p_value:.4f} |" in page
    assert expected.p_value > 1.5 * paired_difference(b, a).p_value
    of_a = describe(a, IN_PAIRS)
    assert f"{100 * of_a.mean:.2f} [{100 * of_a.low:.2f}, {100 * of_a.high:.2f}]" in page
    assert "tests are over 40 cases in 20 groups (by metadata). Whole groups are drawn" in page
    assert "not the same was known" not in page
    kept = paired_difference(b[1:], a[1:], IN_PAIRS[1:])
    difference = f"{100 * kept.mean:+.2f} [{100 * kept.low:+.2f}, {100 * kept.high:+.2f}]"
    assert f"| b | DSC without leaked | {difference} | {kept.p_value:.4f} |" in page


def test_the_interval_of_few_cases_among_many_is_told_to_be_too_narrow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / name, seed, leaked=NAMES[6:]) for seed, name in enumerate("ab")]
    summary = read_results(runs[0]).summary
    note = (
        "the interval of {} is over 6 cases in 3 groups alone; with fewer than 20 it is too narrow"
    )
    for page in (format_summary("pairs", summary), _notes(summary)):
        assert note.format("Dice, no leaked") in page
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    said = f"are over 40 cases in 20 groups (by metadata); {note.format('DSC without leaked')}."
    assert said in capsys.readouterr().out
    more = write(tmp_path / "more", leaked=NAMES[:0])
    assert "narrow" not in format_summary("pairs", read_results(more).summary)


def test_runs_on_cases_of_one_group_are_not_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = named_groups("metadata", [NAMES])
    runs = [write(tmp_path / name, seed, known=one) for seed, name in enumerate("ab")]
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    page = capsys.readouterr().out
    assert (
        "There are no intervals and no tests: all 40 cases are of one group (by metadata).\n"
        in page
    )
    (row,) = (line for line in page.splitlines() if line.startswith("| b | DSC |"))
    assert row.endswith("| - | - |") and "narrow" not in page and "[" not in row


def test_a_run_from_before_a_check_is_compared_by_all_that_is_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write(tmp_path / "before", known=NOTHING_KNOWN)
    some = named_groups("near-duplicates", [["case_01", "case_02"]])
    after = write(tmp_path / "after", 1, known=some)
    third = write(tmp_path / "third", 2)
    together = joined([some, PAIRS])
    for runs, labels in (
        ([before, third], IN_PAIRS),
        ([third, after], together.labels(NAMES)),
    ):
        compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
        page = capsys.readouterr().out
        dice = [read_results(run).values("DSC") for run in runs]
        expected = paired_difference(dice[1], dice[0], labels)
        assert f"[{100 * expected.low:+.2f}, {100 * expected.high:+.2f}]" in page
        assert "not the same was known of the cases; here all of it is used" in page
    assert "over 40 cases in 19 groups (by metadata and near-duplicates)" in page
    assert "after, over 40 cases in 39 groups (by near-duplicates)" in page
    compare.main([str(before), str(before.parent / "third"), "--out", str(tmp_path / "out")])
    assert "before, over 40 cases, taken as independent; third, over 40" in capsys.readouterr().out


def test_cases_of_which_nothing_is_known_are_taken_as_independent(tmp_path: Path) -> None:
    run = write(tmp_path / "a", known=NOTHING_KNOWN)
    summary = read_results(run).summary
    assert recorded_groups(summary) == NOTHING_KNOWN
    assert "bootstrap over 40 cases, taken as independent\n" in format_summary("pairs", summary)
    assert "over 40 cases, taken as independent." in _notes(summary)


def test_the_matrix_says_over_what_each_column_is(tmp_path: Path) -> None:
    for train, test, known in (
        ("a", "one", PAIRS),
        ("b", "one", PAIRS),
        ("a", "two", NOTHING_KNOWN),
        ("b", "two", PAIRS),
    ):
        made_with = {"trained_on": train, "data_set": test}
        write(tmp_path / train / f"valid_results_{test}", known=known, made_with=made_with)
    cells = collect_cells([tmp_path / "a", tmp_path / "b"])
    page = cross_domain_matrix.to_markdown(cells, ["DSC"])
    assert "- one: over 40 cases in 20 groups (by metadata)\n" in page
    assert "- two, of a: over 40 cases, taken as independent\n" in page
    assert "- two, of b: over 40 cases in 20 groups (by metadata)\n" in page
    low, high = cells["a", "one"]["metrics"]["DSC"]["ci95"]
    assert low is not None and high is not None
    assert f"[{100 * low:.2f}, {100 * high:.2f}]" in page
