"""Dense latents of a code, and the pairs that they come in."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.evals.code_cases import code_with_rates, random_acts, summary_of

# Latents that are nearly always on


def test_always_on_is_raw_and_more_than_99_per_cent():
    acts = code_with_rates([0.0, 0.005, 0.5, 0.99, 0.991, 1.0])

    assert summary_of(acts).always_on_share == pytest.approx(2 / 6)
    # Two that were on for 100 % and 99.5 %, and one that was always on and now never is.
    inverted = summary_of(acts, [True, True, False, False, False, True])
    assert inverted.always_on_share == pytest.approx(3 / 6)


# Pairs of dense latents


def dense_code(n: int = 60, d: int = 8, seed: int = 0) -> Tensor:
    """Bits of which some are dense, some rare, and some never on together."""
    bits = random_acts(n, d, seed) != 0
    bits[:, 1] &= ~bits[:, 0]
    bits[:, 2] &= ~bits[:, 0]
    bits[:, 3] = ~bits[:, 1]
    bits[:, 4] &= torch.arange(n) % 15 == 0
    return bits


def exclusive_reference(bits: Tensor) -> int:
    dense = [column for column in bits.T if column.double().mean() > 0.1]
    return sum(not (a & b).any() for a, b in itertools.combinations(dense, 2))


def antipodal_reference(bits: Tensor, W_dec: Tensor) -> int:
    dense = [row for row, bit in zip(W_dec, bits.T, strict=True) if bit.double().mean() > 0.1]
    return sum(
        (torch.dot(a, b) / (a.norm() * b.norm())).item() < -0.9
        for a, b in itertools.combinations(dense, 2)
    )


def test_dense_latents_that_never_fire_together():
    first, second, both = (torch.tensor(b) for b in ([1, 0, 0], [0, 1, 0], [1, 1, 0]))
    rare = code_with_rates([0.1], 30)
    acts = torch.cat([torch.stack([first, second, both], 1).repeat(10, 1), rare], 1)

    # The rare one, at 10 % exactly, is not dense.
    assert summary_of(acts, pair_counts=True).exclusive_dense_pairs == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_exclusive_pairs_are_those_of_the_polarity_of_training(seed):
    bits = dense_code(seed=seed)
    flipped = torch.rand(8, generator=torch.Generator().manual_seed(seed)) < 0.5

    code = summary_of(bits ^ flipped, flipped, pair_counts=True)

    assert code.exclusive_dense_pairs == exclusive_reference(bits) > 0


def test_dense_latents_that_write_opposite_directions():
    W_dec = torch.tensor([[1.0, 0.0], [-3.0, 0.3], [-0.5, 0.5], [-1.0, 0.0]])
    acts = code_with_rates([0.5, 0.2, 0.9, 0.05])

    # The first with the second; the third's cosine is −0.7, and the fourth is not dense.
    assert summary_of(acts, W_dec=W_dec).antipodal_dense_pairs == 1
    assert summary_of(acts).antipodal_dense_pairs is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_antipodal_pairs_are_those_of_the_polarity_of_training(seed):
    generator = torch.Generator().manual_seed(seed)
    bits = dense_code(seed=seed)
    W_dec = torch.randn(8, 3, generator=generator)
    W_dec[[0, 2, 4]] = -2 * W_dec[[1, 3, 5]]
    flipped = torch.rand(8, generator=generator) < 0.5

    # Inverting a bit turns its decoder row.
    sign = torch.where(flipped, -1, 1).unsqueeze(1)
    code = summary_of(bits ^ flipped, flipped, W_dec * sign)

    assert code.antipodal_dense_pairs == antipodal_reference(bits, W_dec) > 0


def test_no_dense_latents_no_pairs():
    acts = code_with_rates([0.05, 0.0, 0.1])

    code = summary_of(acts, W_dec=-torch.ones(3, 2), pair_counts=True)

    assert (code.antipodal_dense_pairs, code.exclusive_dense_pairs) == (0, 0)


def test_a_decoder_that_needs_gradients_keeps_none():
    W_dec = torch.eye(3).requires_grad_()

    summary_of(random_acts(20, 3), W_dec=W_dec)

    assert W_dec.grad is None
