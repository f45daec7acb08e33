"""Bins with edges that are known, and what they say of values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bae_lens.examples import Histogram, LevelCounts
from bae_lens.examples.histogram import N_BINS, bins_of, histogram_of


def counted(values: np.ndarray) -> Histogram:
    bins, counts = np.unique(bins_of(values), return_counts=True)
    return histogram_of(bins.tolist()[::-1], counts.tolist()[::-1])


def test_values_are_between_the_edges_of_their_bins():
    values = np.random.default_rng(0).lognormal(0, 3, 500) * np.resize([1, -1], 500)
    found = counted(values)
    edges = found.edges
    assert len(edges) == len(found.counts) + 1
    assert found.counts[0] > 0
    assert found.counts[-1] > 0
    expected, _ = np.histogram(np.abs(values), edges)
    assert list(found.counts) == expected.tolist()
    np.testing.assert_allclose(np.diff(np.log2(edges)), 1 / 8)


def test_values_beyond_all_bins_count_in_the_outermost():
    values = np.array([0.0, 1e-30, 1e30, 1.0], dtype=np.float32)
    assert bins_of(values).tolist() == [0, 0, N_BINS - 1, N_BINS // 2]
    assert counted(np.array([1.0, 1.05])) == Histogram(0, (2,))


def test_quantiles_are_within_a_bin():
    values = np.random.default_rng(0).lognormal(1, 1, 4000)
    found = counted(values)
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(values, share)
        assert found.quantile(share) == pytest.approx(expected, rel=0.04)
    assert found.quantile(1) == found.edges[-1]
    assert Histogram(0, ()).quantile(0.5) is None
    # A gap has nothing in it.
    assert Histogram(0, (1, 0, 0, 1)).quantile(0.5) == 2 ** (1 / 8)


def test_no_quantile_is_beyond_what_is_known_of_the_values():
    values = np.array([1.0, 1.02, 1.03, 5.0, 5.3])
    found = counted(values)
    for share in (0.05, 0.5, 0.95, 1):
        quantile = found.quantile(share, 1.0, 5.3)
        assert quantile is not None
        assert 1.0 <= quantile <= 5.3
    assert found.quantile(1, greatest=5.3) == 5.3 < found.edges[-1]
    one = counted(np.array([2.05]))
    assert {one.quantile(share, 2.05, 2.05) for share in (0, 0.05, 0.5, 0.95, 1)} == {2.05}
    # Who is mistaken of the ends moves none out of its bin.
    assert found.quantile(1, greatest=2.0) == found.edges[-2]
    assert found.quantile(0.05, least=3.0) == found.edges[1]
    assert found.quantile(0.5, 0.1, 50) == found.quantile(0.5)


def test_levels_have_an_entropy_and_quantiles():
    levels = LevelCounts((0.5, 1.0, 4.0, 5.0), (2, 0, 1, 1))
    assert levels.entropy == pytest.approx(1.5)
    assert [levels.quantile(share) for share in (0.25, 0.5, 0.51, 1)] == [0.5, 0.5, 4, 5]
    never = LevelCounts((0.5, 1.0), (0, 0))
    assert (never.entropy, never.quantile(0.5)) == (0, None)
    assert not math.copysign(1, LevelCounts((0.5,), (3,)).entropy) < 0


@pytest.mark.parametrize(
    "damaged",
    [Histogram(10**9, (1,)), Histogram(255, (1, 1)), Histogram(-257, (1,)), Histogram(0, (-1,))],
)
def test_bins_that_there_are_not_are_refused(damaged: Histogram):
    with pytest.raises(ValueError, match="must be"):
        damaged.check()


def test_levels_without_a_count_are_refused():
    with pytest.raises(ValueError, match="one entry for each of 2 levels"):
        LevelCounts((1.0, 2.0), (1,)).check()
