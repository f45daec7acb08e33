"""Quantized magnitudes: how far values move, what their cells cost, and what is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.evals import MagnitudeQuantizer
from bae_lens.evals.magnitudes import magnitude_entropy

D_SAE, D_OUT = 6, 4


def some_acts(n: int = 60, seed: int = 0, density: float = 0.4) -> Tensor:
    """Magnitudes of both signs where latents fire, each latent on a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, D_SAE, generator=generator) + 1
    fired = torch.rand(n, D_SAE, generator=generator) < density
    return values * fired * torch.logspace(-1, 1, D_SAE)


def some_decoder(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(D_SAE, D_OUT, generator=generator) * torch.logspace(1, -0.5, D_SAE)[:, None]


def output_rms(acts: Tensor, W_dec: Tensor) -> float:
    values = [
        acts[i, j].item() * W_dec[j].norm().item()
        for i in range(len(acts))
        for j in range(acts.shape[1])
        if acts[i, j] != 0
    ]
    return math.sqrt(sum(v * v for v in values) / len(values))


# Round trips


@pytest.mark.parametrize("bits", [0, 1, 2.5, 8])
def test_a_step_is_four_root_mean_squares_of_the_output_at_no_bits_and_halves_with_each(bits):
    acts, W_dec = some_acts(), some_decoder()

    quantizer = MagnitudeQuantizer.fit(acts, W_dec, bits)

    assert quantizer.step == pytest.approx(4 * output_rms(acts, W_dec) / 2**bits, rel=1e-5)
    assert quantizer.bits == bits


@settings(deadline=None, max_examples=40)
@given(bits=st.floats(0, 10), seed=st.integers(0, 2**16))
def test_no_value_moves_further_than_a_step_in_the_output(bits, seed):
    acts, W_dec = some_acts(seed=seed), some_decoder(seed)
    quantizer = MagnitudeQuantizer.fit(acts, W_dec, bits)

    moved = (quantizer.quantize(acts) - acts).abs() * W_dec.norm(dim=1)

    assert moved.max() <= quantizer.step * (1 + 1e-4)


@settings(deadline=None, max_examples=40)
@given(bits=st.floats(2, 8), seed=st.integers(0, 2**16))
def test_values_that_share_no_cell_with_fitted_ones_move_half_a_step_at_most(bits, seed):
    # All cells in which nothing was seen are restored to their middle.
    W_dec = some_decoder(seed)
    norms = W_dec.norm(dim=1)
    ends = torch.zeros(2, D_SAE)
    ends[:, 0] = torch.tensor([-1.0, 1.0]) / norms[0]
    quantizer = MagnitudeQuantizer.fit(ends, W_dec, bits)
    inside = 2 * torch.rand(50, D_SAE - 1, generator=torch.Generator().manual_seed(seed)) - 1
    acts = torch.cat([torch.zeros(50, 1), inside], 1) / norms

    moved = (quantizer.quantize(acts) - acts).abs() * norms

    assert moved.max() <= quantizer.step / 2 * (1 + 1e-4)


@pytest.mark.parametrize("bits", [0, 3])
def test_the_mean_of_each_latent_is_kept_on_the_fitted_data(bits):
    acts, W_dec = some_acts(), some_decoder()

    quantized = MagnitudeQuantizer.fit(acts, W_dec, bits).quantize(acts)

    torch.testing.assert_close(quantized.mean(0), acts.mean(0))


def test_a_cell_is_restored_as_the_mean_of_its_latents_values():
    # Root mean square 1 in the output: at 2 bits a step is 1.
    acts = torch.tensor([[0.25, 0.0], [0.75, 0.0], [-0.5, 0.0], [0.0, 0.0]])
    acts[:, 1] = torch.tensor([0.0, 0.0, 0.0, 1.75])
    scale = output_rms(acts, torch.eye(2))

    quantizer = MagnitudeQuantizer.fit(acts / scale, torch.eye(2), 2)

    restored = quantizer.quantize(acts / scale) * scale
    assert quantizer.step == pytest.approx(1)
    # Divided by 1.02, the values still lie in the cells [-1, 0), [0, 1) and [1, 2).
    torch.testing.assert_close(restored, torch.tensor([[0.5, 0], [0.5, 0], [-0.5, 0], [0, 1.75]]))
    # Not seen in these cells: their middle.
    torch.testing.assert_close(quantizer.restored[0, 2], torch.tensor(1.5))
    torch.testing.assert_close(quantizer.restored[1, :2], torch.tensor([-0.5, 0.5]))


def test_zero_stays_zero_and_nothing_else_becomes_it():
    acts = some_acts()

    for bits in (0, 4):
        quantized = MagnitudeQuantizer.fit(acts, some_decoder(), bits).quantize(acts)
        assert torch.equal(quantized != 0, acts != 0)
        assert torch.equal(quantized.sign(), acts.sign())


def test_at_no_bits_values_of_one_sign_are_restored_as_their_mean():
    # None is as large as four root mean squares, so that there is one cell.
    acts = some_acts().abs()
    W_dec = torch.diag(1 / acts.amax(0))

    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 0)

    fired = acts != 0
    mean = acts.sum(0) / fired.sum(0)
    assert quantizer.n_cells == 1
    torch.testing.assert_close(quantizer.quantize(acts), mean * fired)
    assert magnitude_entropy(quantizer.count(acts), len(acts)) == 0


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(0, 6), seed=st.integers(0, 2**16))
def test_a_finer_resolution_loses_no_latent_anything_on_the_fitted_data(bits, seed):
    # Half the step cuts each cell in two, and the mean of a part is nearer than that of both.
    acts, W_dec = some_acts(seed=seed), some_decoder(seed)
    quantizers = [MagnitudeQuantizer.fit(acts, W_dec, b) for b in (bits, bits + 1)]

    coarse, fine = ((q.quantize(acts) - acts).square().sum(0) for q in quantizers)
    cost = [magnitude_entropy(q.count(acts), len(acts)) for q in quantizers]

    assert (fine <= coarse * (1 + 1e-5) + 1e-9).all()
    assert cost[0] <= cost[1] + 1e-12


def test_finely_enough_nothing_is_lost():
    acts = some_acts()

    quantized = MagnitudeQuantizer.fit(acts, some_decoder(), 16).quantize(acts)

    torch.testing.assert_close(quantized, acts, rtol=0, atol=1e-2)


# Cells and what they cost


def test_cells_are_those_of_a_plain_reference():
    acts, W_dec = some_acts(), some_decoder()
    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 3)

    counts = quantizer.count(acts)

    norms = W_dec.norm(dim=1)
    cells = Counter(
        (j, math.floor((acts[i, j] * norms[j] / quantizer.step).item()))
        for i, j in (acts != 0).nonzero().tolist()
    )
    first = min(cell for _, cell in cells)
    assert counts.shape == (D_SAE, max(cell for _, cell in cells) - first + 1)
    assert {
        (j, cell + first): counts[j, cell].item() for j, cell in counts.nonzero().tolist()
    } == cells
    assert torch.equal(counts.sum(1), (acts != 0).sum(0))


def test_magnitude_entropy_is_that_of_the_cells_given_which_latents_fire():
    cells = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 2, 2], [5, 0, 0]])

    value = magnitude_entropy(cells, 20)

    expected = 0.0
    for row in cells.tolist():
        fired = sum(row)
        entropy = -sum(c / fired * math.log2(c / fired) for c in row if c)
        expected += fired / 20 * entropy
    assert value == pytest.approx(expected, rel=1e-12)


def test_magnitudes_in_two_cells_alike_cost_a_bit_whenever_they_fire():
    assert magnitude_entropy(torch.tensor([[4, 4]]), 32) == pytest.approx(8 / 32)
    assert magnitude_entropy(torch.tensor([[8, 0]]), 32) == 0
    assert magnitude_entropy(torch.tensor([[0, 0]]), 32) == 0


def test_values_out_of_range_fall_into_the_outermost_cells():
    acts, W_dec = some_acts(), some_decoder()
    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 3)
    excess_over = torch.tensor([[1e6], [-1e6]]).expand(2, D_SAE)

    counts = quantizer.count(excess_over)

    assert counts[:, 0].tolist() == counts[:, -1].tolist() == [1] * D_SAE
    assert counts.sum() == 2 * D_SAE
    torch.testing.assert_close(
        quantizer.quantize(excess_over),
        torch.stack([quantizer.restored[:, -1], quantizer.restored[:, 0]]),
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), bits=st.integers(0, 6))
def test_cells_do_not_change_with_the_units_of_activations(seed, bits):
    # c·acts with W_dec/c is the same SAE. Powers of two, which round nothing.
    acts, W_dec = some_acts(seed=seed), some_decoder(seed)
    c = 2.0 ** torch.randint(-6, 7, (D_SAE,), generator=torch.Generator().manual_seed(seed))

    plain = MagnitudeQuantizer.fit(acts, W_dec, bits)
    scaled = MagnitudeQuantizer.fit(acts * c, W_dec / c.unsqueeze(1), bits)

    assert scaled.step == plain.step
    assert torch.equal(scaled.count(acts * c), plain.count(acts))
    assert torch.equal(scaled.quantize(acts * c), c * plain.quantize(acts))


def test_cells_do_not_change_with_the_units_of_the_output():
    acts, W_dec = some_acts(), some_decoder()

    plain, scaled = (MagnitudeQuantizer.fit(acts, c * W_dec, 4) for c in (1, 16))

    assert torch.equal(scaled.count(acts), plain.count(acts))
    assert torch.equal(scaled.quantize(acts), plain.quantize(acts))


def test_a_latent_with_a_larger_decoder_row_is_resolved_more_finely():
    acts = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) + 0.01

    counts = MagnitudeQuantizer.fit(acts, torch.diag(torch.tensor([1.0, 10.0])), 4).count(acts)

    used = (counts > 0).sum(1)
    assert used[1] > 5 * used[0]


# What may be quantized


def test_a_latent_that_writes_nothing_costs_nothing():
    acts, W_dec = some_acts(), some_decoder()
    W_dec[2] = 0

    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 5)

    assert quantizer.restored.isfinite().all()
    assert (quantizer.count(acts)[2] > 0).sum() == 1


def test_bfloat16_is_counted_in_float32_and_restored_in_bfloat16():
    acts, W_dec = some_acts().bfloat16(), some_decoder().bfloat16()
    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 3)
    in_float32 = MagnitudeQuantizer.fit(acts.float(), W_dec.float(), 3)

    quantized = quantizer.quantize(acts)

    assert quantized.dtype == torch.bfloat16
    assert torch.equal(quantizer.count(acts), in_float32.count(acts.float()))
    torch.testing.assert_close(quantized, in_float32.quantize(acts.float()).bfloat16())


def test_tokens_on_which_nothing_fires_have_no_cells():
    quantizer = MagnitudeQuantizer.fit(some_acts(), some_decoder(), 3)

    for n in (0, 5):
        silent = torch.zeros(n, D_SAE)
        assert torch.equal(quantizer.quantize(silent), silent)
        assert quantizer.count(silent).sum() == 0


def test_no_gradient_is_kept():
    acts, W_dec = some_acts().requires_grad_(), some_decoder().requires_grad_()

    quantizer = MagnitudeQuantizer.fit(acts, W_dec, 3)

    assert not quantizer.restored.requires_grad
    assert not quantizer.quantize(acts).requires_grad


# Errors


@pytest.mark.parametrize("bits", [math.nan, 17, 60])
def test_a_resolution_that_no_memory_holds_is_refused(bits):
    with pytest.raises(ValueError, match=r"bits must be a .*number from 0 to 16"):
        MagnitudeQuantizer.fit(torch.ones(3, 2), torch.ones(2, 2), bits)


def test_a_decoder_that_is_not_finite_or_all_zeros_is_refused():
    with pytest.raises(ValueError, match="decoder have NaN"):
        MagnitudeQuantizer.fit(torch.ones(3, 2), torch.full((2, 2), math.nan), 4)
    with pytest.raises(ValueError, match="decoder is all zeros"):
        MagnitudeQuantizer.fit(torch.ones(3, 2), torch.zeros(2, 2), 4)


def test_an_outlier_does_not_ask_for_gigabytes():
    acts = torch.ones(100_000, 1)
    acts[0] = 1e6

    quantizer = MagnitudeQuantizer.fit(acts, torch.ones(1, 1), 8)

    assert quantizer.n_cells <= 64 / 4 * 2**8 + 1


def test_cells_are_the_same_whatever_they_stand_for():
    acts, decoder = torch.rand(50, 3), torch.randn(3, 4)
    one, copy = (MagnitudeQuantizer.fit(acts, decoder, 4) for _ in range(2))

    assert one.is_same(copy)
    assert not one.is_same(MagnitudeQuantizer.fit(acts, decoder, 5))


def test_a_negative_resolution_is_refused():
    with pytest.raises(ValueError, match=r"bits must be a .*number from 0 to 16; got -1"):
        MagnitudeQuantizer.fit(some_acts(), some_decoder(), -1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_magnitudes_that_are_not_finite_are_refused(bad):
    acts = some_acts()
    acts[3, 1] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        MagnitudeQuantizer.fit(acts, some_decoder(), 3)


@pytest.mark.parametrize("n", [0, 5])
def test_data_on_which_nothing_fires_are_refused(n):
    with pytest.raises(ValueError, match="No latent fires"):
        MagnitudeQuantizer.fit(torch.zeros(n, D_SAE), some_decoder(), 3)
