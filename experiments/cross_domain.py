"""How models trained on one data set perform on others: a matrix of models by test sets.

    python -m experiments.cross_domain ckpt/bus/epochs_1000 ckpt/busi/epochs_1000 --out ckpt/cross_domain

collects every valid_results_<dataset> of the run folders. A model goes by its train set, and by its run
as well where several were trained on one set. Written: cross_domain_<metric>.csv, the means with one row
per model and one column per test set; cross_domain.md, with intervals and how each checkpoint was chosen
and scored; and cross_domain.png, one heat map per metric.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.entry import described_parser, exit_from
from utils.errors import UserError
from utils.runs import writing_to
from utils.tables import csv_text, markdown_table

if TYPE_CHECKING:
    import numpy as np

    from scoring.results import MetricStatistics, Results, Summary

Cells = Mapping[tuple[str, str], "Summary"]  # by label of the model, test set

# settings that all validations of a matrix must share
SCORED_ALIKE: dict[str, Callable[[Summary], Any]] = {
    "evaluation_size": lambda summary: summary["provenance"].get("evaluation_size"),
    "hd95_empty": lambda summary: summary["hd95"]["rule"],
}
MATRIX_METRICS = ("DSC", "IoU", "HD95")
LEAST_SPAN = {
    "per cent": 5.0,
    "pixels": 2.0,
}  # of the colours, so that no small difference looks large


def write_matrix(folder: Path, cells: Cells, metrics: Sequence[str] = MATRIX_METRICS) -> None:
    """Write the matrix of `cells`, which are summaries as `scoring.results.write_results` returns them.

    Models and test sets come in the order in which `cells` first names them; a combination without a
    validation stays empty.
    """
    from utils.files import atomic_write

    if not cells:
        raise UserError("no validation to put into a cross-domain matrix")
    for metric in metrics:
        atomic_write(folder / f"cross_domain_{metric}.csv", to_csv(cells, metric))
    atomic_write(folder / "cross_domain.md", to_markdown(cells, metrics))
    atomic_write(folder / "cross_domain.png", heat_maps(cells, metrics))


def collect(runs: Sequence[Path]) -> dict[tuple[str, str], Summary]:
    """The summaries of all validations in the run folders, by model as `label_models` names it and test set.

    UserError unless each folder holds scores of one model, and the scores can be compared.
    """
    by_run = {run: read_run(run) for run in runs}
    labels = label_models(runs, {run: of_run[0].summary for run, of_run in by_run.items()})
    results_by: dict[tuple[str, str], Results] = {}
    for run, of_run in by_run.items():
        for results in of_run:
            cell = labels[run], str(results.summary["provenance"]["data_set"])
            if cell in results_by:
                raise UserError(
                    f"{results_by[cell].folder} and {results.folder} are both of {cell[1]}; "
                    "move one of them out of the run folder"
                )
            results_by[cell] = results
    check_comparable(results_by)
    return {cell: results.summary for cell, results in results_by.items()}


def read_run(run: Path) -> list[Results]:
    """The validations in a run folder, at least one and all of the same weights."""
    from scoring.results import CSV_NAME, RESULTS_PREFIX, read_results

    folders = sorted(path.parent for path in run.glob(f"{RESULTS_PREFIX}*/{CSV_NAME}"))
    if not folders:
        raise UserError(f"{run} holds no {RESULTS_PREFIX}*: run valid.py on it first")
    weights: dict[str | None, Path] = {}  # folder by hash of the checkpoint
    validations = [read_results(folder) for folder in folders]
    for results in validations:
        provenance = results.summary.get("provenance", {})
        if not {"trained_on", "data_set"} <= provenance.keys():
            raise UserError(
                f"{results.folder}/summary.json does not say trained_on and data_set in its "
                "provenance; run valid.py again"
            )
        weights.setdefault(provenance.get("sha256", {}).get("checkpoint"), results.folder)
    if len(weights) > 1:
        first, second, *_ = weights.values()
        raise UserError(
            f"{first} and {second} are of different weights, and a row of the matrix is one model; run "
            "valid.py again on both data sets"
        )
    return validations


def label_models(runs: Sequence[Path], summaries: Mapping[Path, Summary]) -> dict[Path, str]:
    """Each run's train set, or its folder where that is not known; `train set (run)` where runs share it."""
    from scoring.comparison import label_runs

    by_train_set: dict[str, list[Path]] = {}
    for run in runs:
        trained_on = summaries[run]["provenance"]["trained_on"]
        by_train_set.setdefault(trained_on or f"{run.parent.name}/{run.name}", []).append(run)
    labels = {}
    for train_set, sharing in by_train_set.items():
        if len(sharing) == 1:
            labels[sharing[0]] = train_set
        else:
            names = label_runs(sharing)
            labels |= {
                run: f"{train_set} ({name})" for run, name in zip(sharing, names, strict=True)
            }
    return labels


def check_comparable(results_by: Mapping[tuple[str, str], Results]) -> None:
    """UserError unless sizes and HD95 rules are the same, and the cases of each test set."""
    from scoring.results import check_same_cases

    for what, of in SCORED_ALIKE.items():
        values = {str(results.folder): of(results.summary) for results in results_by.values()}
        if len(set(values.values())) > 1:
            listing = "; ".join(f"{folder}: {value}" for folder, value in values.items())
            raise UserError(f"{what} differs ({listing}): validate again with the same settings")
    for test_set in dict.fromkeys(test for _, test in results_by):
        column = [results for (_, test), results in results_by.items() if test == test_set]
        check_same_cases({str(results.folder): results for results in column})


def axes_of(cells: Cells) -> tuple[list[str], list[str]]:
    """Models and test sets, each once, in the order of `cells`."""
    models = dict.fromkeys(model for model, _ in cells)
    test_sets = dict.fromkeys(test for _, test in cells)
    return list(models), list(test_sets)


def to_csv(cells: Cells, metric: str) -> str:
    """Means of one metric, unrounded; one row per model, one column per test set."""
    models, test_sets = axes_of(cells)
    rows: list[dict[str, Any]] = [{"train set": model} for model in models]
    for (model, test), summary in cells.items():
        rows[models.index(model)][test] = summary["metrics"][metric]["mean"]
    return csv_text(["train set", *test_sets], rows)


def to_markdown(cells: Cells, metrics: Sequence[str]) -> str:
    """One table per metric: mean and its 95 % interval; bold where train and test set are one.

    After Dice, where a test set has cases without a lesion, Dice of the others. Below them, how each model
    was scored.
    """
    from scoring.metrics import EMPTY_RULES, LOWER_IS_BETTER
    from scoring.results import WITH_LESION

    models, test_sets = axes_of(cells)

    def cell(model: str, test: str, metric: str) -> str:
        summary = cells.get((model, test))
        if summary is None:
            return "-"
        scale = 1 if metric in LOWER_IS_BETTER else 100
        text = _with_interval(
            summary["dice_with_lesion"] if metric == WITH_LESION else summary["metrics"][metric],
            scale,
        )
        return f"**{text}**" if summary["provenance"]["trained_on"] == test else text

    paragraphs = ["# Cross-domain results"]
    without_lesion = [line for test in test_sets for line in empty_truths(cells, test)]
    shown = list(metrics)
    if without_lesion and "DSC" in shown:
        shown.insert(shown.index("DSC") + 1, WITH_LESION)
    for metric in shown:
        lower = metric in LOWER_IS_BETTER
        unit = "pixels, lower is better" if lower else "per cent, higher is better"
        rows = [[model, *(cell(model, test, metric) for test in test_sets)] for model in models]
        header = ["train set \\ test set", *test_sets]
        paragraphs += [f"## {metric} ({unit})", markdown_table(header, rows)]
    rule = EMPTY_RULES[next(iter(cells.values()))["hd95"]["rule"]]
    paragraphs.append(f"Mean and its 95 % bootstrap interval; HD95: {rule}. The intervals are")
    paragraphs.append("\n".join(f"- {line}" for test in test_sets for line in units(cells, test)))
    if without_lesion:
        paragraphs.append("Cases without a lesion:")
        paragraphs.append("\n".join(f"- {line}" for line in without_lesion))
    paragraphs.append("How each model was scored:")
    paragraphs.append("\n".join(f"- {line}" for model in models for line in notes(cells, model)))
    return "\n\n".join(paragraphs) + "\n"


def units(cells: Cells, test_set: str) -> list[str]:
    """What the intervals of a test set are over: a line, or several where models were scored before and
    after more was known of its cases.
    """
    from scoring.results import interval_unit

    column = {
        model: interval_unit(each) for (model, test), each in cells.items() if test == test_set
    }
    return _once_each(test_set, "of", column)


def empty_truths(cells: Cells, test_set: str) -> list[str]:
    """What the cases without a lesion do to the means of a test set, and the false alarms of each model."""
    from scoring.results import empty_truths_text

    column = {model: each for (model, test), each in cells.items() if test == test_set}
    text = empty_truths_text(next(iter(column.values())))
    alarms = ", ".join(f"{model} {each['false_alarms']}" for model, each in column.items())
    return [f"{test_set}: {text} False alarms: {alarms}"] if text else []


def notes(cells: Cells, model: str) -> list[str]:
    """How the model was scored: a line, or several where the test sets differ in that."""
    from scoring.comparison import how_scored

    row = {test: how_scored(each) for (of, test), each in cells.items() if of == model}
    return _once_each(model, "on", row)


def _once_each(subject: str, word: str, texts: Mapping[str, str]) -> list[str]:
    """A line for each of `texts`: what they are about and, where they differ, after `word` in which cells."""
    cells_by: dict[str, list[str]] = {}
    for cell, text in texts.items():
        cells_by.setdefault(text, []).append(cell)
    if len(cells_by) == 1:
        return [f"{subject}: {text}" for text in cells_by]
    return [f"{subject}, {word} {', '.join(cells)}: {text}" for text, cells in cells_by.items()]


def heat_maps(cells: Cells, metrics: Sequence[str]) -> bytes:
    """PNG with one panel per metric; brighter is better in each, and the numbers are written in.

    The colours of a panel span its own values, or LEAST_SPAN where these lie closer together.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from scoring.metrics import LOWER_IS_BETTER
    from scoring.results import mean_of
    from utils.figures import png

    models, test_sets = axes_of(cells)
    size = (len(metrics) * (1.6 + 0.8 * len(test_sets)), 1.6 + 0.6 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        lower = metric in LOWER_IS_BETTER
        means = np.full((len(models), len(test_sets)), np.nan)
        for (model, test), summary in cells.items():
            mean = mean_of(summary["metrics"][metric]) * (1 if lower else 100)
            means[models.index(model), test_sets.index(test)] = mean
        low, high = colour_range(means, LEAST_SPAN["pixels" if lower else "per cent"])
        colours = "cividis_r" if lower else "cividis"
        image = axes.imshow(means, cmap=colours, vmin=low, vmax=high, aspect="auto")
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
        axes.set_yticks(range(len(models)), models)
        axes.set_xlabel("test set")
        name = "Dice" if metric == "DSC" else metric
        axes.set_title(f"{name}, {'pixels ↓' if lower else 'per cent ↑'}", fontsize=10)
    panels[0].set_ylabel("train set")
    least = f"{LEAST_SPAN['per cent']:g} points or {LEAST_SPAN['pixels']:g} pixels"
    scale = f"colours span the values of each panel, at least {least}; brighter is better"
    figure.supxlabel(scale, fontsize=8)
    return png(figure, dpi=150)


def colour_range(means: np.ndarray, least: float) -> tuple[float, float]:
    """Lowest and highest of the means, NaN aside, or ends around their middle that are `least` apart."""
    import numpy as np

    known = means[np.isfinite(means)]
    if not known.size:
        return 0.0, least
    low, high = float(known.min()), float(known.max())
    wider = max(0.0, least - (high - low)) / 2
    return low - wider, high + wider


def _with_interval(statistics: MetricStatistics, scale: float) -> str:
    from scoring.results import mean_of

    if statistics["mean"] is None:
        return "-"
    low, high = statistics["ci95"]
    mean = f"{scale * mean_of(statistics):.2f}"
    if low is None or high is None:
        return mean
    return f"{mean} [{scale * low:.2f}, {scale * high:.2f}]"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--out", type=Path, default=Path("ckpt/cross_domain"), help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    cells = collect(arguments.runs)
    with writing_to(arguments.out):
        write_matrix(arguments.out, cells)
    print((arguments.out / "cross_domain.md").read_text(encoding="utf-8"))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    exit_from(main)
