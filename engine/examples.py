"""Figures of a validation: an overlay of each case, and one figure from the best to the worst."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from utils.figures import png
from utils.files import atomic_write
from utils.images import encode_image
from utils.metrics import CaseScores
from utils.overlay import draw_outline
from utils.report import ReportCase

TRUTH_COLOUR = (86, 180, 233)  # RGB, blue; both colours are those of report.html
PREDICTION_COLOUR = (230, 159, 0)  # orange; distinguishable with every kind of colour vision
OVERLAY_SIDE = 448
QUANTILES = {
    "best": 1.0,
    "upper quartile": 0.75,
    "median": 0.5,
    "lower quartile": 0.25,
    "worst": 0.0,
}


def outline_both(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 enlarged, with both masks (H, W) bool outlined."""
    scale = max(1, round(OVERLAY_SIDE / max(truth.shape)))
    size = (truth.shape[1] * scale, truth.shape[0] * scale)
    picture = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    for mask, colour in ((truth, TRUTH_COLOUR), (prediction, PREDICTION_COLOUR)):
        enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        draw_outline(picture, enlarged, colour, thickness=2)
    return picture


def write_overlays(folder: Path, cases: Iterable[ReportCase], threshold: float) -> None:
    """`<name>.jpg` of each case: the truth outlined in blue, the prediction in orange.

    Pictures of other cases, left by a validation before, are deleted.
    """
    left = {*folder.glob("*.jpg"), *folder.glob("*.png")}
    for case in cases:
        picture = outline_both(case.image, case.truth, case.probability >= threshold)
        content = encode_image(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        path = folder / f"{case.name}.jpg"
        atomic_write(path, content)
        left.discard(path)
    for path in left:
        path.unlink()


def names_by_quantile(scores: Mapping[str, CaseScores]) -> dict[str, str]:
    """Names of the cases at the QUANTILES of Dice; of few cases only the best and the worst.

    Cases without a lesion are left out, unless there are no others: their Dice is 0 or 1.
    """
    lesions = [name for name in scores if scores[name]["TruthPixels"]] or list(scores)
    ordered = sorted(lesions, key=lambda name: (scores[name]["DSC"], name))
    if len(ordered) == 1:
        return {"best": ordered[0]}
    if len(ordered) < len(QUANTILES):
        return {"best": ordered[-1], "worst": ordered[0]}
    last = len(ordered) - 1
    return {title: ordered[round(quantile * last)] for title, quantile in QUANTILES.items()}


def draw_examples(
    path: Path, scores: Mapping[str, CaseScores], cases: Mapping[str, ReportCase], threshold: float
) -> None:
    """A column for each of `names_by_quantile`: image, truth, prediction."""
    from matplotlib.figure import Figure

    chosen = names_by_quantile(scores)
    figure = Figure(figsize=(2.2 * len(chosen) + 0.4, 6.9), layout="constrained")
    axes = figure.subplots(3, len(chosen), squeeze=False)
    for column, (title, name) in enumerate(chosen.items()):
        case = cases[name]
        pictures = (case.image, case.truth, case.probability >= threshold)
        for axis, picture in zip(axes[:, column], pictures, strict=True):
            axis.imshow(picture, cmap="gray", vmin=0, vmax=None if picture.ndim == 3 else 1)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"{title}\nDice {scores[name]['DSC']:.3f}", fontsize=10)
    for axis, label in zip(axes[:, 0], ("image", "truth", "prediction"), strict=True):
        axis.set_ylabel(label, fontsize=11)
    atomic_write(path, png(figure, dpi=90))
