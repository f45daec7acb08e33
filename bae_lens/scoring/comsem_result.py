"""Results of ``comsem_test``, and how far its two protocols are apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from typing_extensions import Self

from bae_lens.charts import Level, Panel, sorted_scores
from bae_lens.checks.consistency import check_indices, check_that
from bae_lens.files.json_file import ResultOfWeights
from bae_lens.results import Table
from bae_lens.scoring.comsem_settings import ComSemSettings
from bae_lens.scoring.comsem_settings import Protocol as Protocol
from bae_lens.stats import Interval, mean_interval, rank_correlation, seed_agreement, shown, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Role = Literal["positive", "random", "hard"]
Status = Literal["explained", "no pattern", "no answer"]


class Votes(NamedTuple):
    """Answers about tokens of one kind.

    Attributes:
        n_yes: for which the phrase was said to hold.
        n_no: for which it was said not to.
        n_unanswered: without a usable answer.
    """

    n_yes: int = 0
    n_no: int = 0
    n_unanswered: int = 0

    @property
    def share(self) -> float | None:
        """Share of yes among answers; None without any."""
        n = self.n_yes + self.n_no
        return self.n_yes / n if n else None


_NO_VOTES = Votes()


@dataclass(frozen=True)
class LatentRun:
    """The explanation and the test of one latent with one seed.

    Attributes:
        latent: which one.
        seed: which drawing, from 0.
        status: ``"explained"``, ``"no pattern"`` or ``"no answer"``, if the judge gave no phrase.
        phrase: what it gave.
        positive: on further examples.
        random: on random non-activating tokens.
        hard: on such tokens that are like its examples.
    """

    latent: int
    seed: int
    status: Status
    phrase: str | None = None
    positive: Votes = _NO_VOTES
    random: Votes = _NO_VOTES
    hard: Votes = _NO_VOTES

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the shares of positives said to fit and negatives said not to; 1/2 by guessing, and
        of a phrase that fits everything. None where either has no answer."""
        own = self.positive.share
        other = Votes(*(a + b for a, b in zip(self.random, self.hard, strict=True))).share
        return None if own is None or other is None else (own + 1 - other) / 2

    @property
    def positives_only(self) -> float | None:
        """The release's score: share of positives said to fit, among those with an answer. None where
        nothing was answered."""
        return self.positive.share

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentRun:
        """What ``asdict`` gave."""
        own: dict[str, Any] = dict(values)
        for role in ("positive", "random", "hard"):
            own[role] = Votes(*values[role])
        return cls(**own)


class PhrasePair(NamedTuple):
    """Whether two seeds' phrases of a latent say the same; None without a usable answer."""

    latent: int
    seeds: tuple[int, int]
    same: bool | None


@dataclass(frozen=True)
class ComSemResult(ResultOfWeights):
    """Result of ``comsem_test``.

    Attributes:
        dictionary: its architecture, or the name of clusters.
        hook_name: the hook point that it reads.
        judge: who explained and tested.
        caveat: what that can and cannot say.
        settings: of the protocol.
        n_latents: latents of the dictionary.
        n_firing: those that fire at all.
        n_enough: those with enough texts to be tested.
        has_hard: whether there are hard negatives; they need an encoder.
        runs: of each latent tested and each seed, in order.
        pairs: of phrases that were compared.
    """

    _file_of = "result of comsem_test"

    dictionary: str
    hook_name: str
    judge: str
    caveat: str
    settings: ComSemSettings
    n_latents: int
    n_firing: int
    n_enough: int
    has_hard: bool
    runs: tuple[LatentRun, ...]
    pairs: tuple[PhrasePair, ...] = ()

    def check(self) -> None:
        """See ``JsonResult``."""
        n_runs = self.settings.n_runs
        check_indices("runs.latent", (run.latent for run in self.runs), self.n_latents)
        own = [(run.latent, run.seed) for run in self.runs]
        check_that(
            len(own) == n_runs * len(self.latents)
            and own == [(latent, s) for latent in self.latents for s in range(n_runs)],
            f"runs must be {n_runs} of each latent, in order",
            own,
        )
        tested = set(self.latents)
        check_that(
            all(pair.latent in tested for pair in self.pairs),
            "pairs must be of latents tested",
            "others",
        )

    @property
    def latents(self) -> tuple[int, ...]:
        """The latents that were tested."""
        return tuple(dict.fromkeys(run.latent for run in self.runs))

    def score_of(self, run: LatentRun) -> float | None:
        """The score of a run by the protocol; None without a phrase, or where its test has no answers."""
        is_balanced = self.settings.protocol == "balanced"
        return run.balanced_accuracy if is_balanced else run.positives_only

    def scores(self, *, explained_only: bool = False) -> dict[int, float]:
        """Score of each latent, the mean over seeds.

        Args:
            explained_only: leave out runs with "no pattern", which otherwise count as nothing found:
                1/2, released 0. Runs without a usable answer are left out in any case.
        """
        found: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            score = self.score_of(run)
            if run.status == "no pattern" and not explained_only:
                score = self.settings.nothing
            if score is not None:
                found[run.latent].append(score)
        return {latent: sum(own) / len(own) for latent, own in found.items()}

    def score(self, *, explained_only: bool = False) -> Interval | None:
        """Mean over latents of ``scores``, with its bootstrap interval over them."""
        return self._mean(list(self.scores(explained_only=explained_only).values()))

    @property
    def explained(self) -> Interval | None:
        """Share of latents explained, the mean over seeds; runs without a usable answer are left out."""
        return self._mean_of_runs(
            [
                None if run.status == "no answer" else float(run.status == "explained")
                for run in self.runs
            ]
        )

    def n_above(self, threshold: float | None = None) -> int:
        """Latents with a score of the threshold or more."""
        limit = self.settings.threshold if threshold is None else threshold
        return sum(score >= limit for score in self.scores().values())

    def share_above(self, threshold: float | None = None) -> Interval | None:
        """Share of the latents with a score that reach the threshold, with its Wilson interval."""
        return wilson(self.n_above(threshold), len(self.scores()))

    @property
    def positives_only(self) -> Interval | None:
        """What the release's score would be of the same phrases: share of positives that fit."""
        return self._mean_of_runs([run.positives_only for run in self.runs])

    @property
    def optimism(self) -> Interval | None:
        """How much the release's score is above balanced accuracy, for the same phrases."""
        return self._mean_of_runs(
            [
                None
                if run.positives_only is None or run.balanced_accuracy is None
                else run.positives_only - run.balanced_accuracy
                for run in self.runs
            ]
        )

    def false_yes(self, role: Literal["random", "hard"]) -> Interval | None:
        """Share of negatives of a kind that a phrase was said to fit."""
        return self._mean_of_runs([getattr(run, role).share for run in self.runs])

    @property
    def agreement(self) -> float | None:
        """Agreement of the seeds' scores, see ``seed_agreement``."""
        n = self.settings.n_runs
        rows = [self.runs[i : i + n] for i in range(0, len(self.runs), n)]
        return seed_agreement([[self.score_of(run) for run in row] for row in rows])

    @property
    def same_phrase(self) -> Interval | None:
        """Share of pairs of seeds, both explained, whose phrases say the same; the mean over latents."""
        by_latent: dict[int, list[bool]] = defaultdict(list)
        for pair in self.pairs:
            if pair.same is not None:
                by_latent[pair.latent].append(pair.same)
        return self._mean([sum(own) / len(own) for own in by_latent.values()])

    @property
    def named_twice(self) -> Interval | None:
        """Share of latents tested for which two seeds say the same, with its Wilson interval, but for
        those of which a missing answer could say so; None where phrases were not compared."""
        if not self.pairs:
            return None
        named = {pair.latent for pair in self.pairs if pair.same}
        unknown = {pair.latent for pair in self.pairs if pair.same is None}
        phrases = Counter(run.latent for run in self.runs if run.status != "no pattern")
        no_answer = {run.latent for run in self.runs if run.status == "no answer"}
        unknown |= {latent for latent in no_answer if phrases[latent] > 1}
        return wilson(len(named), len(set(self.latents) - (unknown - named)))

    @property
    def n_unanswered(self) -> int:
        """Questions without a usable answer: they are in no score."""
        votes = [v for run in self.runs for v in (run.positive, run.random, run.hard)]
        return (
            sum(v.n_unanswered for v in votes)
            + sum(run.status == "no answer" for run in self.runs)
            + sum(pair.same is None for pair in self.pairs)
        )

    def table(self) -> str:
        """Markdown: the scores, and what the judge can and cannot say."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """The scores, and what the judge can and cannot say, as cells."""
        own = self.settings
        is_balanced = own.protocol == "balanced"
        rows: list[tuple[str, Any]] = [
            ("explained", self.explained),
            (f"score, no pattern = {own.nothing:g}", self.score()),
            ("score of the explained", self.score(explained_only=True)),
            (f"share with {own.threshold:g} or more", self.share_above()),
        ]
        if is_balanced:
            rows += [
                ("positives only (released)", self.positives_only),
                ("that is above the score by", self.optimism),
                ("random negatives taken for positives", self.false_yes("random")),
                ("hard negatives taken for positives", self.false_yes("hard")),
                ("seeds' agreement in score", self.agreement),
                ("two seeds' phrases say the same", self.same_phrase),
                ("latents named alike twice", self.named_twice),
            ]
        hard = (
            "" if self.has_hard or not is_balanced else " No encoder: there are no hard negatives."
        )
        n_tested, n_scored, n_open = len(self.latents), len(self.scores()), self.n_unanswered
        tested = "tested" if n_scored == n_tested else f"with a score ({n_tested} were tested)"
        still_open = "No question is open."
        if n_open:
            still_open = (
                f"{n_open} questions are open: no answer could be used, and they are in no score."
            )
        return Table(
            (f"ComSem, {own.protocol}", ""),
            [(name, shown(value)) for name, value in rows],
            [
                f"Judge: {self.judge}. The score is {self._measure}; {self.n_above()} of "
                f"{n_scored} latents {tested} have {own.threshold:g} or more. Of {self.n_latents} latents "
                f"{self.n_firing} fire and {self.n_enough} have enough texts. {still_open} Intervals "
                f"are 95 %, over latents.{hard}"
            ],
            self.caveat,
        )

    def plot(self, title: str = "") -> Figure:
        """Draw each latent's score, the best first.

        Of the balanced protocol the share of positives that the phrases fit is drawn, too, which is what
        the released protocol would score.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        is_balanced = self.settings.protocol == "balanced"
        scores = {self._measure: list(self.scores().values())}
        if is_balanced:
            positives = self._by_latent([run.positives_only for run in self.runs])
            scores["positives only, of those explained"] = list(positives.values())
        nothing = "guessing, or no pattern" if is_balanced else "no pattern"
        levels = [
            Level(self.settings.nothing, nothing),
            Level(self.settings.threshold, "threshold", "-."),
        ]
        measure = "score, mean over seeds" if is_balanced else "score"
        return sorted_scores([Panel(scores, levels=levels)], measure, title, width=5.6)

    @property
    def _measure(self) -> str:
        is_balanced = self.settings.protocol == "balanced"
        return "balanced accuracy" if is_balanced else "share of positives that fit"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = dict(values) | {"settings": ComSemSettings(**values["settings"])}
        own["runs"] = tuple(map(LatentRun.from_dict, values["runs"]))
        own["pairs"] = tuple(
            PhrasePair(latent, (seeds[0], seeds[1]), is_same)
            for latent, seeds, is_same in values["pairs"]
        )
        return cls(**own)

    def _by_latent(self, values: Sequence[float | None]) -> dict[int, float]:
        """Means over seeds of one value per run, of the latents that have any."""
        by_latent: dict[int, list[float]] = defaultdict(list)
        for run, value in zip(self.runs, values, strict=True):
            if value is not None:
                by_latent[run.latent].append(value)
        return {latent: sum(values) / len(values) for latent, values in by_latent.items()}

    def _mean_of_runs(self, values: Sequence[float | None]) -> Interval | None:
        """The mean over latents of the means over seeds."""
        return self._mean(list(self._by_latent(values).values()))

    def _mean(self, values: Sequence[float]) -> Interval | None:
        return mean_interval(values, self.settings.seed)


class ProtocolDistance(NamedTuple):
    """How far the released protocol is from the balanced one, over the latents that both tested.

    Attributes:
        n_latents: how many those are.
        balanced: mean score, unexplained latents counting 1/2.
        released: mean score, unexplained latents counting 0.
        difference: released − balanced, paired by latent. The two have other floors, so that a
            difference of 0 is no agreement: see the correlation.
        rank_correlation: of the latents' scores; None where it is undefined.
        n_above: latents at or above the threshold in the balanced one, the released one, and both.
    """

    n_latents: int
    balanced: Interval | None
    released: Interval | None
    difference: Interval | None
    rank_correlation: float | None
    n_above: tuple[int, int, int]

    def table(self) -> str:
        """Markdown: both protocols' means, and how they differ."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """Both protocols' means, and how they differ, as cells."""
        rows = [
            ("balanced score", shown(self.balanced)),
            ("released score", shown(self.released)),
            ("released − balanced", shown(self.difference)),
            ("rank correlation", shown(self.rank_correlation)),
            ("above the threshold: balanced, released, both", ", ".join(map(str, self.n_above))),
        ]
        return Table((f"{self.n_latents} latents", ""), rows)


def protocol_distance(balanced: ComSemResult, released: ComSemResult) -> ProtocolDistance:
    """How far two protocols are apart on the same dictionary.

    Raises:
        ValueError: if they are not one result of each protocol, by the same judge, of the same
            dictionary.
    """
    found = (balanced.settings.protocol, released.settings.protocol)
    if found != ("balanced", "released"):
        raise ValueError(f"Give a 'balanced' and then a 'released' result; got {found}.")
    for name in ("dictionary", "hook_name", "judge", "n_latents"):
        if getattr(balanced, name) != getattr(released, name):
            raise ValueError(
                f"The results must have the same {name}; got {getattr(balanced, name)!r} and "
                f"{getattr(released, name)!r}."
            )
    one, other = balanced.scores(), released.scores()
    both = [latent for latent in one if latent in other]
    a, b = [one[latent] for latent in both], [other[latent] for latent in both]
    above = [x >= balanced.settings.threshold for x in a]
    also = [x >= released.settings.threshold for x in b]
    return ProtocolDistance(
        n_latents=len(both),
        balanced=mean_interval(a),
        released=mean_interval(b),
        difference=mean_interval([y - x for x, y in zip(a, b, strict=True)]),
        rank_correlation=rank_correlation(a, b),
        n_above=(sum(above), sum(also), sum(x and y for x, y in zip(above, also, strict=True))),
    )
