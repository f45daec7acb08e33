"""The intruder test at equal firing rates.

The authors of binary sparse coding (arXiv 2509.25596) find that continuous codes win once scores are
adjusted for how often features fire: where latents that fire seldom are told apart more often, a code
with more of these has more that pass, for this alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bae_lens.results import Table
from bae_lens.scoring import IntruderResult
from bae_lens.stats import (
    Interval,
    StandardizedDifference,
    Stratified,
    shown,
    standardized_difference,
    wilson,
)

# Of firing rates, a decade.
N_BINS = 2
# Of the smaller counts together; below, bootstraps of shares say little.
LEAST_MATCHED = 20


@dataclass(frozen=True)
class ScoredLatent:
    """One latent and how it did.

    Attributes:
        level: of sparsity.
        seed: of its dictionary.
        rate: share of held-out tokens at which it fires.
        passed: whether it reaches the threshold.
        purity: share of the most frequent token among its examples.
    """

    level: int
    seed: int
    rate: float
    passed: bool
    purity: float


def scored_latents(cell: Mapping[str, Any], level: int, seed: int) -> Iterator[ScoredLatent]:
    """The latents of a cell, but for those of whom nothing was answered."""
    result = IntruderResult.from_dict(cell["result"])
    for latent, rate in zip(result.latents, cell["rates"], strict=True):
        if (accuracy := latent.accuracy()) is not None:
            passed = accuracy.mean >= result.settings.threshold
            yield ScoredLatent(level, seed, rate, passed, latent.purity)


def bin_of(rate: float, n_bins: int = N_BINS) -> int:
    """Number of the bin that begins at 10^(number / n_bins), to which the rate belongs."""
    # Powers of ten are where bins begin, whichever way their logarithms are rounded.
    return math.floor(math.log10(rate) * n_bins + 1e-9)


def bin_title(number: int, n_bins: int = N_BINS) -> str:
    """The rates of a bin."""
    percents = (float(f"{100 * 10 ** (i / n_bins):.2g}") for i in (number, number + 1))
    return "–".join(f"{percent:g}" for percent in percents) + " %"


def by_rate(latents: Mapping[str, Sequence[ScoredLatent]]) -> Table:
    """Share of the latents that pass, a row an architecture and a column a bin of firing rates."""
    bins = sorted({bin_of(own.rate) for many in latents.values() for own in many})
    rows = []
    for name, many in latents.items():
        cells = []
        for number in bins:
            own = [latent.passed for latent in many if bin_of(latent.rate) == number]
            share = wilson(sum(own), len(own))
            cells.append("–" if share is None else f"{shown(share, 2)} of {len(own)}")
        rows.append([name, *cells])
    return Table(["fires at", *map(bin_title, bins)], rows)


def sample_of(
    latents: Iterable[ScoredLatent], max_purity: float = 1.0, n_bins: int = N_BINS
) -> Stratified:
    """Whether each passes, and is for no single token, by firing rate and seed."""
    own = list(latents)
    return Stratified(
        [float(latent.passed and latent.purity <= max_purity) for latent in own],
        [bin_of(latent.rate, n_bins) for latent in own],
        [latent.seed for latent in own],
    )


def differences(
    latents: Mapping[str, Sequence[ScoredLatent]],
    pairs: Iterable[tuple[str, str]],
    levels: Mapping[int, str],
    max_purity: float = 1.0,
) -> Table:
    """One architecture's share less another's at equal firing rates, a row a pair.

    Args:
        latents: by architecture.
        pairs: whose less whose.
        levels: titles of the levels of sparsity, each of which has a column; then come all levels
            together, and these with bins half as wide.
        max_purity: latents with more of one token do not count as passing.
    """
    places: list[tuple[Sequence[int], int]] = [([level], N_BINS) for level in levels]
    places += [(list(levels), N_BINS), (list(levels), 2 * N_BINS)]
    rows = []
    for one, other in pairs:
        cells = []
        for among, n_bins in places:
            own, less = (
                sample_of((t for t in latents[name] if t.level in among), max_purity, n_bins)
                for name in (one, other)
            )
            cells.append(cell_of(standardized_difference(own, less)))
        rows.append([f"{one} less {other}", *cells])
    return Table(["", *levels.values(), "all levels", "all, bins half as wide"], rows)


def cell_of(found: StandardizedDifference | None) -> str:
    """A difference and how many latents it rests on, or only these where they are too few."""
    n = 0 if found is None else found.n_matched
    return f"–, {n}" if found is None or n < LEAST_MATCHED else f"{signed(found.interval, 2)}, {n}"


def signed(interval: Interval, digits: int = 3) -> str:
    """A difference with its bounds."""
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*interval, d=digits)
