"""Statistics of a code, against known answers and plain references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from torch import Tensor

from bae_lens import BAE
from bae_lens.evals import CodeStatistics, CodeSummary, summarise_code
from tests.helpers import (
    D_SAE,
    make_activations,
    make_bae,
    make_training_bae,
    record_firing_rates,
)


def code_with_rates(rates: list[float], n: int = 1000) -> Tensor:
    """Activations ``[n, len(rates)]`` in which latent j fires on exactly ``rates[j]`` of the rows."""
    rows = torch.arange(n).unsqueeze(1)
    return (rows < torch.tensor([round(rate * n) for rate in rates])).float()


def summary_of(acts: Tensor, flipped: list[bool] | None = None) -> CodeSummary:
    statistics = CodeStatistics(acts.shape[-1], None if flipped is None else torch.tensor(flipped))
    statistics.update(acts)
    return statistics.compute()


def entropy_bits(p: float) -> float:
    return sum(-q * math.log2(q) for q in (p, 1 - p) if q > 0)


# Known answers

RATES = [0.0, 0.005, 0.05, 0.25, 0.95, 1.0]


def test_rates_l0_entropy_and_death_of_a_hand_made_code():
    code = summary_of(code_with_rates(RATES))

    assert code.n_tokens == 1000
    torch.testing.assert_close(code.firing_rates, torch.tensor(RATES))
    assert code.firing_rates.dtype == torch.float32
    assert code.l0 == pytest.approx(sum(RATES))
    assert code.marginal_entropy == pytest.approx(sum(entropy_bits(p) for p in RATES))
    assert code.max_density == 1.0
    assert code.dead_share == pytest.approx(1 / 6)


def test_a_balanced_latent_is_one_bit_and_a_constant_one_is_none():
    assert summary_of(code_with_rates([0.5, 0.5, 0.0, 1.0])).marginal_entropy == 2.0


def test_densities_of_a_code_with_its_own_polarity():
    code = summary_of(code_with_rates(RATES))

    # Raw: 0.25, 0.95 and 1 are above 10 %, with 0.05 also above 1 %.
    assert code.dense_share_10 == pytest.approx(3 / 6)
    assert code.dense_share_1 == pytest.approx(4 / 6)
    # Folded: 0, 0.005, 0.05, 0.25, 0.05, 0.
    assert code.dense_share_10_folded == pytest.approx(1 / 6)
    assert code.dense_share_1_folded == pytest.approx(3 / 6)


def test_densities_of_inverted_latents_are_raw_as_trained_and_folded_either_way():
    # The third fires on 5 % because it was inverted: in training it was on for 95 %.
    inverted = summary_of(code_with_rates(RATES), [False, False, True, False, False, False])

    assert inverted.dense_share_10 == pytest.approx(4 / 6)
    assert inverted.dense_share_1 == pytest.approx(4 / 6)
    assert inverted.dense_share_10_folded == pytest.approx(1 / 6)
    assert inverted.dense_share_1_folded == pytest.approx(3 / 6)
    # What is said of the SAE as it is does not know of the inversion.
    torch.testing.assert_close(inverted.firing_rates, torch.tensor(RATES))
    assert inverted.l0 == pytest.approx(sum(RATES))


def test_max_density_is_raw():
    acts = code_with_rates([0.02, 0.3])

    assert summary_of(acts).max_density == pytest.approx(0.3)
    assert summary_of(acts, [True, False]).max_density == pytest.approx(0.98)


def test_an_inverted_latent_that_never_fires_is_dead_and_was_always_on():
    code = summary_of(code_with_rates([0.0, 0.1]), [True, False])

    assert code.dead_share == 0.5
    assert code.max_density == 1.0


def test_a_latent_at_exactly_the_mark_is_not_denser_than_it():
    code = summary_of(code_with_rates([0.1, 0.01]))

    assert code.dense_share_10 == 0.0
    assert code.dense_share_1 == 0.5


def test_to_dict_has_every_scalar_and_no_tensor():
    code = summary_of(code_with_rates(RATES))

    scalars = code.to_dict()

    assert set(scalars) == {
        "n_tokens",
        "l0",
        "marginal_entropy",
        "dense_share_10",
        "dense_share_10_folded",
        "dense_share_1",
        "dense_share_1_folded",
        "max_density",
        "dead_share",
    }
    assert all(type(value) in (int, float) for value in scalars.values())


# What may be counted


def test_a_negative_activation_fires():
    code = summary_of(torch.tensor([[-2.0, 0.0], [1e-30, 0.0], [0.0, -0.0]]))

    torch.testing.assert_close(code.firing_rates, torch.tensor([2 / 3, 0.0]))


@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4), (24, 1)])
def test_leading_dimensions_are_tokens(shape):
    acts = code_with_rates([0.25, 0.5], n=24)

    code = summary_of(acts.reshape(*shape, 2))

    assert code.n_tokens == 24
    torch.testing.assert_close(code.firing_rates, torch.tensor([0.25, 0.5]))


def test_a_single_token_without_leading_dimension():
    assert summary_of(torch.tensor([0.0, 3.0, 0.0])).l0 == 1.0


@pytest.mark.parametrize("shape", [(12, 3), (2, 6, 3)])
def test_sparse_activations_count_like_dense_ones(shape):
    acts = code_with_rates([0.0, 0.25, 1.0], n=12).reshape(shape)

    assert summary_of(acts.to_sparse()).to_dict() == summary_of(acts).to_dict()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_any_dtype_is_counted(dtype):
    code = summary_of(code_with_rates([0.25, 0.5], n=24).to(dtype))

    torch.testing.assert_close(code.firing_rates, torch.tensor([0.25, 0.5]))


def test_counts_stay_exact_where_float32_would_not():
    statistics = CodeStatistics(1)
    statistics.n_tokens = 2**25
    statistics.n_fired += 2**24

    statistics.update(torch.ones(1, 1))

    assert statistics.n_fired.item() == 2**24 + 1


# Merging


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    n_parts=st.integers(1, 3),
)
def test_batches_and_parts_in_any_division_equal_one_pass(seed, sizes, n_parts):
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(sum(sizes) + 1, 7, generator=generator).relu()
    flipped = torch.rand(7, generator=generator) < 0.5
    whole = CodeStatistics(7, flipped)
    whole.update(acts)

    parts = [CodeStatistics(7, flipped) for _ in range(n_parts)]
    for i, batch in enumerate(acts.split([*sizes, 1])):
        parts[i % n_parts].update(batch)
    merged = CodeStatistics(7, flipped)
    for part in parts:
        merged.merge(part)

    assert merged.compute().to_dict() == whole.compute().to_dict()
    assert torch.equal(merged.compute().firing_rates, whole.compute().firing_rates)


def test_compute_does_not_end_the_counting():
    statistics = CodeStatistics(2)
    statistics.update(torch.tensor([[1.0, 0.0]]))
    first = statistics.compute()
    statistics.update(torch.tensor([[0.0, 0.0]]))

    assert first.l0 == 1.0
    assert statistics.compute().l0 == 0.5


def test_merging_leaves_the_other_as_it_was():
    one, other = CodeStatistics(2), CodeStatistics(2)
    one.update(torch.ones(3, 2))
    other.update(torch.zeros(1, 2))

    one.merge(other)

    assert (one.n_tokens, other.n_tokens) == (4, 1)
    assert other.n_fired.tolist() == [0, 0]


# Errors


@pytest.mark.parametrize("shape", [(5, 3), (3,), (4, 5)])
def test_a_wrong_width_is_refused(shape):
    with pytest.raises(ValueError, match=r"of 4 latents; got activations of shape \("):
        CodeStatistics(4).update(torch.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_refused_and_not_counted(bad):
    statistics = CodeStatistics(2)

    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics.update(torch.tensor([[1.0, 0.0], [0.0, bad]]))

    assert statistics.n_tokens == 0
    assert statistics.n_fired.sum() == 0


def test_nothing_seen_is_refused():
    statistics = CodeStatistics(2)
    statistics.update(torch.zeros(0, 2))

    with pytest.raises(ValueError, match=r"call update\(\)"):
        statistics.compute()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CodeStatistics(2), CodeStatistics(3)),
        (CodeStatistics(2), CodeStatistics(2, torch.tensor([True, False]))),
    ],
)
def test_different_codes_are_not_merged(one, other):
    with pytest.raises(ValueError, match="same code"):
        one.merge(other)


def test_flipped_of_another_width_is_refused():
    with pytest.raises(ValueError, match="flipped"):
        CodeStatistics(4, torch.zeros(3, dtype=torch.bool))


# A SAE's code


def test_summarise_code_equals_a_plain_reference():
    sae = make_bae()
    x = make_activations(101)

    code, explained_variance = summarise_code(sae, x.split(40))

    with torch.no_grad():
        shifted = x - sae.b_dec
        bits = (shifted @ sae.W_enc + sae.b_enc > 0).double()
        recons = bits @ (sae.W_dec * sae.scale.unsqueeze(1)).double() + sae.b_dec
    p = bits.mean(0)
    assert code.n_tokens == 101
    assert code.l0 == pytest.approx(bits.sum(1).mean().item())
    assert code.marginal_entropy == pytest.approx(sum(entropy_bits(q) for q in p.tolist()))
    torch.testing.assert_close(code.firing_rates, p.float())
    # Over all rows at once, batches being of different sizes.
    unexplained = (x - recons).square().sum() / (x - x.mean(0)).square().sum()
    assert explained_variance == pytest.approx(1 - unexplained.item(), rel=1e-5)


def test_summarise_code_takes_an_iterator_and_leaves_no_gradients():
    sae = make_bae()

    code, _ = summarise_code(sae, iter([make_activations(10)]))

    assert code.n_tokens == 10
    assert all(p.grad is None for p in sae.parameters())


def test_summarise_code_of_a_sae_that_reshapes_heads():
    # The rows of a store are flat at hook_z, where a loaded SAE expects heads.
    sae, x = make_bae(), make_activations(50)
    reshaping = make_bae(reshape_activations="hook_z")
    reshaping.cfg.metadata.hook_name = "blocks.0.attn.hook_z"

    code, explained_variance = summarise_code(reshaping, [x])

    expected, expected_variance = summarise_code(sae, [x])
    assert code.to_dict() == expected.to_dict()
    assert explained_variance == expected_variance
    assert reshaping.hook_z_reshaping_mode


def test_raw_densities_of_a_saved_bae_are_those_of_its_training(tmp_path):
    # float64, so that no pre-activation is near enough to its threshold to differ.
    training = make_training_bae(dtype="float64")
    with torch.no_grad():
        training.b_enc.add_(0.6)
    x = make_activations(2000).double()
    rates = record_firing_rates(training, x)
    n_mostly_on = int((rates > 0.5).sum())
    assert 5 < n_mostly_on < D_SAE
    training.save_inference_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)
    code, _ = summarise_code(sae, [x])

    assert isinstance(sae, BAE)
    assert int(sae.flipped.sum()) == n_mostly_on
    raw = torch.where(sae.flipped, 1 - code.firing_rates, code.firing_rates)
    torch.testing.assert_close(raw, rates.float())
    assert code.dense_share_10 == pytest.approx((rates > 0.1).double().mean().item())
    assert code.dense_share_1 == pytest.approx((rates > 0.01).double().mean().item())
    assert code.max_density == pytest.approx(rates.max().item())
    # The folded ones are those of the code as it is, where no bit is mostly on.
    assert code.firing_rates.max() <= 0.5
    assert code.dense_share_10_folded == (code.firing_rates > 0.1).double().mean().item()
    assert code.dense_share_10_folded < code.dense_share_10


def test_a_training_bae_counts_with_the_polarity_it_has():
    training = make_training_bae()
    x = make_activations(500)

    code, _ = summarise_code(training, [x])

    torch.testing.assert_close(code.firing_rates, record_firing_rates(training, x))
    assert code.max_density == pytest.approx(code.firing_rates.max().item())
