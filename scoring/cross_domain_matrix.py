"""The scores of models on test sets as a matrix: tables, and heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scoring.in_words import (
    arrow_of,
    better_of,
    empty_truths_text,
    how_scored,
    interval_unit,
    scale_of,
    unit_of,
    with_interval,
)
from scoring.metrics import EMPTY_RULES, LOWER_IS_BETTER
from scoring.results import WITH_LESION, Summary, mean_of, statistics_of
from utils.errors import UserError
from utils.figures import png
from utils.files import atomic_write
from utils.tables import csv_text, markdown_table

Cells = Mapping[tuple[str, str], Summary]  # by label of the model, test set

MATRIX_METRICS = ("DSC", "IoU", "HD95")
LEAST_SPAN = {"per cent": 5.0, "pixels": 2.0}
"""What the colours of a panel span at least, by its unit, so that no small difference looks large."""


def write_matrix(folder: Path, cells: Cells) -> None:
    """Write the matrix of `cells`, which are summaries as `scoring.results.write_results` returns them.

    Models and test sets come in the order in which `cells` first names them; a combination without a
    validation stays empty.
    """
    if not cells:
        raise UserError("no validation to put into a cross-domain matrix")
    for metric in MATRIX_METRICS:
        atomic_write(folder / f"cross_domain_{metric}.csv", to_csv(cells, metric))
    atomic_write(folder / "cross_domain.md", to_markdown(cells, MATRIX_METRICS))
    atomic_write(folder / "cross_domain.png", heat_maps(cells, MATRIX_METRICS))


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
    models, test_sets = axes_of(cells)

    def cell(model: str, test: str, metric: str) -> str:
        summary = cells.get((model, test))
        if summary is None:
            return "-"
        statistics = statistics_of(summary, metric)
        text = with_interval(metric, statistics["mean"], statistics["ci95"])
        return f"**{text}**" if summary["provenance"]["trained_on"] == test else text

    paragraphs = ["# Cross-domain results"]
    without_lesion = [line for test in test_sets for line in empty_truths(cells, test)]
    shown = list(metrics)
    if without_lesion and "DSC" in shown:
        shown.insert(shown.index("DSC") + 1, WITH_LESION)
    for metric in shown:
        rows = [[model, *(cell(model, test, metric) for test in test_sets)] for model in models]
        header = ["train set \\ test set", *test_sets]
        paragraphs += [
            f"## {metric} ({unit_of(metric)}, {better_of(metric)})",
            markdown_table(header, rows),
        ]
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
    column = {
        model: interval_unit(each) for (model, test), each in cells.items() if test == test_set
    }
    return _once_each(test_set, "of", column)


def empty_truths(cells: Cells, test_set: str) -> list[str]:
    """What the cases without a lesion do to the means of a test set, and the false alarms of each model."""
    column = {model: each for (model, test), each in cells.items() if test == test_set}
    text = empty_truths_text(next(iter(column.values())))
    alarms = ", ".join(f"{model} {each['false_alarms']}" for model, each in column.items())
    return [f"{test_set}: {text} False alarms: {alarms}"] if text else []


def notes(cells: Cells, model: str) -> list[str]:
    """How the model was scored: a line, or several where the test sets differ in that."""
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
    models, test_sets = axes_of(cells)
    size = (len(metrics) * (1.6 + 0.8 * len(test_sets)), 1.6 + 0.6 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        means = np.full((len(models), len(test_sets)), np.nan)
        for (model, test), summary in cells.items():
            mean = mean_of(summary["metrics"][metric]) * scale_of(metric)
            means[models.index(model), test_sets.index(test)] = mean
        low, high = colour_range(means, LEAST_SPAN[unit_of(metric)])
        colours = "cividis_r" if metric in LOWER_IS_BETTER else "cividis"
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
        axes.set_title(f"{name}, {unit_of(metric)} {arrow_of(metric)}", fontsize=10)
    panels[0].set_ylabel("train set")
    least = f"{LEAST_SPAN['per cent']:g} points or {LEAST_SPAN['pixels']:g} pixels"
    scale = f"colours span the values of each panel, at least {least}; brighter is better"
    figure.supxlabel(scale, fontsize=8)
    return png(figure, dpi=150)


def colour_range(means: np.ndarray, least: float) -> tuple[float, float]:
    """Lowest and highest of the means, NaN aside, or ends around their middle that are `least` apart."""
    known = means[np.isfinite(means)]
    if not known.size:
        return 0.0, least
    low, high = float(known.min()), float(known.max())
    wider = max(0.0, least - (high - low)) / 2
    return low - wider, high + wider
