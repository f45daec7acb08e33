"""How often each latent fires at each token of the vocabulary, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


class TokenCounts:
    """Misra–Gries summaries: of each group the most frequent tokens with their counts.

    Of each group ``capacity`` counters are kept. Where there are twice as many, all of them are
    lowered by the largest that does not fit, and those that reach zero go. So a count is never too
    high, and too low by ``short_by`` at most, which is below n / capacity of the n tokens of the
    group: a token with a larger share than that is never lost. A group with fewer tokens than
    counters is counted exactly.

    What is kept depends on where updates begin and end, so callers make them of equal size. Memory
    is 12 to 16 bytes a counter, 2 · capacity a group at most, and the update.

    Args:
        n_groups: number of groups (latents).
        capacity: counters of each.
    """

    def __init__(self, n_groups: int, capacity: int) -> None:
        self.capacity = capacity
        self.counts: Any = sparse.csr_matrix((n_groups, 1), dtype=np.int64)
        self.short_by = np.zeros(n_groups, dtype=np.int64)
        self.n_counted = np.zeros(n_groups, dtype=np.int64)

    def update(self, groups: NDArray[Any], tokens: NDArray[Any]) -> None:
        """Count tokens: the group and the id of each, ``[m]``."""
        if len(tokens) == 0:
            return
        n_groups, width = self.counts.shape
        width = max(width, int(tokens.max()) + 1)
        self.counts.resize(n_groups, width)
        ones = np.ones(len(tokens), dtype=np.int64)
        # Building it adds up what is there several times.
        self.counts = self.counts + sparse.csr_matrix(
            (ones, (groups, tokens)), shape=(n_groups, width)
        )
        self.n_counted += np.bincount(groups, minlength=n_groups)
        self._prune()

    def merge(self, other: TokenCounts) -> None:
        """Add what another has counted of as many groups: ``short_by`` is then that of both, and more where
        counters do not fit."""
        n_groups, width = self.counts.shape
        width = max(width, other.counts.shape[1])
        theirs = other.counts.copy()
        for counts in (self.counts, theirs):
            counts.resize(n_groups, width)
        self.counts = self.counts + theirs
        self.short_by += other.short_by
        self.n_counted += other.n_counted
        self._prune()

    def _prune(self) -> None:
        sizes = np.diff(self.counts.indptr)
        full = np.flatnonzero(sizes > 2 * self.capacity)
        if len(full) == 0:
            return
        part = self.counts[full]
        order = np.lexsort((-part.data, np.repeat(np.arange(len(full)), sizes[full])))
        first_that_does_not_fit = part.data[order[part.indptr[:-1] + self.capacity]]
        self.short_by[full] += first_that_does_not_fit
        lowered_by = np.zeros_like(self.short_by)
        lowered_by[full] = first_that_does_not_fit
        self.counts.data -= np.repeat(lowered_by, sizes)
        np.maximum(self.counts.data, 0, out=self.counts.data)
        self.counts.eliminate_zeros()


def top_of(counts: Any, group: int, n: int) -> list[tuple[int, int]]:
    """The n columns with the largest counts in a row of a sparse matrix, and the counts; of equal
    ones the lower column first."""
    begin, end = counts.indptr[group : group + 2]
    columns, values = counts.indices[begin:end], counts.data[begin:end]
    best = np.lexsort((columns, -values))[:n]
    return list(zip(columns[best].tolist(), values[best].tolist(), strict=True))


def lifts_of(counts: Any, totals: NDArray[np.int64], group: int, least: int) -> Any:
    """Counts of a row divided by how often their columns occur at all, as a sparse matrix of one row;
    those below ``least`` are left out."""
    row = counts[group]
    keep = row.data >= least
    values = row.data[keep] / totals[row.indices[keep]]
    return sparse.csr_matrix(
        (values, row.indices[keep], [0, int(keep.sum())]), shape=(1, counts.shape[1])
    )


def row_of(counts: Any, group: int) -> tuple[list[int], list[int]]:
    """Columns and values of a row of a sparse matrix."""
    begin, end = counts.indptr[group : group + 2]
    return counts.indices[begin:end].tolist(), counts.data[begin:end].tolist()
