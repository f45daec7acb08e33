"""Pruning takes the bits away that a plain greedy reference takes, in its order, and stops in time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bae_lens.nn import binary_entropy, prune_bits


def make_codes(n: int, rates: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, len(rates), generator=generator) < torch.tensor(rates)).float()


def make_problem(seed: int, n: int = 200, d_sae: int = 9, d_in: int = 5) -> tuple[Tensor, Tensor]:
    """Bits of different rates, and vectors that they explain in part."""
    generator = torch.Generator().manual_seed(seed)
    rates = (0.05 + 0.9 * torch.rand(d_sae, generator=generator)).tolist()
    codes = make_codes(n, rates, seed)
    weights = torch.randn(d_sae, d_in, generator=generator)
    return codes, codes @ weights + 0.7 * torch.randn(n, d_in, generator=generator) + 3


def refit(codes: Tensor, x: Tensor) -> tuple[float, Tensor]:
    """Squared error of the least-squares decoder with a bias, and that decoder."""
    design = torch.cat([codes, torch.ones(len(codes), 1)], dim=1).double()
    solution = torch.linalg.lstsq(design, x.double(), driver="gelsd").solution
    return (x.double() - design @ solution).square().sum().item(), solution


def greedy_reference(codes: Tensor, x: Tensor, max_unexplained: float) -> list[int]:
    """Refit without each bit in turn; drop the one that costs the least error per bit of entropy."""
    kept = list(range(codes.shape[1]))
    allowed = max_unexplained * (x - x.mean(0)).double().square().sum().item()
    error, _ = refit(codes, x)
    while True:
        options = []
        for j in kept:
            without, _ = refit(codes[:, [i for i in kept if i != j]], x)
            if without <= allowed:
                freed = binary_entropy(codes[:, j].double().mean()).item()
                options.append(((without - error) / freed, j, without))
        if not options:
            return kept
        _, worst, error = min(options)
        kept.remove(worst)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_unexplained", [0.1, 0.25, 0.5, 0.8])
def test_it_keeps_what_a_plain_greedy_reference_keeps(seed, max_unexplained):
    codes, x = make_problem(seed)

    kept, W_dec, b_dec = prune_bits(codes, x, max_unexplained)

    assert kept.tolist() == greedy_reference(codes, x, max_unexplained)
    error, solution = refit(codes[:, kept], x)
    torch.testing.assert_close(torch.cat([W_dec, b_dec[None]]), solution, rtol=1e-5, atol=1e-6)
    share = error / (x - x.mean(0)).square().sum().item()
    assert share <= max_unexplained * (1 + 1e-6) or len(kept) == codes.shape[1]


def test_more_is_taken_away_where_more_may_be_left_unexplained():
    codes, x = make_problem(0, d_sae=20, n=500)

    sizes = [len(prune_bits(codes, x, share)[0]) for share in (0.0, 0.2, 0.4, 0.6, 0.9)]

    assert sizes[0] == 20
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[1]


def test_duplicated_and_inverted_bits_go_first_and_cost_nothing():
    codes, x = make_problem(1, n=400)
    doubled = torch.cat([codes, codes[:, :4], 1 - codes[:, 4:7]], dim=1)
    before, _ = refit(codes, x)

    # Less than all bits together leave unexplained, so that only what is redundant may go.
    kept, W_dec, b_dec = prune_bits(doubled, x, 0.0)

    assert len(kept) == 9
    assert sorted(_original(j) for j in kept.tolist()) == list(range(9))
    error = (x.double() - doubled[:, kept].double() @ W_dec - b_dec).square().sum().item()
    assert error == pytest.approx(before, rel=1e-4)


def _original(j: int) -> int:
    return j if j < 9 else j - 9


def test_a_sum_of_bits_that_is_constant_is_redundant():
    # Three bits of which exactly one is on: the third follows from the others.
    one_hot = torch.nn.functional.one_hot(torch.arange(300) % 3).float()
    x = one_hot @ torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])

    kept, W_dec, b_dec = prune_bits(one_hot, x, 1e-6)

    assert len(kept) == 2
    torch.testing.assert_close(
        one_hot[:, kept].double() @ W_dec + b_dec, x.double(), atol=1e-3, rtol=1e-3
    )


def test_constant_bits_go_at_once():
    codes, x = make_problem(2)
    padded = torch.cat([torch.zeros(len(x), 1), codes, torch.ones(len(x), 2)], dim=1)

    kept, _, _ = prune_bits(padded, x, 0.0)

    assert kept.tolist() == list(range(1, 10))


def test_of_two_bits_alike_in_cost_the_one_with_more_entropy_goes():
    # Two bits that matter equally: scaled so that dropping either raises the error by as much.
    codes = make_codes(4000, [0.5, 0.05])
    spread = codes.var(0, unbiased=False).sqrt()
    x = torch.diag(1 / spread)
    x = codes @ x

    kept, _, _ = prune_bits(codes, x, 0.6)

    assert kept.tolist() == [1]


def test_one_bit_stays_where_none_explain_anything():
    codes, x = make_problem(3)

    kept, W_dec, b_dec = prune_bits(codes, torch.randn(x.shape), 0.9999)

    assert len(kept) == 1
    assert W_dec.shape == (1, 5)
    assert b_dec.shape == (5,)
