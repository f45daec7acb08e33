"""Columns of the covariance matrix add up to all of it, and bits come through their packing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from bae_lens.distributed import n_ranks, own_rows
from bae_lens.nn import covariance_on_ranks, off_diagonal_covariance
from bae_lens.nn.covariance import ranks, strips, tiles
from bae_lens.nn.covariance.ranks import packed, unpacked
from bae_lens.nn.covariance.strips import strips_value_and_grad
from bae_lens.nn.covariance.tiles import tiles_of_columns
from bae_lens.nn.sparse_code import BitCounts, SparseCode
from tests.distributed.ranks import on_ranks, results_of

# Of these numbers no batch is divided evenly, nor are columns among three ranks.
N, D = 30, 13


def bits(n: int = N, d: int = D) -> Tensor:
    """From never to always on, in no order."""
    generator = torch.Generator().manual_seed(0)
    density = torch.linspace(0, 1, d)[torch.randperm(d, generator=generator)]
    return (torch.rand(n, d, generator=generator) < density).double()


def value_and_grad(x: Tensor, function: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = function(x)
    (3 * value).backward()
    assert x.grad is not None
    return value.detach(), x.grad


@pytest.mark.parametrize("method", ["tiles", "strips"])
@pytest.mark.parametrize("cuts", [[0, D], [0, 5, 10, D], [0, 0, 1, D, D]])
def test_columns_add_up_to_the_whole(method: str, cuts: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(tiles, "_TILE", 4)
    monkeypatch.setattr(strips, "_STRIP", 4 * D)
    monkeypatch.setattr(strips, "_MIN_WIDTH", 1)
    x = bits()
    code = SparseCode.of(x, BitCounts.of(x))
    assert code is not None
    parts = []
    for start, stop in itertools.pairwise(cuts):
        columns = slice(start, stop)
        value, grad = (
            tiles_of_columns(lambda own: x[:, own], (N, D), columns, True, x.dtype)
            if method == "tiles"
            else strips_value_and_grad(code, x.dtype, True, columns)
        )
        assert grad is not None
        assert grad.shape == (N, stop - start)
        alone, none = (
            tiles_of_columns(lambda own: x[:, own], (N, D), columns, False, x.dtype)
            if method == "tiles"
            else strips_value_and_grad(code, x.dtype, False, columns)
        )
        assert none is None
        torch.testing.assert_close(alone, value)
        parts.append((value, grad))
    expected, expected_grad = value_and_grad(x, off_diagonal_covariance)
    torch.testing.assert_close(torch.stack([value for value, _ in parts]).sum(), expected)
    torch.testing.assert_close(3 * torch.cat([grad for _, grad in parts], 1), expected_grad)


@pytest.mark.parametrize("d", [1, 7, 8, 9, 24])
def test_bits_come_through_their_packing(d: int) -> None:
    x = (torch.rand(5, d) < 0.5).float()
    rows = packed(0.25 * x)
    assert rows.shape == (5, -(-d // 8))
    assert torch.equal(unpacked(rows, slice(0, d)).float(), x)
    assert torch.equal(unpacked(rows, slice(d // 8 * 8, d)).float(), x[:, d // 8 * 8 :])
    assert unpacked(rows, slice(0, 0)).shape == (5, 0)


def own_value_and_grad(by_tiles: bool = False) -> list[tuple[Tensor, Tensor]]:
    if by_tiles:
        ranks.expected_costs = lambda *_: {"strips": 1.0, "tiles": 0.0}  # type: ignore[assignment]
    return [
        value_and_grad(own_rows(bits(N, d)).to(dtype), covariance_on_ranks)
        for d in (4 * D, D, 2)
        for dtype in (torch.float64, torch.bfloat16)
    ]


@pytest.mark.parametrize("by_tiles", [False, True])
def test_ranks_get_the_value_of_all_rows_and_the_gradient_of_their_own(by_tiles: bool) -> None:
    # Two latents for three ranks leave two of them without a column.
    of_one_process = own_value_and_grad()
    assert n_ranks() == 1
    of_ranks = results_of(on_ranks(3, own_value_and_grad, by_tiles))
    for i, (value, grad) in enumerate(of_one_process):
        for own in of_ranks:
            torch.testing.assert_close(own[i][0], value)
            assert torch.equal(own[i][0], of_ranks[0][i][0])
            assert own[i][1].dtype == grad.dtype
        gathered = torch.cat([own[i][1] for own in of_ranks])
        torch.testing.assert_close(gathered, grad, rtol=1e-2 if i % 2 else 1e-12, atol=1e-12)
