"""Statistics of a sample of scores: description, bootstrap interval, paired comparison.

Scores of one group (images of one patient, lesion or scan) depend on each other. `groups` (N,), a
label for each value, keeps them together: the groups are resampled or flipped, not the values.

Everything random is drawn from a generator seeded here, so that the same scores in the same order
give the same numbers. docs/metrics.md says how to read them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Groups = Sequence[Hashable]

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 2333
CHUNK = 1 << 20  # random numbers held at a time
FEW_GROUPS = 20
"""Of fewer groups a bootstrap interval is clearly too narrow: see docs/metrics.md."""


@dataclass(frozen=True)
class SampleStatistics:
    """Statistics of a sample; NaN where it is too small.

    `std` divides by N - 1. `low` and `high` bound the 95 % bootstrap interval of the mean, over
    `groups` groups of values.
    """

    count: int
    groups: int
    mean: float
    std: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference:
    """Scores of one run less those of another on the same cases.

    `low` and `high` bound the 95 % bootstrap interval of the mean difference; `p_value` is the
    two-sided sign-flip test's. Both are over `groups` groups of cases.
    """

    count: int
    groups: int
    mean: float
    median: float
    low: float
    high: float
    p_value: float


def describe(values: Sequence[float] | Values, groups: Groups | None = None) -> SampleStatistics:
    """Mean, standard deviation, median and interval of the mean of `values` (N,)."""
    sample = np.asarray(values, np.float64)
    count = len(sample)
    low, high = bootstrap_interval(sample, groups)
    return SampleStatistics(
        count=count,
        groups=count if groups is None else len(set(groups)),
        mean=float(sample.mean()) if count else math.nan,
        std=float(sample.std(ddof=1)) if count > 1 else math.nan,
        median=float(np.median(sample)) if count else math.nan,
        low=low,
        high=high,
    )


def bootstrap_interval(
    values: Values,
    groups: Groups | None = None,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (N,); NaN for fewer than two groups.

    A resample draws as many groups as there are, each with all its values, and its mean is that of
    all values drawn. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Davison
    and Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    sums, sizes = _by_group(values, groups)
    count = len(sums)
    if count < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = []
    for draws in _chunks(resamples, count):
        drawn = rng.integers(0, count, size=(draws, count), dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def t_interval(values: Sequence[float] | Values) -> tuple[float, float]:
    """Student's t interval of the mean of `values` (N,); NaN for fewer than two values.

    For a few runs of one setting, where a bootstrap of so few values would be too narrow.
    """
    from scipy import stats

    sample = np.asarray(values, np.float64)
    count = len(sample)
    if count < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * sample.std(ddof=1) / math.sqrt(count)
    return float(sample.mean() - half), float(sample.mean() + half)


def paired_difference(
    run: Sequence[float] | Values,
    reference: Sequence[float] | Values,
    groups: Groups | None = None,
) -> PairedDifference:
    """`run` less `reference`, scores (N,) of the same cases in the same order, N at least 1."""
    differences = np.asarray(run, np.float64) - np.asarray(reference, np.float64)
    low, high = bootstrap_interval(differences, groups)
    of_groups, _ = _by_group(differences, groups)
    return PairedDifference(
        count=len(differences),
        groups=len(of_groups),
        mean=float(differences.mean()),
        median=float(np.median(differences)),
        low=low,
        high=high,
        p_value=sign_flip_test(of_groups),
    )


def sign_flip_test(differences: Values, permutations: int = RESAMPLES) -> float:
    """Two-sided p-value of the paired permutation test on the sum of `differences` (N,).

    Each is that of a case, or the sum over a group of cases. Under the null hypothesis the two runs
    are exchangeable within it, so each difference could as well have had the other sign. All 2^N
    sign patterns are counted where they are no more than `permutations`; else that many are drawn
    and the observed one is counted among them, so that p is never 0 (Phipson and Smyth, 2010). NaN
    where a difference is not finite.
    """
    if not np.isfinite(differences).all():
        return math.nan
    count = len(differences)
    # Sums of the same numbers in another order differ by rounding; those are ties.
    threshold = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if 2**count <= permutations:
        flips = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ differences) >= threshold))
    rng = np.random.default_rng(SEED)
    extreme = 0
    for draws in _chunks(permutations, count):
        flips = rng.integers(0, 2, size=(draws, count), dtype=np.int8)
        extreme += np.count_nonzero(np.abs((1 - 2 * flips) @ differences) >= threshold)
    return (extreme + 1) / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of `p_values` for the number of tests, in the given order."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _by_group(values: Values, groups: Groups | None) -> tuple[Values, npt.NDArray[np.intp]]:
    """Sum and number of the values of each group (G,), in the order in which `groups` first names them.

    Without groups each value is one.
    """
    if groups is None:
        return values, np.ones(len(values), np.intp)
    numbers: dict[Hashable, int] = {}
    labels = [numbers.setdefault(group, len(numbers)) for group in groups]
    if len(labels) != len(values):
        raise ValueError(f"{len(values)} values, but {len(labels)} labels of groups")
    return np.asarray(np.bincount(labels, values), np.float64), np.bincount(labels)


def _chunks(draws: int, count: int) -> Iterator[int]:
    """Split `draws` samples of `count` numbers so that about `CHUNK` numbers are held at a time."""
    size = max(1, CHUNK // count)
    for start in range(0, draws, size):
        yield min(size, draws - start)
