"""How strongly a latent fires, counted in bins that are the same for all latents, texts and ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bae_lens.checks.consistency import check_counts, check_indices, check_lengths

# Bins by which a value doubles, and powers of two that they reach from and to.
PER_OCTAVE = 8
_LOWEST, _HIGHEST = -32, 32
N_BINS, FIRST_BIN = PER_OCTAVE * (_HIGHEST - _LOWEST), PER_OCTAVE * _LOWEST


class Histogram(NamedTuple):
    """How often a latent fires how strongly.

    What is counted is the magnitude of the activation; of bits, the margin (``Example.margin``); of codes,
    the squared distance. Bin ``k`` reaches from 2^((first + k) / 8) to 2^((first + k + 1) / 8), which is 9 %
    more, in whatever units that is; what is below 2⁻³² or above 2³² counts in the outermost bin.

    Attributes:
        first: which bin the first count is of; it may be negative.
        counts: firings in each bin, the first and the last not 0; none where it never fires.
    """

    first: int
    counts: tuple[int, ...]

    def check(self) -> None:
        """
        Raises:
            ValueError: if there are no such bins, or a count is below 0.
        """
        last = self.first + max(len(self.counts), 1) - 1
        check_indices("histogram.first", [self.first, last], PER_OCTAVE * _HIGHEST, FIRST_BIN)
        check_counts(counts=min(self.counts, default=0))

    @property
    def edges(self) -> tuple[float, ...]:
        """Where bins begin and, one more than there are, end."""
        return tuple(2 ** ((self.first + k) / PER_OCTAVE) for k in range(len(self.counts) + 1))

    def quantile(
        self, share: float, least: float | None = None, greatest: float | None = None
    ) -> float | None:
        """The value that this share of firings is below, by the bins: within 9 %, and mostly much closer.

        None where there are no firings.

        Args:
            share: 0 to 1.
            least: the smallest value counted, where that is known: no quantile is below it.
            greatest: the largest, the same way. Neither moves a quantile out of its bin.
        """
        wanted, below = share * sum(self.counts), 0
        for k, n in enumerate(self.counts):
            if n > 0 and below + n >= wanted:
                value = 2 ** ((self.first + k + (wanted - below) / n) / PER_OCTAVE)
                begin, end = self.edges[k : k + 2]
                low = begin if least is None else min(max(begin, least), end)
                high = end if greatest is None else max(min(end, greatest), begin)
                return min(max(value, low), high)
            below += n
        return None


class LevelCounts(NamedTuple):
    """How often a latent of a code of levels is at each of them.

    Attributes:
        values: the activation at each level, the lowest first; what does not fire has none of them.
        counts: firings at each.
    """

    values: tuple[float, ...]
    counts: tuple[int, ...]

    def check(self) -> None:
        """
        Raises:
            ValueError: if there is not one count, 0 at least, of each level.
        """
        check_lengths(len(self.values), "levels", counts=self.counts)
        check_counts(counts=min(self.counts, default=0))

    @property
    def entropy(self) -> float:
        """Bits that the level is worth where the latent fires: 0 where it is always the same."""
        n = sum(self.counts)
        return sum(k / n * math.log2(n / k) for k in self.counts if k > 0)

    def quantile(self, share: float) -> float | None:
        """The lowest activation that this share of firings do not exceed; None where there are none."""
        wanted, below = share * sum(self.counts), 0
        for value, n in zip(self.values, self.counts, strict=True):
            below += n
            if n > 0 and below >= wanted:
                return value
        return None


def bins_of(values: NDArray[Any]) -> NDArray[np.int64]:
    """Which bin each value's magnitude is in, 0 … ``N_BINS`` − 1."""
    octaves = np.log2(np.maximum(np.abs(values.astype(np.float64)), 2.0**_LOWEST))
    bins = np.floor(PER_OCTAVE * octaves).astype(np.int64) - FIRST_BIN
    return bins.clip(0, N_BINS - 1)


def histogram_of(bins: Sequence[int], counts: Sequence[int]) -> Histogram:
    """The histogram of some of the bins, each once, in any order."""
    if not bins:
        return Histogram(0, ())
    least = min(bins)
    every = [0] * (max(bins) - least + 1)
    for k, n in zip(bins, counts, strict=True):
        every[k - least] = n
    return Histogram(least + FIRST_BIN, tuple(every))
