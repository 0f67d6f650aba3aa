"""The progress of a run, epoch by epoch: `history.csv`, `curves.png` (at its end `.pdf` too), TensorBoard.

`val_dice` (or `test_dice`) and its IoU are at the config's threshold, `train_dice` is at 0.5 always; see
docs/metrics.md.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from utils.figures import pdf, png
from utils.files import atomic_write
from utils.runs import writing_to
from utils.tables import csv_text

if TYPE_CHECKING:
    import numpy as np
    import torch

EpochRow = dict[str, float | int | None]
SCORES = ("_dice", "_iou")  # how the names of scores end; the other numbers are losses and the rate

PICTURE_SECONDS = 30.0  # between two drawings of curves.png, and two pictures for TensorBoard
MARKED_POINTS = 30  # of a curve; a longer one is drawn as a line alone


class HistoryWriter:
    """Writes the progress of a run into its folder after each epoch; a context manager."""

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title = folder, title
        self._drawn = -math.inf

    def __enter__(self) -> HistoryWriter:
        from torch.utils.tensorboard import SummaryWriter

        with writing_to(self.folder):
            self._events = SummaryWriter(self.folder / "logs")
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk has been reported by then
            self._events.close()

    def write(
        self, rows: Sequence[EpochRow], panel: Callable[[], np.ndarray] | None, last: bool
    ) -> None:
        """Write all epochs so far; `panel()` (H, W, 3) uint8 shows examples of the newest of them, if any.

        Pictures take half a second, which is long beside a short epoch on a GPU, and the panels of a
        thousand epochs fill a disk, so that both are drawn every PICTURE_SECONDS and after the `last`
        epoch.
        """
        write_history(self.folder / "history.csv", rows)
        epoch = rows[-1]["epoch"]
        for key, value in rows[-1].items():
            if value is not None and key != "epoch":
                self._events.add_scalar(key, value, epoch)
        if last or time.monotonic() > self._drawn + PICTURE_SECONDS:
            draw_curves(self.folder / "curves.png", rows, self.title)
            if panel is not None:
                self._events.add_image("samples", panel(), epoch, dataformats="HWC")
            self._drawn = time.monotonic()
        if last:
            draw_curves(self.folder / "curves.pdf", rows, self.title)
        self._events.flush()


def epoch_line(row: EpochRow, epochs: int, seconds: float, improved: bool) -> str:
    """An epoch for the log; losses that are 0 are left out, as they are switched off."""
    numbers = "  ".join(
        f"{name} {value:.4g}"
        for name, value in row.items()
        if isinstance(value, float) and name != "lr" and (value or name.endswith(SCORES))
    )
    best = "  best so far" if improved else ""
    return f"epoch {row['epoch']}/{epochs}  {numbers}  {seconds:.1f} s{best}"


def write_history(path: Path, rows: Sequence[EpochRow]) -> None:
    """Write one line per epoch; a value that was not measured in an epoch is left empty."""
    rounded = [
        {key: f"{value:.9g}" if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    atomic_write(path, csv_text(list(rows[0]), rounded))


def read_scores(path: Path, name: str) -> dict[int, float]:
    """A score such as `val_dice` from a history.csv, by epoch; without epochs that have none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return {int(row["epoch"]): float(row[name]) for row in rows if row.get(name)}


def draw_curves(path: Path, rows: Sequence[EpochRow], title: str) -> None:
    """Draw losses, Dice and learning rate over the epochs, into a PNG or PDF file."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(13, 4.3), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3)

    def draw(axis, key: str, **style: object) -> None:
        points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            marker = "o" if len(points) <= MARKED_POINTS else None  # a line needs two points
            axis.plot(*zip(*points, strict=True), label=key, marker=marker, markersize=3, **style)

    known = ("epoch", "lr")
    for key in (k for k in rows[0] if k not in known and not k.endswith(SCORES)):
        draw(losses, key, linewidth=2.2 if key == "loss" else 1.2)
    losses.set(title="training losses", yscale="log")
    for key in ("train_dice", "val_dice", "test_dice"):
        draw(scores, key)
    scores.set(title="Dice", ylim=(0, 1))
    draw(rate, "lr")
    rate.set(title="learning rate")
    for axis in (losses, scores, rate):
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:  # the legend is below the axis, where it covers none of them
            axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    figure.suptitle(title)
    atomic_write(path, pdf(figure) if path.suffix == ".pdf" else png(figure))


def sample_panel(
    images: torch.Tensor, masks: torch.Tensor, probabilities: torch.Tensor
) -> np.ndarray:
    """Rows of image, truth, probability: (N, 3, S, S), (N, 1, S, S) twice -> uint8 (N*S, 3*S, 3)."""
    import torch

    columns = (images, masks.expand_as(images), probabilities.expand_as(images))
    panel = torch.cat([column.float().cpu() for column in columns], dim=3)
    rows = panel.permute(0, 2, 3, 1).flatten(0, 1)
    return (rows.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
