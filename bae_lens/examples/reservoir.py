"""The best of each latent's firings, and random ones, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# No entry: worse than any.
_EMPTY = np.uint64(2**64 - 1)


class FiringKeys:
    """A random number for every firing, which depends on nothing but the seed, the token and the latent.

    For one latent the numbers of different tokens are different, and spread evenly over 64 bits, so
    that the firings with the n smallest are n of them drawn at random, whatever batches they came in.
    Two latents draw apart: the one's numbers are the other's, moved on by a random step (modulo 2⁶⁴).

    Args:
        seed: 0 … 2⁶⁴ − 1.
        n_latents: number of latents.
    """

    def __init__(self, seed: int, n_latents: int) -> None:
        salts = _splitmix64(np.array([seed, seed ^ (2**63)], dtype=np.uint64))
        self._token_salt = salts[:1]
        self.of_latents = _splitmix64(np.arange(n_latents, dtype=np.uint64) + salts[1:])

    def of_tokens(self, indices: NDArray[Any]) -> NDArray[np.uint64]:
        """The part that comes from the token, by its index in the corpus; add ``of_latents``."""
        return _splitmix64(indices.astype(np.uint64) + self._token_salt)


def strongest_first(strengths: NDArray[np.float32], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Priorities in order of falling strength.

    Of equal strengths the largest key comes first, where a random sample has the smallest: two
    samples of the same firings that share none.
    """
    bits = strengths.astype(np.float32).view(np.uint32)
    # As whole numbers, floats sort by size; negative ones the wrong way round.
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    return (~rising).astype(np.uint64) << np.uint64(32) | (~keys >> np.uint64(32))


class Reservoir:
    """The ``n`` entries of each group with the smallest priorities.

    Entries may come in any number of pieces. Of equal priorities the earlier one is kept. Memory is
    ``n_groups · n`` entries (12 bytes, the place, and 4 a value), and while a piece is offered as much again
    as it needs.

    Args:
        n_groups: number of groups (latents).
        n: entries kept of each, 1 at least.
        place: what is kept of each beside its priority and strength, as a NumPy dtype.
        n_values: values that are kept of each as well, see ``offer``.
    """

    def __init__(self, n_groups: int, n: int, place: np.dtype[Any], n_values: int = 0) -> None:
        self.n = n
        self.values = np.zeros((n_groups, n, n_values), dtype=np.float32)
        self.priorities = np.full((n_groups, n), _EMPTY)
        self.strengths = np.zeros((n_groups, n), dtype=np.float32)
        self.places = np.zeros((n_groups, n), dtype=place)

    @property
    def limits(self) -> NDArray[np.uint64]:
        """``[n_groups]``: an entry has to have a smaller priority to be kept."""
        return self.priorities[:, -1]

    def offer(
        self,
        groups: NDArray[np.int64],
        priorities: NDArray[np.uint64],
        strengths: NDArray[np.float32],
        rows: NDArray[np.int64],
        places: NDArray[Any],
        values: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]] | None = None,
    ) -> None:
        """Entries, in the order of the corpus.

        Args:
            groups: ``[m]``.
            priorities: ``[m]``, the smallest are kept.
            strengths: ``[m]``.
            rows: ``[m]``, which of ``places`` is each entry's.
            places: ``[n_rows]``.
            values: of the rows and groups of those that may be kept, ``[k]`` each, gives their values,
                ``[k, n_values]``; None: there are none.
        """
        new = np.flatnonzero(priorities < self.limits[groups])
        # No more than can be kept, before places are looked up.
        new = new[_first_of_each(groups[new], priorities[new], self.n)]
        if len(new) == 0:
            return
        touched, new_groups = np.unique(groups[new], return_inverse=True)
        every_group = np.concatenate([np.repeat(np.arange(len(touched)), self.n), new_groups])
        every_priority = np.concatenate([self.priorities[touched].ravel(), priorities[new]])
        best = _first_of_each(every_group, every_priority, self.n)
        pairs = [
            (self.priorities, priorities[new]),
            (self.strengths, strengths[new]),
            (self.places, places[rows[new]]),
        ]
        if values is not None:
            pairs.append((self.values, values(rows[new], groups[new])))
        for kept, offered in pairs:
            # Each group had n entries already, empty ones among them, and so has n again.
            shape = kept.shape[2:]
            held = kept[touched].reshape(len(touched) * self.n, *shape)
            every = np.concatenate([held, offered])
            kept[touched] = every[best].reshape(len(touched), self.n, *shape)

    def merge(self, other: Reservoir) -> None:
        """Take in the entries of another of as many groups; of equal priorities this one's are kept."""
        groups = np.repeat(np.arange(len(other.priorities)), other.n)
        there = np.flatnonzero(other.priorities.ravel() != _EMPTY)
        self.offer(
            groups[there],
            other.priorities.ravel()[there],
            other.strengths.ravel()[there],
            there,
            other.places.reshape(-1),
            lambda rows, groups: other.values[groups, rows % other.n],
        )

    def of(self, group: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Strengths and places of a group's entries, the smallest priority first."""
        there = self.priorities[group] != _EMPTY
        return self.strengths[group][there], self.places[group][there]

    def values_of(self, group: int) -> NDArray[np.float32]:
        """Values of a group's entries, in the order of ``of``."""
        return self.values[group][self.priorities[group] != _EMPTY]


def _first_of_each(groups: NDArray[Any], priorities: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Indices of the n smallest priorities of each group, by group and priority."""
    order = np.lexsort((priorities, groups))
    by_group = groups[order]
    rank = np.arange(len(order)) - np.searchsorted(by_group, by_group)
    return order[rank < n]


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: different numbers for different ones, each bit at random."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
