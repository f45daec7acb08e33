"""CodebookUse on codes whose statistics are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bae_lens.evals import CodebookUse


def use_of(n_codes: int, codes: list[int] | Tensor, tokens: list[int] | Tensor) -> CodebookUse:
    use = CodebookUse(n_codes)
    use.update(torch.as_tensor(codes), torch.as_tensor(tokens))
    return use


def test_codes_used_evenly():
    summary = use_of(8, [0, 1, 2, 3] * 5, list(range(20))).compute()

    assert summary.perplexity == pytest.approx(4)
    assert summary.bits_per_token == pytest.approx(2)
    assert summary.codes_in_use == 4
    assert summary.share_of_codes_in_use == 0.5


def test_perplexity_is_of_all_tokens_at_once():
    # Each batch by itself has one code.
    use = CodebookUse(4)
    for code, n in ((0, 2), (3, 6)):
        use.update(torch.full((n,), code), torch.arange(n))

    summary = use.compute()

    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert summary.bits_per_token == pytest.approx(entropy)
    assert summary.perplexity == pytest.approx(2**entropy)


def test_a_single_code():
    summary = use_of(3, [2] * 7, [5, 5, 5, 6, 6, 9, 1]).compute()

    assert (summary.perplexity, summary.bits_per_token, summary.codes_in_use) == (1, 0, 1)
    assert summary.token_purity == summary.token_purity_shuffled == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("codes", "tokens", "purity"),
    [
        # Each code one token's: which may have several codes.
        ([0, 1, 2, 2], [7, 8, 9, 9], 1),
        ([0, 1, 2, 3], [7, 7, 7, 7], 1),
        # The most frequent of each code: 2 of 3, and 1 of 2.
        ([0, 0, 0, 1, 1], [4, 4, 5, 6, 7], 3 / 5),
        ([3, 3, 3, 3], [1, 2, 3, 4], 1 / 4),
    ],
)
def test_purity_of_known_codes(codes, tokens, purity):
    assert use_of(4, codes, tokens).compute().token_purity == pytest.approx(purity)


def test_codes_that_have_nothing_to_do_with_tokens_are_as_pure_as_shuffled_ones():
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    # One token is far more frequent than all others, which any code is the purer for.
    tokens = torch.where(
        torch.rand(n, generator=generator) < 0.4,
        0,
        torch.randint(1, 500, (n,), generator=generator),
    )
    codes = torch.randint(16, (n,), generator=generator)

    unrelated = use_of(16, codes, tokens).compute()
    related = use_of(16, tokens % 16, tokens).compute()

    assert unrelated.token_purity == pytest.approx(0.4, abs=0.02)
    assert unrelated.token_purity == pytest.approx(unrelated.token_purity_shuffled, abs=0.01)
    assert related.token_purity > related.token_purity_shuffled + 0.01


def test_the_shuffle_is_always_the_same():
    codes, tokens = torch.arange(100) % 7, torch.arange(100) % 11

    assert use_of(7, codes, tokens).compute() == use_of(7, codes, tokens).compute()


def test_batches_of_any_shape_and_merged_are_all_of_them_at_once():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(6, (4, 10), generator=generator)
    tokens = torch.randint(9, (4, 10), generator=generator)
    parts = [CodebookUse(6), CodebookUse(6)]
    parts[0].update(codes[:1], tokens[:1])
    parts[1].update(codes[1:3], tokens[1:3])
    parts[1].update(codes[3], tokens[3])
    parts[1].update(codes[:0], tokens[:0])

    parts[0].merge(parts[1])

    assert parts[0].compute() == use_of(6, codes, tokens).compute()


def test_what_does_not_fit_is_refused():
    use = CodebookUse(4)
    with pytest.raises(ValueError, match="No token was counted"):
        use.compute()
    with pytest.raises(ValueError, match=r"one code per token; got \(3,\) and \(2,\)"):
        use.update(torch.zeros(3), torch.zeros(2))
    for code in (-1, 4):
        with pytest.raises(ValueError, match="between 0 and 3"):
            use.update(torch.tensor([code]), torch.tensor([1]))
    with pytest.raises(ValueError, match="4 and 5 codes cannot be merged"):
        use.merge(CodebookUse(5))
