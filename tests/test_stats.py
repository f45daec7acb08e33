"""Intervals and agreement, against values by hand and by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, spearmanr

from bae_lens.stats import (
    Interval,
    Stratified,
    balanced_interval,
    krippendorff_alpha,
    mean_interval,
    paired_bootstrap,
    rank_correlation,
    seed_agreement,
    shown,
    standardized_difference,
    wider,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (8, 10), (5, 5), (37, 100)])
def test_wilson(k, n):
    interval = wilson(k, n)
    expected = binomtest(k, n).proportion_ci(method="wilson")
    assert interval == pytest.approx((k / n, expected.low, expected.high), abs=1e-9)


def test_nothing_has_no_interval():
    assert wilson(0, 0) is None
    assert mean_interval([]) is None
    assert shown(None) == "–"


def test_mean_interval():
    values = np.random.default_rng(0).normal(2.0, 1.0, 200).tolist()
    interval = mean_interval(values)
    assert interval is not None
    assert interval.mean == pytest.approx(np.mean(values))
    half = 1.96 * np.std(values) / 200**0.5
    assert interval.low == pytest.approx(interval.mean - half, abs=0.03)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.03)
    assert shown(mean_interval([0.5, 0.5])) == "0.500 [0.500, 0.500]"


def test_rank_correlation():
    one, other = [1.0, 2.0, 2.0, 5.0], [0.1, 0.4, 0.3, 0.3]
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other)[0])
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None


def test_seed_agreement():
    # Seeds 0 and 1 agree, 2 is the other way round.
    rows = [(1.0, 0.1, 9.0), (2.0, 0.2, 8.0), (3.0, 0.3, 7.0)]
    assert seed_agreement(rows) == pytest.approx((1 - 1 - 1) / 3)
    assert seed_agreement([*rows, (None, None, 5.0)]) == pytest.approx(-1 / 3)
    assert seed_agreement([(1.0,), (2.0,)]) is None
    assert seed_agreement([]) is None


def test_that_a_balanced_interval_weighs_classes_alike():
    values, classes = [1.0] * 90 + [0.0] * 10, [0] * 90 + [1] * 10
    assert balanced_interval(values, classes) == (0.5, 0.5, 0.5)
    half = balanced_interval([1.0, 0.0] * 50, [0] * 50 + [1] * 50)
    assert half.mean == 0.5
    # Of two means of 50 fair coins: 1.96 · √(0.25 / 100).
    assert (half.high - half.low) / 2 == pytest.approx(0.098, abs=0.015)


def test_that_a_balanced_interval_of_one_class_is_that_of_the_mean():
    values = np.random.default_rng(1).random(80).tolist()
    own, plain = balanced_interval(values, [3] * 80), mean_interval(values)
    assert own == pytest.approx(plain, abs=0.01)


def test_that_a_group_counts_as_one_example():
    values, classes = np.random.default_rng(2).random(40), [0, 1] * 20
    alone = balanced_interval(values.tolist(), classes)
    assert balanced_interval(values.tolist(), classes, range(40)) == alone
    # Said nine times, it is no surer than said once.
    again = balanced_interval(
        np.repeat(values, 9).tolist(),
        np.repeat(classes, 9).tolist(),
        np.repeat(range(40), 9).tolist(),
    )
    assert again == pytest.approx(alone)
    by_itself = balanced_interval(np.repeat(values, 9).tolist(), np.repeat(classes, 9).tolist())
    assert by_itself.high - by_itself.low < 0.5 * (again.high - again.low)
    assert wider(by_itself, again) == wider(again, by_itself) == again


def test_that_one_group_says_nothing_of_others():
    interval = balanced_interval([1.0, 0.0, 1.0], [0, 0, 1], ["same"] * 3)
    assert interval == Interval.of_one(0.75)
    # Nor does one example of each class of others of it.
    assert balanced_interval([1.0, 0.0], [0, 1]) == Interval.of_one(0.5)
    assert balanced_interval([1.0, 0.0, 1.0], [0, 1, 1]).has_bounds


def test_one_example_says_nothing_of_others():
    one = Interval.of_one(0.25)
    assert mean_interval([0.25]) == paired_bootstrap(torch.tensor([0.25])) == one
    assert not one.has_bounds
    assert (shown(one), shown(one, 1, "+")) == ("0.250", "+0.2")
    assert shown(Interval(0.5, -0.25, 1.0), 2, "+") == "+0.50 [-0.25, +1.00]"
    # It is on neither side of anything.
    assert one.low < 0 < one.high
    many, few = Stratified([0.0, 1.0], [1, 1]), Stratified([0.25], [1])
    found = standardized_difference(few, many)
    assert found is not None
    assert found.interval == Interval.of_one(-0.25)


def test_alpha_of_the_package():
    pytest.importorskip("krippendorff")
    same = np.array([[1, 0, -1, np.nan], [1, 0, -1, 1]])
    assert krippendorff_alpha(same, "ordinal") == pytest.approx(1)
    assert krippendorff_alpha(np.ones((2, 3)), "nominal") is None
    opposite = krippendorff_alpha(np.array([[1.0, -1, 1, -1], [-1, 1, -1, 1]]), "ordinal")
    assert opposite is not None
    assert opposite < 0
    # By hand: 2 of 6 coincidences differ, 18 of 30 by chance; which values differ does not matter.
    for other in (1, 2):
        once = np.array([[0, other, 0], [0, other, other]])
        assert krippendorff_alpha(once, "nominal") == pytest.approx(1 - (2 / 6) / (18 / 30))


def stratified(
    means: dict[int, float], sizes: dict[int, int], n_groups: int | None = None
) -> Stratified:
    """Of each stratum so many zeros and ones, with this mean; groups take turns."""
    values, strata = [], []
    for stratum, n in sizes.items():
        n_ones = round(means[stratum] * n)
        values += [1.0] * n_ones + [0.0] * (n - n_ones)
        strata += [stratum] * n
    groups = None if n_groups is None else [i % n_groups for i in range(len(values))]
    return Stratified(values, strata, groups)


def test_a_standardized_difference_is_of_equal_shares_of_the_strata():
    # More of the one's are in the stratum where all are low: its mean is lower (0.4 against 0.6), though
    # it is higher in each stratum.
    one = stratified({-6: 0.25, -5: 1.0}, {-6: 8, -5: 2})
    other = stratified({-6: 0.0, -5: 0.75}, {-6: 2, -5: 8})
    found = standardized_difference(one, other)
    assert found is not None
    assert found.interval.mean == pytest.approx(0.25)
    assert (found.n_matched, found.n_strata) == (4, 2)
    reverse = standardized_difference(other, one)
    assert reverse is not None
    assert reverse.interval.mean == pytest.approx(-0.25)


def test_strata_are_weighted_by_the_smaller_count_and_those_of_one_alone_are_left_out():
    one = stratified({0: 0.5, 1: 1.0, 2: 1.0}, {0: 30, 1: 10, 2: 500})
    other = stratified({0: 0.0, 1: 0.0, 3: 1.0}, {0: 40, 1: 100, 3: 500})
    found = standardized_difference(one, other)
    assert found is not None
    assert found.interval.mean == pytest.approx((30 * 0.5 + 10 * 1.0) / 40)
    assert (found.n_matched, found.n_strata) == (40, 2)
    assert standardized_difference(one, Stratified([0.0], [7])) is None
    assert standardized_difference(one, Stratified([], [])) is None


def test_the_interval_of_a_standardized_difference_is_over_examples_and_groups():
    one = stratified({0: 0.7, 1: 0.5}, {0: 400, 1: 400})
    other = stratified({0: 0.4, 1: 0.4}, {0: 400, 1: 400})
    found = standardized_difference(one, other)
    assert found is not None
    # Half of the variance of each stratum's difference, weights aside.
    variance = sum(p * (1 - p) / 400 for p in (0.7, 0.5, 0.4, 0.4)) / 4
    half = 1.96 * variance**0.5
    assert found.interval.low == pytest.approx(0.2 - half, abs=0.01)
    assert found.interval.high == pytest.approx(0.2 + half, abs=0.01)
    assert found == standardized_difference(one, other)
    # Groups that do not differ widen it little, those that do, much.
    alike = standardized_difference(one._replace(groups=[i % 4 for i in range(800)]), other)
    by_value = sorted(range(800), key=lambda i: one.values[i])
    groups = np.zeros(800, dtype=int)
    groups[by_value] = np.arange(800) // 200
    apart = standardized_difference(one._replace(groups=groups.tolist()), other)
    assert alike is not None
    assert apart is not None
    widths = [f.interval.high - f.interval.low for f in (found, alike, apart)]
    assert widths[1] < 1.6 * widths[0]
    assert widths[2] > 3 * widths[0]


def test_a_sample_has_a_stratum_and_a_group_for_each_value():
    fine = Stratified([0.0, 1.0], [0, 0])
    with pytest.raises(ValueError, match="2 values, 1 strata"):
        standardized_difference(Stratified([0.0, 1.0], [0]), fine)
    with pytest.raises(ValueError, match="2 values, 2 strata and 1 groups"):
        standardized_difference(fine, fine._replace(groups=[0]))
