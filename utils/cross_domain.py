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
from utils.tables import markdown_row

if TYPE_CHECKING:
    from utils.results import MetricStatistics, Summary

Cells = Mapping[tuple[str, str], "Summary"]  # by train set, test set

SCORED_ALIKE: dict[str, Callable[[Summary], Any]] = {
    "evaluation_size": lambda summary: summary["provenance"].get("evaluation_size"),
    "hd95_empty": lambda summary: summary["hd95"]["rule"],
}
MATRIX_METRICS = ("DSC", "IoU", "HD95")


def write_matrix(folder: Path, cells: Cells, metrics: Sequence[str] = MATRIX_METRICS) -> None:
    """Write the matrix of `cells`, summaries as `utils.results.write_results` returns them.

    Sets come in the order in which `cells` first names them; combinations that are not in `cells`
    stay empty.
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

    Both names come from the provenance, its keys `trained_on` and `data_set`; where the former is not
    known, the run's folder stands for it. UserError where one test set's scores are of different
    cases, and where HD95 would not compare: scored at different sizes, or by different rules for empty
    masks.
    """
    from utils.results import Results, check_same_cases, read_results

    found: dict[tuple[str, str], Results] = {}
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
            trained_on = provenance["trained_on"] or f"{run.parent.name}/{run.name}"
            key = (str(trained_on), str(provenance["data_set"]))
            if key in found:
                raise UserError(
                    f"{folder} and {found[key].folder} are both trained on {key[0]} and tested on "
                    f"{key[1]}; give one of the two runs"
                )
            found[key] = results
    for what, of in SCORED_ALIKE.items():
        values = {str(each.folder): of(each.summary) for each in found.values()}
        if any(value != next(iter(values.values())) for value in values.values()):
            listing = "; ".join(f"{folder}: {value}" for folder, value in values.items())
            raise UserError(f"{what} differs ({listing}): validate again with the same settings")
    for test_set in dict.fromkeys(test for _, test in found):
        column = [each for (_, test), each in found.items() if test == test_set]
        check_same_cases({str(each.folder): each for each in column})
    return {key: each.summary for key, each in found.items()}


def axes_of(cells: Cells) -> tuple[list[str], list[str]]:
    """Train sets and test sets, each once, in the order of `cells`."""
    return list(dict.fromkeys(train for train, _ in cells)), list(
        dict.fromkeys(test for _, test in cells)
    )


def to_csv(cells: Cells, metric: str) -> str:
    """Means of one metric, unrounded; one row per train set, one column per test set."""
    import csv
    import io

    trained, tested = axes_of(cells)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["train set", *tested])
    for train in trained:
        found = [_description(cells, train, test, metric) for test in tested]
        writer.writerow([train, *("" if each is None else each["mean"] for each in found)])
    return text.getvalue()


def to_markdown(cells: Cells, metrics: Sequence[str]) -> str:
    """One table per metric: mean and its 95 % interval; bold where train and test set are one."""
    from utils.metrics import LOWER_IS_BETTER

    trained, tested = axes_of(cells)
    lines = ["# Cross-domain results", ""]
    for metric in metrics:
        lower = metric in LOWER_IS_BETTER
        unit = "pixels, lower is better" if lower else "per cent, higher is better"
        lines += [
            f"## {metric} ({unit})",
            "",
            markdown_row(["train set \\ test set", *tested]),
            f"| --- |{' ---: |' * len(tested)}",
        ]
        for train in trained:
            row = []
            for test in tested:
                found = _description(cells, train, test, metric)
                text = "-" if found is None else _with_interval(found, 1 if lower else 100)
                row.append(f"**{text}**" if train == test and found is not None else text)
            lines.append(markdown_row([train, *row]))
        lines.append("")
    lines += ["Mean and its 95 % bootstrap interval over the test cases.", ""]
    return "\n".join(lines)


def heat_maps(cells: Cells, metrics: Sequence[str]) -> bytes:
    """PNG with one panel per metric; brighter is better in each, and the numbers are written in."""
    import numpy as np
    from matplotlib.figure import Figure

    from utils.figures import png
    from utils.metrics import LOWER_IS_BETTER
    from utils.results import mean_of

    trained, tested = axes_of(cells)
    size = (len(metrics) * (1.6 + 0.8 * len(tested)), 1.6 + 0.6 * len(trained))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        lower = metric in LOWER_IS_BETTER
        means = np.full((len(trained), len(tested)), np.nan)
        for row, train in enumerate(trained):
            for column, test in enumerate(tested):
                found = _description(cells, train, test, metric)
                if found is not None:
                    means[row, column] = mean_of(found) * (1 if lower else 100)
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
        axes.set_xticks(range(len(tested)), tested, rotation=30, ha="right")
        axes.set_yticks(range(len(trained)), trained)
        axes.set_xlabel("test set")
        axes.set_title(f"{metric}, {'pixels ↓' if lower else 'per cent ↑'}", fontsize=10)
    panels[0].set_ylabel("train set")
    return png(figure, dpi=150)


def _description(cells: Cells, train: str, test: str, metric: str) -> MetricStatistics | None:
    summary = cells.get((train, test))
    return None if summary is None else summary["metrics"][metric]


def _with_interval(found: MetricStatistics, scale: float) -> str:
    from utils.results import mean_of

    low, high = found["ci95"]
    mean = f"{scale * mean_of(found):.2f}"
    return (
        mean if low is None or high is None else f"{mean} [{scale * low:.2f}, {scale * high:.2f}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument(
        "--out", type=Path, default=Path("ckpt/cross_domain"), help="default: %(default)s"
    )
    arguments = parser.parse_args()
    write_matrix(arguments.out, collect(arguments.runs))
    print((arguments.out / "cross_domain.md").read_text(encoding="utf-8"))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    from utils.entry import exit_from

    exit_from(main)
