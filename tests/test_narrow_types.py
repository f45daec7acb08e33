"""Sums, means, logarithms and counts of numbers in a narrow type are those of the same numbers in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

import bae_lens.evals.code_statistics as code_statistics
import bae_lens.examples.pair_counts as pair_counts
import bae_lens.nn.joint_entropy as joint_entropy
from bae_lens.activations.text_batch import TextBatch
from bae_lens.concept_ablation.passes import pool
from bae_lens.concept_ablation.removals import EqualNorm, Shrunk, Subspace
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.evals.codebook_use import CodebookUse
from bae_lens.evals.cross_layer import _Quality, _Seen
from bae_lens.evals.magnitudes import MagnitudeQuantizer
from bae_lens.evals.reconstruction import kl_from, next_token_loss
from bae_lens.examples.pair_counts import PairCounts
from bae_lens.nn import (
    binary_entropy,
    calibrated_weights,
    chance_co_firing,
    chow_liu_entropy,
    chow_liu_tree,
    component,
    entropy_of_rates,
    flip_bits,
    follow_budget,
    marginal_entropy,
    miller_madow_correction,
    mutual_information,
    off_diagonal_covariance,
    orthonormal_basis,
    plug_in_entropy,
    prune_bits,
    select_bits,
)

FLOATS = [torch.bfloat16, torch.float16]
WHOLE = [torch.int8, torch.uint8, torch.int32]
BITS = [*FLOATS, *WHOLE, torch.bool]


def bits_of(n: int, d: int = 6, seed: int = 0) -> Tensor:
    """Rates from 0.2 to 0.95: more than 255 on in a column, and more than bfloat16 counts."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.rand(n, d, generator=generator) < torch.linspace(0.2, 0.95, d)
    bits[:, 1] = bits[:, 0] ^ (torch.rand(n, generator=generator) < 0.1)
    return bits


def close(found: Any, expected: Any, rtol: float = 1e-5) -> None:
    found, expected = (torch.as_tensor(x).double() for x in (found, expected))
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_entropies_of_rates(dtype: torch.dtype) -> None:
    p = torch.linspace(0, 1, 301).to(dtype)
    assert binary_entropy(p).dtype == torch.float32
    close(binary_entropy(p), binary_entropy(p.double()))
    q = p.clone().requires_grad_()
    wide = p.double().requires_grad_()
    close(entropy_of_rates(q), entropy_of_rates(wide))
    entropy_of_rates(q).backward()
    entropy_of_rates(wide).backward()
    assert q.grad is not None
    assert wide.grad is not None
    assert q.grad.dtype == dtype
    close(q.grad, wide.grad, rtol=1e-2)


@pytest.mark.parametrize("dtype", BITS)
def test_entropy_and_covariance_of_bits(dtype: torch.dtype) -> None:
    bits = bits_of(70_000)
    expected = marginal_entropy(bits.double())
    assert marginal_entropy(bits.to(dtype)).dtype == torch.float32
    close(marginal_entropy(bits.to(dtype)), expected)
    close(chow_liu_entropy(bits.to(dtype)), chow_liu_entropy(bits.double()))
    for method in ("auto", "tiles", "strips", "pairs"):
        close(
            off_diagonal_covariance(bits.to(dtype), method),
            off_diagonal_covariance(bits.double(), method),
        )
    x = bits.double() @ torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).double()
    for search in (prune_bits, select_bits):
        found, wide = search(bits.to(dtype), x, 0.1), search(bits.double(), x, 0.1)
        assert torch.equal(found[0], wide[0])
        close(found[1], wide[1])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 127), min_size=2, max_size=40).filter(any),
    st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16]),
)
def test_entropies_of_counts(counts: list[int], dtype: torch.dtype) -> None:
    wide = torch.tensor(counts)
    narrow = wide.to(dtype)
    close(plug_in_entropy(narrow), plug_in_entropy(wide))
    close(miller_madow_correction(narrow, 1000), miller_madow_correction(wide, 1000))
    both = torch.minimum(wide, wide.flip(0))
    arguments = (both, wide, wide.flip(0))
    close(
        mutual_information(*(x.to(dtype) for x in arguments), n=1000),
        mutual_information(*arguments, n=1000),
    )
    drawn, wide_drawn = (chance_co_firing(x, 1000)(0) for x in (narrow, wide))
    assert torch.equal(drawn, wide_drawn)
    tree = chow_liu_tree(narrow, lambda i: torch.minimum(narrow, narrow[i]), 1000)
    close(tree.entropy, chow_liu_tree(wide, lambda i: torch.minimum(wide, wide[i]), 1000).entropy)


def test_counts_beyond_what_float32_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    close(plug_in_entropy(torch.tensor([2**24] * 4 + [1] * 4).float()), 2.0, rtol=1e-5)
    bits = bits_of(1000)
    expected = CodeStatistics(6, pair_counts=True)
    expected.update(bits)
    pairs = PairCounts(6)
    pairs.update(sparse.csr_matrix(bits.numpy()))
    entropy = chow_liu_entropy(bits)
    for module in (code_statistics, joint_entropy, pair_counts):
        monkeypatch.setattr(module, "EXACT_ROWS", 64)
    found = CodeStatistics(6, pair_counts=True)
    found.update(bits)
    assert torch.equal(found._co_fired_with(2), expected._co_fired_with(2))
    assert chow_liu_entropy(bits) == entropy
    parts = PairCounts(6)
    parts.update(sparse.csr_matrix(bits.numpy()))
    np.testing.assert_array_equal(parts.together, pairs.together)


def test_that_pairs_are_not_counted_beyond_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_statistics, "_MAX_PAIRED_TOKENS", 1500)
    one, other = CodeStatistics(6, pair_counts=True), CodeStatistics(6, pair_counts=True)
    for statistics in (one, other):
        statistics.update(bits_of(1000))
    with pytest.raises(ValueError, match="Pairs are counted over 1,500 tokens at most"):
        one.update(bits_of(1000))
    with pytest.raises(ValueError, match="Pairs are counted over 1,500 tokens at most"):
        one.merge(other)
    assert one.n_tokens == 1000
    assert torch.equal(one.n_fired, other.n_fired)
    monkeypatch.setattr(pair_counts, "_MOST_TOKENS", 1500)
    pairs = PairCounts(6)
    firings = sparse.csr_matrix(bits_of(1000).numpy())
    pairs.update(firings)
    before = pairs.together.copy()
    with pytest.raises(ValueError, match="1,500 tokens at most; there are 2,000"):
        pairs.update(firings)
    np.testing.assert_array_equal(pairs.together, before)


@pytest.mark.parametrize("dtype", BITS)
def test_code_statistics(dtype: torch.dtype) -> None:
    bits = bits_of(3000)
    summaries = []
    for acts in (bits.double(), bits.to(dtype)):
        parts = [CodeStatistics(6, pair_counts=True, minibatch_size=500) for _ in range(2)]
        for part, rows in zip(parts, acts.split(1500), strict=True):
            part.update(rows)
        parts[0].merge(parts[1])
        summaries.append(parts[0].compute(torch.eye(6).to(torch.bfloat16)).to_dict())
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE])
def test_magnitudes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    acts = torch.randint(0, 100, (2000, 5), generator=generator).to(dtype)
    W_dec = torch.randn(5, 4, generator=generator)
    narrow, wide = (MagnitudeQuantizer.fit(x, W_dec, 3) for x in (acts, acts.double()))
    assert narrow.is_same(wide)
    close(narrow.restored, wide.restored)
    assert torch.equal(narrow.count(acts), wide.count(acts.double()))
    rounding = 1e-2 if dtype in FLOATS else 1e-5
    close(narrow.quantize(acts), wide.quantize(acts.double()), rtol=rounding)


@pytest.mark.parametrize("dtype", FLOATS)
def test_losses_of_the_language_model(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (8 * torch.randn(2, 5, 3000, generator=generator) for _ in range(2))
    batch = TextBatch.of(torch.randint(0, 3000, (2, 5), generator=generator))
    logits, other = logits.to(dtype), other.to(dtype)
    close(next_token_loss(logits, batch), next_token_loss(logits.double(), batch))
    close(kl_from(logits, other, batch), kl_from(logits.double(), other.double(), batch))


@pytest.mark.parametrize("dtype", FLOATS)
def test_quality_of_reconstructions(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Squares beyond float16, sums beyond bfloat16's eight bits.
    target = (300 + 20 * torch.randn(2, 400, 64, generator=generator)).to(dtype)
    output = (target + 5 * torch.randn(2, 400, 64, generator=generator)).to(dtype)
    acts = torch.rand(2, 400, 600, generator=generator).to(dtype)
    valid = torch.ones(2, 400, dtype=torch.bool)
    narrow, wide = _Quality(600), _Quality(600)
    narrow.update(_Seen(target, target, acts, output), valid)
    wide.update(_Seen(*(x.double() for x in (target, target, acts, output))), valid)
    for group, expected in wide.compute().items():
        for name, value in expected.items():
            close(narrow.compute()[group][name], value, rtol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
def test_projections_and_pooled_vectors(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (50 + 300 * torch.randn(3, 700, 32, generator=generator)).to(dtype)
    read = torch.ones(3, 700, dtype=torch.bool)
    close(pool(x, read), x.double().mean(1))
    directions = torch.randn(3, 2, 32, generator=generator)
    basis = orthonormal_basis(directions)
    found = component(x, basis[:, None])
    assert found.dtype == dtype
    expected = component(x.double(), basis[:, None])
    assert ((found - expected).norm() / expected.norm()).item() < 2 * torch.finfo(dtype).eps
    one, other = (Subspace.spanned_by(v) for v in (directions, directions.flip(0)))
    index = torch.arange(3)
    for removal in (EqualNorm(one, other), Shrunk(one, other)):
        found, expected = (removal(v, index, None).double() for v in (x, x.double()))
        assert ((found - expected).norm() / expected.norm()).item() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", FLOATS)
def test_calibration(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (40 + torch.randn(500, 16, generator=generator)).to(dtype)
    W_enc, W_dec = (torch.randn(s, generator=generator).to(dtype) for s in ((16, 24), (24, 16)))
    narrow = calibrated_weights(x, W_enc, W_dec, 0.1, True)
    wide = calibrated_weights(x.double(), W_enc.double(), W_dec.double(), 0.1, True)
    for name, value in wide.items():
        assert narrow[name].dtype == dtype
        error = (narrow[name].double() - value).norm() / value.norm()
        assert error < 4 * torch.finfo(dtype).eps, name


def test_that_no_weight_is_set_to_infinity() -> None:
    x = torch.full((8, 4), 3e38)
    with pytest.raises(ValueError, match=r"activations of up to 3e\+38, from which"):
        calibrated_weights(
            x * torch.randn(8, 4).sign(), torch.randn(4, 6), torch.randn(6, 4), 0.2, True
        )


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float32])
def test_that_ids_are_whole_numbers(dtype: torch.dtype) -> None:
    ids = torch.arange(300)
    use = CodebookUse(300)
    with pytest.raises(ValueError, match="codes must be whole numbers"):
        use.update(ids.to(dtype), ids)
    with pytest.raises(ValueError, match="tokens must be whole numbers"):
        use.update(ids, ids.to(dtype))
    use.update(torch.arange(200).to(torch.uint8), torch.arange(200).to(torch.uint8))
    assert use.compute().codes_in_use == 200


@pytest.mark.parametrize("dtype", FLOATS)
def test_budgets_and_bits_that_are_inverted(dtype: torch.dtype) -> None:
    start, spent = torch.tensor(8.0).to(dtype), torch.tensor(1.5).to(dtype)
    close(follow_budget(start, spent), 8.02)
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (8, 300), "b_enc": (300,), "W_dec": (300, 8), "b_dec": (8,), "scale": (300,)}
    weights = {k: torch.randn(v, generator=generator).to(dtype) for k, v in shapes.items()}
    flipped = torch.rand(300, generator=generator) < 0.8
    narrow = flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=True)
    wide = {k: v.double() for k, v in weights.items()}
    for name, value in flip_bits(**wide, flipped=flipped, apply_b_dec_to_input=True).items():
        assert narrow[name].dtype == dtype
        error = (narrow[name].double() - value).norm() / value.norm()
        assert error < torch.finfo(dtype).eps, name
