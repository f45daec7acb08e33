"""Intervals of scores, and the agreement of runs and judges.

Wilson intervals and Spearman's correlation are computed here and not by ``scipy.stats``, whose results differ
in the last digit of a float: figures that were saved stay as they are. Tests compare the two.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata, t
from torch import Tensor

from bae_lens.checks.install_hint import install_command

# Normal quantile of a 95 % interval.
_Z = 1.959963984540054
_RESAMPLED_AT_ONCE = 1_000_000  # entries of an index matrix


class Interval(NamedTuple):
    """A mean over examples and the bounds that it has over resamples of them.

    Of one example there is no interval, since nothing says how another would differ: the bounds are infinite, so that
    it is on neither side of anything.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of_one(cls, value: float) -> Interval:
        """That of one example, without bounds."""
        return cls(value, -math.inf, math.inf)

    @property
    def has_bounds(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def paired_bootstrap(
    differences: Float[Tensor, " n"], seed: int = 0, n_resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Percentile interval of the mean of paired differences, over examples drawn with replacement; of one example,
    without bounds.

    That another probe, fold or seed would have given other differences is not in it.

    Args:
        differences: one per example, between two conditions.
        seed: of the draws.
        n_resamples: how many times as many examples are drawn.
        level: share of the resampled means between the bounds.

    Raises:
        ValueError: if there is no difference, one is NaN or infinite, there is no resample, or
            ``level`` is not between 0 and 1.
    """
    if differences.ndim != 1 or not len(differences) or not differences.isfinite().all():
        raise ValueError(
            "differences have to be finite numbers, one per example; got shape "
            f"{tuple(differences.shape)} with {int((~differences.isfinite()).sum())} NaN or infinite."
        )
    if n_resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"n_resamples has to be 1 or more and level between 0 and 1; got {n_resamples}, {level}."
        )
    values = differences.detach().double().cpu()
    if len(values) == 1:
        return Interval.of_one(values.item())
    # Off the first one, constant differences are zeros, whose means are free of rounding.
    origin = values[0].item()
    values, n = values - origin, len(values)
    generator = torch.Generator().manual_seed(seed)
    n_at_once = max(_RESAMPLED_AT_ONCE // n, 1)
    means = torch.cat(
        [
            values[
                torch.randint(n, (min(n_at_once, n_resamples - i), n), generator=generator)
            ].mean(1)
            for i in range(0, n_resamples, n_at_once)
        ]
    )
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return Interval(origin + values.mean().item(), origin + low, origin + high)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Mean with its 95 % percentile bootstrap interval over the values, without bounds of one; None of no value.

    That the same latents with other texts or another judge would score differently is not in it.
    """
    return paired_bootstrap(torch.tensor(values, dtype=torch.float64), seed) if values else None


def balanced_interval(
    values: Sequence[float],
    classes: Sequence[int],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    n_resamples: int = 2000,
) -> Interval:
    """Mean over classes of the mean within each, as in balanced accuracy, with its 95 % percentile
    bootstrap interval.

    Args:
        values: one per example.
        classes: of the examples.
        groups: examples of one group are drawn together, since one cause makes or mars them all; None:
            each is drawn by itself. Draws in which a class is missing are left out; where all are, the
            interval is as wide as the values. Of a few groups it is too narrow: see ``wider``; where no class has
            two, there are no bounds.
        seed: of the draws.
        n_resamples: how many times as many groups are drawn.
    """
    own = np.asarray(values, dtype=np.float64)
    names, of_class = np.unique(np.asarray(classes), return_inverse=True)
    number = {name: i for i, name in enumerate(dict.fromkeys(groups or ()))}
    of_group = np.arange(len(own)) if groups is None else np.array([number[g] for g in groups])
    shape = (int(of_group.max()) + 1, len(names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (of_group, of_class), own)
    np.add.at(counts, (of_group, of_class), 1)
    mean = float((sums.sum(0) / counts.sum(0)).mean())
    if (counts > 0).sum(0).max() < 2:
        return Interval.of_one(mean)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=n_resamples)
    n_drawn = drawn @ counts
    whole = (n_drawn > 0).all(1)
    means = ((drawn @ sums)[whole] / n_drawn[whole]).mean(1)
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (own.min(), own.max())
    return Interval(mean, float(low), float(high))


def wider(one: Interval, other: Interval) -> Interval:
    """Return the wider of two intervals of the same mean."""
    return max(one, other, key=lambda interval: interval.high - interval.low)


class SeedInterval(NamedTuple):
    """A mean over seeds and half the width of its 95 % t-interval, NaN with one seed.

    Seeds split the same texts anew and train anew; that other texts would have given other numbers is
    not in the interval.
    """

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedInterval:
        """The interval of a few values."""
        x, n = torch.tensor(values, dtype=torch.float64), len(values)
        mean = x.mean().item()
        if n < 2:
            return cls(mean, math.nan)
        return cls(mean, float(t.ppf(0.975, n - 1)) * x.std().item() / math.sqrt(n))

    def format(self, digits: int) -> str:
        """``12.3 ± 0.4``, or the mean alone with one seed."""
        mean = f"{self.mean:,.{digits}f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {self.half_width:,.{digits}f}"


def wilson(k: int, n: int) -> Interval | None:
    """Share ``k / n`` with its 95 % interval (Wilson 1927); None where n is 0."""
    if n == 0:
        return None
    share, weight = k / n, _Z**2 / n
    center = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / n + weight / (4 * n))
    return Interval(share, max(center - half, 0.0), min(center + half, 1.0))


class Stratified(NamedTuple):
    """A sample of values, with what another is to be compared with it at.

    Attributes:
        values: one per example.
        strata: class of each example, such as that of how often a latent fires.
        groups: which examples have a cause in common, such as the seed of their dictionary; None: none
            have.
    """

    values: Sequence[float]
    strata: Sequence[int]
    groups: Sequence[Hashable] | None = None


class StandardizedDifference(NamedTuple):
    """Difference of two samples' means at equal strata.

    Attributes:
        interval: the difference, with its 95 % percentile bootstrap interval.
        n_matched: sum of the weights.
        n_strata: strata that both samples have.
    """

    interval: Interval
    n_matched: int
    n_strata: int


def standardized_difference(
    one: Stratified, other: Stratified, seed: int = 0, n_resamples: int = 2000
) -> StandardizedDifference | None:
    """Difference of two samples' means as if both had the same shares of the strata.

    Within each stratum s, the mean of ``one`` less that of ``other``; of these the mean with weights
    min(n_one,s, n_other,s), the same for both. Strata that only one of them has are left out, so that
    it says little of the samples where ``n_matched`` is small beside them. What differs within a
    stratum is not adjusted for.

    The interval is over groups drawn with replacement, of each sample by itself, and over their
    examples; weights are those of what is drawn. Of a few groups it is too narrow. Draws without a
    common stratum are left out; where all are, it is as wide as the values. Where a sample has one value, there are no
    bounds.

    Args:
        one: the sample that the other is subtracted from.
        other: the other.
        seed: of the draws.
        n_resamples: how many times as many groups and examples are drawn.

    Returns:
        None where the samples have no stratum in common.

    Raises:
        ValueError: if a sample has not as many strata, or groups, as values.
    """
    strata = sorted({*one.strata, *other.strata})
    rng = np.random.default_rng(seed)
    (mean,), (weights,) = _standardized(*(_by_stratum(own, strata) for own in (one, other)))
    if np.isnan(mean):
        return None
    interval = Interval.of_one(float(mean))
    if min(len(one.values), len(other.values)) > 1:
        drawn = (_by_stratum(own, strata, rng, n_resamples) for own in (one, other))
        means, _ = _standardized(*drawn)
        means = means[~np.isnan(means)]
        span = np.ptp([*one.values, *other.values])
        low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (-span, span)
        interval = interval._replace(low=float(low), high=float(high))
    return StandardizedDifference(interval, int(weights.sum()), int((weights > 0).sum()))


def _by_stratum(
    sample: Stratified,
    strata: Sequence[int],
    rng: np.random.Generator | None = None,
    n_resamples: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Number of values in each stratum and their sum, ``[n_resamples, n_strata]``; drawn, if there is an rng."""
    values = np.asarray(sample.values, dtype=np.float64)
    groups = [0] * len(values) if sample.groups is None else list(sample.groups)
    if not len(values) == len(sample.strata) == len(groups):
        raise ValueError(
            "A sample must have as many strata, and groups, as values; got "
            f"{len(values)} values, {len(sample.strata)} strata and {len(groups)} groups."
        )
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    of_group = np.array([number[group] for group in groups], dtype=np.int64)
    of_stratum = np.searchsorted(strata, sample.strata)
    times = np.ones((n_resamples, len(number)), dtype=np.int64)
    if rng is not None and number:
        times = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), n_resamples)
    counts, sums = np.zeros((2, n_resamples, len(strata)))
    for i in range(len(number)):
        # Examples of one stratum and value are drawn as one kind, which comes to the same.
        own = np.stack([of_stratum[of_group == i], values[of_group == i]])
        kinds, n = np.unique(own, axis=1, return_counts=True)
        n_drawn = np.tile(n, (n_resamples, 1))
        if rng is not None:
            n_drawn = rng.multinomial(times[:, i] * n.sum(), n / n.sum())
        is_of = kinds[0][:, None] == np.arange(len(strata))
        counts += n_drawn @ is_of
        sums += n_drawn @ (is_of * kinds[1][:, None])
    return counts, sums


def _standardized(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the strata's differences, NaN without a common one, and the weights."""
    (n_one, sum_one), (n_other, sum_other) = one, other
    weights = np.minimum(n_one, n_other)
    difference = sum_one / np.maximum(n_one, 1) - sum_other / np.maximum(n_other, 1)
    with np.errstate(invalid="ignore"):
        return (weights * difference).sum(1) / weights.sum(1), weights


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's; None of fewer than three pairs, or where one of them never changes."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def seed_agreement(scores: Sequence[Sequence[float | None]]) -> float | None:
    """Mean rank correlation between the latents' scores of each two seeds.

    Seeds draw from the same examples: what another part of the corpus would change is not in it.

    Args:
        scores: a row a latent, of its scores by seed; None: it has none.

    Returns:
        None where no two seeds have a correlation. It is low, too, where all latents are equally
        good: then see the spread of means.
    """
    n_seeds = max(map(len, scores), default=0)
    found = []
    for a, b in combinations(range(n_seeds), 2):
        pairs = [(s[a], s[b]) for s in scores]
        both = [(x, y) for x, y in pairs if x is not None and y is not None]
        found.append(rank_correlation([x for x, _ in both], [y for _, y in both]))
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def krippendorff_alpha(table: np.ndarray, level: Literal["nominal", "ordinal"]) -> float | None:
    """Krippendorff's alpha: how far judges agree, 1 everywhere, 0 as often as by chance.

    Args:
        table: ``[n_judges, n_units]`` of values, NaN where there is none.
        level: whether values have an order.

    Returns:
        None where no unit has two values, or all values are the same.

    Raises:
        ImportError: if the package krippendorff is missing; the message is the command to run.
    """
    try:
        import krippendorff  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ImportError(
            "Judges' agreement is computed by krippendorff, which is missing: "
            f"{install_command('interp')}"
        ) from e
    paired = table[:, (~np.isnan(table)).sum(0) > 1]
    if len(np.unique(paired[~np.isnan(paired)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=paired, level_of_measurement=level))


def shown(value: Interval | float | None, digits: int = 3, sign: Literal["", "+"] = "") -> str:
    """Format a value for a table; None is a dash, and an interval without bounds its mean.

    Args:
        value: to show.
        digits: after the point.
        sign: ``"+"`` shows that of positive numbers too.
    """
    if value is None:
        return "–"
    form = f"{sign}.{digits}f"
    if not isinstance(value, Interval):
        return f"{value:{form}}"
    bounds = f" [{value.low:{form}}, {value.high:{form}}]" if value.has_bounds else ""
    return f"{value.mean:{form}}{bounds}"
