"""Metrics of one binary segmentation against its reference.

Every metric takes `prediction` and `truth`, boolean arrays (H, W) of one shape, and looks at one
image. Overlap metrics lie in [0, 1]; surface distances are in pixels. A surface pixel is a
foreground pixel with a background pixel, or the edge of the image, among its four neighbours, as
in medpy. Definitions, edge cases and sources are tabulated in docs/metrics.md.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from utils.errors import UserError

Mask = npt.NDArray[np.bool_]
Distances = npt.NDArray[np.float64]
EmptyRule = Literal["diagonal", "zero"]
EMPTY_RULES = {"diagonal": "misses as diagonal", "zero": "misses as 0"}
"""Each rule for HD95 where one mask is empty, in the words of terminal and report."""

CaseScores = dict[str, float]
"""`METRICS` and `SIZES` of one case by the names of their columns in results.csv."""

METRICS = ("DSC", "IoU", "HD95", "ASSD", "NSD", "Sensitivity", "Specificity", "Precision")
LOWER_IS_BETTER = frozenset({"HD95", "ASSD"})
SIZES = ("PredictedPixels", "TruthPixels", "Height", "Width")


def dice(prediction: Mask, truth: Mask) -> float:
    """Dice similarity coefficient, 2 TP / (2 TP + FP + FN); 1 if both are empty, 0 if one is."""
    overlap, predicted, true = _areas(prediction, truth)
    return 2 * overlap / (predicted + true) if predicted + true else 1.0


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union, TP / (TP + FP + FN); 1 if both are empty, 0 if one is."""
    overlap, predicted, true = _areas(prediction, truth)
    return overlap / (predicted + true - overlap) if predicted + true else 1.0


def sensitivity(prediction: Mask, truth: Mask) -> float:
    """Share of the true foreground that is predicted, TP / (TP + FN).

    Without true foreground the ratio is undefined; as for Dice it is then 1 if the prediction is
    empty too, and 0 if it is not.
    """
    overlap, predicted, true = _areas(prediction, truth)
    return overlap / true if true else float(predicted == 0)


def precision(prediction: Mask, truth: Mask) -> float:
    """Share of the predicted foreground that is true, TP / (TP + FP).

    Without predicted foreground the ratio is undefined; as for Dice it is then 1 if the truth is
    empty too, and 0 if it is not.
    """
    overlap, predicted, true = _areas(prediction, truth)
    return overlap / predicted if predicted else float(true == 0)


def specificity(prediction: Mask, truth: Mask) -> float:
    """Share of the true background that is predicted as background, TN / (TN + FP).

    1 where the truth fills the image: there is no background to get wrong. An empty prediction
    has no false positive and therefore always scores 1.
    """
    overlap, predicted, true = _areas(prediction, truth)
    background = truth.size - true
    return (background - (predicted - overlap)) / background if background else 1.0


def hd95(
    prediction: Mask,
    truth: Mask,
    empty: EmptyRule = "diagonal",
    distances: Distances | None = None,
) -> float:
    """95th percentile Hausdorff distance in pixels, equal to `medpy.metric.binary.hd95`.

    It is the 95th percentile of both directed sets of surface distances pooled. 0 if both masks
    are empty. If one is, medpy refuses; here it is the image diagonal sqrt(H^2 + W^2), which no
    distance in the image exceeds, or 0 with `empty="zero"`, the rule of the published tables.
    `distances` saves computing `surface_distances(prediction, truth)` again.
    """
    without_surface = _without_surface(prediction, truth)
    if without_surface is not None:
        return without_surface if empty == "diagonal" else 0.0
    if distances is None:
        distances = surface_distances(prediction, truth)
    return float(np.percentile(distances, 95))


def assd(prediction: Mask, truth: Mask, distances: Distances | None = None) -> float:
    """Average symmetric surface distance in pixels, the mean of both directed sets pooled.

    0 if both masks are empty, the image diagonal sqrt(H^2 + W^2) if one is. `distances` as in
    `hd95`.
    """
    without_surface = _without_surface(prediction, truth)
    if without_surface is not None:
        return without_surface
    if distances is None:
        distances = surface_distances(prediction, truth)
    return float(distances.mean())


def normalised_surface_dice(
    prediction: Mask, truth: Mask, tolerance: float = 2.0, distances: Distances | None = None
) -> float:
    """Share of the surface pixels of both masks that lie within `tolerance` pixels of the other's.

    Nikolov et al., arXiv 1809.04430, counted in surface pixels as MONAI does, not in surface
    elements. 1 if both masks are empty, 0 if one is. `distances` as in `hd95`.
    """
    without_surface = _without_surface(prediction, truth)
    if without_surface is not None:
        return float(without_surface == 0)
    if distances is None:
        distances = surface_distances(prediction, truth)
    return float(np.mean(distances <= tolerance))


def surface_distances(prediction: Mask, truth: Mask) -> Distances:
    """Distances in pixels from each surface pixel of one mask to the nearest of the other's.

    The prediction's come first, then the truth's, in raster order. Neither mask may be empty.
    A k-d tree over the surface pixels gives the very numbers of medpy's distance transform of
    the whole image (both take square roots of sums of squared integers) in a fraction of the time.
    """
    from scipy.spatial import cKDTree

    predicted, true = _surface(prediction), _surface(truth)
    to_truth, _ = cKDTree(true).query(predicted)
    to_prediction, _ = cKDTree(predicted).query(true)
    return np.concatenate((to_truth, to_prediction))


def score_case(prediction: Mask, truth: Mask, *, hd95_empty: EmptyRule = "diagonal") -> CaseScores:
    """All metrics of one image, and its sizes.

    Raises `UserError` if the masks differ in size, are not two-dimensional or not boolean.
    """
    _, predicted, true = _areas(prediction, truth)
    distances = surface_distances(prediction, truth) if predicted and true else None
    height, width = truth.shape
    return {
        "DSC": dice(prediction, truth),
        "IoU": iou(prediction, truth),
        "HD95": hd95(prediction, truth, hd95_empty, distances),
        "ASSD": assd(prediction, truth, distances),
        "NSD": normalised_surface_dice(prediction, truth, distances=distances),
        "Sensitivity": sensitivity(prediction, truth),
        "Specificity": specificity(prediction, truth),
        "Precision": precision(prediction, truth),
        "PredictedPixels": predicted,
        "TruthPixels": true,
        "Height": height,
        "Width": width,
    }


def _areas(prediction: Mask, truth: Mask) -> tuple[int, int, int]:
    """Pixels in the overlap, the prediction and the truth, after checking that the two match."""
    if prediction.dtype != np.bool_ or truth.dtype != np.bool_:
        raise UserError(
            f"masks must be boolean, got {prediction.dtype} (prediction) and {truth.dtype} "
            "(truth); threshold them first"
        )
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise UserError(
            f"prediction {prediction.shape} and truth {truth.shape} must have one shape (H, W); "
            "resize the prediction to its truth"
        )
    overlap = np.count_nonzero(prediction & truth)
    return int(overlap), int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))


def _without_surface(prediction: Mask, truth: Mask) -> float | None:
    """Distance where a mask is empty: 0 if both are, the diagonal if one is, else None."""
    _, predicted, true = _areas(prediction, truth)
    if predicted and true:
        return None
    return math.hypot(*truth.shape) if predicted or true else 0.0


def _surface(mask: Mask) -> npt.NDArray[np.intp]:
    """Surface pixels (N, 2) of a mask that is not empty, in raster order."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    inside = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    interior = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    # counted from 1: with denormal numbers flushed to 0, as training does on the CPU, a coordinate
    # of 0 sends the building of a k-d tree into endless recursion
    return np.argwhere(inside[1:-1, 1:-1] & ~interior) + (top + 1, left + 1)
