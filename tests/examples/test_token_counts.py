"""Bounded counts against exact ones."""

from __future__ import annotations

import numpy as np
import pytest

from bae_lens.examples.token_counts import TokenCounts, top_of

N_GROUPS, N_IDS = 6, 400


def make_pairs(n: int, seed: int = 0):
    """Groups and tokens; tokens are as uneven as words are."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.3, size=n) - 1, N_IDS - 1)
    return rng.integers(N_GROUPS - 1, size=n), tokens  # the last group has none


def exact(groups, tokens):
    counts = np.zeros((N_GROUPS, N_IDS), dtype=int)
    np.add.at(counts, (groups, tokens), 1)
    return counts


def counted(groups, tokens, capacity: int, block: int = 500) -> TokenCounts:
    counts = TokenCounts(N_GROUPS, capacity)
    for begin in range(0, len(groups), block):
        counts.update(groups[begin : begin + block], tokens[begin : begin + block])
    return counts


def dense(counts: TokenCounts):
    found = np.zeros((N_GROUPS, N_IDS), dtype=int)
    found[:, : counts.counts.shape[1]] = counts.counts.toarray()
    return found


def test_few_tokens_are_counted_exactly_whatever_the_blocks():
    groups, tokens = make_pairs(3000)

    for block in (17, 3000):
        counts = counted(groups, tokens, N_IDS, block)
        assert (dense(counts) == exact(groups, tokens)).all()
        assert (counts.short_by == 0).all()
        assert (counts.n_counted == exact(groups, tokens).sum(1)).all()


@pytest.mark.parametrize("capacity", [1, 8, 30])
def test_many_tokens_are_counted_within_the_bound(capacity):
    groups, tokens = make_pairs(20_000)
    true = exact(groups, tokens)

    counts = counted(groups, tokens, capacity)

    short = true - dense(counts)
    assert (short >= 0).all()
    assert (short <= counts.short_by[:, None]).all()
    assert (counts.short_by <= true.sum(1) / (capacity + 1)).all()
    assert counts.short_by.max() > 0
    assert (np.diff(counts.counts.indptr) <= 2 * capacity).all()


def test_the_commonest_come_first_and_of_equal_ones_the_lower_id():
    groups = np.array([2] * 7 + [1])
    tokens = np.array([9, 9, 4, 4, 7, 9, 1, 5])
    counts = counted(groups, tokens, 10).counts

    assert top_of(counts, 2, 3) == [(9, 3), (4, 2), (1, 1)]
    assert top_of(counts, 1, 3) == [(5, 1)]
    assert top_of(counts, 0, 3) == []


def test_nothing_to_count():
    counts = TokenCounts(2, 3)

    counts.update(np.array([], dtype=int), np.array([], dtype=int))

    assert counts.counts.nnz == 0
