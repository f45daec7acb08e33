"""Levels of activations, against a plain search for the nearest value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.nn import check_level_values, level_counts, level_indices, levels_of_entries


def random_values(d_sae: int, n_levels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    heights = 0.1 + torch.rand(d_sae, n_levels, generator=generator)
    return heights.cumsum(1) * torch.logspace(-2, 2, d_sae)[:, None]


def acts_at(levels: Tensor, values: Tensor) -> Tensor:
    table = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    return table[torch.arange(len(table)), levels.long()]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 4), max_size=2),
    d_sae=st.integers(1, 6),
    n_levels=st.integers(1, 9),
)
def test_levels_come_back_from_their_values(seed, shape, d_sae, n_levels):
    values = random_values(d_sae, n_levels, seed)
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, n_levels + 1, (*shape, d_sae), generator=generator)

    found = level_indices(acts_at(levels, values), values)

    assert torch.equal(found, levels.int())
    assert found.dtype == torch.int32
    counts = level_counts(acts_at(levels, values), values)
    rows = levels.reshape(-1, d_sae)
    expected = [[(column == level).sum() for level in range(1, n_levels + 1)] for column in rows.T]
    assert counts.tolist() == expected
    assert counts.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("which", ["activations", "values", "both"])
def test_rounding_to_another_dtype_changes_no_level(dtype, which):
    values = random_values(30, 7).clamp(max=6e4)
    levels = torch.randint(0, 8, (200, 30), generator=torch.Generator().manual_seed(0))
    acts = acts_at(levels, values)
    acts = acts if which == "values" else acts.to(dtype)
    values = values if which == "activations" else values.to(dtype)

    assert torch.equal(level_indices(acts, values), levels.int())


def test_what_is_between_two_values_is_at_the_nearest():
    values = torch.tensor([[1.0, 2.0, 10.0]])
    acts = torch.tensor([1e-30, 1.49, 1.51, 5.9, 6.1, 1e30, -1.0, -0.0])

    assert level_indices(acts[:, None], values).flatten().tolist() == [1, 1, 2, 2, 3, 3, 1, 0]


def test_values_that_a_narrow_dtype_rounds_to_one_are_the_lower_level():
    # 1 and 1.001 are one number in bfloat16.
    values = torch.tensor([[1.0, 1.001, 2.0]]).bfloat16()

    levels = level_indices(torch.tensor([[1.0], [2.0], [0.0]]).bfloat16(), values)

    assert levels.flatten().tolist() == [1, 3, 0]


def test_negative_values_are_levels_too():
    values = torch.tensor([[-3.0, -1.0]])

    assert level_indices(torch.tensor([[-3.0], [-1.0], [0.0]]), values).tolist() == [[1], [2], [0]]


def test_a_training_saes_values_keep_no_gradient():
    values = random_values(3, 2).requires_grad_()

    assert not level_indices(torch.ones(4, 3, requires_grad=True), values).requires_grad


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(3), r"shape \[d_sae, L\].*\(3,\)"),
        (torch.ones(3, 0), r"shape \[d_sae, L\].*\(3, 0\)"),
        (torch.ones(3, 2, dtype=torch.int64), "must be floats.*int64"),
        (torch.tensor([[1.0, math.nan]]), "finite"),
        (torch.tensor([[1.0, math.inf]]), "finite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.5]]), r"ascend.*latent 1 are \[2.0, 1.5\]"),
    ],
)
def test_values_of_no_levels_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        check_level_values(values)
    with pytest.raises(ValueError, match=message):
        level_indices(torch.zeros(2, values.shape[0]), values)


@pytest.mark.parametrize("shape", [(), (2,), (5, 4)])
def test_activations_of_another_width_are_refused(shape):
    with pytest.raises(ValueError, match=r"of 3 latents; got activations of shape \("):
        level_indices(torch.zeros(shape), random_values(3, 2))
    with pytest.raises(ValueError, match=r"of 3 latents; got activations of shape \("):
        level_counts(torch.zeros(shape), random_values(3, 2))


def test_levels_of_entries_are_those_of_the_dense_code():
    values = random_values(5, 3)
    levels = torch.randint(4, (40, 5), generator=torch.Generator().manual_seed(0))
    acts = torch.where(levels > 0, values.T[levels.clamp(min=1) - 1, torch.arange(5)], 0)
    rows, latents = levels.nonzero(as_tuple=True)
    found = levels_of_entries(acts[rows, latents], latents, values)
    assert torch.equal(found, levels[rows, latents].int())
    assert torch.equal(level_indices(acts, values), levels.int())
