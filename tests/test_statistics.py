"""Statistics of scores: descriptions, bootstrap intervals, paired tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from utils import statistics
from utils.statistics import (
    bootstrap_interval,
    describe,
    holm,
    paired_difference,
    sign_flip_test,
    t_interval,
)


def sample(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(8, 2, size=count)


def test_description():
    found = describe([1, 2, 3, 10])
    assert (found.count, found.mean, found.median) == (4, 4, 2.5)
    assert found.std == pytest.approx(math.sqrt((9 + 4 + 1 + 36) / 3))
    assert found.low < 4 < found.high


def test_what_too_small_a_sample_cannot_tell_is_nan():
    assert math.isnan(describe([]).mean)
    one = describe([0.5])
    assert (one.mean, one.median) == (0.5, 0.5)
    assert math.isnan(one.std) and math.isnan(one.low) and math.isnan(one.high)


def test_t_interval_is_scipys():
    values = [0.81, 0.84, 0.79]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == pytest.approx((expected.low, expected.high))
    assert all(map(math.isnan, t_interval([0.8])))


def test_interval_agrees_with_scipys_bootstrap():
    values = sample(60)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_interval_covers_the_true_mean_about_95_times_in_100():
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval(sample(40, seed), resamples=400, seed=seed)
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 200 <= 0.98


def test_same_seed_same_interval_and_p_value_other_seed_another_interval():
    values = sample(30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert sign_flip_test(values - 0.78) == sign_flip_test(values - 0.78)


def test_an_interval_can_be_recomputed_as_metrics_md_says():
    for count in (2, 131, 300):  # the last ones in several chunks
        values = np.random.default_rng(count).random(count)
        drawn = np.random.default_rng(2333).integers(0, len(values), (10_000, len(values)))
        expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
        assert bootstrap_interval(values) == pytest.approx(expected)


def test_a_large_sample_is_resampled_in_chunks(monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 90)
    values = sample(40)
    low, high = bootstrap_interval(values, resamples=401)
    assert 0.7 < low < values.mean() < high < 0.9
    assert sign_flip_test(values - 0.8, permutations=401) > 0.01


def test_exact_sign_flip_test_agrees_with_scipy():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.2, -0.02, 0.11])
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(theirs.pvalue)


def test_drawn_sign_flip_test_agrees_with_the_exact_one():
    differences = sample(13) - 0.74
    exact = sign_flip_test(differences, permutations=2**13)
    assert 0.01 < exact < 0.5
    assert sign_flip_test(differences, permutations=2**13 - 1) == pytest.approx(exact, abs=0.02)


def test_p_value_is_one_without_a_difference_and_never_zero():
    assert sign_flip_test(np.zeros(20)) == 1
    assert sign_flip_test(np.full(200, 0.1), permutations=999) == 1 / 1000


def test_ties_up_to_rounding_count_as_extreme():
    # All signs equal gives the largest sum, whatever order it is added in.
    assert sign_flip_test(np.full(10, 0.1)) == 2 / 2**10


def test_paired_difference_has_the_sign_of_run_less_reference():
    reference = sample(50)
    found = paired_difference(reference + 0.1, reference)
    assert (found.count, found.mean) == (50, pytest.approx(0.1))
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    assert found.p_value < 0.001
    assert paired_difference([1, 2, 9], [0, 0, 0]).median == 2


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.02], [0.02]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),
        ([0.6, 0.7], [1.0, 1.0]),
    ],
)
def test_holm(p_values, expected):
    assert holm(p_values) == pytest.approx(expected)
