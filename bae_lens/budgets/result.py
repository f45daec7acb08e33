"""What a sweep of budgets found: the figures, the curve, and which budget is for what."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from typing_extensions import Self

from bae_lens.budgets.options import FIELDS, NEAR
from bae_lens.charts import Curve, curves
from bae_lens.checks.consistency import check_counts, check_that
from bae_lens.files.json_file import JsonResult
from bae_lens.results import Table
from bae_lens.stats import Interval, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Purpose = Literal["read", "reconstruct", "explained_variance"]

# Gain of explained variance, per doubling of the budget, below which more of it is hardly worth while.
_HARDLY = 0.02
# Dead latents beyond which a code is not the first choice where nothing else is known; and those beyond which it has
# collapsed, whatever else is known of it: of eight times as many latents as dimensions 60 % are dead in good ones.
_MANY_DEAD, _NEARLY_ALL_DEAD = 0.1, 0.95
# Of fewer latents the 95 % intervals of none and of all that pass meet, so that no two budgets could be told apart.
_LEAST_TESTED = 4


@dataclass(frozen=True)
class BudgetPoint:
    """One training of a sweep, scored on held-out tokens.

    Attributes:
        budget: that was asked for.
        bits: per token that the code needs: which latents fire, at the rates that each has, and how strongly (levels as they
            are, real numbers in steps of 4 bits).
        explained_variance: of the held-out activations.
        l0: latents on per token.
        dense_share: of latents that fire on more than 10 % of the tokens, raw.
        dead_share: of latents that fire on none of them.
        n_enough: latents with texts enough for an intruder test; None where there was no test.
        n_tested: those that were drawn for it.
        n_passed: those of them that passed.
    """

    budget: float
    bits: float
    explained_variance: float
    l0: float
    dense_share: float
    dead_share: float
    n_enough: int | None = None
    n_tested: int = 0
    n_passed: int = 0

    @property
    def collapsed(self) -> str:
        """Why it is no code yet that came out, by its figures; empty for any other."""
        found = []
        if self.dead_share > _NEARLY_ALL_DEAD:
            found.append(f"{self.dead_share:.1%} of its latents are dead")
        if not self.explained_variance > 0:  # Nor NaN.
            found.append(f"it explains nothing (explained variance {self.explained_variance:.3f})")
        if self.bits <= 0:
            found.append("its code has no bits")
        return ", ".join(found)

    @property
    def passed_share(self) -> Interval | None:
        """Of tested latents, with its 95 % interval (Wilson); None where none was tested."""
        return wilson(self.n_passed, self.n_tested)

    @property
    def n_readable(self) -> Interval | None:
        """Latents of the whole dictionary that would pass, by the share of those tested; None where none was."""
        share = self.passed_share
        if share is None or self.n_enough is None:
            return None
        return Interval(*(bound * self.n_enough for bound in share))


class Recommendation(NamedTuple):
    """A budget for a purpose.

    Attributes:
        purpose: ``"read"``, ``"reconstruct"``, or ``"explained_variance"`` for a stated one.
        budget: to train with.
        reason: the figures that it rests on, in a sentence.
    """

    purpose: Purpose
    budget: float
    reason: str


@dataclass(frozen=True)
class BudgetSweep(JsonResult):
    """Result of ``sweep_budgets``.

    Attributes:
        field: of the config that is the budget: ``"target_entropy"`` in bits per token, or ``"k"`` in latents on.
        architecture: that was trained.
        model_name: the language model.
        hook_name: whose activations.
        d_in: their width.
        d_sae: latents.
        n_steps: of each training.
        n_config_steps: that the config asks for.
        batch_size: tokens a step.
        n_tokens: that were read for training, and trained on in as many epochs as the steps take.
        n_held_out: tokens that the figures are of.
        judge: who took the intruder test, on text that no training read; None: there was none.
        points: one a budget, in ascending order.
    """

    _file_of = "result of sweep_budgets"

    field: str
    architecture: str
    model_name: str
    hook_name: str
    d_in: int
    d_sae: int
    n_steps: int
    n_config_steps: int
    batch_size: int
    n_tokens: int
    n_held_out: int
    judge: str | None
    points: tuple[BudgetPoint, ...]

    def check(self) -> None:
        """See ``JsonResult``."""
        check_that(self.field in FIELDS, f"field must be one of {', '.join(FIELDS)}", self.field)
        check_counts(d_in=self.d_in, d_sae=self.d_sae, batch_size=self.batch_size)
        budgets = [point.budget for point in self.points]
        check_that(
            len(budgets) > 1 and budgets == sorted(set(budgets)) and budgets[0] > 0,
            "points must be of two budgets at least, in ascending order",
            budgets,
        )
        for point in self.points:
            check_that(
                0 <= point.n_passed <= point.n_tested <= self.d_sae,
                "points must have no more latents that passed than were tested",
                (point.n_passed, point.n_tested),
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own = {name: value for name, value in values.items() if name != "recommendations"}
        own["points"] = tuple(BudgetPoint(**point) for point in own["points"])
        return cls(**own)

    def recommendations(self, explained_variance: float | None = None) -> list[Recommendation]:
        """A budget for each purpose: where a training came to, in bits that were measured (asked or not), or a k that was tried; at
        a stated explained variance between two of them. None of a training that collapsed (see ``left_out``), and none at
        all where the others came to about the same bits."""
        points = [point for point in self._by_place() if not point.collapsed]
        if not points or points[-1].budget < NEAR * points[0].budget:
            return []
        found = [self._to_read(points), _to_reconstruct(points)]
        if explained_variance is not None:
            found.append(self._at(points, explained_variance))
        return found

    @property
    def left_out(self) -> str:
        """Which trainings no recommendation is of, since they collapsed, and by which figures; empty where none did."""
        unit = "bits asked" if self.field == "target_entropy" else self.field
        of_each = [f"{p.budget:g} ({p.collapsed})" for p in self.points if p.collapsed]
        return f"Left out of what is recommended: {unit} {'; '.join(of_each)}." if of_each else ""

    def _by_place(self) -> list[BudgetPoint]:
        """The points in ascending order, each with the budget that it is of: what it came to, to three digits, and not what it
        was asked for, which a short training may not reach."""
        if self.field == "k":
            return list(self.points)
        in_bits = sorted(self.points, key=lambda point: point.bits)
        return [replace(p, budget=place) for p in in_bits if (place := float(f"{p.bits:.3g}")) > 0]

    def _to_read(self, points: Sequence[BudgetPoint]) -> Recommendation:
        tested = [p for p in points if p.n_tested >= _LEAST_TESTED and p.n_readable is not None]
        too_few = [f"{p.budget:g}" for p in points if 0 < p.n_tested < _LEAST_TESTED]
        few = f"; fewer than {_LEAST_TESTED} were tested at {', '.join(too_few)}" if too_few else ""
        if not any(point.n_passed for point in tested):
            alive = [point for point in points if point.dead_share <= _MANY_DEAD]
            best = (alive or list(points))[0]
            why = "no latent passes the intruder test yet" + few
            if self.judge is None:
                why = "no judge tested latents here"
            elif not tested:
                why = "no latent has texts enough for the intruder test"
                if too_few:
                    why = f"fewer than {_LEAST_TESTED} latents took the intruder test at each"
            return Recommendation(
                "read",
                best.budget,
                f"{why}; the smallest with at most {_MANY_DEAD:.0%} dead latents, since small budgets read best in the benchmarks"
                if alive
                else f"{why}, and many latents are dead at each; the smallest, since small budgets read best in the benchmarks",
            )
        best = max(tested, key=lambda point: (_readable(point).mean, -point.budget))
        # They are drawn from two dictionaries, each with its own interval: where these meet, nothing is said.
        alike = [p.budget for p in tested if _readable(p).high >= _readable(best).low]
        others = [f"{budget:g}" for budget in dict.fromkeys(alike) if budget != best.budget]
        share, n = best.passed_share, _readable(best)
        assert share is not None
        reason = (
            f"{best.n_passed} of {best.n_tested} tested latents pass ({share.low:.0%} to {share.high:.0%}), that is {n.low:.0f} to "
            f"{n.high:.0f} of {self.d_sae:,}"
        )
        if others:
            reason += f"; not told apart from {', '.join(others)}"
        return Recommendation("read", best.budget, reason + few)

    def _at(self, points: Sequence[BudgetPoint], target: float) -> Recommendation:
        first, last = points[0], points[-1]
        if first.explained_variance >= target:
            reason = (
                f"explains {first.explained_variance:.3f} already, and is the least that was tried"
            )
            if self.left_out:
                reason += " and did not collapse"
            return Recommendation("explained_variance", first.budget, reason)
        collapsed = [point.budget for point in self._by_place() if point.collapsed]
        for low, high in pairwise(points):
            if high.explained_variance < target:
                continue
            between = [budget for budget in collapsed if low.budget <= budget <= high.budget]
            if between:
                reason = (
                    f"explains {high.explained_variance:.3f}; from {low.budget:g} ({low.explained_variance:.3f}) on nothing is "
                    f"interpolated, since it collapsed at {between[0]:g}"
                )
                return Recommendation("explained_variance", high.budget, reason)
            # Above the low one, or it would have been the high one of the pair before.
            way = (target - low.explained_variance) / (
                high.explained_variance - low.explained_variance
            )
            budget = low.budget * (high.budget / low.budget) ** way
            budget = float(math.ceil(budget)) if self.field == "k" else float(f"{budget:.3g}")
            return Recommendation(
                "explained_variance",
                budget,
                f"between {low.budget:g} ({low.explained_variance:.3f}) and {high.budget:g} ({high.explained_variance:.3f}), "
                "interpolated by the logarithm of the budget",
            )
        best = max(point.explained_variance for point in points)
        return Recommendation(
            "explained_variance",
            last.budget,
            f"the largest that was tried, and short of {target:g} after so few steps: {best:.3f} is the most that was reached",
        )

    def to_table(self) -> Table:
        """A line a budget, and what a run as short as these can say."""
        unit = "bits asked" if self.field == "target_entropy" else "k"
        head = [unit, "bits measured", "EV", "L0", "denser than 10 %", "dead"]
        if self.judge is not None:
            head += ["pass intruder test [95 %]", "readable, of all"]
        return Table(
            head, [self._cells(point) for point in self.points], [self.left_out, self.caveat]
        )

    def _cells(self, point: BudgetPoint) -> list[str]:
        cells = [f"{point.budget:g}", f"{point.bits:.0f}", f"{point.explained_variance:.3f}"]
        cells += [f"{point.l0:.1f}", f"{point.dense_share:.1%}", f"{point.dead_share:.1%}"]
        if self.judge is not None:
            share, n = point.passed_share, point.n_readable
            if share is None or n is None:
                return [*cells, "–", "–"]
            cells.append(
                f"{point.n_passed} of {point.n_tested} [{share.low:.0%}, {share.high:.0%}]"
            )
            cells.append(f"{n.mean:.0f} [{n.low:.0f}, {n.high:.0f}]")
        return cells

    @property
    def caveat(self) -> str:
        """How short the trainings were, and what longer ones change."""
        words = (
            f"Each was trained for {self.n_steps:,} steps of {self.batch_size:,} tokens, where the config asks for "
            f"{self.n_config_steps:,}, on {self.n_tokens:,} tokens, one seed, and scored on {self.n_held_out:,} held-out ones. Longer "
            "training explains more at the same budget and changes which latents are dead; so take the order of the budgets "
            "and the shape of the curve, not the figures."
        )
        if self.field == "target_entropy":
            words += (
                " What is recommended is the bits that were measured, since a short training may not come to those that it "
                "was asked for."
            )
        return words

    def plot(self, title: str = "") -> Figure:
        """Draw explained variance, and the share of latents that pass the intruder test, against the bits that were
        measured, or against k.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        points = self._by_place()
        x = [point.budget for point in points]
        lines = [
            Curve("explained variance", x, [p.explained_variance for p in points], marker="o"),
            Curve("dead latents", x, [p.dead_share for p in points], color=3, style=3, marker="x"),
        ]
        shares = [(p.budget, *share) for p in points if (share := p.passed_share) is not None]
        if shares:
            places, means, lows, highs = (list(column) for column in zip(*shares, strict=True))
            name = "pass the intruder test, of those tested"
            lines.insert(1, Curve(name, places, means, lows, highs, color=1, style=1, marker="s"))
        ticks = {f"{place:.3g}": place for place in x}
        in_bits = self.field == "target_entropy"
        label = "bits per token, measured" if in_bits else "k, latents on per token"
        return curves(lines, label, "share", ticks, title, x_base=2)


def is_near(point: BudgetPoint) -> bool:
    """Whether a code has about as many bits as were asked for, within a factor of 1.5."""
    return 1 / NEAR <= point.bits / point.budget <= NEAR


def _readable(point: BudgetPoint) -> Interval:
    found = point.n_readable
    assert found is not None
    return found


def _to_reconstruct(points: Sequence[BudgetPoint]) -> Recommendation:
    """The first from which more adds little; the last is ``NEAR`` times the first at least."""
    before = points[0]
    for point in points:
        # Between budgets nearer than that, what differs is the training and not the budget.
        following = next((p for p in points if p.budget >= NEAR * point.budget), None)
        if following is None:
            break
        gain = following.explained_variance - point.explained_variance
        per_doubling = gain / math.log2(following.budget / point.budget)
        if per_doubling < _HARDLY:
            return Recommendation(
                "reconstruct",
                point.budget,
                f"explained variance {point.explained_variance:.3f}; twice as much adds {per_doubling:+.3f}",
            )
        before = point
    # Of those that have none beyond them, which are near each other, the one that explains most.
    last = max(points[points.index(before) + 1 :], key=lambda point: point.explained_variance)
    gain = last.explained_variance - before.explained_variance
    return Recommendation(
        "reconstruct",
        last.budget,
        f"explained variance {last.explained_variance:.3f}, the most that was reached, and {gain:+.3f} from {before.budget:g}: "
        "more would explain more",
    )
