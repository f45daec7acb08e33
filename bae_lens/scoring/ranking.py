"""Which of several dictionaries has latents that are easier to say something of, by a blind judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from typing_extensions import Self

from bae_lens.charts import Level, intervals
from bae_lens.checks.consistency import check_indices, check_lengths
from bae_lens.checks.fields import check_fields, whole
from bae_lens.checks.suggest import index_of
from bae_lens.examples.records import Example, LatentRecords
from bae_lens.files.json_file import JsonResult
from bae_lens.results import Table
from bae_lens.scoring.judges.judge import Judge, MarkedText, Question, answers_of
from bae_lens.scoring.prompts import FIRST, SECOND, TIE, compare
from bae_lens.scoring.tested_latents import n_texts, one_per_text, some
from bae_lens.stats import Interval, krippendorff_alpha, mean_interval, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# An outcome, for the one who wins by 1.
_WORTH = {1: 1.0, 0: 0.5, -1: 0.0}


@dataclass(frozen=True)
class RankingSettings:
    """Settings of ``rank_dictionaries``.

    Args:
        n_pairs (int): Pairs of latents that are compared, of each two dictionaries; fewer where a
            small dictionary gives the same pair again.
        n_shown (int): Examples of a latent, each from another text.
        seed (int): Of latents, examples, and the order of questions.

    Raises:
        ValueError: if a value is outside its range.
    """

    n_pairs: int = 100
    n_shown: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, {"n_pairs": whole(1), "n_shown": whole(2), "seed": whole(0)})


class Comparison(NamedTuple):
    """A comparison of two latents by one judge.

    Attributes:
        judge: which of the judges.
        dictionaries: which two of the dictionaries.
        latents: one of each.
        outcomes: 1: the first dictionary's latent is the clearer one, −1: the second's, 0: a tie,
            None: no usable answer; with the first one shown first, and with the second.
    """

    judge: int
    dictionaries: tuple[int, int]
    latents: tuple[int, int]
    outcomes: tuple[int | None, int | None]

    @property
    def outcome(self) -> int | None:
        """The outcome of both orders: a win only where they agree, or else a tie; None where either is missing."""
        one, other = self.outcomes
        if one is None or other is None:
            return None
        return one if one == other else 0


@dataclass(frozen=True)
class Ranking(JsonResult):
    """Result of ``rank_dictionaries``.

    Attributes:
        names: of the dictionaries, which no judge saw.
        n_enough: of each the latents with enough texts, of which those compared are drawn.
        judges: names of the judges.
        caveats: what their answers can and cannot say.
        settings: of the comparisons.
        comparisons: all of them.
        weights_sha256: of the dictionaries, see ``bae_lens.fingerprint``; none in files of versions
            before it.
    """

    _file_of = "result of rank_dictionaries"

    names: tuple[str, ...]
    n_enough: tuple[int, ...]
    judges: tuple[str, ...]
    caveats: tuple[str, ...]
    settings: RankingSettings
    comparisons: tuple[Comparison, ...]
    weights_sha256: tuple[str | None, ...] = ()

    def check(self) -> None:
        """See ``JsonResult``."""
        check_lengths(
            len(self.names), "dictionaries", names=set(self.names), n_enough=self.n_enough
        )
        check_lengths(len(self.judges), "judges", judges=set(self.judges), caveats=self.caveats)
        for own in self.comparisons:
            check_indices("comparisons.judge", [own.judge], len(self.judges))
            check_indices("comparisons.dictionaries", own.dictionaries, len(self.names))
            outcomes = [outcome for outcome in own.outcomes if outcome is not None]
            check_indices("comparisons.outcomes", outcomes, 2, least=-1)

    def win_rate(
        self, name: str, against: str | None = None, judge: str | None = None
    ) -> Interval | None:
        """How often a dictionary's latent is the clearer one, a tie counting 1/2.

        The interval is a bootstrap over pairs of latents; of several judges they are averaged first.

        Args:
            name: of the dictionary.
            against: of another one; None: all others together.
            judge: one of the judges; None: all.

        Returns:
            None where there are no answers.

        Raises:
            ValueError: if there is no such name, or both are the same.
        """
        if against == name:
            raise ValueError(f"{name!r} was not compared with itself. Give another as against.")
        own = index_of(self.names, name, "dictionary")
        other = None if against is None else index_of(self.names, against, "dictionary")
        by = None if judge is None else index_of(self.judges, judge, "judge")
        found: dict[Any, list[float]] = {}
        for c in self.comparisons:
            if own not in c.dictionaries or (other is not None and other not in c.dictionaries):
                continue
            if c.outcome is None or (by is not None and c.judge != by):
                continue
            worth = _WORTH[c.outcome]
            worth = worth if c.dictionaries[0] == own else 1 - worth
            found.setdefault((c.dictionaries, c.latents), []).append(worth)
        return mean_interval([sum(v) / len(v) for v in found.values()], self.settings.seed)

    @property
    def order(self) -> tuple[str, ...]:
        """Names, that with the highest win rate against all others first."""
        rates = {name: self.win_rate(name) for name in self.names}
        return tuple(sorted(self.names, key=lambda n: -_mean(rates[n])))

    def consistency(self, judge: str) -> float | None:
        """Share of comparisons in which both orders have the same outcome."""
        pairs = self._orders(index_of(self.judges, judge, "judge"))
        return sum(a == b for a, b in pairs) / len(pairs) if pairs else None

    def first_bias(self, judge: str) -> float | None:
        """How much more often the group shown first wins than the second: 0 without bias, ±1 where
        nothing else counts."""
        pairs = self._orders(index_of(self.judges, judge, "judge"))
        return sum(a - b for a, b in pairs) / (2 * len(pairs)) if pairs else None

    def alpha(self) -> float | None:
        """Agreement of judges: Krippendorff's alpha (ordinal) of the outcomes of both orders together.

        1: they agree everywhere, 0: as often as by chance.

        Returns:
            None with one judge, or where all outcomes are the same.

        Raises:
            ImportError: if the package krippendorff is missing; the message is the command to run.
        """
        units = {(c.dictionaries, c.latents) for c in self.comparisons}
        column = {unit: i for i, unit in enumerate(sorted(units))}
        table = np.full((len(self.judges), len(units)), np.nan)
        for c in self.comparisons:
            if c.outcome is not None:
                table[c.judge, column[c.dictionaries, c.latents]] = c.outcome
        return krippendorff_alpha(table, "ordinal") if len(self.judges) > 1 else None

    def table(self) -> str:
        """Markdown: win rates. Judges' agreement is in it where krippendorff is installed."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """Win rates, and how far judges agree with themselves and with each other, as cells."""
        rows = []
        for name in self.order:
            others = [
                "" if other == name else shown(self.win_rate(name, other), 2)
                for other in self.names
            ]
            rows.append((name, shown(self.win_rate(name), 2), *others))
        n_none = sum(c.outcome is None for c in self.comparisons)
        notes = [
            "Win rates of the row against the column, ties 1/2, with 95 % bootstrap intervals over "
            f"pairs of latents, {self.settings.n_pairs} at most. Judges saw no names; each pair was shown in "
            f"both orders, and counts as won where both say so. {n_none} comparisons had no usable "
            "answer, and are in no rate."
        ]
        notes += [
            f"{judge}: same outcome in both orders {shown(self.consistency(judge), 2)}, bias to the "
            f"first {shown(self.first_bias(judge), 2)}. {caveat}"
            for judge, caveat in zip(self.judges, self.caveats, strict=True)
        ]
        if len(self.judges) > 1:
            try:
                notes.append(f"Krippendorff's alpha of the judges: {shown(self.alpha(), 2)}.")
            except ImportError as e:
                notes.append(f"Krippendorff's alpha of the judges: {e}")
        return Table(("", "all others", *self.names), rows, notes)

    def plot(self, title: str = "") -> Figure:
        """Draw each dictionary's win rate against all others with its interval, the best first.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        return intervals(
            {name: self.win_rate(name) for name in self.order},
            "win rate against all others, ties 1/2",
            Level(0.5, ""),
            title,
            size=(6.0, 0.42, 1.2),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        own["settings"] = RankingSettings(**values["settings"])
        own["comparisons"] = tuple(
            Comparison(judge, tuple(which), tuple(latents), tuple(outcomes))
            for judge, which, latents, outcomes in values["comparisons"]
        )
        return cls(**own)

    def _orders(self, judge: int) -> list[tuple[int, int]]:
        """Outcomes of one judge in both orders, where there are both."""
        own = [c.outcomes for c in self.comparisons if c.judge == judge]
        return [(a, b) for a, b in own if a is not None and b is not None]


class _Pair(NamedTuple):
    dictionaries: tuple[int, int]
    latents: tuple[int, int]
    groups: tuple[tuple[MarkedText, ...], tuple[MarkedText, ...]]


def rank_dictionaries(
    records: Mapping[str, LatentRecords],
    judges: Judge | Sequence[Judge],
    settings: RankingSettings | None = None,
) -> Ranking:
    """Compare dictionaries latent against latent, blind.

    Of each two dictionaries pairs of latents are drawn at random, and random examples of each are shown
    side by side: which have more specifically one thing in common? Judges see no names, nor anything
    else of a dictionary, both orders of each pair, and the questions of all dictionaries mixed. Latents
    with too few texts are left out, so that a dictionary with many dead ones loses nothing by them: see
    ``Ranking.n_enough``.

    Args:
        records: of each dictionary by name, best of the same corpus.
        judges: one or several.
        settings: see ``RankingSettings``.

    Raises:
        LimitReached, JudgeUnavailable: see ``Judge``.
        ValueError: if there are fewer than two dictionaries, no judge, two judges of one name, a
            dictionary has no latent with enough texts, or a judge gives more or fewer answers than it
            was asked questions.
    """
    settings = settings or RankingSettings()
    asked: list[Judge] = list(judges) if isinstance(judges, Sequence) else [judges]
    names = [judge.name for judge in asked]
    if len(records) < 2 or not asked or len(set(names)) < len(names):
        raise ValueError(
            "A ranking is of two dictionaries at least, by one judge at least, with names of their "
            f"own; got {len(records)} dictionaries and judges {names}."
        )
    enough = [
        [own.index for own in one.latents if n_texts(own.random) >= settings.n_shown]
        for one in records.values()
    ]
    for name, latents in zip(records, enough, strict=True):
        if not latents:
            raise ValueError(
                f"No latent of {name!r} has random examples from {settings.n_shown} texts. Collect "
                "examples of more tokens, or lower n_shown."
            )
    pairs = _pairs(list(records.values()), enough, settings)
    comparisons = [
        Comparison(i, pair.dictionaries, pair.latents, outcomes)
        for i, judge in enumerate(asked)
        for pair, outcomes in zip(pairs, _outcomes(judge, pairs, settings.seed), strict=True)
    ]
    return Ranking(
        names=tuple(records),
        n_enough=tuple(map(len, enough)),
        judges=tuple(names),
        caveats=tuple(judge.caveat for judge in asked),
        settings=settings,
        comparisons=tuple(comparisons),
        weights_sha256=tuple(one.weights_sha256 for one in records.values()),
    )


def _pairs(
    records: Sequence[LatentRecords], enough: Sequence[Sequence[int]], settings: RankingSettings
) -> list[_Pair]:
    pairs: dict[Any, _Pair] = {}
    for a, b in combinations(range(len(records)), 2):
        rng = np.random.default_rng([settings.seed, a, b])
        # Every latent once before one comes again.
        order = [_round_robin(rng, enough[i], settings.n_pairs) for i in (a, b)]
        for latents in zip(*order, strict=True):
            groups = [
                _shown(rng, records[i][j].random, settings.n_shown)
                for i, j in zip((a, b), latents, strict=True)
            ]
            # Once: of few latents a pair may come again, with other examples.
            pairs.setdefault(((a, b), latents), _Pair((a, b), latents, (groups[0], groups[1])))
    return list(pairs.values())


def _round_robin(rng: np.random.Generator, latents: Sequence[int], n: int) -> list[int]:
    found: list[int] = []
    while len(found) < n:
        found += [latents[i] for i in rng.permutation(len(latents))]
    return found[:n]


def _shown(rng: np.random.Generator, examples: Sequence[Example], n: int) -> tuple[MarkedText, ...]:
    return tuple(MarkedText.of(e) for e in some(rng, one_per_text(examples), n))


def _outcomes(
    judge: Judge, pairs: Sequence[_Pair], seed: int
) -> list[tuple[int | None, int | None]]:
    """Ask a judge about each pair in both orders. All are asked in one random order, so that neither a pair's other
    order nor a dictionary's next latent comes after it."""
    questions: list[Question] = []
    for pair in pairs:
        one, other = pair.groups
        questions += [compare(one, other, seed), compare(other, one, seed)]
    order = np.random.default_rng([seed, len(questions)]).permutation(len(questions))
    answers: list[str | None] = [None] * len(questions)
    for i, answer in zip(order, answers_of(judge, [questions[i] for i in order]), strict=True):
        answers[i] = answer
    forth, back = {FIRST: 1, TIE: 0, SECOND: -1}, {FIRST: -1, TIE: 0, SECOND: 1}
    return [(_of(forth, answers[2 * i]), _of(back, answers[2 * i + 1])) for i in range(len(pairs))]


def _of(values: Mapping[str, int], answer: str | None) -> int | None:
    return None if answer is None else values[answer]


def _mean(interval: Interval | None) -> float:
    return 0.0 if interval is None else interval.mean
