"""Validated runs side by side: their scores, and the differences from a reference case by case."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scoring.groups import KnownGroups, joined, narrow_note, unit_or_why_none
from scoring.in_words import (
    arrow_of,
    better_of,
    empty_truths_text,
    how_scored,
    interval_unit,
    scale_of,
    with_interval,
    with_unit,
)
from scoring.metrics import EMPTY_RULES, LOWER_IS_BETTER, METRICS
from scoring.results import WITH_LESION, Results, column, recorded_groups
from scoring.statistics import (
    RESAMPLES,
    Groups,
    PairedDifference,
    SampleStatistics,
    Values,
    describe,
    holm,
    paired_difference,
)
from utils.figures import BLUE, VERMILION, pdf, png
from utils.files import atomic_write
from utils.tables import csv_text, latex_table, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTTED = ("DSC", "IoU", "HD95")
WITHOUT_LEAKED = "DSC without leaked"
# of a difference, beside the run's own scores in comparison.csv
DIFFERENCE_KEYS = ("mean", "median", "low", "high", "p_value")


@dataclass(frozen=True)
class MetricComparison:
    """One metric of all runs, and of every other run against the reference."""

    metric: str
    runs: dict[str, SampleStatistics]
    differences: dict[str, PairedDifference]
    adjusted: dict[str, float]  # p-values, adjusted for the number of runs compared


def write_comparison(folder: Path, runs: Mapping[str, Results]) -> str:
    """Write comparison.md, .csv, .tex, .png and .pdf; returns the page."""
    comparisons = compare_metrics(runs)
    page = to_markdown(comparisons, runs)
    atomic_write(folder / "comparison.md", page)
    atomic_write(folder / "comparison.csv", to_csv(comparisons))
    atomic_write(folder / "comparison.tex", to_latex(comparisons, runs))
    figure = plot_differences(comparisons, runs)
    atomic_write(folder / "comparison.png", png(figure, dpi=150))
    atomic_write(folder / "comparison.pdf", pdf(figure))
    return page


def leaked_cases(runs: Mapping[str, Results]) -> set[str]:
    """The cases that leaked into the training of any run."""
    without_leaked = [run.summary["without_leaked"] for run in runs.values()]
    return {name for without in without_leaked if without for name in without["dropped"]}


def known_in_any(runs: Mapping[str, Results]) -> KnownGroups:
    """Which cases show the same patient, lesion or scan, by all that was known when any run was scored.

    What the images show is no matter of the run, so that a run which was scored before a check can be
    compared with one after it.
    """
    return joined([recorded_groups(run.summary) for run in runs.values()])


def compare_metrics(runs: Mapping[str, Results]) -> list[MetricComparison]:
    """Every metric; below Dice, where some cases have no lesion or leaked, Dice on the others."""
    values = {
        metric: {label: run.values(metric) for label, run in runs.items()} for metric in METRICS
    }
    reference = next(iter(runs.values()))
    groups = known_in_any(runs).labels(reference.names)
    comparisons = [compare_metric(metric, scores, groups) for metric, scores in values.items()]
    leaked = leaked_cases(runs)
    parts = {
        WITH_LESION: column(reference.scores, "TruthPixels") > 0,
        WITHOUT_LEAKED: np.array([name not in leaked for name in reference.names]),
    }
    of_parts = []
    for what, kept in parts.items():
        if kept.any() and not kept.all():
            dice = {label: scores[kept] for label, scores in values["DSC"].items()}
            groups_kept = [group for group, is_kept in zip(groups, kept, strict=True) if is_kept]
            of_parts.append(compare_metric(what, dice, groups_kept))
    after_dice = METRICS.index("DSC") + 1
    return [*comparisons[:after_dice], *of_parts, *comparisons[after_dice:]]


def compare_metric(metric: str, scores: Mapping[str, Values], groups: Groups) -> MetricComparison:
    """Of one metric, `scores` (N,) of the same cases by run, the reference first; `groups` of the cases."""
    reference, *others = scores
    differences = {
        label: paired_difference(scores[label], scores[reference], groups) for label in others
    }
    adjusted = holm([difference.p_value for difference in differences.values()])
    return MetricComparison(
        metric,
        {label: describe(values, groups) for label, values in scores.items()},
        differences,
        dict(zip(others, adjusted, strict=True)),
    )


def to_markdown(comparisons: Sequence[MetricComparison], runs: Mapping[str, Results]) -> str:
    """Two tables: every run's means, and the differences from the reference; how each run was scored."""
    reference, *others = runs
    differences = []
    for label in others:
        for comparison in comparisons:
            difference = comparison.differences[label]
            cell = _cell(comparison.metric, difference, sign="+")
            p_values = (difference.p_value, comparison.adjusted[label])
            cells = [_p_cell(difference, p) for p in p_values]
            differences.append([label, comparison.metric, cell, *cells])
    dice = comparisons[0].runs[reference]
    known = known_in_any(runs)
    intervals = unit_or_why_none(
        *(dice.groups, dice.count, known.by),
        drawn="Intervals and tests are {}",
        none="There are no intervals and no tests: {}",
    )
    parts = {each.metric: each.runs[reference] for each in comparisons}
    few = [narrow_note(name, p.groups, p.count, dice.groups) for name, p in parts.items()]
    intervals = "; ".join([intervals, *filter(None, few)])
    together = " Whole groups are drawn and flipped." if 1 < dice.groups < dice.count else ""
    paragraphs = [
        f"# Comparison on {len(runs[reference].scores)} cases",
        *means_paragraphs(comparisons, runs, [f"{reference} (reference)", *others]),
        f"Difference from {reference}, case by case: mean, 95 % bootstrap interval, and p of the "
        f"two-sided paired sign-flip test (at most {RESAMPLES} permutations).",
        markdown_table(["", "", "difference", "p", "p (Holm)"], differences, left=2),
        f"p (Holm) is adjusted for the {len(others)} run(s) compared with the reference, within a "
        "metric and not across metrics: choose the primary metric before looking. The test accounts "
        "for the choice of cases, not for the variation between training seeds.",
        f"{intervals}.{together}",
    ]
    if note := empty_truths_text(runs[reference].summary):
        paragraphs.append(note)
    if any(joined([recorded_groups(run.summary)]) != known for run in runs.values()):
        recorded = "; ".join(
            f"{label}, {interval_unit(run.summary)}" for label, run in runs.items()
        )
        paragraphs.append(
            "When the runs were scored, not the same was known of the cases; here all of it is used. The intervals in "
            f"their own summaries are: {recorded}."
        )
    if any(comparison.metric == WITHOUT_LEAKED for comparison in comparisons):
        paragraphs.append(
            f"{WITHOUT_LEAKED} leaves out the {len(leaked_cases(runs))} cases that were in the training "
            "data of a run or were found to have a near-duplicate there, for all runs alike."
        )
    elif leaked_cases(runs):
        paragraphs.append(
            f"All {dice.count} cases were in the training data of a run or were found to have a near-duplicate there: "
            "there is no Dice of others."
        )
    paragraphs.append(
        "\n".join(f"- {label}: {how_scored(run.summary)}" for label, run in runs.items())
    )
    return "\n\n".join(paragraphs) + "\n"


def means_paragraphs(
    comparisons: Sequence[MetricComparison], runs: Mapping[str, Results], columns: Sequence[str]
) -> list[str]:
    """What the numbers are, and the table of every run's means, misses and false alarms below `columns`."""
    first = next(iter(runs.values())).summary
    rows = []
    for comparison in comparisons:
        metric = comparison.metric
        cells = [_cell(metric, statistics) for statistics in comparison.runs.values()]
        rows.append([f"{metric} {arrow_of(metric)}", *cells])
    rows.append(["misses", *(str(run.summary["misses"]) for run in runs.values())])
    empty = first["empty_truths"]
    alarms = f"false alarms, of {empty} without a lesion" if empty else "false alarms"
    rows.append([alarms, *(str(run.summary["false_alarms"]) for run in runs.values())])
    return [
        "Mean and its 95 % bootstrap interval; surface distances in pixels "
        f"(HD95: {EMPTY_RULES[first['hd95']['rule']]}), the rest in per cent.",
        markdown_table(["", *columns], rows),
    ]


def to_csv(comparisons: Sequence[MetricComparison]) -> str:
    """One row per metric and run, unrounded; the reference's differences are empty."""
    rows = []
    for comparison in comparisons:
        for label, statistics in comparison.runs.items():
            row = {"metric": comparison.metric, "run": label, **asdict(statistics)}
            if label in comparison.differences:
                difference = asdict(comparison.differences[label])
                row |= {f"difference_{key}": difference[key] for key in DIFFERENCE_KEYS}
                row["difference_p_holm"] = comparison.adjusted[label]
            rows.append(row)
    return csv_text(list(rows[-1]), rows)


def plot_differences(
    comparisons: Sequence[MetricComparison], runs: Mapping[str, Results]
) -> Figure:
    """One panel per metric, one row per run, one dot per case.

    Bar and numbers: the mean difference and its interval.
    """
    from matplotlib.figure import Figure

    reference, *others = runs
    plotted = [comparison for comparison in comparisons if comparison.metric in PLOTTED]
    figure = Figure(figsize=(4 * len(plotted), 1.6 + 0.9 * len(others)), layout="constrained")
    rng = np.random.default_rng(0)
    for axes, comparison in zip(
        figure.subplots(1, len(plotted), sharey=True), plotted, strict=True
    ):
        metric = comparison.metric
        scale, unit = scale_of(metric), "px" if metric in LOWER_IS_BETTER else "points"
        axes.axvline(0, color="0.4", linewidth=0.8)
        for height, label in enumerate(others):
            by_case = runs[label].values(metric) - runs[reference].values(metric)
            jitter = height + rng.uniform(-0.28, 0.28, size=len(by_case))
            axes.scatter(scale * by_case, jitter, s=9, alpha=0.35, color=BLUE, lw=0)
            mean = comparison.differences[label]
            axes.plot([scale * mean.low, scale * mean.high], [height] * 2, "|-", color=VERMILION)
            axes.plot(scale * mean.mean, height, "o", color=VERMILION, markersize=4)
            axes.text(
                1,
                height - 0.31,
                _cell(metric, mean, "+"),
                ha="right",
                va="bottom",
                fontsize=9,
                color=VERMILION,
                bbox={"color": "white", "pad": 0},
                transform=axes.get_yaxis_transform(),
            )
        axes.set_title(f"{metric} ({better_of(metric)})", fontsize=10)
        axes.set_xlabel(f"difference, {unit}")
        axes.set_yticks(range(len(others)), [_wrapped(label, 30) for label in others])
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    title = f"Case by case against {reference}: mean with 95 % interval"
    figure.suptitle(_wrapped(title, 110), fontsize=11)
    return figure


def to_latex(comparisons: Sequence[MetricComparison], runs: Mapping[str, Results]) -> str:
    """Two tables for a paper, a row per run: means, and differences from the reference; needs booktabs."""
    reference, *others = runs
    shown = _in_papers(comparisons)
    differences = [
        [
            label,
            *(
                cell
                for each in shown
                for cell in (
                    _cell(each.metric, each.differences[label], sign="+"),
                    _p_cell(each.differences[label], each.adjusted[label]),
                )
            ),
        ]
        for label in others
    ]
    header = ["", *(cell for each in shown for cell in (with_unit(each.metric), "p (Holm)"))]
    return (
        f"{means_latex(comparisons, runs)}\n"
        f"% difference from {reference}, as in comparison.md\n{latex_table(header, differences)}"
    )


def means_latex(comparisons: Sequence[MetricComparison], runs: Mapping[str, Results]) -> str:
    """The means of the main metrics in LaTeX, a row per run, below a comment on them."""
    shown = _in_papers(comparisons)
    rows = [[label, *(_cell(each.metric, each.runs[label]) for each in shown)] for label in runs]
    first = next(iter(runs.values())).summary
    without = f", {first['empty_truths']} of them without a lesion" if first["empty_truths"] else ""
    return f"% mean and 95 % bootstrap interval, {first['count']} cases{without}\n" + latex_table(
        ["", *(with_unit(each.metric) for each in shown)], rows
    )


def _cell(metric: str, statistics: SampleStatistics | PairedDifference, sign: str = "") -> str:
    return with_interval(metric, statistics.mean, (statistics.low, statistics.high), sign)


def _p_cell(difference: PairedDifference, p_value: float) -> str:
    """A p-value; `-` where one group allows no test."""
    return f"{p_value:.4f}" if difference.groups > 1 else "-"


def _in_papers(comparisons: Sequence[MetricComparison]) -> list[MetricComparison]:
    return [each for each in comparisons if each.metric in (*PLOTTED, WITH_LESION)]


def _wrapped(label: str, width: int) -> str:
    """The label in lines of at most `width` characters, broken after a "/" where there is one."""
    lines = textwrap.wrap(label.replace("/", "/ "), width, break_on_hyphens=False)
    return "\n".join(lines).replace("/ ", "/")
