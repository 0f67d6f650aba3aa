"""Segmentation metrics: definitions, edge cases, agreement with medpy, and scoring of many."""

from __future__ import annotations

import math
import random
import timeit
from collections.abc import Callable
from functools import partial

import medpy.metric.binary as medpy
import numpy as np
import pytest
from scipy import ndimage

from scoring.case_scores import _map_batches, _score_batch, score_cases
from scoring.metrics import (
    METRICS,
    SIZES,
    assd,
    dice,
    hd95,
    iou,
    normalised_surface_dice,
    precision,
    score_case,
    sensitivity,
    specificity,
)
from utils.errors import UserError

EMPTY = np.zeros((30, 40), bool)
FULL = np.ones((30, 40), bool)
DIAGONAL = 50.0
SPOT = EMPTY.copy()
SPOT[10:14, 10:20] = True


def smooth_mask(rng: np.random.Generator, size: int, sigma: float = 4) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma)
    return field > np.quantile(field, rng.uniform(0.05, 0.99))


def random_pairs(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blobs, noise, single pixels, thin lines, full masks; many of them touch the border."""
    rng = np.random.default_rng(seed)

    def mask(height: int, width: int) -> np.ndarray:
        kind = rng.integers(6)
        empty = np.zeros((height, width), bool)
        if kind == 0:
            return rng.random((height, width)) < rng.uniform(0.01, 0.99)
        if kind == 1:
            empty[rng.integers(height), rng.integers(width)] = True
            return empty
        if kind == 2:
            empty[rng.integers(height), rng.integers(width) :] = True
            return empty
        if kind == 3:
            return ~empty
        return smooth_mask(rng, max(height, width), rng.uniform(1, 6))[:height, :width]

    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    while len(pairs) < count:
        shape = rng.integers(1, 49, size=2)
        prediction, truth = mask(*shape), mask(*shape)
        if prediction.any() and truth.any():
            pairs.append((prediction, truth))
    return pairs


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        #                      DSC IoU HD95      ASSD      NSD Sens Spec              Prec
        (EMPTY, EMPTY, (1, 1, 0, 0, 1, 1, 1, 1)),
        (FULL, FULL, (1, 1, 0, 0, 1, 1, 1, 1)),
        (SPOT, SPOT, (1, 1, 0, 0, 1, 1, 1, 1)),
        (EMPTY, SPOT, (0, 0, DIAGONAL, DIAGONAL, 0, 0, 1, 0)),
        (SPOT, EMPTY, (0, 0, DIAGONAL, DIAGONAL, 0, 0, 1 - 40 / 1200, 0)),
        (EMPTY, FULL, (0, 0, DIAGONAL, DIAGONAL, 0, 0, 1, 0)),
        (FULL, EMPTY, (0, 0, DIAGONAL, DIAGONAL, 0, 0, 0, 0)),
    ],
)
def test_edge_cases(prediction, truth, expected):
    scores = score_case(prediction, truth)
    assert tuple(scores[metric] for metric in METRICS) == pytest.approx(expected, abs=1e-12)


def test_published_rule_scores_a_miss_zero_and_touches_hd95_alone():
    ours, published = score_case(EMPTY, SPOT), score_case(EMPTY, SPOT, hd95_empty="zero")
    assert ours["HD95"] == DIAGONAL
    assert published == ours | {"HD95": 0.0}
    assert score_case(SPOT, EMPTY, hd95_empty="zero")["HD95"] == 0


def test_overlap_metrics_by_hand():
    truth = EMPTY.copy()
    truth[10:14, 15:25] = True  # 40 pixels, 20 of them in SPOT's 40
    assert dice(SPOT, truth) == 0.5
    assert iou(SPOT, truth) == pytest.approx(1 / 3)
    assert sensitivity(SPOT[:, :18], truth[:, :18]) == 1
    assert precision(SPOT[:, :18], truth[:, :18]) == 12 / 32
    assert specificity(SPOT, truth) == 1 - 20 / 1160


def test_surface_metrics_by_hand():
    prediction, truth = EMPTY.copy(), EMPTY.copy()
    prediction[5, 5], truth[8, 9] = True, True
    assert hd95(prediction, truth) == assd(prediction, truth) == 5
    assert normalised_surface_dice(prediction, truth, tolerance=4.999) == 0
    assert normalised_surface_dice(prediction, truth, tolerance=5) == 1
    for distance, share in ((2, 1), (3, 0)):
        assert score_case(prediction, np.roll(prediction, distance, 1))["NSD"] == share


def test_hd95_and_assd_are_medpys_to_the_last_digit():
    for prediction, truth in random_pairs(600):
        assert hd95(prediction, truth) == medpy.hd95(prediction, truth)
        assert assd(prediction, truth) == medpy.assd(prediction, truth)


def test_overlap_metrics_agree_with_medpy():
    for prediction, truth in random_pairs(100, seed=1):
        assert dice(prediction, truth) == pytest.approx(medpy.dc(prediction, truth))
        assert iou(prediction, truth) == pytest.approx(medpy.jc(prediction, truth))
        assert sensitivity(prediction, truth) == pytest.approx(medpy.recall(prediction, truth))
        assert precision(prediction, truth) == pytest.approx(medpy.precision(prediction, truth))
        if not truth.all():
            assert specificity(prediction, truth) == pytest.approx(
                medpy.specificity(prediction, truth)
            )


def test_normalised_surface_dice_and_assd_agree_with_monai():
    torch = pytest.importorskip("torch")
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    for prediction, truth in random_pairs(60, seed=2):
        batch = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        options = {"include_background": True}
        theirs = monai.compute_surface_dice(*batch, class_thresholds=[2.0], **options)
        assert normalised_surface_dice(prediction, truth) == pytest.approx(theirs.item(), abs=1e-6)
        theirs = monai.compute_average_surface_distance(*batch, symmetric=True, **options)
        assert assd(prediction, truth) == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)


def lesions(area: float, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lesions covering `area` of 224 x 224, and predictions that are shifted and ragged."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[:224, :224]
    pairs = []
    for _ in range(count):
        centre = rng.uniform(80, 144, size=2)
        wobble = ndimage.gaussian_filter(rng.standard_normal((224, 224)), 8)
        radius = 224 * (area / np.pi) ** 0.5 * (1 + 4 * wobble)
        truth = np.hypot(rows - centre[0], columns - centre[1]) < radius
        prediction = np.roll(truth, rng.integers(-8, 8, size=2), axis=(0, 1))
        pairs.append((prediction | (np.hypot(rows - 30, columns - 30) < 3), truth))
    return pairs


def seconds(metric: Callable, pairs: list, repeats: int = 5) -> float:
    """The fastest of some passes, in seconds per pair."""
    return min(
        timeit.repeat(lambda: [metric(*pair) for pair in pairs], number=1, repeat=repeats)
    ) / len(pairs)


def test_hd95_is_much_faster_than_medpy():
    pairs = lesions(area=0.1, count=8)
    assert seconds(medpy.hd95, pairs) > 2.5 * seconds(hd95, pairs)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (EMPTY[:20], EMPTY, r"\(20, 40\).*\(30, 40\).*resize"),
        (EMPTY[None], EMPTY[None], r"shape \(H, W\)"),
        (EMPTY.astype(np.uint8), EMPTY, "boolean, got uint8.*threshold"),
    ],
)
def test_masks_that_do_not_match_are_refused(prediction, truth, message):
    with pytest.raises(UserError, match=message):
        score_case(prediction, truth)
    with pytest.raises(UserError, match="case 'x_7': "):
        score_cases([("x_7", prediction, truth)])


def some_cases(count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [(f"case_{i}", smooth_mask(rng, 48), smooth_mask(rng, 48)) for i in range(count)]


def test_scoring_does_not_depend_on_workers_batch_or_order():
    cases = some_cases(23)
    expected = score_cases(cases)
    assert list(expected) == sorted(name for name, _, _ in cases)
    assert list(expected["case_0"]) == [*METRICS, *SIZES]
    random.Random(0).shuffle(cases)
    assert score_cases(cases, batch=1) == expected
    assert score_cases(iter(cases), workers=2, batch=3) == expected


def test_scoring_draws_only_two_batches_a_worker_ahead():
    drawn = []

    def batches():
        for case in some_cases(9):
            drawn.append(case)
            yield [case]

    scored = _map_batches(partial(_score_batch, hd95_empty="zero"), batches(), 1)
    assert next(scored)[0][0] == "case_0"
    assert len(drawn) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_network_that_yields_cases_comes_through(workers):
    def stream():
        yield from some_cases(3)
        raise RuntimeError("the network failed")

    with pytest.raises(RuntimeError, match="the network failed"):
        score_cases(stream(), workers=workers, batch=1)


def test_no_case_and_a_name_twice_are_refused():
    with pytest.raises(UserError, match="no case"):
        score_cases([])
    with pytest.raises(UserError, match="'case_0' came twice"):
        score_cases(some_cases(1) * 2)


def test_miss_distance_is_the_longest_in_the_image():
    first, last = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    first[0, 0] = last[-1, -1] = True
    assert hd95(first, last) < hd95(EMPTY, SPOT) == math.hypot(30, 40)


def test_flushed_denormals_change_nothing() -> None:
    """Training on the CPU sets this mode; a k-d tree over coordinates of 0 then never ends."""
    import torch

    full, part = np.ones((32, 32), bool), np.zeros((32, 32), bool)
    part[5:20, 5:20] = True
    expected = hd95(full, part)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        assert hd95(full, part) == expected
    finally:
        torch.set_flush_denormal(False)


if __name__ == "__main__":  # python -m tests.test_metrics: the benchmark in docs/metrics.md
    for area in (0.01, 0.05, 0.1, 0.2, 0.4):
        pairs = lesions(area, count=40)
        oracle, ours = seconds(medpy.hd95, pairs), seconds(hd95, pairs)
        every = seconds(score_case, pairs)
        print(
            f"lesion {area:4.0%} of 224 x 224: medpy {oracle * 1e3:5.2f} ms, ours "
            f"{ours * 1e3:5.2f} ms, {oracle / ours:4.1f} times faster; "
            f"all metrics {every * 1e3:5.2f} ms"
        )
