"""compare.py and the cross-domain matrix: from run folders to tables and plots."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compare
from experiments import cross_domain
from scoring import comparison, cross_domain_matrix
from scoring.case_scores import score_cases
from scoring.cross_domain_cells import collect_cells
from scoring.groups import named_groups
from scoring.metrics import METRICS
from scoring.results import mean_of, read_results, write_results
from scoring.statistics import bootstrap_interval, describe, holm, paired_difference
from scoring.summary_text import format_summary
from scoring.validated_runs import read_runs
from tests.drawn_figures import keep_figures
from utils.errors import UserError
from utils.files import sha256


def validated(
    folder: Path,
    shift: int,
    count: int = 20,
    size: int = 40,
    missed: int = 0,
    seed: int = 0,
    healthy: int = 0,
    alarms: int = 0,
    **options,
) -> Path:
    """A validation: its first `missed` predictions are empty, the others off by `shift` to `shift` + 2.

    The last `healthy` cases have no lesion, and `alarms` of them a prediction.
    """
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        truth = np.zeros((size, size), bool)
        truth[10:30, 5 : 10 + rng.integers(5, 15)] = True
        prediction = np.roll(truth, shift + rng.integers(3), 1) & (index >= missed)
        if index >= count - healthy:
            prediction &= index >= count - alarms
            truth[:] = False
        cases.append((f"case_{index:02}", prediction, truth))
    scores = score_cases(cases)
    write_results(folder, scores, **({"provenance": {}} | options))
    return folder


def run_compare(*arguments) -> None:
    compare.main(list(map(str, arguments)))


@pytest.fixture
def two_runs(tmp_path):
    good, bad = tmp_path / "good/epochs_9", tmp_path / "bad|worse/epochs_9"
    validated(good / "valid_results_busi", shift=0)
    validated(bad / "valid_results_busi", shift=3, missed=1)
    return good, bad


def test_tables_and_plot(tmp_path, two_runs, capsys):
    out = tmp_path / "out"
    run_compare(*two_runs, "--out", out)
    printed = capsys.readouterr().out
    markdown = (out / "comparison.md").read_text()
    assert markdown in printed
    assert "| good (reference) | bad\\|worse |" in markdown
    assert "| misses | 0 | 1 |\n| false alarms | 0 | 0 |" in markdown
    assert "| DSC ↑ |" in markdown and "| HD95 ↓ |" in markdown
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.pdf").read_bytes().startswith(b"%PDF")

    with (out / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["metric"] for line in lines] == [metric for metric in METRICS for _ in range(2)]
    good, bad = (read_results(run / "valid_results_busi").values("DSC") for run in two_runs)
    expected = paired_difference(bad, good)
    assert lines[0]["difference_mean"] == ""
    assert float(lines[1]["difference_mean"]) == expected.mean < 0
    assert float(lines[1]["difference_low"]) == expected.low
    assert float(lines[1]["difference_p_value"]) == expected.p_value < 0.001
    assert f"{100 * expected.mean:+.2f} [{100 * expected.low:+.2f}" in markdown
    latex = (out / "comparison.tex").read_text()
    assert r" & DSC (\%) & IoU (\%) & HD95 (px) \\" in latex and r"bad\textbar{}worse & " in latex
    assert f"$-${-100 * expected.mean:.2f} [$-${-100 * expected.low:.2f}, " in latex


def test_a_third_run_adjusts_p_for_two_comparisons(tmp_path, two_runs):
    third = validated(tmp_path / "third/epochs_9/valid_results_busi", shift=1)
    run_compare(*two_runs, third, "--out", tmp_path)
    with (tmp_path / "comparison.csv").open(newline="") as file:
        dice = [line for line in csv.DictReader(file) if line["metric"] == "DSC"]
    assert [line["run"] for line in dice] == ["good", "bad|worse", "third"]
    p, adjusted = (
        [float(line[key]) for line in dice[1:]]
        for key in ("difference_p_value", "difference_p_holm")
    )
    assert min(adjusted) == pytest.approx(2 * min(p))


def test_a_run_compared_with_its_copy_shows_no_difference(tmp_path):
    runs = [validated(tmp_path / name, shift=1) for name in ("a", "b")]
    run_compare(*runs, "--out", tmp_path / "out")
    assert (
        "| b | DSC | +0.00 [+0.00, +0.00] | 1.0000 | 1.0000 |"
        in (tmp_path / "out/comparison.md").read_text()
    )


def test_plot_gives_the_differences_in_numbers_and_room_to_long_names(two_runs):
    good, bad = (read_results(run / "valid_results_busi") for run in two_runs)
    long = "started_from_phantoms_" * 4 + "/published/seed_1/epochs_1000"
    runs = {long: good, f"b{long}": bad}
    comparisons = comparison.compare_metrics(runs)
    figure = comparison.plot_differences(comparisons, runs)
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert axes.get_position().width > 0.2
    dice = comparisons[0].differences[f"b{long}"]
    (number,) = (text.get_text() for text in figure.axes[0].texts)
    assert number == f"{100 * dice.mean:+.2f} [{100 * dice.low:+.2f}, {100 * dice.high:+.2f}]"
    for axes, metric, better, scale in (
        (figure.axes[0], "DSC", "higher", 100),
        (figure.axes[2], "HD95", "lower", 1),
    ):
        (difference,) = (each.differences.values() for each in comparisons if each.metric == metric)
        (mean, low, high) = (scale * of for d in difference for of in (d.mean, d.low, d.high))
        (dots,), (_, bar, dot) = axes.collections, axes.lines
        assert dots.get_offsets()[:, 0].mean() == pytest.approx(mean)
        assert [*bar.get_xdata(), *dot.get_xdata()] == pytest.approx([low, high, mean])
        assert axes.get_title() == f"{metric} ({better} is better)"
    (label,) = (tick.get_text() for tick in figure.axes[0].get_yticklabels())
    assert label.replace("\n", "") == f"b{long}"
    assert label.endswith("/\npublished/seed_1/epochs_1000")


def test_several_data_sets_need_a_choice(tmp_path, two_runs):
    validated(two_runs[0] / "valid_results_bus", shift=0, count=3)
    with pytest.raises(UserError, match="validated on bus, busi; choose one with --dataset"):
        run_compare(*two_runs, "--out", tmp_path)
    with pytest.raises(UserError, match="was not validated on bus, only on busi"):
        run_compare(*two_runs, "--dataset", "bus", "--out", tmp_path)
    run_compare(*two_runs, "--dataset", "busi", "--out", tmp_path)
    folders = [run / "valid_results_busi" for run in two_runs]
    with pytest.raises(UserError, match="valid_results_busi is not of --dataset bus; give the run"):
        run_compare(*folders, "--dataset", "bus", "--out", tmp_path)


def test_different_cases_sizes_masks_or_rules_are_refused(tmp_path):
    first = validated(tmp_path / "first", shift=0)
    more = validated(tmp_path / "more", shift=0, count=27)
    larger = validated(tmp_path / "larger", shift=0, size=48)
    masks = validated(tmp_path / "masks", shift=0, seed=1)
    published = validated(tmp_path / "published", shift=0, hd95_empty="zero")
    for other, message in (
        (more, r"different cases: 7 only in more \(case_20, .*case_24 and 2 more\)"),
        (larger, "different sizes in 20 cases"),
        (masks, r"different masks .* in \d+ cases"),
        (published, "rule 'diagonal' in first and 'zero' in published"),
    ):
        with pytest.raises(UserError, match=message):
            run_compare(first, other, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, two_runs, domains):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(UserError, match="taken"):
        run_compare(*two_runs, "--out", taken)
    with pytest.raises(UserError, match="taken"):
        cross_domain.main([*map(str, domains), "--out", str(taken)])


@pytest.fixture
def trained_on_after_validation(tmp_path: Path) -> list[Path]:
    """Two runs; the best checkpoint of the second has changed since it was scored."""
    runs = [tmp_path / name / "epochs_9" for name in "ab"]
    for run in runs:
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "best_model.pth").write_bytes(b"as scored")
        provenance = {
            "trained_on": run.parent.name,
            "data_set": "busi",
            "checkpoint": "/where/it/was/trained/best_model.pth",
            "sha256": {"checkpoint": sha256(run / "best_model.pth")},
        }
        for folder in (run, run / "tta"):
            validated(folder / "valid_results_busi", 0, count=4, provenance=provenance)
    (runs[1] / "best_model.pth").write_bytes(b"better")
    return runs


@pytest.mark.parametrize("of", ["", "valid_results_busi", "tta"])
def test_scores_of_earlier_weights_are_not_compared(
    tmp_path: Path, trained_on_after_validation: list[Path], of: str
) -> None:
    runs = [run / of for run in trained_on_after_validation]
    message = r"b/epochs_9\S*/valid_results_busi holds the scores of earlier weights .*run valid\.py again"
    with pytest.raises(UserError, match=message):
        run_compare(*runs, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (trained_on_after_validation[1] / "best_model.pth").unlink()
    run_compare(*runs, "--out", tmp_path / "out")


def test_a_folder_of_results_is_compared_from_within_it(
    tmp_path: Path, trained_on_after_validation: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (run / "valid_results_busi" for run in trained_on_after_validation)
    monkeypatch.chdir(second)
    with pytest.raises(UserError, match="holds the scores of earlier weights"):
        run_compare(first, ".", "--out", tmp_path / "out")


def test_scores_of_earlier_weights_are_not_put_into_the_matrix(
    trained_on_after_validation: list[Path],
) -> None:
    assert len(collect_cells(trained_on_after_validation[:1])) == 1
    with pytest.raises(
        UserError, match=r"b/epochs_9/valid_results_busi holds the scores of earlier weights"
    ):
        collect_cells(trained_on_after_validation)


def test_runs_that_cannot_be_compared_are_refused(tmp_path, two_runs):
    (tmp_path / "new").mkdir()
    for runs, message in (
        ([two_runs[0]], "one run given"),
        ([two_runs[0], two_runs[0]], "given twice"),
        ([two_runs[0], tmp_path / "new"], r"was not validated.*valid\.py"),
        ([two_runs[0], tmp_path / "gone"], "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            run_compare(*runs, "--out", tmp_path)


def test_the_page_says_how_each_run_was_scored(tmp_path, capsys):
    chosen_on_test = {"selection": "checkpoint chosen on the TEST split", "threshold": 0.4}
    special = {"selection": "chosen on val", "trained_on_another_split": True, "tta": True}
    special |= {"init_weights": "ckpt/other.pth"}
    a = validated(tmp_path / "a", shift=0, provenance=chosen_on_test, hd95_empty="zero")
    b = validated(tmp_path / "b", shift=1, provenance=special, hd95_empty="zero")
    run_compare(a, b, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert "- a: checkpoint chosen on the TEST split; threshold 0.4\n" in printed
    assert (
        "- b: chosen on val; started from ckpt/other.pth; "
        "trained on another split, test cases may have been in training; "
        "test-time augmentation\n" in printed
    )
    assert "HD95: misses as 0" in printed


def test_the_page_says_what_was_otherwise_in_training(tmp_path, capsys):
    same = {"selection": "chosen on val", "image_size": 32, "trained_otherwise": {}}
    differs = {"image_size": 24, "trained_otherwise": {"image_size": 32, "ch": 16}}
    a = validated(tmp_path / "a", shift=0, provenance=same)
    b = validated(tmp_path / "b", shift=1, provenance=same | differs)
    run_compare(a, b, "--out", tmp_path)
    printed = capsys.readouterr().out
    assert "- a: chosen on val\n" in printed
    assert (
        "- b: chosen on val; scored with image_size 24, trained with 32; "
        "scored with another ch, trained with 16\n" in printed
    )


def test_dice_without_the_cases_that_leaked_into_any_run(tmp_path):
    a = validated(tmp_path / "a", shift=0, leaked=["case_00", "case_01"])
    b = validated(tmp_path / "b", shift=1, leaked=["case_01", "case_02"])
    run_compare(a, b, "--out", tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    assert "leaves out the 3 cases" in page and "- a: " in page
    assert "or were found to have a near-duplicate there" in page
    assert "; 2 of the 20 scored cases leaked" in page
    dice_a, dice_b = (read_results(run).values("DSC")[3:] for run in (a, b))
    expected = paired_difference(dice_b, dice_a)
    assert f"| b | DSC without leaked | {100 * expected.mean:+.2f} [" in page
    assert f"| DSC without leaked ↑ | {100 * dice_a.mean():.2f} [" in page
    with (tmp_path / "comparison.csv").open(newline="") as file:
        row = next(
            line
            for line in csv.DictReader(file)
            if (line["metric"], line["run"]) == ("DSC without leaked", "b")
        )
    assert row["count"] == "17" and float(row["difference_mean"]) == expected.mean


def test_where_every_case_leaked_there_is_no_dice_without_them(tmp_path):
    every_case = [f"case_{index:02}" for index in range(20)]
    runs = [validated(tmp_path / name, shift=0, leaked=every_case) for name in "ab"]
    run_compare(*runs, "--out", tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    assert "20 of the 20 scored cases leaked" in page and "DSC without leaked" not in page
    assert "All 20 cases were in the training data of a run or were found to have a near-" in page


@pytest.fixture
def domains(tmp_path):
    for train in "ab":
        for test in "ab":
            validated(
                tmp_path / train / f"valid_results_{test}",
                shift=0 if train == test else 4,
                provenance={"trained_on": f"phantom-{train}", "data_set": f"phantom-{test}"},
            )
    return tmp_path / "a", tmp_path / "b"


def test_cross_domain_matrix(tmp_path, domains, capsys):
    out = tmp_path / "matrix"
    cross_domain.main([*map(str, domains), "--out", str(out)])
    assert "| phantom-a | **" in capsys.readouterr().out
    with (out / "cross_domain_DSC.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["train set"] for row in rows] == ["phantom-a", "phantom-b"]
    assert float(rows[0]["phantom-a"]) > float(rows[0]["phantom-b"])
    expected = read_results(domains[1] / "valid_results_a").values("DSC").mean()
    assert float(rows[1]["phantom-a"]) == pytest.approx(expected)
    assert (out / "cross_domain.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "cross_domain_HD95.csv").is_file()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"hd95_empty": "zero"}, "hd95_empty differs .*: diagonal; .*: zero"),
        ({"size": 96}, "evaluation_size differs .*: 32; .*: 96"),
    ],
)
def test_matrix_refuses_distances_that_do_not_compare(tmp_path, how, message):
    for run, each in (("a", {}), ("b", how)):
        size = 96 if each == {"size": 96} else 32
        of = {"trained_on": run, "data_set": "phantom", "evaluation_size": size}
        validated(tmp_path / run / "valid_results_phantom", shift=0, provenance=of, **each)
    with pytest.raises(UserError, match=message):
        collect_cells([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"count": 17}, r"different cases: 3 only in .*a/valid_results_phantom \(case_17"),
        ({"size": 48}, "different masks or at different sizes in 20 cases"),
    ],
)
def test_matrix_refuses_a_column_of_different_cases(tmp_path, how, message):
    for run, each in (("a", {}), ("b", how)):
        of = {"trained_on": run, "data_set": "phantom"}
        validated(tmp_path / run / "valid_results_phantom", shift=0, provenance=of, **each)
    with pytest.raises(UserError, match=message):
        collect_cells([tmp_path / "a", tmp_path / "b"])


def test_a_run_of_unknown_training_goes_by_its_folder(tmp_path):
    runs = [tmp_path / "mine" / name for name in ("one", "two")]
    for run in runs:
        unknown = {"trained_on": None, "data_set": "phantom"}
        validated(run / "valid_results_phantom", shift=0, provenance=unknown)
    assert list(collect_cells(runs)) == [("mine/one", "phantom"), ("mine/two", "phantom")]


def test_a_combination_without_validation_stays_empty(tmp_path, domains):
    cells = collect_cells(domains)
    del cells["phantom-b", "phantom-a"]
    cross_domain_matrix.write_matrix(tmp_path / "out", cells)
    assert "phantom-b,," in (tmp_path / "out/cross_domain_IoU.csv").read_text()
    assert "| phantom-b | - |" in (tmp_path / "out/cross_domain.md").read_text()


def test_two_models_of_one_train_set_have_a_row_each(tmp_path, domains):
    of = {"trained_on": "phantom-a", "data_set": "phantom-b"}
    unet = validated(tmp_path / "unet/valid_results_b", shift=1, provenance=of).parent
    cells = collect_cells([*domains, unet])
    assert [model for model, test in cells if test == "phantom-b"] == [
        "phantom-a (a)",
        "phantom-b",
        "phantom-a (unet)",
    ]
    page = cross_domain_matrix.to_markdown(cells, ["DSC"])
    assert "| phantom-a (a) | **" in page and "| phantom-a (unet) | - | " in page


def test_brighter_is_better_in_the_heat_maps(tmp_path, domains, monkeypatch):
    drawn = keep_figures(monkeypatch, "scoring.cross_domain_matrix")
    of = {"trained_on": "phantom-a", "data_set": "phantom-b"}
    unet = validated(tmp_path / "unet/valid_results_b", shift=1, provenance=of).parent
    cells = collect_cells([*domains, unet])
    cross_domain_matrix.heat_maps(cells, ["DSC", "HD95"])
    (figure,) = drawn
    for axes, metric, scale in zip(figure.axes, ("DSC", "HD95"), (100, 1), strict=True):
        at_home, elsewhere = (
            scale * mean_of(cells["phantom-a (a)", test]["metrics"][metric])
            for test in ("phantom-a", "phantom-b")
        )
        (image,) = axes.images
        assert image.get_array()[0].tolist() == pytest.approx([at_home, elsewhere])
        assert sum(image.to_rgba(at_home)[:3]) > sum(image.to_rgba(elsewhere)[:3])


def test_the_colours_of_a_heat_map_span_its_values(tmp_path, domains, monkeypatch):
    drawn = keep_figures(monkeypatch, "scoring.cross_domain_matrix")
    cells = collect_cells(domains)
    for summary, dice, hd95 in zip(
        cells.values(), (0.905, 0.869, 0.90, 0.84), (2.5, 2.6, 2.5, 2.7), strict=True
    ):
        summary["metrics"]["DSC"]["mean"], summary["metrics"]["HD95"]["mean"] = dice, hd95
    cross_domain_matrix.heat_maps(cells, ["DSC", "HD95"])
    (figure,) = drawn
    dice, hd95 = figure.axes
    assert dice.images[0].get_clim() == pytest.approx((84, 90.5))
    assert hd95.images[0].get_clim() == pytest.approx((1.6, 3.6)), "noise is not blown up"
    assert dice.get_title() == "Dice, per cent ↑" and hd95.get_title() == "HD95, pixels ↓"
    assert "span the values of each panel, at least 5 points or 2 pixels" in figure.get_supxlabel()


def test_matrix_says_how_each_model_was_scored(tmp_path, capsys):
    runs = [tmp_path / name for name in ("alike", "mixed")]
    for run, tta in zip(runs, (False, True), strict=True):
        for test in ("one", "two"):
            how = {"selection": "checkpoint chosen on the TEST split", "threshold": 0.5}
            how |= {"trained_on": run.name, "data_set": test, "tta": tta and test == "two"}
            how |= {"precision": "bf16"} if tta else {}
            validated(run / f"valid_results_{test}", shift=0, provenance=how)
    cross_domain.main([*map(str, runs), "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    said = "checkpoint chosen on the TEST split"
    assert f"- alike: {said}; threshold 0.5\n" in printed
    assert f"- mixed, on one: {said}; threshold 0.5; computed in bf16\n" in printed
    assert f"- mixed, on two: {said}; test-time augmentation; threshold 0.5; computed in" in printed
    assert "HD95: misses as diagonal" in printed


def test_matrix_refuses_what_it_cannot_place(tmp_path, domains):
    with pytest.raises(UserError, match="is given twice"):
        collect_cells([*domains, domains[0]])
    copied, other = tmp_path / "copied", tmp_path / "other"
    for name in ("a", "a_old"):
        of = {"trained_on": "phantom-a", "data_set": "phantom-a"}
        validated(copied / f"valid_results_{name}", shift=0, provenance=of)
    with pytest.raises(UserError, match=r"_a and .*_a_old are both of phantom-a; move one"):
        collect_cells([copied])
    for name in ("a", "b"):
        weights = {"sha256": {"checkpoint": name}, "trained_on": "a", "data_set": name}
        validated(other / f"valid_results_{name}", shift=0, provenance=weights)
    with pytest.raises(UserError, match=r"_a and .*_b are of different weights.*; run valid\.py"):
        collect_cells([other])
    unplaced = validated(tmp_path / "unplaced/valid_results_a", shift=0).parent
    with pytest.raises(UserError, match="does not say trained_on"):
        collect_cells([unplaced])
    with pytest.raises(UserError, match="no validation"):
        cross_domain_matrix.write_matrix(tmp_path, {})


def test_the_terminal_says_each_number(tmp_path: Path) -> None:
    made_with = {"selection": "chosen", "test_cases_trained_on": []}
    run = validated(tmp_path / "a", shift=2, missed=3, provenance=made_with)
    summary = read_results(run).summary
    told = format_summary("blobs", summary)
    metrics: Any = summary["metrics"]
    hd95: Any = summary["hd95"]
    for name, numbers, factor in (
        ("Dice", metrics["DSC"], 100),
        ("IoU", metrics["IoU"], 100),
        ("HD95, misses as diagonal", hd95["diagonal"], 1),
        ("HD95, misses as 0", hd95["zero"], 1),
        ("HD95, detected", hd95["detected"], 1),
    ):
        mean, low, high = (factor * n for n in (numbers["mean"], *numbers["ci95"]))
        said = rf"  {name} +{mean:.2f} .*\(95 % interval {low:.2f} to {high:.2f}\)"
        assert re.search(said, told), name


def test_the_terminal_names_the_dice_of_the_cases_with_a_lesion(tmp_path: Path) -> None:
    made_with = {"selection": "chosen", "test_cases_trained_on": []}
    healthy = validated(tmp_path / "a", shift=2, healthy=3, alarms=1, provenance=made_with)
    told = format_summary("blobs", read_results(healthy).summary).splitlines()
    dice = read_results(healthy).values("DSC")[:17]
    low, high = bootstrap_interval(dice)
    assert told[2] == (
        f"  Dice, with lesion       {100 * dice.mean():7.2f} %   (95 % interval {100 * low:.2f} to {100 * high:.2f}), "
        "17 cases; 3 without, 1 false alarm(s) among them"
    )
    every = validated(tmp_path / "b", shift=2, provenance=made_with)
    assert "lesion" not in format_summary("blobs", read_results(every).summary)
    nothing = validated(tmp_path / "c", shift=2, count=2, healthy=2, provenance=made_with)
    assert "  Dice, with lesion        none, 0 cases; 2 without, 0 false" in format_summary(
        "blobs", read_results(nothing).summary
    )


def test_the_terminal_says_where_there_is_no_interval(tmp_path: Path) -> None:
    made_with = {"selection": "chosen", "test_cases_trained_on": []}
    known = named_groups("metadata", [["case_02", "case_03"]])
    for missed, said in ((3, "1 case, no interval"), (2, "2 cases of one group, no interval")):
        run = validated(
            tmp_path / str(missed),
            shift=2,
            count=4,
            missed=missed,
            provenance=made_with,
            known=known,
        )
        told = format_summary("blobs", read_results(run).summary)
        assert re.search(rf"^  HD95, detected +[\d.]+ px  \({said}\)$", told, re.MULTILINE)
        assert "?" not in told


def test_cases_without_a_lesion_are_told_in_the_comparison(tmp_path: Path) -> None:
    a = validated(tmp_path / "a", shift=0, healthy=3, alarms=1, missed=2)
    b = validated(tmp_path / "b", shift=1, healthy=3, alarms=2, missed=3)
    run_compare(a, b, "--out", tmp_path)
    page = (tmp_path / "comparison.md").read_text()
    dice_a, dice_b = (read_results(run).values("DSC")[:17] for run in (a, b))
    expected = paired_difference(dice_b, dice_a)
    assert f"| Dice, with lesion ↑ | {100 * dice_a.mean():.2f} [" in page
    assert f"| b | Dice, with lesion | {100 * expected.mean:+.2f} [" in page
    assert "| misses | 2 | 3 |\n| false alarms, of 3 without a lesion | 1 | 2 |" in page
    assert "\n\n3 of 20 cases have no lesion: where nothing is predicted in one" in page
    latex = (tmp_path / "comparison.tex").read_text()
    assert "20 cases, 3 of them without a lesion\n" in latex
    assert r" & DSC (\%) & Dice, with lesion (\%) & IoU (\%) & HD95 (px) \\" in latex


def test_cases_without_a_lesion_are_told_in_the_matrix(tmp_path: Path) -> None:
    for model, alarms in (("a", 0), ("b", 2)):
        for test, healthy in (("a", 0), ("b", 3)):
            validated(
                tmp_path / model / f"valid_results_{test}",
                shift=1,
                healthy=healthy,
                alarms=alarms if healthy else 0,
                provenance={"trained_on": model, "data_set": test},
            )
    cells = collect_cells([tmp_path / "a", tmp_path / "b"])
    page = cross_domain_matrix.to_markdown(cells, ["DSC", "HD95"])
    assert re.findall("^## (.*) [(]", page, re.MULTILINE) == ["DSC", "Dice, with lesion", "HD95"]
    dice = read_results(tmp_path / "b" / "valid_results_b").values("DSC")
    of_all, found = f"{100 * dice.mean():.2f} [", f"{100 * dice[:17].mean():.2f} ["
    assert of_all != found and page.count(f"**{of_all}") == page.count(f"**{found}") == 1
    assert "- b: 3 of 20 cases have no lesion: where" in page and "- a: 3" not in page
    assert "cases. False alarms: a 0, b 2\n" in page
    del cells["a", "b"], cells["b", "b"]
    assert "lesion" not in cross_domain_matrix.to_markdown(cells, ["DSC", "HD95"])


def test_the_matrix_gives_overlaps_in_per_cent_and_distances_in_pixels(tmp_path: Path) -> None:
    trained = {"trained_on": "a", "data_set": "b"}
    validated(tmp_path / "a" / "valid_results_b", shift=2, provenance=trained)
    cells = collect_cells([tmp_path / "a"])
    page = cross_domain_matrix.to_markdown(cells, ["DSC", "HD95"])
    metrics = cells["a", "b"]["metrics"]
    assert f"| a | {mean_of(metrics['HD95']):.2f} [" in page
    assert f"| a | {100 * mean_of(metrics['DSC']):.2f} [" in page


def test_adjusted_p_values_belong_to_their_runs(tmp_path: Path) -> None:
    shifts = (("a", 0), ("same", 0), ("worse", 3))
    runs = [validated(tmp_path / name, shift=shift) for name, shift in shifts]
    compare.main([*map(str, runs), "--out", str(tmp_path / "out")])
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "DSC"][1:]
    p, adjusted = ([float(row[f"difference_p_{k}"]) for row in rows] for k in ("value", "holm"))
    assert p[0] > p[1] and adjusted == pytest.approx(holm(p))


def test_the_tables_for_a_paper_give_means_and_adjusted_p_values(tmp_path: Path) -> None:
    shifts = (("a", 0), ("b", 1), ("c", 3))
    folders = {name: validated(tmp_path / name, shift, count=6) for name, shift in shifts}
    runs = {name: read_results(folder) for name, folder in folders.items()}
    scores = {name: run.values("DSC") for name, run in runs.items()}
    latex = comparison.to_latex([comparison.compare_metric("DSC", scores, list("123456"))], runs)
    for name, dice in scores.items():
        of_run = describe(dice)
        interval = f"[{100 * of_run.low:.2f}, {100 * of_run.high:.2f}]"
        assert rf"{name} & {100 * of_run.mean:.2f} {interval} \\" in latex
    p = [paired_difference(scores[name], scores["a"]).p_value for name in "bc"]
    for name, adjusted in zip("bc", holm(p), strict=True):
        assert re.search(rf"^{name} & .*\] & {adjusted:.4f} \\", latex, re.MULTILINE)
    assert holm(p) != p


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"count": 5}, "a and c were scored on different cases: 1 only in c"),
        ({"seed": 1}, "a and c were scored against different masks"),
        ({"hd95_empty": "zero"}, "rule 'diagonal' in a and 'zero' in c"),
    ],
)
def test_the_last_of_several_runs_is_checked_too(
    tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    each = {"a": {}, "b": {}, "c": how}
    runs = [validated(tmp_path / name, 0, **({"count": 4} | of)) for name, of in each.items()]
    with pytest.raises(UserError, match=message):
        read_runs(runs, None)


def test_every_model_of_a_column_is_checked(tmp_path: Path) -> None:
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        of = {"trained_on": run, "data_set": "phantom"}
        validated(tmp_path / run / "valid_results_phantom", 0, count=4, seed=seed, provenance=of)
    with pytest.raises(UserError, match=r"a/valid_results_phantom and .*c/valid.*different masks"):
        collect_cells([tmp_path / run for run in "abc"])
