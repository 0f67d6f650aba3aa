"""Statistics of scores: descriptions, bootstrap intervals, paired tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from scoring import statistics
from scoring.statistics import (
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
    # The sum is 0.4; other signs give it too, but for the last bit.
    assert sign_flip_test(np.array([0.1, 0.8, -0.4, 0.6, 0.3, -0.9])) == 0.8125


@pytest.mark.parametrize("count", [6, 60])
def test_a_difference_that_is_no_number_has_no_p_value(count):
    assert math.isnan(sign_flip_test(np.array([*np.ones(count), np.nan])))
    assert math.isnan(sign_flip_test(np.array([*np.ones(count), np.inf])))


def test_groups_of_one_give_the_plain_numbers():
    values, other = sample(131), sample(131, seed=1)
    each_its_own = [f"case {index}" for index in range(131)][::-1]
    assert bootstrap_interval(values, each_its_own) == bootstrap_interval(values)
    assert describe(values, each_its_own) == describe(values)
    assert paired_difference(values, other, each_its_own) == paired_difference(values, other)


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_every_case_in_its_group_tell_nothing_new(copies):
    values, other = sample(30), sample(30, seed=1)
    groups = list(range(30)) * copies
    repeated, repeated_other = np.tile(values, copies), np.tile(other, copies)
    assert bootstrap_interval(repeated, groups) == pytest.approx(bootstrap_interval(values))
    one, of_copies = (
        paired_difference(values, other),
        paired_difference(repeated, repeated_other, groups),
    )
    assert (of_copies.count, of_copies.groups) == (30 * copies, 30)
    assert (of_copies.low, of_copies.high) == pytest.approx((one.low, one.high))
    assert of_copies.p_value == pytest.approx(one.p_value, abs=1e-9)
    assert paired_difference(repeated, repeated_other).p_value < 0.8 * one.p_value


def test_the_mean_is_over_cases_where_groups_differ_in_size():
    values, groups = np.array([1.0, 1, 1, 1, 0]), ["a", "a", "a", "a", "b"]
    found = describe(values, groups)
    assert (found.count, found.groups, found.mean) == (5, 2, 0.8)
    drawn = np.random.default_rng(2333).integers(0, 2, (10_000, 2)).sum(axis=1)  # b's among two
    means = np.select([drawn == 0, drawn == 1], [1, 4 / 5], 0)
    assert (found.low, found.high) == tuple(np.quantile(means, [0.025, 0.975]))
    assert all(map(math.isnan, bootstrap_interval(values, ["a"] * 5)))


def test_the_mean_of_a_resample_is_over_the_cases_that_it_draws():
    values, groups = sample(21), np.repeat(np.arange(6), np.arange(1, 7))
    drawn = np.random.default_rng(2333).integers(0, 6, (10_000, 6), dtype=np.int32)
    of_group = [values[groups == group] for group in range(6)]
    means = [np.concatenate([of_group[group] for group in draw]).mean() for draw in drawn]
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values, list(groups)) == pytest.approx(tuple(expected))


def test_an_interval_does_not_depend_on_what_groups_are_called():
    values, groups = sample(40), np.arange(40) // 3
    renamed = [f"group {(7 * group) % 41}" for group in groups]
    assert bootstrap_interval(values, renamed) == bootstrap_interval(values, list(groups))
    with pytest.raises(ValueError, match="40 values, but 39 labels"):
        bootstrap_interval(values, renamed[1:])


def test_intervals_by_group_cover_the_mean_of_pairs_as_often_as_they_say():
    groups, covered = np.arange(40) // 2, {"cases": 0, "groups": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = 0.8 + rng.normal(0, 0.1, 20)[groups] + rng.normal(0, 0.02, 40)
        for unit, labels in (("cases", None), ("groups", list(groups))):
            low, high = bootstrap_interval(values, labels, resamples=400, seed=seed)
            covered[unit] += low <= 0.8 <= high
    assert covered["cases"] / 200 < 0.88
    assert 0.88 <= covered["groups"] / 200 <= 0.97


def test_groups_flip_as_one():
    differences = np.array([0.3, 0.2, 0.4, -0.1, 0.25])
    found = paired_difference(differences, np.zeros(5), ["a", "a", "b", "b", "c"])
    assert found.p_value == sign_flip_test(np.array([0.5, 0.3, 0.25])) == 0.25
    assert paired_difference(differences, np.zeros(5)).p_value == 0.125


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
