"""Which latents fire together, and which codes lie together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bae_lens.examples.records import Neighbor
from bae_lens.nn import squared_distances
from bae_lens.nn.joint_entropy import EXACT_ROWS

# Pair counts of so many latents take 1 GB.
MAX_PAIRED = 16_384
# Share of latents that fire from which a dense product is faster than a sparse one.
_DENSE = 1 / 16
_TILE = 2048
# Of an int32.
_MOST_TOKENS = 2**31 - 1


class PairCounts:
    """How often each two latents fire together. Memory is 4 bytes a pair, d² pairs.

    ``CodeStatistics`` counts pairs as well, but by dense products only, and all distinct codes with
    them, which memory does not bound.

    Args:
        d: number of latents.
    """

    def __init__(self, d: int) -> None:
        self.together = np.zeros((d, d), dtype=np.int32)
        self._n_tokens = 0

    def update(self, firings: Any) -> None:
        """Count tokens: a sparse matrix ``[n, d]`` that has an entry where a latent fires.

        Raises:
            ValueError: if there are more tokens in all than an int32 counts. Nothing is counted then.
        """
        n, d = firings.shape
        self._check_room(n)
        if n > EXACT_ROWS:
            for begin in range(0, n, EXACT_ROWS):
                self.update(firings[begin : begin + EXACT_ROWS])
            return
        self._n_tokens += n
        ones = firings.copy()
        ones.data = np.ones(firings.nnz, dtype=np.float32)
        if firings.nnz < _DENSE * n * d:
            product = (ones.T @ ones).tocoo()
            # Each pair is there once.
            self.together[product.row, product.col] += product.data.astype(np.int32)
            return
        bits = torch.from_numpy(ones.toarray())
        for a in range(0, d, _TILE):
            product = bits[:, a : a + _TILE].T @ bits
            self.together[a : a + _TILE] += product.int().numpy()

    def merge(self, other: PairCounts) -> None:
        """Add what another has counted of the same latents.

        Raises:
            ValueError: if there are more tokens in all than an int32 counts. Nothing is added then.
        """
        self._check_room(other._n_tokens)
        self._n_tokens += other._n_tokens
        self.together += other.together

    def _check_room(self, n_more: int) -> None:
        if self._n_tokens + n_more > _MOST_TOKENS:
            raise ValueError(
                f"Pairs are counted over {_MOST_TOKENS:,} tokens at most; there are "
                f"{self._n_tokens + n_more:,}. Read fewer tokens."
            )

    def neighbors(
        self, n_tokens: int, when_off: NDArray[np.bool_], n: int
    ) -> Iterator[tuple[Neighbor, ...]]:
        """For each latent, the n others with the largest positive phi coefficient.

        Args:
            n_tokens: tokens counted.
            when_off: ``[d]``, latents that count as firing where they do not.
            n: how many; fewer where fewer have a positive one.
        """
        fired = self.together.diagonal().astype(np.int64)
        rate = np.where(when_off, n_tokens - fired, fired).astype(np.float64)
        spread = np.sqrt(rate * (n_tokens - rate))
        for begin in range(0, len(fired), _TILE // 8):
            rows = slice(begin, begin + _TILE // 8)
            both = self.together[rows].astype(np.float64)
            both = np.where(when_off[rows, None], fired - both, both)
            both = np.where(when_off, rate[rows, None] - both, both)
            chance, size = rate[rows, None] * rate, spread[rows, None] * spread
            # A latent that always fires, or never, goes with nothing.
            phi = np.divide(n_tokens * both - chance, size, out=np.zeros_like(size), where=size > 0)
            phi[np.arange(len(phi)), np.arange(begin, begin + len(phi))] = 0
            best, values = _largest(torch.from_numpy(phi), n)
            for row, (ids, coefficients) in enumerate(zip(best, values, strict=True)):
                yield tuple(
                    Neighbor(j, min(value, 1.0), int(both[row, j]))
                    for j, value in zip(ids, coefficients, strict=True)
                    if value > 0
                )


def nearest_in_codebook(codebook: Tensor, n: int) -> Iterator[tuple[Neighbor, ...]]:
    """For each code ``[d]`` of a codebook ``[K, d]``, the n nearest others, by Euclidean distance."""
    for begin in range(0, len(codebook), _TILE // 8):
        distances = squared_distances(codebook[begin : begin + _TILE // 8], codebook).sqrt()
        rows = torch.arange(len(distances), device=distances.device)
        distances[rows, rows + begin] = torch.inf
        best, values = _largest(-distances, min(n, len(codebook) - 1))
        for ids, negated in zip(best, values, strict=True):
            yield tuple(Neighbor(j, -v, None) for j, v in zip(ids, negated, strict=True))


def _largest(values: Tensor, n: int) -> tuple[list[list[int]], list[list[float]]]:
    """Columns and values of each row's n largest, of equal ones the lower column first; which of
    those is left out where not all of them fit is up to torch."""
    columns = values.topk(min(n, values.shape[1])).indices.sort(dim=1).values
    largest, order = values.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return columns.gather(1, order).tolist(), largest.tolist()
