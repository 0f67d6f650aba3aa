"""Compare validated runs case by case: is one better, and by how much?

    python compare.py ckpt/wave_gms_busi/epochs_1000 ckpt/gms_busi/epochs_1000
    python compare.py RUN_A RUN_B RUN_C --dataset busi --out ckpt/comparison

A run is a run folder or a folder of validation results in it. The first one is the reference; each
other run's scores are paired with the reference's on the same case. Written to --out:
comparison.md and comparison.csv (means and paired differences with 95 % bootstrap intervals, p-values
of the paired sign-flip test) and comparison.png (the paired differences). The table is printed too.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.entry import exit_from
from utils.errors import UserError
from utils.tables import csv_text, markdown_row

if TYPE_CHECKING:
    from utils.results import Results
    from utils.statistics import PairedDifference, SampleStatistics

RESULTS_PREFIX = "valid_results_"
PLOTTED = ("DSC", "IoU", "HD95")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="ckpt/<experiment>/epochs_<N>, or a valid_results_<dataset> folder; first: reference",
    )
    parser.add_argument(
        "--dataset", help="which data set, where a run was validated on more than one"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ckpt/comparison"), help="default: %(default)s"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()

    from utils.files import atomic_write
    from utils.metrics import METRICS
    from utils.results import read_results

    if len(arguments.runs) < 2:
        raise UserError(f"one run given ({arguments.runs[0]}); name at least two to compare")
    folders = [find_results(run, arguments.dataset) for run in arguments.runs]
    labels = label_runs(folders)
    runs = dict(zip(labels, map(read_results, folders), strict=True))
    check_comparable(runs)

    table = [compare_metric(metric, runs) for metric in METRICS]
    markdown = to_markdown(table, runs)
    atomic_write(arguments.out / "comparison.md", markdown)
    atomic_write(arguments.out / "comparison.csv", to_csv(table))
    atomic_write(arguments.out / "comparison.png", plot_differences(runs))
    print(markdown)
    print(f"written to {arguments.out}")


def find_results(run: Path, dataset: str | None) -> Path:
    """The folder of validation results that `run` is or holds."""
    if (run / "results.csv").is_file():
        if dataset and run.name != RESULTS_PREFIX + dataset:
            raise UserError(f"{run} is not of --dataset {dataset}; give the run folder instead")
        return run
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; expected ckpt/<experiment>/epochs_<N>")
    found = sorted(path.parent.name for path in run.glob(f"{RESULTS_PREFIX}*/results.csv"))
    names = ", ".join(name.removeprefix(RESULTS_PREFIX) for name in found)
    if not found:
        raise UserError(f"{run} was not validated: it holds no valid_results_*; run valid.py")
    if dataset is None and len(found) > 1:
        raise UserError(f"{run} was validated on {names}; choose one with --dataset")
    if dataset is not None and RESULTS_PREFIX + dataset not in found:
        raise UserError(f"{run} was not validated on {dataset}, only on {names}")
    return run / (RESULTS_PREFIX + dataset if dataset else found[0])


def label_runs(folders: list[Path]) -> list[str]:
    """The shortest names that tell the runs apart: their paths without what all have in common."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(path for path in parts if parts.count(path) > 1)
        raise UserError(f"{Path(*twice)} is given twice; a run compared with itself says nothing")
    while min(map(len, parts)) > 1 and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    while min(map(len, parts)) > 1 and len({path[-1] for path in parts}) == 1:
        parts = [path[:-1] for path in parts]
    return ["/".join(path) for path in parts]


def check_comparable(runs: dict[str, Results]) -> None:
    """Raise `UserError` unless all runs scored the same cases, at one size, by one HD95 rule."""
    from utils.results import check_same_cases

    check_same_cases(runs)
    (first, reference), *others = runs.items()
    for label, run in others:
        rules = [each.summary.get("hd95", {}).get("rule") for each in (reference, run)]
        if rules[0] != rules[1]:
            raise UserError(
                f"HD95 of a miss is scored by the rule {rules[0]!r} in {first} and {rules[1]!r} in "
                f"{label}. Validate both with the same hd95_empty"
            )


@dataclass(frozen=True)
class Line:
    """One metric of all runs, and of every other run against the reference."""

    metric: str
    runs: dict[str, SampleStatistics]
    differences: dict[str, PairedDifference]
    adjusted: dict[str, float]  # p-values, adjusted for the number of runs compared


def compare_metric(metric: str, runs: dict[str, Results]) -> Line:
    from utils.statistics import describe, holm, paired_difference

    scores = {label: run.values(metric) for label, run in runs.items()}
    reference, *others = scores
    differences = {label: paired_difference(scores[label], scores[reference]) for label in others}
    adjusted = holm([each.p_value for each in differences.values()])
    return Line(
        metric,
        {label: describe(values) for label, values in scores.items()},
        differences,
        dict(zip(others, adjusted, strict=True)),
    )


def to_markdown(table: list[Line], runs: dict[str, Results]) -> str:
    """Two tables: every run's means, and the differences from the reference."""
    from utils.metrics import LOWER_IS_BETTER
    from utils.statistics import RESAMPLES

    reference, *others = runs
    lines = [
        f"# Comparison on {len(runs[reference].rows)} cases",
        "",
        "Mean and its 95 % bootstrap interval; surface distances in pixels, the rest in per cent.",
        "",
        markdown_row(
            ["", *(f"{label} (reference)" if label == reference else label for label in runs)]
        ),
        markdown_row(["---", *["---:"] * len(runs)]),
    ]
    for line in table:
        arrow = "↓" if line.metric in LOWER_IS_BETTER else "↑"
        cells = [_with_interval(line.metric, found) for found in line.runs.values()]
        lines.append(markdown_row([f"{line.metric} {arrow}", *cells]))
    for name in ("misses", "false_alarms"):
        counts = [str(run.summary[name]) for run in runs.values()]
        lines.append(markdown_row([name.replace("_", " "), *counts]))
    lines += [
        "",
        f"Difference from {reference}, case by case: mean, 95 % bootstrap interval, and p of the "
        f"two-sided paired sign-flip test (at most {RESAMPLES} permutations).",
        "",
        markdown_row(["", "", "difference", "p", "p (Holm)"]),
        markdown_row(["---", "---", "---:", "---:", "---:"]),
    ]
    for label in others:
        for line in table:
            found = line.differences[label]
            p_values = [f"{p:.4f}" for p in (found.p_value, line.adjusted[label])]
            difference = _with_interval(line.metric, found, sign="+")
            lines.append(markdown_row([label, line.metric, difference, *p_values]))
    lines += [
        "",
        f"p (Holm) is adjusted for the {len(others)} run(s) compared with the reference, within a "
        "metric and not across metrics: choose the primary metric before looking. The test accounts "
        "for the choice of cases, not for the variation between training seeds.",
        "",
    ]
    return "\n".join(lines)


def to_csv(table: list[Line]) -> str:
    """One row per metric and run, unrounded; the reference's differences are empty."""
    from dataclasses import asdict

    rows = []
    for line in table:
        for label, found in line.runs.items():
            row = {"metric": line.metric, "run": label, **asdict(found)}
            if label in line.differences:
                difference = asdict(line.differences[label])
                row |= {
                    f"difference_{key}": difference[key]
                    for key in ("mean", "median", "low", "high", "p_value")
                }
                row["difference_p_holm"] = line.adjusted[label]
            rows.append(row)
    return csv_text(list(rows[-1]), rows)


def plot_differences(runs: dict[str, Results]) -> bytes:
    """PNG: one panel per metric, one row per run, one dot per case; the bar is the mean's interval."""
    import numpy as np
    from matplotlib.figure import Figure

    from utils.figures import png
    from utils.metrics import LOWER_IS_BETTER
    from utils.statistics import paired_difference

    reference, *others = runs
    figure = Figure(figsize=(4 * len(PLOTTED), 1.6 + 0.9 * len(others)), layout="constrained")
    rng = np.random.default_rng(0)
    for axes, metric in zip(figure.subplots(1, len(PLOTTED), sharey=True), PLOTTED, strict=True):
        scale, unit = (1, "px") if metric in LOWER_IS_BETTER else (100, "points")
        axes.axvline(0, color="0.4", linewidth=0.8)
        for height, label in enumerate(others):
            run, base = runs[label].values(metric), runs[reference].values(metric)
            found = paired_difference(run, base)
            jitter = height + rng.uniform(-0.28, 0.28, size=len(run))
            axes.scatter(scale * (run - base), jitter, s=9, alpha=0.35, color="#0072b2", lw=0)
            axes.plot([scale * found.low, scale * found.high], [height] * 2, "|-", color="#d55e00")
            axes.plot(scale * found.mean, height, "o", color="#d55e00", markersize=4)
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        axes.set_title(f"{metric} ({better} is better)", fontsize=10)
        axes.set_xlabel(f"difference, {unit}")
        axes.set_yticks(range(len(others)), others)
        axes.set_ylim(len(others) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Case by case against {reference}: mean with 95 % interval", fontsize=11)
    return png(figure, dpi=150)


def _with_interval(metric: str, found: SampleStatistics | PairedDifference, sign: str = "") -> str:
    from utils.metrics import LOWER_IS_BETTER

    scale = 1 if metric in LOWER_IS_BETTER else 100
    mean, low, high = (f"{scale * each:{sign}.2f}" for each in (found.mean, found.low, found.high))
    return mean if math.isnan(found.low) else f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    exit_from(main)
