"""Intruder test: can the token at which a latent does not fire be told from those at which it fires?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from typing_extensions import Self

from bae_lens.charts import Level, Panel, sorted_scores
from bae_lens.checks.consistency import check_counts, check_indices, check_lengths
from bae_lens.checks.fields import Number, check_fields, whole
from bae_lens.examples.records import Evidence, Example
from bae_lens.files.json_file import ResultOfWeights
from bae_lens.results import Table
from bae_lens.scoring.judges.embedding import Embedder, EmbeddingJudge, Encoder
from bae_lens.scoring.judges.judge import Judge, MarkedText, Question, answers_of
from bae_lens.scoring.prompts import intruder as intruder_question
from bae_lens.scoring.test_items import Subjects, draw, n_texts, one_a_text, purity, some
from bae_lens.stats import Interval, mean_interval, seed_agreement, shown, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IntruderKind = Literal["random", "hard"]
KINDS: tuple[IntruderKind, ...] = ("random", "hard")
# Latents, or controls, that are asked about at once, so that a judge can take questions side by side; of
# all latents of a large dictionary they would be gigabytes.
_CASES_AT_ONCE = 64


@dataclass(frozen=True)
class IntruderSettings:
    """Settings of ``intruder_test``.

    Args:
        n_latents (int | None): Latents drawn at random from those with enough texts; None: all.
        n_shown (int): Examples of a trial, the intruder among them; chance is 1 / ``n_shown``.
        n_trials (int): Trials of each latent, with each kind of intruder and each seed.
        n_hard (int): Hard intruders are drawn from so many non-activating tokens, those most similar to
            the latent's examples.
        n_seeds (int): How often all is drawn anew.
        threshold (float): Accuracy from which a latent passes the test.
        seed (int): Of the first drawing, and of which latents.

    Raises:
        ValueError: if a value is outside its range.
    """

    n_latents: int | None = 100
    n_shown: int = 5
    n_trials: int = 20
    n_hard: int = 25
    n_seeds: int = 3
    threshold: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "n_latents": whole(1, or_none=True),
                "n_shown": whole(3),
                "n_trials": whole(1),
                "n_hard": whole(1),
                "n_seeds": whole(1),
                "threshold": Number(least=0, most=1),
                "seed": whole(0),
            },
        )


class Tally(NamedTuple):
    """Trials of one seed.

    Attributes:
        n_right: where the intruder was found.
        n_wrong: where another was taken for it.
        n_unanswered: without a usable answer; they are in no share.
    """

    n_right: int
    n_wrong: int
    n_unanswered: int

    @property
    def share(self) -> float | None:
        """Share of right answers; None where nothing was answered."""
        n = self.n_right + self.n_wrong
        return self.n_right / n if n else None


@dataclass(frozen=True)
class LatentTrials:
    """The trials of one latent, or of a control with as many examples.

    Attributes:
        latent: which one.
        n_texts: how many texts its examples are from, one example per text.
        purity: share of the most frequent token among them.
        random: by seed, with any non-activating token as the intruder.
        hard: by seed, with non-activating tokens that are similar to the examples; empty without an encoder.
    """

    latent: int
    n_texts: int
    purity: float
    random: tuple[Tally, ...]
    hard: tuple[Tally, ...]

    def by_seed(self, kind: IntruderKind = "random") -> tuple[float | None, ...]:
        """Accuracy of each seed."""
        return tuple(tally.share for tally in getattr(self, kind))

    def accuracy(self, kind: IntruderKind = "random") -> Interval | None:
        """Accuracy of all seeds together, with its Wilson interval. That is too narrow where there are few
        texts, for trials share them. None where nothing was answered."""
        tallies = getattr(self, kind)
        n_right = sum(t.n_right for t in tallies)
        return wilson(n_right, n_right + sum(t.n_wrong for t in tallies))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentTrials:
        """What ``asdict`` gave."""
        own: dict[str, Any] = dict(values)
        for kind in KINDS:
            own[kind] = tuple(Tally(*tally) for tally in values[kind])
        return cls(**own)


@dataclass(frozen=True)
class IntruderResult(ResultOfWeights):
    """Result of ``intruder_test``.

    Attributes:
        dictionary: its architecture, or the name of clusters.
        hook_name: the hook point that it reads.
        judge: who found the intruders.
        caveat: what that can and cannot say.
        settings: of the test.
        n_latents: latents of the dictionary.
        n_firing: those that fire at all.
        n_enough: those with enough texts to be tested.
        latents: those that were tested.
        control: of each of them the same with examples drawn from different latents: what the judge
            finds where there is nothing to find.
    """

    _file_of = "result of intruder_test"

    dictionary: str
    hook_name: str
    judge: str
    caveat: str
    settings: IntruderSettings
    n_latents: int
    n_firing: int
    n_enough: int
    latents: tuple[LatentTrials, ...]
    control: tuple[LatentTrials, ...]

    def check(self) -> None:
        """See ``JsonResult``."""
        check_counts(n_latents=self.n_latents, n_firing=self.n_firing, n_enough=self.n_enough)
        check_lengths(len(self.latents), "latents", control=self.control)
        for own in (*self.latents, *self.control):
            check_indices("latents", [own.latent], self.n_latents)
            check_lengths(self.settings.n_seeds, "seeds", random=own.random, hard=own.hard)
            for tally in (*own.random, *own.hard):
                check_counts(**tally._asdict())

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.settings.n_shown

    def accuracy(
        self, kind: IntruderKind = "random", *, control: bool = False, max_purity: float = 1.0
    ) -> Interval | None:
        """Mean over latents, with its bootstrap interval over them.

        Args:
            kind: of intruder. Hard ones are chosen by the embeddings that the offline judge compares, as
                those nearest to the examples, so that it is far below chance where examples have
                nothing in common. What nothing comes to is then the control's accuracy, not chance.
            control: of the control instead.
            max_purity: of latents with no more token purity only.

        Returns:
            None where there is no such latent.
        """
        own = [t for t in (self.control if control else self.latents) if t.purity <= max_purity]
        return mean_interval(_known([t.accuracy(kind) for t in own]), self.settings.seed)

    def beyond_control(self, kind: IntruderKind = "random") -> Interval | None:
        """Excess of the accuracy over that of the control, paired by latent."""
        pairs = [
            (own.accuracy(kind), other.accuracy(kind))
            for own, other in zip(self.latents, self.control, strict=True)
        ]
        differences = [a.mean - b.mean for a, b in pairs if a is not None and b is not None]
        return mean_interval(differences, self.settings.seed)

    def n_heard(self, threshold: float | None = None) -> int:
        """Latents with an accuracy (random intruders) of the threshold or more."""
        limit = self.settings.threshold if threshold is None else threshold
        return sum(a >= limit for a in _known([t.accuracy() for t in self.latents]))

    def agreement(self, kind: IntruderKind = "random") -> float | None:
        """Agreement of the seeds' accuracies, see ``seed_agreement``."""
        return seed_agreement([t.by_seed(kind) for t in self.latents])

    def seed_means(self, kind: IntruderKind = "random") -> tuple[float | None, ...]:
        """Mean accuracy of each seed."""
        columns = zip(*(t.by_seed(kind) for t in self.latents), strict=True)
        means = [mean_interval([v for v in column if v is not None]) for column in columns]
        return tuple(None if mean is None else mean.mean for mean in means)

    @property
    def n_unanswered(self) -> int:
        """Trials without a usable answer, of latents and of their controls: they are in no accuracy."""
        return sum(
            tally.n_unanswered
            for own in (*self.latents, *self.control)
            for tally in (*own.random, *own.hard)
        )

    def purity(self, *, control: bool = False) -> Interval | None:
        """Mean token purity of latents, or of their controls, with its bootstrap interval."""
        own = self.control if control else self.latents
        return mean_interval([t.purity for t in own], self.settings.seed)

    def table(self) -> str:
        """Markdown: each number beside its control, and what the judge can and cannot say."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """Each number beside its control, and what the judge can and cannot say, as cells."""
        rows: list[tuple[str, Interval | None, Interval | None]] = [
            (
                f"accuracy, {kind} intruder",
                self.accuracy(kind),
                self.accuracy(kind, control=True),
            )
            for kind in KINDS
        ]
        rows += [
            (
                "the same, token purity ≤ 0.5",
                self.accuracy(max_purity=0.5),
                self.accuracy(control=True, max_purity=0.5),
            ),
            ("token purity", self.purity(), self.purity(control=True)),
        ]
        cells = [(name, shown(latents), shown(control)) for name, latents, control in rows]
        cells.append(("seeds' agreement", shown(self.agreement(), 2), "–"))
        means = ", ".join(shown(mean) for mean in self.seed_means())
        n_open, n_heard = self.n_unanswered, self.n_heard()
        # Of a latent without any answer it is not known whether it passes.
        n_known = len(_known([t.accuracy() for t in self.latents]))
        heard = f"{n_heard} of those tested"
        if n_known < len(self.latents):
            heard = f"{n_heard} of the {n_known} with any answer"
        return Table(
            ("", "latents", "shuffled latents"),
            cells,
            [
                f"Judge: {self.judge}. Chance is {self.chance:.3f}. Means over {len(self.latents)} "
                f"latents with 95 % bootstrap intervals; by seed {means}. Of {self.n_latents} latents "
                f"{self.n_firing} fire and {self.n_enough} have enough texts; {heard} "
                f"reach {self.settings.threshold:g} with random intruders. Hard intruders "
                "are the non-activating tokens nearest to the examples: an offline judge is below chance "
                "where there is nothing to find, so read them beside the shuffled latents."
                + (
                    f" {n_open} trials are open: they have no usable answer, and are in no accuracy."
                    if n_open
                    else ""
                ),
            ],
            self.caveat,
        )

    def plot(self, title: str = "") -> Figure:
        """Draw each latent's accuracy, the best first, beside the shuffled latents'.

        There is a panel per kind of intruder. Hard ones have no line of chance: they are chosen to be
        like the examples, so that the shuffled latents show what nothing comes to.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        panels = [self._panel(kind) for kind in KINDS if self.accuracy(kind) is not None]
        # One, though empty, where nothing was answered.
        return sorted_scores(panels or [Panel()], "share of intruders found", title)

    def _panel(self, kind: IntruderKind) -> Panel:
        drawn = {"latents": self.latents, "shuffled latents": self.control}
        threshold = Level(self.settings.threshold, "threshold", "-.")
        return Panel(
            scores={n: _known([t.accuracy(kind) for t in own]) for n, own in drawn.items()},
            levels=[Level(self.chance, "chance"), threshold] if kind == "random" else [],
            title=f"{kind} intruder",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = dict(values) | {"settings": IntruderSettings(**values["settings"])}
        for name in ("latents", "control"):
            own[name] = tuple(map(LatentTrials.from_dict, values[name]))
        return cls(**own)


def intruder_test(
    evidence: Evidence,
    judge: Judge | None = None,
    settings: IntruderSettings | None = None,
    *,
    encoder: Encoder | None = None,
) -> IntruderResult:
    """How often a judge finds the one token at which a latent does not fire among those where it does.

    A trial shows random examples of a latent, each from another text, and one token drawn at random
    from the corpus, at which the latent does not fire, from yet another text. So a judge cannot go by
    texts, and what it tells is not "some other latent" but "not this one". Which latents, examples and
    intruders are drawn depends on the seed and the latent only.

    Neither paper has such a test; it stands in for judges that name concepts, and needs no network.

    Args:
        evidence: with a background, see ``EvidenceSettings.n_background``.
        judge: who is asked; None: the offline ``EmbeddingJudge`` with the encoder, or MiniLM.
        settings: see ``IntruderSettings``.
        encoder: finds hard intruders; None: the offline judge's own, and with any other judge there
            are no hard ones.

    Raises:
        ImportError: if MiniLM is needed and missing.
        LimitReached, JudgeUnavailable: see ``Judge``.
        ValueError: if the evidence has no background, no latent has enough texts, or the judge gives
            more or fewer answers than it was asked questions.
    """
    settings = settings or IntruderSettings()
    subjects = Subjects(evidence)  # Before an encoder is loaded.
    judge = EmbeddingJudge(encoder) if judge is None else judge
    subjects = Subjects(evidence, _embedder(judge, encoder))
    enough = subjects.with_texts(settings.n_shown - 1)
    if not enough:
        raise ValueError(
            f"No latent has random examples from {settings.n_shown - 1} texts, which a trial shows. "
            "Collect evidence of more tokens, or lower n_shown."
        )
    chosen = draw(enough, settings.n_latents, settings.seed)
    cases = [_Case(latent, latent, subjects.examples(latent)) for latent in chosen]
    cases += [_shuffled(case, subjects, enough, settings.seed) for case in cases]
    found: list[LatentTrials] = []
    for begin in range(0, len(cases), _CASES_AT_ONCE):
        part = cases[begin : begin + _CASES_AT_ONCE]
        trials = [_trials(case, subjects, settings) for case in part]
        answers = iter(answers_of(judge, [trial.question for own in trials for trial in own]))
        found += [
            _counted(case, [(trial, next(answers)) for trial in own], settings)
            for case, own in zip(part, trials, strict=True)
        ]
    return IntruderResult(
        dictionary=evidence.dictionary,
        hook_name=evidence.hook_name,
        judge=judge.name,
        caveat=judge.caveat,
        settings=settings,
        n_latents=len(evidence),
        n_firing=subjects.n_firing,
        n_enough=len(enough),
        latents=tuple(found[: len(chosen)]),
        control=tuple(found[len(chosen) :]),
        weights_sha256=evidence.weights_sha256,
    )


@dataclass(frozen=True, eq=False)
class _Case:
    """A latent, or a control (``silent_of`` is None), and its examples."""

    latent: int
    silent_of: int | None
    examples: tuple[Example, ...]


class _Trial(NamedTuple):
    kind: IntruderKind
    seed: int
    question: Question
    right: str


def _embedder(judge: Judge, encoder: Encoder | None) -> Embedder | None:
    if encoder is None:
        return judge.embedder if isinstance(judge, EmbeddingJudge) else None
    own = judge.embedder if isinstance(judge, EmbeddingJudge) else None
    return own if own is not None and own.encoder is encoder else Embedder(encoder)


def _shuffled(case: _Case, subjects: Subjects, enough: Sequence[int], seed: int) -> _Case:
    """Draw as many examples as a case has, each of another latent while there are any, and of another text."""
    rng = np.random.default_rng([seed, case.latent, 1])
    found: list[Example] = []
    while len(found) < len(case.examples):
        before = len(found)
        for latent in rng.permutation(enough):
            found += some(rng, subjects.examples(int(latent)), 1)
            found = list(one_a_text(found))
            if len(found) == len(case.examples):
                break
        if len(found) == before:  # Fewer texts than that, in all latents together.
            break
    return _Case(case.latent, None, tuple(found))


def _trials(case: _Case, subjects: Subjects, settings: IntruderSettings) -> list[_Trial]:
    silent = subjects.silent(case.silent_of, case.examples)
    pools = {"random": silent.examples, "hard": silent.hardest(settings.n_hard)}
    trials = []
    for s in range(settings.n_seeds):
        is_control = int(case.silent_of is None)
        rng = np.random.default_rng([settings.seed + s, case.latent, is_control, 2])
        for kind in KINDS:
            n = (
                settings.n_trials
                if pools[kind] and len(case.examples) >= settings.n_shown - 1
                else 0
            )
            trials += [_trial(case.examples, kind, s, pools[kind], rng, settings) for _ in range(n)]
    return trials


def _trial(
    positives: Sequence[Example],
    kind: IntruderKind,
    s: int,
    pool: Sequence[Example],
    rng: np.random.Generator,
    settings: IntruderSettings,
) -> _Trial:
    examples = some(rng, positives, settings.n_shown - 1)
    place = int(rng.integers(settings.n_shown))
    examples.insert(place, pool[int(rng.integers(len(pool)))])
    question = intruder_question([MarkedText.of(e) for e in examples], settings.seed + s)
    return _Trial(kind, s, question, question.choices[place])


def _counted(
    case: _Case, answered: Sequence[tuple[_Trial, str | None]], settings: IntruderSettings
) -> LatentTrials:
    def tally(kind: IntruderKind, s: int) -> Tally:
        own = [(t.right, a) for t, a in answered if (t.kind, t.seed) == (kind, s)]
        n_none = sum(a is None for _, a in own)
        n_right = sum(a == right for right, a in own)
        return Tally(n_right, len(own) - n_none - n_right, n_none)

    return LatentTrials(
        latent=case.latent,
        n_texts=n_texts(case.examples),
        purity=purity(case.examples),
        random=tuple(tally("random", s) for s in range(settings.n_seeds)),
        hard=tuple(tally("hard", s) for s in range(settings.n_seeds)),
    )


def _known(intervals: Sequence[Interval | None]) -> list[float]:
    return [interval.mean for interval in intervals if interval is not None]
