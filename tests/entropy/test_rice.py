"""Rice codes: exact, and of the best parameter."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.entropy.rice import rice_decode, rice_encode, rice_parameters


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
