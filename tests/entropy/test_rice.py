"""Rice codes: exact, and of the best parameter."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.entropy.rice import (
    decode_positions,
    decode_ranks,
    encode_positions,
    encode_ranks,
    rice_decode,
    rice_encode,
    rice_parameters,
)


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 20)), max_size=30),
)
def test_rice_codes_with_a_parameter_for_each_value(values):
    v = np.array([value for value, _ in values], dtype=np.int64)
    k = np.array([parameter for _, parameter in values], dtype=np.int64)
    stream = io.BytesIO(rice_encode(v, k) + b"next")

    np.testing.assert_array_equal(rice_decode(stream, k), v)
    assert stream.read() == b"next"


def test_parameters_are_the_best_ones_for_geometric_values():
    def length(k: int, p: float) -> float:
        """Expected bits of a geometric value: k + 1 and the expected ⌊v / 2^k⌋."""
        q = (1 - p) ** (2**k)
        return k + 1 + q / (1 - q)

    n = 100_000
    for count in (1, 7, 100, 999, 5_000, 20_000, 45_000, 70_000, 99_999, 100_000):
        [k] = set(rice_parameters(np.array([n - count]), np.array([count])).tolist())
        best = min(length(k, count / n) for k in range(30))
        assert length(k, count / n) <= 1.001 * best


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(st.lists(st.booleans(), max_size=12), max_size=8))
def test_positions_in_groups_of_any_sizes(groups):
    positions = np.array(
        [i for group in groups for i, on in enumerate(group) if on], dtype=np.int64
    )
    counts = np.array([sum(group) for group in groups], dtype=np.int64)
    sizes = np.array([len(group) for group in groups], dtype=np.int64)
    stream = io.BytesIO(encode_positions(positions, counts, sizes) + b"next")

    np.testing.assert_array_equal(decode_positions(stream, counts, sizes), positions)
    assert stream.read() == b"next"


def test_a_position_beyond_its_own_group_is_refused():
    counts = np.array([1, 1])
    data = encode_positions(np.array([99, 99]), counts, np.array([100, 100]))

    for sizes in ([100, 99], [99, 100]):
        with pytest.raises(ValueError, match="contradict"):
            decode_positions(io.BytesIO(data), counts, np.array(sizes))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), n_ranks=st.integers(1, 9))
def test_ranks_in_groups(data, n_ranks):
    groups = data.draw(st.lists(st.lists(st.integers(0, n_ranks - 1), max_size=20), max_size=6))
    ranks = np.array([rank for group in groups for rank in group], dtype=np.int64)
    counts = np.array([len(group) for group in groups], dtype=np.int64)
    stream = io.BytesIO(encode_ranks(ranks, counts, n_ranks) + b"next")

    np.testing.assert_array_equal(decode_ranks(stream, counts, n_ranks), ranks)
    assert stream.read() == b"next"


def test_ranks_that_are_one_or_the_other_alone_cost_next_to_nothing():
    counts = np.array([10_000, 10_000])
    ranks = np.repeat([0, 6], counts)

    assert len(encode_ranks(ranks, counts, 7)) < 150
