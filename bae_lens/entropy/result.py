"""Entropies of many cells, with what they are to be compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bae_lens.charts import Curve, curves
from bae_lens.files.json_file import finite_or_none
from bae_lens.results import Table
from bae_lens.stats import SeedInterval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAUSSIAN = "gaussian"
# From here on a held-out unexplained variance counts as too high for the entropy to be trusted.
_OVERFIT = 1.1

_COLUMNS = (
    ("Chow–Liu", "chow_liu_entropy", 1),
    ("marginal", "marginal_entropy", 1),
    ("minibatch", "minibatch_entropy", 1),
    ("unexplained", "unexplained_variance", 3),
    ("Gaussian rate", "gaussian_rate", 1),
    ("plug-in ceiling", "plug_in_ceiling", 1),
    ("variance", "variance", 1),
    ("effective rank", "effective_rank", 1),
)


@dataclass(frozen=True)
class ProfileRow:
    """One estimate.

    Attributes:
        hook: name of the hook point.
        label: of the cell: a position, a range of positions, or a number of demonstrations.
        at: the same as a number, the middle of a range.
        control: None for the hidden states themselves, or what they were replaced by.
        seed: of the split into training and held-out texts, the weights and the shuffles.
        variance: trace of the covariance of the training vectors.
        effective_rank: participation ratio of its eigenvalues, (Σλ)²/Σλ². It and the variance are the
            cheap explanations of a curve. A rank of one or two means that a few tokens with huge states
            are most of the variance, and the entropy is that of whether a token is one of them.
        gaussian_rate: bits a vector that suffice for any source with that covariance at the held-out
            unexplained variance, in closed form. A code that takes as many or more shows nothing
            beyond the covariance.
        estimate: ``EntropyEstimate.to_dict()``.
    """

    hook: str
    label: str
    at: float
    control: str | None
    seed: int
    variance: float
    effective_rank: float
    gaussian_rate: float
    estimate: dict[str, Any]

    def number(self, name: str) -> float | None:
        """One of the numbers by name, of the row itself or of the estimate.

        Raises:
            KeyError: if there is none of that name.
        """
        own = ("variance", "effective_rank", "gaussian_rate")
        return getattr(self, name) if name in own else self.estimate[name]

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON; None for what is not finite."""
        own = {name: value for name, value in vars(self).items() if name != "estimate"}
        values = own | self.estimate
        return {k: finite_or_none(v) if isinstance(v, float) else v for k, v in values.items()}


@dataclass(frozen=True, eq=False)
class EntropyProfile:
    """Entropy of hidden states by hook and by position (or number of demonstrations).

    Attributes:
        rows: one per hook, cell, control and seed.
        axis: what the cells are.
        max_unexplained: the fidelity at which all entropies were taken.
        n_texts: texts (or prompts) behind each cell, held-out ones included.
        n_too_short: texts passed over because they were too short.
        n_outlier_texts: texts left out because a hidden state of theirs is an outlier.
    """

    rows: tuple[ProfileRow, ...]
    axis: Literal["token position", "demonstrations"]
    max_unexplained: float
    n_texts: int
    n_too_short: int = 0
    n_outlier_texts: int = 0

    @property
    def hooks(self) -> list[str]:
        """Hooks, in the order given."""
        return list(dict.fromkeys(row.hook for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """Labels of the cells, in the order given."""
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def controls(self) -> list[str | None]:
        """None for the states themselves, then the controls that were run."""
        return list(dict.fromkeys(row.control for row in self.rows))

    @property
    def overfit(self) -> list[ProfileRow]:
        """Rows that leave more than 1.1 × ``max_unexplained`` unexplained on held-out texts.

        Their entropy is that of a coarser code than the one asked for: too few vectors for the bits.
        """
        limit = _OVERFIT * self.max_unexplained
        return [row for row in self.rows if row.estimate["unexplained_variance"] > limit]

    def values(
        self,
        hook: str,
        label: str | int,
        control: str | None = None,
        number: str = "chow_liu_entropy",
    ) -> dict[int, float]:
        """One number of a cell by seed; NaN where it could not be computed.

        Raises:
            KeyError: if there is no such cell or number.
        """
        found = {
            row.seed: row.number(number)
            for row in self.rows
            if (row.hook, row.label, row.control) == (hook, str(label), control)
        }
        if not found:
            raise KeyError(
                f"There is no cell ({hook!r}, {str(label)!r}, {control!r}); there are the hooks "
                f"{self.hooks}, the labels {self.labels} and the controls {self.controls}."
            )
        return {seed: math.nan if value is None else value for seed, value in found.items()}

    def interval(
        self,
        hook: str,
        label: str | int,
        control: str | None = None,
        number: str = "chow_liu_entropy",
    ) -> SeedInterval:
        """Mean and 95 % t-interval over seeds of one number of a cell, see ``values``."""
        return SeedInterval.of(list(self.values(hook, label, control, number).values()))

    def difference(
        self,
        one: tuple[str, str | int, str | None],
        other: tuple[str, str | int, str | None],
        number: str = "chow_liu_entropy",
    ) -> SeedInterval:
        """Mean and 95 % t-interval of one cell less another, seed by seed.

        All cells are split alike at the same seed, so what the split does to both cancels.

        Args:
            one: hook, label and control (None for the states themselves).
            other: the same of the cell that is taken off.
            number: which number.
        """
        a, b = self.values(*one, number=number), self.values(*other, number=number)
        return SeedInterval.of([a[seed] - b[seed] for seed in a])

    def table(self) -> str:
        """Markdown: means and 95 % t-intervals over seeds.

        Entropies are in bits a vector; ``minibatch`` is the number of arXiv 2509.20997, a dash where
        there are fewer held-out vectors than a minibatch of 1,024; ``Gaussian rate`` what any source
        with that covariance would take at the unexplained variance reached.
        """
        rows = []
        for hook in self.hooks:
            for control in self.controls:
                for label in self.labels:
                    numbers = []
                    for _, number, digits in _COLUMNS:
                        interval = self.interval(hook, label, control, number)
                        is_known = not math.isnan(interval.mean)
                        numbers.append(interval.format(digits) if is_known else "–")
                    rows.append([hook, label, control or "", *numbers])
        names = ["hook", self.axis, "control", *(name for name, _, _ in _COLUMNS)]
        return Table(names, rows).markdown()

    def plot(self, title: str = "") -> Figure:
        """Draw the Chow–Liu entropy by position or number of demonstrations, a line per hook.

        Bands are 95 % t-intervals over seeds; controls are broken lines in the hook's color.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        at = {row.label: row.at for row in self.rows}
        ticks = dict(sorted(at.items(), key=lambda item: item[1]))
        is_position = self.axis == "token position"
        return curves(
            [
                self._curve(hook, control, ticks, i, j)
                for i, hook in enumerate(self.hooks)
                for j, control in enumerate(self.controls)
            ],
            "token position (BOS is 0)" if is_position else "demonstrations before the query",
            f"entropy, bits per vector, at {self.max_unexplained:g} unexplained",
            ticks,
            title,
            x_base=2 if is_position else None,
        )

    def _curve(
        self, hook: str, control: str | None, ticks: Mapping[str, float], color: int, style: int
    ) -> Curve:
        points = [self.interval(hook, label, control) for label in ticks]
        return Curve(
            name=hook if control is None else f"{hook}, {control}",
            x=list(ticks.values()),
            y=[point.mean for point in points],
            # With one seed there is no interval, and no band.
            low=[point.mean - point.half_width for point in points],
            high=[point.mean + point.half_width for point in points],
            color=color,
            style=style,
            marker="osD^"[color % 4],
            band_alpha=0.18 if control is None else 0.08,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "rows"}
        return own | {"rows": [row.to_dict() for row in self.rows]}


def overfit_warning(profile: EntropyProfile) -> str | None:
    """What to log about rows that do not hold the fidelity on held-out texts, if there are any."""
    rows = profile.overfit
    if not rows:
        return None
    worst = max(rows, key=lambda row: row.estimate["unexplained_variance"])
    kind = f" ({worst.control})" if worst.control else ""
    return (
        f"{len(rows)} of {len(profile.rows)} estimates leave over 10 % more unexplained on held-out "
        f"texts than max_unexplained = {profile.max_unexplained:g}; the most, "
        f"{worst.estimate['unexplained_variance']:.3f}, at {worst.hook} {worst.label}{kind}. Their "
        "entropies are those of coarser codes. Give more texts or wider ranges, or lower cfg.d_sae."
    )
