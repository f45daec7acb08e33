"""Entropies of a code: of a minibatch, joint, with magnitudes and with levels."""

from __future__ import annotations

import logging
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.evals import CodeStatistics, code_statistics
from bae_lens.evals.magnitudes import magnitude_entropy
from bae_lens.nn import (
    chance_co_firing,
    chow_liu_tree,
    marginal_entropy,
    miller_madow_correction,
    plug_in_entropy,
)
from tests.evals.code_cases import (
    VALUES,
    code_with_rates,
    entropy_bits,
    quantizer_of,
    random_acts,
    summary_of,
)
from tests.helpers import about, known, support_bits

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
