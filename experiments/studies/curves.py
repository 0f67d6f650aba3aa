"""`curves.png` of a study: how the held-out Dice of its systems went with the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.runs.history import read_scores
from experiments.studies.study import Run, Study
from utils.figures import COLOURS, png
from utils.files import atomic_write

MOST_BANDS = 4  # systems; the bands of more hide each other
LEFT_OUT = 0.15  # of the Dice of curves.png, the lowest


def draw_curves(path: Path, study: Study, histories: Mapping[Run, Path], count: int) -> None:
    """Dice on the held-out part of train by epoch: a line per system, with the best at the end named first.

    Of the `count` runs on the published split, those whose histories are here; the title says how many. A
    band spans each system's seeds where there are few systems. The axis leaves out low values of the first
    epochs.
    """
    from cycler import cycler
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = _curves_of(study, histories)
    banded = len(curves) <= MOST_BANDS
    height = max(4.4, 1 + 0.22 * len(study.systems))
    figure = Figure(figsize=(10, height), layout="constrained")
    axis = figure.subplots()
    # another line style and marker each time the colours begin again
    styles = cycler(linestyle=["-", "--", ":", "-."], marker=["o", "s", "^", "D"])
    axis.set_prop_cycle(styles * cycler(color=COLOURS))
    lines = {}
    for system, (epochs, dice) in curves.items():
        (lines[system],) = axis.plot(epochs, dice.mean(0), markersize=3, label=system)
        if banded:
            colour = lines[system].get_color()
            axis.fill_between(
                epochs, dice.min(0), dice.max(0), color=colour, alpha=0.15, linewidth=0
            )
    drawn = [dice if banded else dice.mean(0, keepdims=True) for _, dice in curves.values()]
    if drawn:
        axis.set_ylim(bottom=_lowest_shown(drawn, axis.dataLim.y1))
    figure.suptitle(f"{study.title} ({len(histories)} of {count} runs)")
    axis.set(xlabel="epoch", ylabel="Dice on the held-out part of train")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    best_first = sorted(curves, key=lambda system: -curves[system][1].mean(0)[-1])
    handles = [lines[system] for system in best_first]
    over = "mean and range of the seeds" if banded else "mean of the seeds"
    style = {"loc": "outside right center", "frameon": False, "handlelength": 3}
    figure.legend(handles=handles, title=over, alignment="left", **style)
    atomic_write(path, png(figure))


def _curves_of(
    study: Study, histories: Mapping[Run, Path]
) -> dict[str, tuple[list[int], np.ndarray]]:
    """System -> the epochs that all its runs have, at least one, and their Dice (runs, epochs)."""
    curves = {}
    for system in study.systems:
        runs = [
            read_scores(history, "val_dice")
            for run, history in histories.items()
            if run.system == system
        ]
        epochs = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
        if epochs:
            curves[system] = epochs, np.array([[run[epoch] for epoch in epochs] for run in runs])
    return curves


def _lowest_shown(drawn: Sequence[np.ndarray], top: float) -> float | None:
    """Where the axis begins, for curves (runs, epochs) up to `top`; None: where it would.

    Below most values, and below every curve's last ones.
    """
    low = min(
        float(np.quantile(np.concatenate([dice.ravel() for dice in drawn]), LEFT_OUT)),
        *(float(dice[:, -1].min()) for dice in drawn),
    )
    return low - 0.05 * (top - low) if low < top else None
