"""How models trained on one data set perform on others: a matrix of train set by test set.

    python -m utils.cross_domain ckpt/wave_gms_bus/epochs_1000 ckpt/wave_gms_busi/epochs_1000 --out ckpt/cross_domain

collects every valid_results_<dataset> of the run folders. Written: cross_domain_<metric>.csv, the
means with one row per train set and one column per test set; cross_domain.md, with intervals; and
cross_domain.png, one heat map per metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.tables import csv_text, markdown_table

if TYPE_CHECKING:
    from utils.results import MetricStatistics, Results, Summary

Cells = Mapping[tuple[str, str], "Summary"]  # by train set, test set

# settings that all validations of a matrix must share
SCORED_ALIKE: dict[str, Callable[[Summary], Any]] = {
    "evaluation_size": lambda summary: summary["provenance"].get("evaluation_size"),
    "hd95_empty": lambda summary: summary["hd95"]["rule"],
}
MATRIX_METRICS = ("DSC", "IoU", "HD95")


def write_matrix(folder: Path, cells: Cells, metrics: Sequence[str] = MATRIX_METRICS) -> None:
    """Write the matrix of `cells`, which are summaries as `utils.results.write_results` returns them.

    Sets come in the order in which `cells` first names them; a combination without a validation
    stays empty.
    """
    from utils.files import atomic_write

    if not cells:
        raise UserError("no validation to put into a cross-domain matrix")
    for metric in metrics:
        atomic_write(folder / f"cross_domain_{metric}.csv", to_csv(cells, metric))
    atomic_write(folder / "cross_domain.md", to_markdown(cells, metrics))
    atomic_write(folder / "cross_domain.png", heat_maps(cells, metrics))


def collect(runs: Sequence[Path]) -> dict[tuple[str, str], Summary]:
    """The summaries of all validations in the run folders, by train set and test set.

    The sets are `trained_on` and `data_set` of the provenance; a run whose training data is not
    known goes by its folder. UserError unless the scores can be compared.
    """
    from utils.results import read_results

    results_by: dict[tuple[str, str], Results] = {}
    for run in runs:
        folders = sorted(path.parent for path in run.glob("valid_results_*/results.csv"))
        if not folders:
            raise UserError(f"{run} holds no valid_results_*: run valid.py on it first")
        for folder in folders:
            results = read_results(folder)
            provenance = results.summary.get("provenance", {})
            if not {"trained_on", "data_set"} <= provenance.keys():
                raise UserError(
                    f"{folder}/summary.json does not say trained_on and data_set in its "
                    "provenance; run valid.py again"
                )
            train = str(provenance["trained_on"] or f"{run.parent.name}/{run.name}")
            test = str(provenance["data_set"])
            if (train, test) in results_by:
                raise UserError(
                    f"{folder} and {results_by[train, test].folder} are both trained on {train} and tested on "
                    f"{test}; give one of the two runs"
                )
            results_by[train, test] = results
    check_comparable(results_by)
    return {sets: results.summary for sets, results in results_by.items()}


def check_comparable(results_by: Mapping[tuple[str, str], Results]) -> None:
    """UserError unless sizes and HD95 rules are the same, and the cases of each test set."""
    from utils.results import check_same_cases

    for what, of in SCORED_ALIKE.items():
        values = {str(results.folder): of(results.summary) for results in results_by.values()}
        if len(set(values.values())) > 1:
            listing = "; ".join(f"{folder}: {value}" for folder, value in values.items())
            raise UserError(f"{what} differs ({listing}): validate again with the same settings")
    for test_set in dict.fromkeys(test for _, test in results_by):
        column = [results for (_, test), results in results_by.items() if test == test_set]
        check_same_cases({str(results.folder): results for results in column})


def axes_of(cells: Cells) -> tuple[list[str], list[str]]:
    """Train sets and test sets, each once, in the order of `cells`."""
    train_sets = dict.fromkeys(train for train, _ in cells)
    test_sets = dict.fromkeys(test for _, test in cells)
    return list(train_sets), list(test_sets)


def to_csv(cells: Cells, metric: str) -> str:
    """Means of one metric, unrounded; one row per train set, one column per test set."""
    train_sets, test_sets = axes_of(cells)
    rows: list[dict[str, Any]] = [{"train set": train} for train in train_sets]
    for (train, test), summary in cells.items():
        rows[train_sets.index(train)][test] = summary["metrics"][metric]["mean"]
    return csv_text(["train set", *test_sets], rows)


def to_markdown(cells: Cells, metrics: Sequence[str]) -> str:
    """One table per metric: mean and its 95 % interval; bold where train and test set are one."""
    from utils.metrics import LOWER_IS_BETTER

    train_sets, test_sets = axes_of(cells)

    def cell(train: str, test: str, metric: str) -> str:
        statistics = _statistics(cells, train, test, metric)
        if statistics is None:
            return "-"
        text = _with_interval(statistics, 1 if metric in LOWER_IS_BETTER else 100)
        return f"**{text}**" if train == test else text

    paragraphs = ["# Cross-domain results"]
    for metric in metrics:
        lower = metric in LOWER_IS_BETTER
        unit = "pixels, lower is better" if lower else "per cent, higher is better"
        rows = [[train, *(cell(train, test, metric) for test in test_sets)] for train in train_sets]
        header = ["train set \\ test set", *test_sets]
        paragraphs += [f"## {metric} ({unit})", markdown_table(header, rows)]
    paragraphs.append("Mean and its 95 % bootstrap interval over the test cases.")
    return "\n\n".join(paragraphs) + "\n"


def heat_maps(cells: Cells, metrics: Sequence[str]) -> bytes:
    """PNG with one panel per metric; brighter is better in each, and the numbers are written in."""
    import numpy as np
    from matplotlib.figure import Figure

    from utils.figures import png
    from utils.metrics import LOWER_IS_BETTER
    from utils.results import mean_of

    train_sets, test_sets = axes_of(cells)
    size = (len(metrics) * (1.6 + 0.8 * len(test_sets)), 1.6 + 0.6 * len(train_sets))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        lower = metric in LOWER_IS_BETTER
        means = np.full((len(train_sets), len(test_sets)), np.nan)
        for row, train in enumerate(train_sets):
            for column, test in enumerate(test_sets):
                statistics = _statistics(cells, train, test, metric)
                if statistics is not None:
                    means[row, column] = mean_of(statistics) * (1 if lower else 100)
        image = axes.imshow(means, cmap="cividis_r" if lower else "cividis", aspect="auto")
        for (row, column), mean in np.ndenumerate(means):
            bright = np.isfinite(mean) and sum(image.to_rgba(mean)[:3]) > 1.5
            axes.text(
                column,
                row,
                f"{mean:.1f}" if np.isfinite(mean) else "-",
                ha="center",
                va="center",
                color="black" if bright or not np.isfinite(mean) else "white",
            )
        axes.set_xticks(range(len(test_sets)), test_sets, rotation=30, ha="right")
        axes.set_yticks(range(len(train_sets)), train_sets)
        axes.set_xlabel("test set")
        axes.set_title(f"{metric}, {'pixels ↓' if lower else 'per cent ↑'}", fontsize=10)
    panels[0].set_ylabel("train set")
    return png(figure, dpi=150)


def _statistics(cells: Cells, train: str, test: str, metric: str) -> MetricStatistics | None:
    summary = cells.get((train, test))
    return None if summary is None else summary["metrics"][metric]


def _with_interval(statistics: MetricStatistics, scale: float) -> str:
    from utils.results import mean_of

    low, high = statistics["ci95"]
    mean = f"{scale * mean_of(statistics):.2f}"
    if low is None or high is None:
        return mean
    return f"{mean} [{scale * low:.2f}, {scale * high:.2f}]"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, default=Path("ckpt/cross_domain"), help="default: %(default)s"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    write_matrix(arguments.out, collect(arguments.runs))
    print((arguments.out / "cross_domain.md").read_text(encoding="utf-8"))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    from utils.entry import exit_from

    exit_from(main)
