"""What ``bae-lens demo`` has found, as a table and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bae_lens.results import Table

if TYPE_CHECKING:
    from bae_lens.evals import CodeSummary
    from bae_lens.scoring import IntruderResult
    from bae_lens.stats import Interval

# Token purity above which a latent is for a single token.
_ONE_TOKEN = 0.5
# Codes whose bits differ by a larger share are not at equal bits.
_EQUAL = 0.03


@dataclass(frozen=True, eq=False)
class Measured:
    """What held-out tokens say of a dictionary.

    Attributes:
        code: statistics of its code.
        explained_variance: with the code as it is.
        quantized_explained_variance: with the magnitudes as they are counted; None of levels.
        ce_score_zero_ablation: SAELens' score.
        ce_score_mean_ablation: the same against the mean.
        tokens_per_second: of training.
    """

    code: CodeSummary
    explained_variance: float
    quantized_explained_variance: float | None
    ce_score_zero_ablation: float
    ce_score_mean_ablation: float
    tokens_per_second: float

    @property
    def bits(self) -> float:
        """Per token, of the whole code."""
        assert self.code.description_length is not None
        return self.code.description_length


@dataclass(frozen=True, eq=False)
class Column:
    """A dictionary in the table.

    Attributes:
        intruder: result of the intruder test; None where no latent fires in enough texts to be tested.
        measured: all else; None of random directions, which were not trained.
    """

    intruder: IntruderResult | None
    measured: Measured | None = None

    def told_apart(self, **which: Any) -> Interval | None:
        """Latents that pass the intruder test, see ``IntruderResult.n_passed_of_all``."""
        return None if self.intruder is None else self.intruder.n_passed_of_all(**which)

    @property
    def not_one_token(self) -> Interval | None:
        """Those of them that are not for a single token."""
        return self.told_apart(max_purity=_ONE_TOKEN)

    def to_dict(self) -> dict[str, Any]:
        """All of it, flat, for JSON; intervals as mean, low and high."""
        values: dict[str, Any] = {
            "told_apart": self.told_apart(),
            "told_apart_not_one_token": self.not_one_token,
            "told_apart_shuffled": self.told_apart(control=True),
        }
        if self.measured is not None:
            values |= {k: v for k, v in vars(self.measured).items() if k != "code"}
            values |= self.measured.code.to_dict()
        return values


def table(columns: Mapping[str, Column]) -> str:
    """The columns as a Markdown table, what can be read first."""

    def of_all(interval: Interval | None) -> str:
        return "–" if interval is None else "{:.0f} [{:.0f}, {:.0f}]".format(*interval)

    def tested(column: Column) -> str:
        result = column.intruder
        return "–" if result is None else f"{len(result.latents):,} of {result.n_enough:,}"

    def both(measured: Measured, name: str) -> str:
        raw, folded = getattr(measured.code, name), getattr(measured.code, f"{name}_folded")
        return f"{raw:.1%} / {folded:.1%}"

    def at_that(measured: Measured) -> str:
        quantized = measured.quantized_explained_variance
        return f"{measured.explained_variance if quantized is None else quantized:.3f}"

    n_latents = max((c.intruder.n_latents for c in columns.values() if c.intruder), default=0)
    first: list[tuple[str, Callable[[Column], str]]] = [
        (f"told apart, of {n_latents:,} latents", lambda c: of_all(c.told_apart())),
        ("of them not for a single token", lambda c: of_all(c.not_one_token)),
        ("told apart where examples are shuffled", lambda c: of_all(c.told_apart(control=True))),
        ("tested, of those that fire in enough texts", tested),
    ]
    then: list[tuple[str, Callable[[Measured], str]]] = [
        ("denser than 10 %, raw / folded", lambda m: both(m, "dense_share_10")),
        ("denser than 1 %, raw / folded", lambda m: both(m, "dense_share_1")),
        ("dead", lambda m: f"{m.code.dead_share:.2%}"),
        ("latents on per token", lambda m: f"{m.code.l0:.1f}"),
        ("bits per token", lambda m: f"{m.bits:.1f}"),
        ("explained variance", lambda m: f"{m.explained_variance:.3f}"),
        ("explained variance at these bits", at_that),
        ("CE loss recovered, against zero-ablation", lambda m: f"{m.ce_score_zero_ablation:.3f}"),
        ("CE loss recovered, against mean-ablation", lambda m: f"{m.ce_score_mean_ablation:.3f}"),
        ("training, tokens per second", lambda m: f"{m.tokens_per_second:,.0f}"),
    ]
    cells = [(name, *map(show, columns.values())) for name, show in first]
    for name, show in then:
        shown = ["–" if c.measured is None else show(c.measured) for c in columns.values()]
        cells.append((name, *shown))
    return Table(("", *columns), cells).markdown()


def headline(ours: tuple[str, Column], peer: tuple[str, Column]) -> str:
    """In words how many times as many latents of ours are told apart, and whether that is at equal bits."""
    (name, own), (other_name, other) = ours, peer
    found = []
    for what, mine, theirs in (
        ("latents that are told apart", own.told_apart(), other.told_apart()),
        ("of those that are not for a single token", own.not_one_token, other.not_one_token),
    ):
        if mine is not None and theirs is not None and theirs.mean > 0:
            found.append(f"{mine.mean / theirs.mean:.2f} times as many {what}")
    said = f"{name} has {' and '.join(found)} as {other_name}."
    if not found:
        untested = [n for n, c in (ours, peer) if c.told_apart() is None]
        why = (
            f"no latents of {' and '.join(untested)} were tested"
            if untested
            else f"{other_name} has no such latent"
        )
        said = f"There is no ratio of what is told apart, for {why}."
    assert own.measured is not None
    assert other.measured is not None
    bits, others = own.measured.bits, other.measured.bits
    off = others / bits - 1 if bits > 0 else float(others > 0)
    if abs(off) <= _EQUAL:
        return f"{said} Both are at equal bits, {bits:.1f} and {others:.1f} per token."
    return (
        f"{said} They are not at equal bits: {other_name} has {abs(off):.0%} {'more' if off > 0 else 'fewer'}, "
        f"{others:.1f} per token and not {bits:.1f}. Its k is for the sizes that the demo has by default."
    )
