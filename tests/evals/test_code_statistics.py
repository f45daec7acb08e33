"""Statistics of a code, against known answers and plain references: rates, what may be counted, merging."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bae_lens.evals import CodeStatistics, CodeSummary
from tests.evals.code_cases import (
    VALUES,
    code_with_rates,
    entropy_bits,
    quantizer_of,
    random_acts,
    summary_of,
)

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
