"""Figures of a validation: an overlay of each case, and one figure from the best to the worst."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from scoring.metrics import CaseScores
from scoring.report import ReportCase
from utils.figures import png
from utils.files import atomic_write
from utils.images import encode_image
from utils.overlay import draw_outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH_COLOUR = (86, 180, 233)  # RGB, blue; both colours are those of report.html
PREDICTION_COLOUR = (230, 159, 0)  # orange; distinguishable with every kind of colour vision
OVERLAY_SIDE = 448
# Of examples.png; dashes tell the two apart in grey, and show the line below where both run together.
TRUTH_LINE: dict[str, Any] = {
    "color": tuple(level / 255 for level in TRUTH_COLOUR),
    "linewidth": 1.5,
    "linestyle": "-",
}
PREDICTION_LINE: dict[str, Any] = {
    "color": tuple(level / 255 for level in PREDICTION_COLOUR),
    "linewidth": 1.5,
    "linestyle": (0, (3, 2)),
}
PANEL_INCHES = 2.2
TALLEST = 2.0  # a panel's height to its width; of a taller picture the panel is narrower
EXAMPLES_DPI = 110
LARGEST_SIDE = 1024  # in pixels, of what is drawn into a panel
NAME_LENGTH = 26  # characters of a case's name above its column
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


def write_overlays(
    folder: Path, cases: Iterable[ReportCase], threshold: float
) -> Iterator[ReportCase]:
    """Write `<name>.jpg` of each case, truth outlined in blue and prediction in orange, and yield the case.

    After the last one, pictures of other cases, left by a validation before, are deleted.
    """
    left = set(folder.glob("*.jpg"))
    for case in cases:
        picture = outline_both(case.image, case.truth, case.probability >= threshold)
        content = encode_image(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        path = folder / f"{case.name}.jpg"
        atomic_write(path, content)
        left.discard(path)
        yield case
    for path in left:
        path.unlink()


def names_by_quantile(scores: Mapping[str, CaseScores]) -> dict[str, str]:
    """Names of the cases at the QUANTILES of Dice; of few cases only the best and the worst.

    Cases without a lesion are left out, unless there are no others: their Dice is 0 or 1. Where one of them
    is worse than all others, the worst is called so among those with a lesion.
    """
    lesions = [name for name in scores if scores[name]["TruthPixels"]] or list(scores)
    ordered = sorted(lesions, key=lambda name: (scores[name]["DSC"], name))
    if len(ordered) == 1:
        return {"best": ordered[0]}
    if len(ordered) < len(QUANTILES):
        chosen = {"best": ordered[-1], "worst": ordered[0]}
    else:
        last = len(ordered) - 1
        chosen = {title: ordered[round(quantile * last)] for title, quantile in QUANTILES.items()}
    if min(case["DSC"] for case in scores.values()) < scores[chosen["worst"]]["DSC"]:
        chosen["worst with lesion"] = chosen.pop("worst")
    return chosen


def draw_examples(
    path: Path, scores: Mapping[str, CaseScores], cases: Mapping[str, ReportCase], threshold: float
) -> None:
    """A column for each of `names_by_quantile`: the image, and below it once more with both outlines."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chosen = names_by_quantile(scores)
    shapes = [cases[name].truth.shape for name in chosen.values()]
    tallness = min(TALLEST, max(height / width for height, width in shapes))
    size = (PANEL_INCHES * len(chosen), 2 * PANEL_INCHES * tallness + 0.8)
    figure = Figure(figsize=size, layout="compressed")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for (above, below), (title, name) in zip(axes.T, chosen.items(), strict=True):
        case = cases[name]
        image, prediction = reduced(case.image), case.probability >= threshold
        for mask, style in ((case.truth, TRUTH_LINE), (prediction, PREDICTION_LINE)):
            trace_outline(below, reduced(mask.astype(np.float32)), style)
        show_image(above, image, tallness, at_top=False)
        show_image(below, image, tallness, at_top=True)
        text = f"{title}: Dice {scores[name]['DSC']:.3f}\n{describe_case(name, scores[name])}"
        above.set_title(text, fontsize=9, parse_math=False)
    lines = {"truth": TRUTH_LINE, "prediction": PREDICTION_LINE}
    handles = [Line2D([], [], label=label, **style) for label, style in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    atomic_write(path, png(figure, dpi=EXAMPLES_DPI))


def reduced(pixels: np.ndarray) -> np.ndarray:
    """The pixels (H, W) or (H, W, 3), at LARGEST_SIDE where they are larger: a panel shows no more."""
    scale = LARGEST_SIDE / max(pixels.shape)
    if scale >= 1:
        return pixels
    height, width = (max(1, round(scale * side)) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def trace_outline(axis: Axes, coverage: np.ndarray, style: Mapping[str, Any]) -> None:
    """Draw the outlines of a mask, which covers so much of each pixel: (H, W) in [0, 1]; of none, nothing."""
    if (highest := coverage.max()) > 0:
        height, width = coverage.shape
        level = min(0.5, highest / 2)  # a lesion of few pixels in a large image covers none by half
        axis.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            np.pad(coverage, 1),  # so that it closes at the image's border too
            levels=[level],
            colors=[style["color"]],
            linewidths=style["linewidth"],
            linestyles=[style["linestyle"]],
        )


def show_image(axis: Axes, image: np.ndarray, tallness: float, at_top: bool) -> None:
    """Show the image (H, W, 3) at the top or bottom of a panel that is `tallness` times as high as wide."""
    height, width = image.shape[:2]
    enlarged = max(height, width) < PANEL_INCHES * EXAMPLES_DPI
    axis.imshow(image, interpolation="bilinear" if enlarged else None)
    panel_width = max(width, height / tallness)
    panel_height = tallness * panel_width
    top = -0.5 if at_top else height - 0.5 - panel_height
    left = (width - panel_width) / 2 - 0.5
    axis.set(xlim=(left, left + panel_width), ylim=(top + panel_height, top))
    axis.axis("off")


def describe_case(name: str, scores: CaseScores) -> str:
    """The case's name, shortened in its middle, and what there is no outline of."""
    if len(name) > NAME_LENGTH:
        name = f"{name[: NAME_LENGTH // 2 - 1]}…{name[-(NAME_LENGTH // 2) :]}"
    if not scores["TruthPixels"]:
        return f"{name}, no lesion"
    return name if scores["PredictedPixels"] else f"{name}, missed"
