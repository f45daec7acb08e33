"""Statistics of a code, against known answers and plain references."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import logging
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.evals import CodeStatistics, CodeSummary, MagnitudeQuantizer, code_statistics
from bae_lens.evals.magnitudes import magnitude_entropy
from bae_lens.nn import (
    chance_co_firing,
    chow_liu_tree,
    marginal_entropy,
    miller_madow_correction,
    plug_in_entropy,
)
from tests.helpers import about, known, support_bits


def code_with_rates(rates: list[float], n: int = 1000) -> Tensor:
    """Activations ``[n, len(rates)]`` in which latent j fires on exactly ``rates[j]`` of the rows."""
    rows = torch.arange(n).unsqueeze(1)
    return (rows < torch.tensor([round(rate * n) for rate in rates])).float()


def random_acts(n: int, d: int, seed: int = 0, density: float = 0.4) -> Tensor:
    """Positive magnitudes where latents fire."""
    generator = torch.Generator().manual_seed(seed)
    fired = torch.rand(n, d, generator=generator) < density
    return (torch.rand(n, d, generator=generator) + 0.1) * fired


def summary_of(
    acts: Tensor,
    flipped: list[bool] | Tensor | None = None,
    W_dec: Tensor | None = None,
    **settings: Any,
) -> CodeSummary:
    statistics = CodeStatistics(
        acts.shape[-1],
        flipped=None if flipped is None else torch.as_tensor(flipped),
        **settings,
    )
    statistics.update(acts)
    return statistics.compute(W_dec)


def quantizer_of(acts: Tensor, bits: float = 3) -> MagnitudeQuantizer:
    return MagnitudeQuantizer.fit(acts, torch.eye(acts.shape[1]), bits)


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
    acts = random_acts(50, 3)
    code = summary_of(
        acts,
        W_dec=torch.eye(3),
        pair_counts=True,
        minibatch_size=10,
        quantizer=quantizer_of(acts),
    )

    scalars = code.to_dict()

    names = {field.name for field in dataclasses.fields(CodeSummary)}
    assert set(scalars) == names - {"firing_rates", "l0_counts"}
    assert all(type(value) in (int, float, bool) for value in scalars.values())
    assert json.loads(json.dumps(scalars)) == scalars


def test_what_was_not_asked_for_is_none():
    scalars = summary_of(random_acts(50, 3)).to_dict()

    assert {name for name, value in scalars.items() if value is None} == {
        "antipodal_dense_pairs",
        "exclusive_dense_pairs",
        "minibatch_entropy",
        "minibatch_entropy_miller_madow",
        "chow_liu_entropy",
        "total_correlation",
        "chance_total_correlation",
        "plug_in_entropy",
        "plug_in_ceiling",
        "n_distinct_codes",
        "magnitude_entropy",
        "magnitude_bits",
        "description_length",
    }


# L0 over tokens


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 130), d=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 2**16)
)
def test_spread_of_l0_equals_that_of_the_tokens(n, d, density, seed):
    acts = random_acts(n, d, seed, density)
    l0 = sorted((acts != 0).sum(1).tolist())

    code = summary_of(acts)

    # The least value that so many per cent of the tokens do not pass.
    fifth, median, ninety_fifth = (l0[math.ceil(q * n / 100) - 1] for q in (5, 50, 95))
    assert (code.l0_5th, code.l0_median, code.l0_95th) == (fifth, median, ninety_fifth)
    assert code.l0 == pytest.approx(sum(l0) / n, abs=1e-12)
    variance = sum((value - sum(l0) / n) ** 2 for value in l0) / n
    assert code.l0_std == pytest.approx(math.sqrt(variance), abs=1e-7)
    counts = Counter(l0)
    assert code.l0_counts.tolist() == [counts[k] for k in range(d + 1)]


@pytest.mark.parametrize("n", [12, 80, 120])
def test_a_percentile_reached_exactly_is_not_passed(n):
    # L0 of 0 … n − 1, once each, where sums of floating-point shares fall short of the percentile.
    code = summary_of(torch.ones(n, n).tril(-1))

    expected = tuple(math.ceil(q * n / 100) - 1 for q in (5, 50, 95))
    assert (code.l0_5th, code.l0_median, code.l0_95th) == expected


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


# Entropy of a minibatch


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    minibatch_size=st.integers(1, 12),
)
def test_minibatch_entropy_is_the_mean_over_whole_minibatches(seed, sizes, minibatch_size):
    acts = random_acts(sum(sizes) + minibatch_size, 5, seed)
    statistics = CodeStatistics(5, minibatch_size=minibatch_size)

    for batch in acts.split([*sizes, minibatch_size]):
        statistics.update(batch)
    code = statistics.compute()

    whole = [
        rows for rows in (acts != 0).double().split(minibatch_size) if len(rows) == minibatch_size
    ]
    entropies = [marginal_entropy(rows).item() for rows in whole]
    corrections = [
        miller_madow_correction(rows.sum(0).long(), minibatch_size).item() for rows in whole
    ]
    assert (code.n_minibatches, code.minibatch_size) == (len(whole), minibatch_size)
    assert code.minibatch_entropy == pytest.approx(sum(entropies) / len(whole), abs=1e-12)
    assert code.minibatch_entropy_miller_madow == pytest.approx(
        (sum(entropies) + sum(corrections)) / len(whole), abs=1e-12
    )
    if len(acts) == len(whole) * minibatch_size:
        assert known(code.minibatch_entropy) <= code.marginal_entropy + 1e-12


def test_a_minibatch_that_is_not_finished_does_not_count():
    statistics = CodeStatistics(2, minibatch_size=4)
    statistics.update(code_with_rates([0.5, 0.0], 4)[:3])
    unfinished = statistics.compute()
    statistics.update(code_with_rates([0.5, 0.0], 4)[3:])
    statistics.update(torch.ones(3, 2))

    assert (unfinished.n_minibatches, unfinished.minibatch_entropy) == (0, None)
    assert unfinished.minibatch_entropy_miller_madow is None
    assert statistics.compute().n_minibatches == 1
    assert statistics.compute().minibatch_entropy == 1


def test_minibatches_of_consecutive_tokens_see_less_than_all_tokens_do():
    code = summary_of(code_with_rates([0.5, 0.25], 100), minibatch_size=25)

    assert code.minibatch_entropy == 0
    assert code.marginal_entropy == pytest.approx(1 + entropy_bits(0.25))


@pytest.mark.parametrize("size", [0, -5])
def test_minibatches_of_no_token_are_refused(size):
    with pytest.raises(ValueError, match=f"at least 1; got {size}"):
        CodeStatistics(2, minibatch_size=size)


# Joint entropies


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 60), d=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 2**16)
)
def test_joint_entropies_equal_those_of_explicit_counts(n, d, density, seed):
    acts = random_acts(n, d, seed, density)
    bits = (acts != 0).long()
    pairs, n_fired = bits.T @ bits, bits.sum(0)
    statistics = CodeStatistics(d, pair_counts=True)

    for batch in acts.split(7):
        statistics.update(batch)
    code = statistics.compute()

    tree = chow_liu_tree(n_fired, lambda i: pairs[i], n)
    by_chance = chow_liu_tree(n_fired, chance_co_firing(n_fired, n), n)
    distinct = Counter(tuple(row) for row in bits.tolist())
    assert code.chow_liu_entropy == tree.entropy
    assert code.total_correlation == tree.information.sum().item()
    assert code.chance_total_correlation == by_chance.information.sum().item()
    assert code.n_distinct_codes == len(distinct)
    assert code.plug_in_entropy == pytest.approx(
        plug_in_entropy(torch.tensor([*distinct.values()])), abs=1e-12
    )
    assert code.plug_in_ceiling == math.log2(n)
    # What holds between them.
    assert known(code.plug_in_entropy) <= known(code.chow_liu_entropy) + 1e-11
    assert known(code.chow_liu_entropy) <= code.marginal_entropy + 1e-11
    assert known(code.plug_in_entropy) <= known(code.plug_in_ceiling) + 1e-12
    assert code.marginal_entropy - known(code.chow_liu_entropy) == pytest.approx(
        code.total_correlation, abs=1e-11
    )


@pytest.mark.parametrize("d", [1, 2, 3, 4, 6, 10])
def test_pairs_counted_in_tiles_equal_plain_ones(monkeypatch, d):
    acts = random_acts(50, d)
    bits = (acts != 0).long()
    whole = summary_of(acts, pair_counts=True)
    monkeypatch.setattr(code_statistics, "_TILE", 3)
    statistics = CodeStatistics(d, pair_counts=True)

    for batch in acts.split(20):
        statistics.update(batch)

    rows = torch.stack([statistics._co_fired_with(i) for i in range(d)])
    assert torch.equal(rows, bits.T @ bits)
    assert statistics.compute().to_dict() == whole.to_dict()


def test_a_duplicated_latent_raises_the_marginal_entropy_only():
    acts = random_acts(200, 4)

    once = summary_of(acts, pair_counts=True)
    twice = summary_of(torch.cat([acts, 2 * acts], 1), pair_counts=True)

    assert twice.marginal_entropy == pytest.approx(2 * once.marginal_entropy)
    assert twice.chow_liu_entropy == pytest.approx(once.chow_liu_entropy)
    assert twice.plug_in_entropy == pytest.approx(once.plug_in_entropy)
    assert twice.n_distinct_codes == once.n_distinct_codes


def test_independent_latents_show_no_more_correlation_than_chance():
    code = summary_of(random_acts(2000, 20), pair_counts=True)

    assert code.total_correlation == pytest.approx(code.chance_total_correlation, rel=0.5)
    assert 0 < known(code.total_correlation) < 0.01 * code.marginal_entropy


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 50))
def test_entropies_do_not_depend_on_polarity(seed, n):
    bits = random_acts(n, 6, seed) != 0
    flipped = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5

    one, other = (
        summary_of(code, pair_counts=True, minibatch_size=5) for code in (bits, bits ^ flipped)
    )

    assert other.n_distinct_codes == one.n_distinct_codes
    for name in ("marginal", "minibatch", "chow_liu", "plug_in"):
        value, expected = getattr(other, f"{name}_entropy"), getattr(one, f"{name}_entropy")
        assert value == (None if expected is None else pytest.approx(expected, abs=1e-11))


@pytest.mark.parametrize(("n", "warns"), [(99, True), (100, False)])
def test_few_tokens_for_a_tree_are_warned_of(caplog, n, warns):
    with caplog.at_level(logging.WARNING):
        summary_of(random_acts(n, 5), pair_counts=True)

    assert (f"5 latents rests on {n} tokens; below 100" in caplog.text) == warns
    assert len(caplog.records) == warns


def test_nothing_is_warned_of_where_pairs_are_not_counted(caplog):
    summary_of(random_acts(3, 5))

    assert caplog.records == []


# Magnitudes


def test_a_code_of_one_value_a_latent_is_one_bit_whatever_the_values():
    bits = random_acts(50, 4) != 0

    for acts in (bits, bits * torch.tensor([0.3, 1.0, -2.0, 7.0]), torch.zeros(5, 4)):
        code = summary_of(acts)
        assert code.is_one_bit
        assert code.magnitude_entropy == 0
        assert code.description_length == code.marginal_entropy


@pytest.mark.parametrize("other", [1.001, -1.0, 1e30])
def test_two_values_of_one_latent_are_not_one_bit(other):
    statistics = CodeStatistics(2)
    statistics.update(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert statistics.compute().is_one_bit

    statistics.update(torch.tensor([[0.0, 1.0], [other, 0.0]]))

    code = statistics.compute()
    assert not code.is_one_bit
    assert (code.magnitude_entropy, code.description_length) == (None, None)


def test_magnitude_entropy_is_that_of_the_quantizers_cells():
    acts = random_acts(100, 4)
    quantizer = quantizer_of(acts[:30], bits=2.5)

    code = summary_of(acts, quantizer=quantizer)

    assert code.magnitude_bits == 2.5
    assert code.magnitude_entropy == magnitude_entropy(quantizer.count(acts), 100)
    assert known(code.magnitude_entropy) > 0


def test_a_one_bit_code_has_no_magnitudes_to_say():
    acts = (random_acts(100, 4) != 0).float()

    assert summary_of(acts, quantizer=quantizer_of(acts)).magnitude_entropy == 0


@pytest.mark.parametrize("pair_counts", [True, False])
def test_a_description_says_which_latents_fire_and_how_much(pair_counts):
    acts = random_acts(100, 4)

    code = summary_of(acts, pair_counts=pair_counts, quantizer=quantizer_of(acts))

    bound = support_bits(code.to_dict())
    assert code.support_entropy == bound
    assert code.description_length == bound + known(code.magnitude_entropy)


def test_a_description_is_not_shortened_by_what_chance_shows():
    # Independent latents on few tokens: all that the tree explains is noise.
    acts = (torch.rand(60, 30, generator=torch.Generator().manual_seed(0)) < 0.3).float()

    code = summary_of(acts, pair_counts=True)

    assert known(code.total_correlation) > 1
    assert known(code.description_length) > known(code.chow_liu_entropy) + 1
    assert known(code.description_length) <= code.marginal_entropy


def test_a_quantizer_of_another_width_is_refused():
    with pytest.raises(ValueError, match="of 4 latents; the quantizer is of 3"):
        CodeStatistics(4, quantizer=quantizer_of(random_acts(20, 3)))


# Levels

VALUES = torch.tensor([[1.0, 2.0, 4.0], [0.1, 0.2, 0.3], [3.0, 5.0, 5.5], [1.0, 1.5, 9.0]])


def acts_at(levels: Tensor, values: Tensor = VALUES) -> Tensor:
    table = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    return table[torch.arange(len(table)), levels]


def random_levels(n: int, seed: int = 0) -> Tensor:
    """Of ``VALUES``: half of them 0, and the last latent at one level only where it fires."""
    levels = torch.randint(0, 6, (n, 4), generator=torch.Generator().manual_seed(seed))
    levels = torch.where(levels > 3, 0, levels)
    levels[:, 3] = levels[:, 3].clamp(max=1)
    return levels


def test_the_level_of_a_latent_that_fires_costs_its_entropy():
    # Of 8 tokens latent 0 fires on 4, at levels 1, 1, 2, 3: 1.5 bits each; latent 1 on 2, at levels
    # 1, 3: 1 bit each; latent 2 always at level 2: nothing.
    levels = torch.tensor([[1, 1, 2, 0, 3, 0, 0, 0], [0, 0, 0, 1, 0, 0, 3, 0], [2] * 8, [0] * 8]).T

    code = summary_of(acts_at(levels), level_values=VALUES)

    assert code.magnitude_entropy == pytest.approx((4 * 1.5 + 2 * 1) / 8)
    assert code.support_entropy == code.marginal_entropy == pytest.approx(1 + entropy_bits(0.25))
    assert code.description_length == pytest.approx(2 + entropy_bits(0.25))
    assert (code.is_one_bit, code.magnitude_bits) == (False, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_levels_add_up_with_the_support_to_the_entropy_of_each_latents_value(dtype):
    levels = random_levels(500)
    values = VALUES.to(dtype)

    code = summary_of(acts_at(levels, values), level_values=values)

    shares = [levels[:, j].bincount().double() / 500 for j in range(4)]
    expected = sum(-torch.xlogy(q, q).sum().item() / math.log(2) for q in shares)
    assert code.description_length == pytest.approx(expected)


def test_counting_levels_changes_nothing_else():
    acts = acts_at(random_levels(300))
    every = {"pair_counts": True, "minibatch_size": 50, "W_dec": torch.eye(4)}

    code, plain = summary_of(acts, level_values=VALUES, **every), summary_of(acts, **every)

    own = {"magnitude_entropy": code.magnitude_entropy}
    own["description_length"] = plain.support_entropy + known(code.magnitude_entropy)
    # Counted from the other end, a latent of levels is off at the highest one.
    own |= {name: getattr(code, name) for name in FOLDED}
    assert code.to_dict() == plain.to_dict() | own
    assert known(code.magnitude_entropy) > 1


FOLDED = ("l0_folded", "dense_share_10_folded", "dense_share_1_folded")


def test_a_code_of_levels_is_not_one_bit_though_few_tokens_show_one_value():
    code = summary_of(VALUES[:, 1].expand(5, -1), level_values=VALUES)

    assert not code.is_one_bit
    assert code.magnitude_entropy == 0


def test_one_level_a_latent_is_a_code_of_bits():
    acts = acts_at(random_levels(50).clamp(max=1))

    code = summary_of(acts, level_values=VALUES[:, :1])

    assert code.to_dict() == summary_of(acts).to_dict()
    assert code.is_one_bit


def test_densities_of_inverted_latents_of_levels_are_those_of_training():
    levels = random_levels(400)
    flipped = torch.tensor([True, False, True, False])
    inverted = torch.where(flipped, 3 - levels, levels)

    raw = summary_of(acts_at(levels), level_values=VALUES).to_dict()
    code = summary_of(acts_at(inverted), flipped, level_values=VALUES).to_dict()

    names = (*FOLDED, "l0_raw", "dense_share_10", "dense_share_1", "max_density", "always_on_share")
    assert {n: code[n] for n in names} == about({n: raw[n] for n in names}, 1e-12)
    assert code["l0"] != raw["l0"]


def test_pairs_of_inverted_latents_of_levels_are_not_known():
    acts = acts_at(random_levels(100))
    on = torch.tensor([False, True, False, False])

    known_pairs, unknown = (
        summary_of(acts, flipped, pair_counts=True, level_values=VALUES) for flipped in (None, on)
    )

    assert known_pairs.exclusive_dense_pairs == 0
    assert unknown.exclusive_dense_pairs is None


def test_levels_are_merged():
    acts, parts = acts_at(random_levels(90)), []
    for rows in acts.split(40):
        parts.append(CodeStatistics(4, level_values=VALUES.clone()))
        parts[-1].update(rows)

    for part in parts[1:]:
        parts[0].merge(part)

    whole = summary_of(acts, level_values=VALUES)
    assert parts[0].compute().to_dict() == about(whole.to_dict(), 1e-12)


def test_values_may_change_after_the_statistics_were_made():
    values = VALUES.clone()
    statistics = CodeStatistics(4, level_values=values)
    values.mul_(10)
    statistics.update(acts_at(random_levels(50)))

    expected = summary_of(acts_at(random_levels(50)), level_values=VALUES)
    assert statistics.compute().magnitude_entropy == expected.magnitude_entropy


def test_levels_and_a_resolution_are_not_both():
    with pytest.raises(ValueError, match="level_values or quantizer, not both"):
        CodeStatistics(4, quantizer=quantizer_of(random_acts(20, 4)), level_values=VALUES)


def test_levels_of_another_width_are_refused():
    with pytest.raises(ValueError, match="of 3 latents; the level_values are of 4"):
        CodeStatistics(3, level_values=VALUES)
    with pytest.raises(ValueError, match="must ascend"):
        CodeStatistics(4, level_values=-VALUES)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_activations_count_like_dense_ones(shape, dtype, layout):
    acts = (random_acts(12, 3) * 8).reshape(shape).to(dtype)
    every = {"pair_counts": True, "minibatch_size": 5}
    sparse = acts.to_sparse() if layout == torch.sparse_coo else csr_of(acts)
    assert sparse.layout == layout

    assert summary_of(sparse, **every).to_dict() == summary_of(acts, **every).to_dict()


def csr_of(acts: Tensor) -> Tensor:
    if acts.ndim == 2:
        return acts.to_sparse_csr()
    # Batched, with as many entries in each: some are zeros that are written down.
    d = acts.shape[-1]
    return torch.sparse_csr_tensor(
        torch.arange(0, acts.shape[1] * d + 1, d).expand(len(acts), -1),
        torch.arange(d).repeat(acts.shape[1]).expand(len(acts), -1),
        acts.flatten(1),
        acts.shape,
    )


def test_zeros_that_a_sparse_tensor_writes_down_do_not_fire():
    indices = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    # A zero, and two entries of one place that add up to one.
    acts = torch.sparse_coo_tensor(indices, torch.tensor([2.0, 0.0, 1.0, -1.0]), (2, 2))

    assert summary_of(acts).firing_rates.tolist() == [0.5, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16, torch.float64])
def test_any_dtype_is_counted(dtype):
    acts = code_with_rates([0.25, 0.5], n=24)
    every = {"pair_counts": True, "minibatch_size": 8, "quantizer": quantizer_of(acts)}

    code = summary_of(acts.to(dtype), **every)

    torch.testing.assert_close(code.firing_rates, torch.tensor([0.25, 0.5]))
    assert code.to_dict() == summary_of(acts, **every).to_dict()


def test_rates_of_low_precision_codes_do_not_saturate():
    # bfloat16 sums stop growing at 256.
    acts = code_with_rates([0.6], n=5000).bfloat16()

    code = summary_of(acts, pair_counts=True, minibatch_size=5000)

    assert code.l0 == pytest.approx(0.6)
    assert code.minibatch_entropy == pytest.approx(entropy_bits(0.6))


def test_one_latent():
    acts = torch.tensor([[0.5], [0.0], [1.5], [0.0]])

    code = summary_of(
        acts, W_dec=torch.ones(1, 3), pair_counts=True, quantizer=quantizer_of(acts, bits=4)
    )

    assert code.chow_liu_entropy == code.plug_in_entropy == code.marginal_entropy == 1
    assert code.total_correlation == code.chance_total_correlation == 0
    assert code.magnitude_entropy == 0.5
    assert code.description_length == 1.5
    assert (code.antipodal_dense_pairs, code.exclusive_dense_pairs) == (0, 0)


def test_one_token():
    code = summary_of(
        torch.tensor([[0.0, 3.0, 1.0]]), W_dec=torch.eye(3), pair_counts=True, minibatch_size=1
    )

    assert (code.l0, code.l0_std, code.l0_5th, code.l0_median, code.l0_95th) == (2, 0, 2, 2, 2)
    assert code.marginal_entropy == code.chow_liu_entropy == code.plug_in_entropy == 0
    assert code.minibatch_entropy == code.minibatch_entropy_miller_madow == 0
    assert code.plug_in_ceiling == 0
    assert (code.n_distinct_codes, code.exclusive_dense_pairs) == (1, 0)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_code_that_never_changes_says_nothing(value):
    code = summary_of(torch.full((40, 3), value), pair_counts=True, minibatch_size=10)

    assert code.marginal_entropy == code.chow_liu_entropy == code.plug_in_entropy == 0
    assert code.minibatch_entropy == code.minibatch_entropy_miller_madow == 0
    assert code.total_correlation == code.chance_total_correlation == 0
    assert code.description_length == 0
    assert code.n_distinct_codes == 1
    assert code.dead_share == 1 - value
    assert code.always_on_share == value


@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 3), (5, 0, 3)])
def test_no_rows_change_nothing(shape):
    acts = random_acts(20, 3)
    statistics = CodeStatistics(3, True, None, 8, quantizer_of(acts))
    statistics.update(acts)
    before = copy.deepcopy(state_of(statistics))

    statistics.update(torch.zeros(shape))

    assert_same_state(statistics, before)


def test_counts_stay_exact_where_float32_would_not():
    statistics = CodeStatistics(1)
    statistics.n_tokens = 2**25
    statistics.n_fired += 2**24

    statistics.update(torch.ones(1, 1))

    assert statistics.n_fired.item() == 2**24 + 1


# Merging


def state_of(statistics: CodeStatistics) -> dict[str, Any]:
    return {name: value for name, value in vars(statistics).items() if name != "quantizer"}


def assert_same_state(statistics: CodeStatistics, expected: dict[str, Any]) -> None:
    for name, value in state_of(statistics).items():
        same = torch.equal if isinstance(value, Tensor) else lambda a, b: a == b
        assert same(value, expected[name]), name


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    n_parts=st.integers(1, 3),
    minibatch_size=st.sampled_from([1, 3, 4, 1024]),
    one_bit=st.booleans(),
)
def test_batches_and_parts_in_any_division_equal_one_pass(
    seed, sizes, n_parts, minibatch_size, one_bit
):
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(sum(sizes) + 1, 7, generator=generator).relu()
    acts[0, 0] = 1
    acts = (acts != 0).float() if one_bit else acts
    flipped = torch.rand(7, generator=generator) < 0.5
    W_dec = torch.randn(7, 1, generator=generator)  # nearly all pairs are (anti)parallel
    make = (7, True, flipped, minibatch_size, quantizer_of(acts))
    whole = CodeStatistics(*make)
    whole.update(acts)

    parts = [CodeStatistics(*make) for _ in range(n_parts)]
    for i, batch in enumerate(acts.split([*sizes, 1])):
        parts[i % n_parts].update(batch)
    merged = CodeStatistics(*make)
    for part in parts:
        merged.merge(part)

    assert without_minibatches(merged.compute(W_dec)) == without_minibatches(whole.compute(W_dec))
    assert torch.equal(merged.compute().firing_rates, whole.compute().firing_rates)
    assert torch.equal(merged.compute().l0_counts, whole.compute().l0_counts)
    assert merged.n_minibatches == sum(part.n_tokens // minibatch_size for part in parts)


def without_minibatches(code: CodeSummary) -> dict[str, Any]:
    own = {"minibatch_entropy", "minibatch_entropy_miller_madow", "n_minibatches"}
    # Sums over distinct codes, in the order in which they were first seen.
    scalars = {name: value for name, value in code.to_dict().items() if name not in own}
    return scalars | {"plug_in_entropy": pytest.approx(code.plug_in_entropy, abs=1e-12)}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), parts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_parts_of_whole_minibatches_have_the_minibatch_entropy_of_one_pass(seed, parts):
    acts = random_acts(6 * (sum(parts) + 1), 5, seed)
    whole = CodeStatistics(5, minibatch_size=6)
    whole.update(acts)

    merged = CodeStatistics(5, minibatch_size=6)
    for rows in acts.split([6 * part for part in (*parts, 1)]):
        part = CodeStatistics(5, minibatch_size=6)
        part.update(rows)
        merged.merge(part)

    assert merged.compute().to_dict() == pytest.approx(whole.compute().to_dict(), abs=1e-12)


def test_a_merge_leaves_ones_own_open_minibatch_open():
    one, other = CodeStatistics(1, minibatch_size=2), CodeStatistics(1, minibatch_size=2)
    one.update(torch.tensor([[1.0]]))
    other.update(torch.tensor([[1.0], [1.0], [0.0]]))

    one.merge(other)
    one.update(torch.tensor([[0.0]]))

    assert one.compute().n_minibatches == 2
    assert one.compute().minibatch_entropy == 0.5


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


@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_refused_and_not_counted(bad, dtype, layout):
    acts = random_acts(20, 2)
    statistics = CodeStatistics(2, True, None, 3, quantizer_of(acts))
    statistics.update(acts)
    before = copy.deepcopy(state_of(statistics))
    broken = torch.tensor([[1.0, 0.0], [0.0, bad]], dtype=dtype)
    broken = {"dense": broken, "coo": broken.to_sparse(), "csr": broken.to_sparse_csr()}[layout]

    with pytest.raises(ValueError, match="NaN or infinite"):
        statistics.update(broken)

    assert_same_state(statistics, before)


def test_activations_of_a_wrong_width_are_not_counted():
    statistics = CodeStatistics(2, True)
    before = copy.deepcopy(state_of(statistics))

    with pytest.raises(ValueError, match="of 2 latents"):
        statistics.update(torch.ones(4, 3))

    assert_same_state(statistics, before)


def test_nothing_seen_is_refused():
    statistics = CodeStatistics(2)
    statistics.update(torch.zeros(0, 2))

    with pytest.raises(ValueError, match=r"call update\(\)"):
        statistics.compute()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (CodeStatistics(2), CodeStatistics(3)),
        (CodeStatistics(2), CodeStatistics(2, flipped=torch.tensor([True, False]))),
    ],
)
def test_different_codes_are_not_merged(one, other):
    with pytest.raises(ValueError, match="same code"):
        one.merge(other)


@pytest.mark.parametrize("name", ["pair_counts", "minibatch_size", "quantizer", "level_values"])
def test_different_settings_are_not_merged(name):
    acts = random_acts(20, 2)
    setting = {
        "pair_counts": True,
        "minibatch_size": 7,
        "quantizer": quantizer_of(acts),
        "level_values": VALUES[:2],
    }[name]
    one, other = CodeStatistics(2), CodeStatistics(2, **{name: setting})
    other.update(acts)
    before = copy.deepcopy(state_of(one))

    for first, second in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=f"{name} differs"):
            first.merge(second)

    assert_same_state(one, before)


def test_codes_of_other_levels_are_not_merged():
    one = CodeStatistics(4, level_values=VALUES)
    for other in (VALUES + 1, VALUES[:, :2]):
        with pytest.raises(ValueError, match="level_values differs"):
            one.merge(CodeStatistics(4, level_values=other))


def test_flipped_of_another_width_is_refused():
    with pytest.raises(ValueError, match="flipped"):
        CodeStatistics(4, flipped=torch.zeros(3, dtype=torch.bool))


def test_a_number_is_no_activation():
    with pytest.raises(ValueError, match=r"of 4 latents; got activations of shape \(\)"):
        CodeStatistics(4).update(torch.tensor(1.0))


def test_flipped_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match="must be bools"):
        CodeStatistics(2, flipped=torch.zeros(2))


def test_more_tokens_than_pairs_can_be_counted_over_are_refused():
    statistics = CodeStatistics(2, pair_counts=True)
    statistics.n_tokens = 10**9 - 2

    with pytest.raises(ValueError, match="999,999,999 tokens at most"):
        statistics.update(torch.ones(2, 2))

    assert statistics.n_fired.sum() == 0


def test_parts_with_equal_quantizers_of_their_own_are_merged():
    acts = random_acts(40, 3)
    parts = [CodeStatistics(3, quantizer=quantizer_of(acts)) for _ in range(2)]
    for part, rows in zip(parts, acts.split(20), strict=True):
        part.update(rows)

    parts[0].merge(parts[1])

    whole = summary_of(acts, quantizer=quantizer_of(acts))
    assert parts[0].compute().magnitude_entropy == whole.magnitude_entropy


def test_l0_raw_and_folded():
    code = summary_of(code_with_rates([0.05, 0.9, 0.02]), [False, False, True])

    assert code.l0 == pytest.approx(0.97)
    assert code.l0_raw == pytest.approx(0.05 + 0.9 + 0.98)
    assert code.l0_folded == pytest.approx(0.05 + 0.1 + 0.02)
