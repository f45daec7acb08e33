"""Settings and results of ``intruder_test``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from typing_extensions import Self

from bae_lens.charts import Level, Panel, sorted_scores
from bae_lens.checks.consistency import check_indices, check_lengths
from bae_lens.checks.fields import Number, check_fields, whole
from bae_lens.checks.old_names import renamed_fields
from bae_lens.files.json_file import ResultOfWeights
from bae_lens.results import Table
from bae_lens.stats import Interval, mean_interval, seed_agreement, shown, wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IntruderKind = Literal["random", "hard"]
KINDS: tuple[IntruderKind, ...] = ("random", "hard")


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


@renamed_fields(n_heard="n_passed", beyond_control="excess_over_control")
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
        check_lengths(len(self.latents), "latents", control=self.control)
        for own in (*self.latents, *self.control):
            check_indices("latents", [own.latent], self.n_latents)
            check_lengths(self.settings.n_seeds, "seeds", random=own.random, hard=own.hard)

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

    def excess_over_control(self, kind: IntruderKind = "random") -> Interval | None:
        """Excess of the accuracy over that of the control, paired by latent."""
        pairs = [
            (own.accuracy(kind), other.accuracy(kind))
            for own, other in zip(self.latents, self.control, strict=True)
        ]
        differences = [a.mean - b.mean for a, b in pairs if a is not None and b is not None]
        return mean_interval(differences, self.settings.seed)

    def n_passed(self, threshold: float | None = None) -> int:
        """Latents with an accuracy (random intruders) of the threshold or more."""
        limit = self.settings.threshold if threshold is None else threshold
        return sum(a >= limit for a in _known([t.accuracy() for t in self.latents]))

    def n_passed_of_all(self, *, control: bool = False, max_purity: float = 1.0) -> Interval | None:
        """Latents of the dictionary that pass, estimated by those tested: their share times the latents with enough
        texts. Of the others nobody was asked, and none of them counts.

        Args:
            control: of the control instead.
            max_purity: only latents with no more token purity count as passing; at 0.5 those of a single token
                do not.

        Returns:
            The number with its 95 % Wilson interval over latents tested; None where none was.
        """
        own = self.control if control else self.latents
        scores = _known([t.accuracy() for t in own if t.purity <= max_purity])
        share = wilson(sum(a >= self.settings.threshold for a in scores), len(own))
        return None if share is None else Interval(*(x * self.n_enough for x in share))

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
        n_open, n_passed = self.n_unanswered, self.n_passed()
        # Of a latent without any answer it is not known whether it passes.
        n_known = len(_known([t.accuracy() for t in self.latents]))
        passed = f"{n_passed} of those tested"
        if n_known < len(self.latents):
            passed = f"{n_passed} of the {n_known} with any answer"
        return Table(
            ("", "latents", "shuffled latents"),
            cells,
            [
                f"Judge: {self.judge}. Chance is {self.chance:.3f}. Means over {len(self.latents)} "
                f"latents with 95 % bootstrap intervals; by seed {means}. Of {self.n_latents} latents "
                f"{self.n_firing} fire and {self.n_enough} have enough texts; {passed} "
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


def _known(intervals: Sequence[Interval | None]) -> list[float]:
    return [interval.mean for interval in intervals if interval is not None]
