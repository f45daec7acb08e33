"""Sums, gradients and decisions of several ranks, against what one process computes of all rows."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bae_lens.distributed import (
    all_any,
    all_gather_objects,
    all_gather_rows,
    all_max,
    all_mean,
    all_sum,
    all_sums,
    all_to_all_rows,
    broadcast,
    broadcast_object,
    n_ranks,
    own_rows,
    own_slice,
    rank,
    ranks,
    sum_gradients,
)
from tests.distributed.ranks import on_ranks, results_of


def global_rows(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)


def loss_of(x: Tensor, weight: Tensor, n: int) -> Tensor:
    """Not a sum over rows: the gradient is wrong if a rank sees its own rows only."""
    total, squares = all_sums((x @ weight).sum(0), (x @ weight).square().sum())
    return (total / n).square().sum() + total.prod() * squares.log()


def everything_on_ranks() -> dict[str, Any]:
    x = own_rows(global_rows())
    weight = nn.Parameter(torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3))
    large = nn.Parameter(torch.zeros(2**18 + 1))
    only_on_one, nowhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    half = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    loss = loss_of(x, weight, 12)
    loss.backward()
    (large * rank()).sum().backward()
    (half * (1 + 2**-7) ** rank()).sum().backward()
    if rank() == 1:
        (3 * only_on_one).sum().backward()
    parameters = [large, weight, only_on_one, nowhere, half, frozen]
    sum_gradients(parameters)
    narrow = torch.full((3,), 0.1 * (rank() + 1), dtype=torch.float32)
    compiled = torch.compile(all_sum, backend="eager")
    return {
        "ranks": n_ranks(),
        "loss": loss.detach(),
        "gradients": [p.grad for p in parameters],
        "sum": all_sum(narrow),
        "compiled sum": compiled(narrow),
        "given": narrow,
        "packed": all_sums(torch.tensor([rank()]), torch.tensor(0.5)),
        "mean": all_mean(x.mean(0)),
        "max": all_max(torch.tensor([rank(), -rank()])),
        "any": [all_any(rank() == 1), all_any(False)],
        "rows": all_gather_rows(x),
        "exchanged": all_to_all_rows(torch.arange(2 * n_ranks()) + 10 * rank()),
        "objects": all_gather_objects({"rank": rank()}),
        "first": broadcast(narrow),
        "first object": broadcast_object(f"of rank {rank()}"),
    }


@pytest.mark.parametrize("n", [2, 3])
def test_ranks_compute_what_one_process_does(n):
    weight = nn.Parameter(torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3))
    loss = loss_of(global_rows(), weight, 12)
    loss.backward()
    every = results_of(on_ranks(n, everything_on_ranks))
    for r, own in enumerate(every):
        assert own["ranks"] == n
        torch.testing.assert_close(own["loss"], loss.detach(), rtol=1e-12, atol=1e-12)
        large, of_weight, of_one, of_none, half, frozen = own["gradients"]
        torch.testing.assert_close(of_weight, weight.grad, rtol=1e-12, atol=1e-12)
        assert torch.equal(large, torch.full((2**18 + 1,), float(sum(range(n)))))
        assert torch.equal(of_one, torch.tensor([3.0, 3.0]))
        assert of_none is None
        assert frozen is None
        assert half.dtype == torch.bfloat16
        assert own["sum"][0] == pytest.approx(0.1 * n * (n + 1) / 2)
        assert torch.equal(own["sum"], own["compiled sum"])
        assert own["given"][0] == pytest.approx(0.1 * (r + 1)), "changed in place"
        assert own["packed"][0].tolist() == [sum(range(n))]
        assert own["packed"][0].dtype == torch.int64
        assert own["packed"][1].item() == 0.5 * n
        torch.testing.assert_close(own["mean"], global_rows().mean(0))
        assert own["max"].tolist() == [n - 1, 0]
        assert own["any"] == [True, False]
        assert torch.equal(own["rows"], global_rows())
        assert own["exchanged"].tolist() == [2 * r + i + 10 * s for s in range(n) for i in (0, 1)]
        assert own["objects"] == [{"rank": s} for s in range(n)]
        assert own["first"][0] == pytest.approx(0.1)
        assert own["first object"] == "of rank 0"
        # To the bit, so that decisions are the same.
        for name in ("loss", "sum", "mean"):
            assert torch.equal(own[name], every[0][name])
        assert torch.equal(of_weight, every[0]["gradients"][1])


def test_one_process_gives_back_what_it_was_given():
    x = torch.ones(2, 3, requires_grad=True)
    assert n_ranks() == 1
    assert rank() == 0
    for function in (all_sum, all_mean, all_max, all_gather_rows, all_to_all_rows, broadcast):
        assert function(x) is x
    assert all_sums(x, x)[1] is x
    assert own_rows(x) is x
    assert all_gather_objects(x) == [x]
    assert broadcast_object(x) is x
    assert all_any(True)
    parameter = nn.Parameter(torch.ones(2))
    sum_gradients([parameter])
    assert parameter.grad is None


def test_rows_that_cannot_be_divided_are_refused(monkeypatch):
    monkeypatch.setattr(ranks, "n_ranks", lambda: 3)
    monkeypatch.setattr(ranks, "rank", lambda: 2)
    assert own_slice(12) == slice(8, 12)
    assert own_rows(torch.arange(12), multiple=2).tolist() == [8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"10 rows cannot be divided among 3 processes: .* of 3,"):
        own_slice(10)
    with pytest.raises(ValueError, match=r"12 rows .* whole sequences of 8: .* a multiple of 24"):
        own_slice(12, multiple=8)


# The helper itself.


def fails_on_the_second(what: str) -> int:
    if dist.get_rank() == 1 and what == "raises":
        raise KeyError("of its own")
    if dist.get_rank() == 1 and what == "hangs":
        time.sleep(60)
    return dist.get_rank()


def test_what_a_rank_raises_comes_back():
    first, second = on_ranks(2, fails_on_the_second, "raises")
    assert (first.value, first.error) == (0, None)
    assert isinstance(second.error, KeyError)
    assert "fails_on_the_second" in second.trace
    with pytest.raises(AssertionError, match=r"rank 1: KeyError\('of its own'\)"):
        results_of([first, second])


def test_a_rank_that_hangs_is_stopped():
    outcomes = on_ranks(2, fails_on_the_second, "hangs", seconds=2)
    assert isinstance(outcomes[1].error, TimeoutError)
