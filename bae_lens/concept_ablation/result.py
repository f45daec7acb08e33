"""What a concept ablation found, beside its controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import Self

from bae_lens.charts import COLORS, Level, Look, Mark, Panel, scatter
from bae_lens.checks.consistency import check_indices, check_lengths, check_that
from bae_lens.checks.old_names import renamed_fields, with_new_names
from bae_lens.concept_ablation.salient_tokens import SalientTokens
from bae_lens.concept_ablation.settings import AblationSettings
from bae_lens.files.json_file import ResultOfWeights, finite_or_none
from bae_lens.results import Table
from bae_lens.stats import Interval, paired_bootstrap, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Places of ablation.
LOWER, UPPER = "lower vector", "upper vector"
SALIENT, EVERYWHERE = "salient token", "all tokens"
STORED, CAUSAL = (LOWER, UPPER), (SALIENT, EVERYWHERE)

# What is removed.
CONCEPT = "concept"
RANDOM, RANDOM_EQUAL = "random direction", "random direction, equal norm"
RANDOM_CONCEPT, OTHER_CLASS = "random concept", "concept of another class"
MEAN, LEACE = "mean direction", "LEACE"
RETRAINED = ", probe retrained"
CONTROLS = (RANDOM, RANDOM_EQUAL, RANDOM_CONCEPT, OTHER_CLASS, MEAN)

# A sign each in figures; controls of a kind share a color.
_LOOKS = {
    CONCEPT: Look("o", COLORS[0]),
    RANDOM: Look("v", COLORS[1]),
    RANDOM_EQUAL: Look("^", COLORS[1]),
    RANDOM_CONCEPT: Look("s", COLORS[2]),
    OTHER_CLASS: Look("D", COLORS[2]),
    MEAN: Look("P", COLORS[3]),
    LEACE: Look("X", COLORS[3]),
}

# Whether each example was predicted rightly, in one run or in each of several.
Correct = Sequence[bool] | Sequence[Sequence[bool]]

# Who is read, and who predicts by the settings' name for it.
PROBE, LABEL_WORDS, HEAD = "probe", "label words", "head"
READERS = {"probe": PROBE, "label_words": LABEL_WORDS, "head": HEAD}
# The same in a sentence.
WHO = {PROBE: "the probe", HEAD: "the model's head", LABEL_WORDS: "the model"}


@dataclass(frozen=True)
class AblationRow:
    """Predictions after one thing was removed in one place.

    Attributes:
        place: the stored vector of a text at the lower or the upper hook point (``"lower vector"``,
            ``"upper vector"``), or the lower hook point inside a forward pass, at the salient token
            or at every token, predictions then being read at the upper hook point or of the model.
        concept_of: the position whose concept it is: ``"word"`` (the salient word) or ``"readout"``.
        method: what is removed.
        read_by: ``"probe"``, or the model's own logits, of its ``"head"`` or for the ``"label words"``.
        rank: dimensions removed, the mean over examples.
        removed_norm: ‖v − v'‖ / ‖v‖, the mean over all vectors that were ablated.
        correct: by example.
        fold_accuracies: by fold.
        ce_change: change of the cross-entropy of ordinary text, in nats per token, with the same
            removed from every token; by text. Empty where it was not measured.
    """

    place: str
    concept_of: str
    method: str
    read_by: str
    rank: float
    removed_norm: float
    correct: tuple[bool, ...]
    fold_accuracies: tuple[float, ...]
    ce_change: tuple[float, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of examples predicted rightly."""
        return sum(self.correct) / len(self.correct)

    @property
    def std(self) -> float:
        """Standard deviation over folds (population)."""
        return torch.tensor(self.fold_accuracies).std(correction=0).item()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, ``correct`` as a string of 0 and 1."""
        own = vars(self) | {"correct": "".join("01"[c] for c in self.correct)}
        summary = {"accuracy": self.accuracy, "std": self.std}
        return {name: finite_or_none(value) for name, value in (own | summary).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AblationRow:
        """What ``to_dict`` gave."""
        own = {k: v for k, v in values.items() if k not in ("accuracy", "std")}
        own["correct"] = tuple(c == "1" for c in own["correct"])
        if own["removed_norm"] is None:  # JSON has no NaN.
            own["removed_norm"] = float("nan")
        for name in ("fold_accuracies", "ce_change"):
            own[name] = tuple(own[name])
        return cls(**own)


def drop_difference(one: Correct, other: Correct, chance: float, seed: int = 0) -> Interval:
    """How much larger the drop of one ablation is than that of another, of the same examples.

    Neither gains by going below chance. 95 % paired percentile bootstrap over examples; of several
    runs on them (seeds of a dictionary) the differences are averaged, and drawn together. Of one example
    there are no bounds.

    Args:
        one: whether each example is predicted rightly after the one ablation, a row a run.
        other: the same after the other.
        chance: accuracy that counts as nothing left.
        seed: of the resamples.
    """
    runs = [torch.atleast_2d(torch.tensor(x, dtype=torch.float32)) for x in (one, other)]
    n = runs[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n, (2000, n), generator=generator)
    # The examples themselves come first.
    drawn = torch.cat([torch.arange(n)[None], drawn])
    left = [run[:, drawn].mean(-1).clamp(min=chance) for run in runs]
    found = (left[1] - left[0]).mean(0)
    if n == 1:
        return Interval.of_one(found[0].item())
    low, high = found[1:].quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(found[0].item(), low, high)


@renamed_fields(concept_in_evidence="concept_in_rationale", beyond="excess_over")
@dataclass(frozen=True)
class ConceptAblationResult(ResultOfWeights):
    """Result of ``concept_ablation``.

    Attributes:
        dictionary: name of the dictionary.
        hook_names: the lower and the upper hook point.
        label_names: of the classes.
        labels: class of each example.
        settings: ``AblationSettings.to_dict()``, with who has predicted (``predicted_by``).
        rows: one per place, concept, method and reader; ``"none"`` is the untouched model.
        salient: where the attributions point.
        concept_ids: latents or codes of each example's salient word, −1 where there are fewer.
        n_truncated: texts that were cut to the context.
        n_outlier_tokens: tokens of the labeled texts that were left out as outliers.
        ordinary_ce: cross-entropy of the untouched model on the ordinary text, nats per token; None
            for models that predict no next token.
        concept_in_rationale: share of the occurrences, in texts with a rationale, of the
            examples' concepts that lie in it; ``salient.rationale_words`` is chance.
        predictions: what is predicted of each untouched example, by whom ``settings`` say; empty where
            an older version did not keep it.
    """

    _file_of = "result of concept_ablation"

    dictionary: str
    hook_names: tuple[str, str]
    label_names: tuple[str, ...]
    labels: tuple[int, ...]
    settings: dict[str, Any]
    rows: tuple[AblationRow, ...]
    salient: SalientTokens
    concept_ids: tuple[tuple[int, ...], ...] = ()
    n_truncated: int = 0
    ordinary_ce: float | None = None
    concept_in_rationale: float | None = None
    n_outlier_tokens: int = 0
    predictions: tuple[int, ...] = ()

    def check(self) -> None:
        """See ``JsonResult``."""
        n = len(self.labels)
        check_that(n > 0, "labels must be of one example at least", self.labels)
        check_indices("labels", self.labels, len(self.label_names))
        check_lengths(n, "examples", concept_ids=self.concept_ids or None)
        check_lengths(n, "examples", predictions=self.predictions or None)
        check_indices("predictions", self.predictions, len(self.label_names))
        originals = {
            (row.place, row.read_by)
            for row in self.rows
            if row.method == "none" and not row.concept_of
        }
        for row in self.rows:
            check_lengths(n, "examples", **{f"rows.{row.method}.correct": row.correct})
            check_that(
                (row.place, row.read_by) in originals,
                "rows must have the untouched model ('none') at each place by each reader",
                (row.place, row.read_by),
            )

    @property
    def chance(self) -> float:
        """Accuracy of always saying the most frequent class."""
        counts = torch.bincount(torch.tensor(self.labels))
        return counts.max().item() / len(self.labels)

    @property
    def predicted_by(self) -> str:
        """Whose prediction was attributed: as ``AblationRow.read_by``."""
        return READERS[self.settings.get("predicted_by") or "probe"]

    @property
    def signal(self) -> Interval | None:
        """How much oftener the predictions are right than always saying the most frequent class is.

        Untouched, with the 95 % paired bootstrap interval over texts; None where predictions were not kept.
        """
        if not self.predictions:
            return None
        labels, said = torch.tensor(self.labels), torch.tensor(self.predictions)
        commonest = torch.bincount(labels).argmax()
        right, by_chance = (said == labels).double(), (labels == commonest).double()
        return paired_bootstrap(right - by_chance, self.settings["seed"])

    @property
    def has_signal(self) -> bool | None:
        """Whether the interval of ``signal`` is above 0; None where that is not known.

        Without it nothing is predicted that a concept could be a reason for: what its removal costs
        says nothing then.
        """
        return None if self.signal is None else self.signal.low > 0

    def row(
        self,
        place: str = LOWER,
        method: str = CONCEPT,
        concept_of: str = "word",
        read_by: str = PROBE,
    ) -> AblationRow:
        """One of the rows.

        Raises:
            KeyError: if there is none; the message lists those of the place.
        """
        for row in self.rows:
            if (row.place, row.method, row.read_by) == (place, method, read_by) and (
                row.concept_of in (concept_of, "")
            ):
                return row
        there = [
            (r.method, r.concept_of, r.read_by) for r in self.rows if r.place == place
        ] or list(dict.fromkeys(r.place for r in self.rows))
        raise KeyError(
            f"There is no row {(method, concept_of, read_by)} at {place!r}; there are {there}."
        )

    def original(self, row: AblationRow) -> AblationRow:
        """The row of the untouched model that belongs to another row."""
        return self.row(row.place, "none", "", row.read_by)

    def change(self, row: AblationRow) -> Interval:
        """Accuracy lost, original − ablated, with its paired bootstrap interval (95 %)."""
        return self._compare(self.original(row), row)

    def drop(self, row: AblationRow) -> float:
        """Accuracy − ablated accuracy, neither counted below chance: inversion earns nothing."""
        original = self.original(row).accuracy
        return max(original, self.chance) - max(row.accuracy, self.chance)

    def relative_drop(self, row: AblationRow) -> float:
        """(Accuracy − ablated accuracy) / accuracy: the paper's headline, which inversion raises."""
        accuracy = self.original(row).accuracy
        return (accuracy - row.accuracy) / accuracy if accuracy else float("nan")

    def excess_over(self, row: AblationRow, control: str = RANDOM_EQUAL) -> Interval:
        """Accuracy that ``row`` costs beyond what a control in the same place costs, paired."""
        return self._compare(self.row(row.place, control, row.concept_of, row.read_by), row)

    def ce_change(self, row: AblationRow) -> Interval | None:
        """Change of the cross-entropy of ordinary text; None where it was not measured."""
        if not row.ce_change:
            return None
        return paired_bootstrap(torch.tensor(row.ce_change), self.settings["seed"])

    def _compare(self, one: AblationRow, other: AblationRow) -> Interval:
        a, b = (torch.tensor(r.correct, dtype=torch.float32) for r in (one, other))
        return paired_bootstrap(a - b, self.settings["seed"])

    def table(self, rows: Iterable[AblationRow] | None = None) -> str:
        """Markdown: a line a row.

        ``lost`` is original − ablated with its 95 % interval, ``drop`` the same with neither
        accuracy counted below chance, ``CE`` the change on ordinary text in nats per token.
        """
        header = ("ablated", "concept of", "removed", "read by", "rank", "‖v−v'‖/‖v‖")
        header += ("accuracy", "lost [95 %]", "drop", "CE")
        cells = [self._cells(row) for row in (self.rows if rows is None else rows)]
        notes = [f"Chance is {self.chance:.3f}.", *self._about_signal()]
        return Table(header, cells, [" ".join(notes)]).markdown()

    def excess_table(self) -> str:
        """Markdown: what the concept costs beyond random directions, a line a place and reader.

        The difference of the two accuracies lost, paired by text, with its 95 % interval: beyond a random
        subspace of equal rank, and beyond the same moved as far as the concept moves each activation.
        """
        header = (
            "ablated",
            "concept of",
            "read by",
            "beyond equal rank [95 %]",
            "equal norm [95 %]",
        )
        rows = [row for row in self.rows if row.method == CONCEPT]
        cells = [
            (
                row.place,
                row.concept_of,
                row.read_by,
                *(shown(self._known_excess(row, control)) for control in (RANDOM, RANDOM_EQUAL)),
            )
            for row in rows
        ]
        return Table(header, cells, self._about_signal()).markdown()

    def _known_excess(self, row: AblationRow, control: str) -> Interval | None:
        """None where the control was not measured."""
        try:
            return self.excess_over(row, control)
        except KeyError:
            return None

    def _about_signal(self) -> list[str]:
        """A sentence, but where a probe is well above chance, which its rows show."""
        signal = self.signal
        if signal is None or (self.has_signal and self.predicted_by == PROBE):
            return []
        margin = "its accuracy less the share of the most frequent class, over texts, is "
        margin += shown(signal, sign="+")
        if self.has_signal:
            return [f"What {WHO[self.predicted_by]} predicts is attributed: {margin}."]
        return [
            f"**Without signal**: {WHO[self.predicted_by]} is not shown to predict better than chance "
            f"({margin}, which has to be above 0), so that what an ablation costs says nothing of its concepts."
        ]

    def _cells(self, row: AblationRow) -> Sequence[str]:
        own = (row.place, row.concept_of or "–", row.method, row.read_by)
        accuracy = f"{row.accuracy:.3f} ± {row.std:.3f}"
        if row.method == "none":
            return (*own, "–", "–", accuracy, "–", "–", "–")
        lost, ce = self.change(row), self.ce_change(row)
        return (
            *own,
            f"{row.rank:.2g}",
            f"{row.removed_norm:.3f}",
            accuracy,
            shown(lost, sign="+"),
            f"{self.drop(row):+.3f}",
            "–" if ce is None else f"{ce.mean:+.3f}",
        )

    def plot(self, title: str = "") -> Figure:
        """Draw accuracy against what was removed, a panel per place, beside the untouched model's.

        Bars are 95 % paired bootstrap intervals of the change. Concepts are those of the salient
        words; of the readout where no others were ablated. Marks stand up to an eighth beside their
        removed norm, each method at its own side, since several remove equally much.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        source = "readout" if self.settings["salient"] == "readout" else "word"
        rows = [row for row in self.rows if row.concept_of in ("", source)]
        methods = {row.method.removesuffix(RETRAINED) for row in rows}
        looks = {method: look for method, look in _LOOKS.items() if method in methods}
        for reader in dict.fromkeys(row.read_by for row in rows if row.read_by != PROBE):
            looks[f"hollow: read by {reader}"] = Look("o", "0.3", is_hollow=True)
        looks["small: probe retrained"] = Look("o", "0.3", is_small=True)
        return scatter(
            [
                self._panel(place, [row for row in rows if row.place == place])
                for place in dict.fromkeys(row.place for row in rows)
            ],
            "share of the norm that was removed, ‖v−v'‖ / ‖v‖",
            "accuracy",
            (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1),
            looks,
            title,
        )

    def _panel(self, place: str, rows: Sequence[AblationRow]) -> Panel:
        levels = [Level(self.chance, "chance")]
        for row in rows:
            if row.method == "none":
                style = "-" if row.read_by == PROBE else "--"
                levels.append(Level(row.accuracy, f"untouched, {row.read_by}", style))
        marks = [self._mark(row) for row in rows if row.method != "none"]
        return Panel(marks=marks, levels=levels, title=place)

    def _mark(self, row: AblationRow) -> Mark:
        method = row.method.removesuffix(RETRAINED)
        lost = self.change(row)
        # The interval is of the accuracy that is lost, hence upside down.
        low, high = row.accuracy + lost.mean - lost.high, row.accuracy + lost.mean - lost.low
        beside = 1.04 ** (list(_LOOKS).index(method) - 3)
        look = _LOOKS[method]._replace(
            is_hollow=row.read_by != PROBE, is_small=method != row.method
        )
        return Mark(row.removed_norm * beside, Interval(row.accuracy, low, high), look)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        own = {name: finite_or_none(value) for name, value in vars(self).items()}
        return own | {
            "chance": self.chance,
            "has_signal": self.has_signal,
            "salient": vars(self.salient),
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own = with_new_names(cls, values)
        for name in ("chance", "has_signal", "verdict"):
            own.pop(name, None)
        # Before there was a choice a probe predicted.
        settings = {"predicted_by": "probe"} | dict(own["settings"])
        own["settings"] = with_new_names(AblationSettings, settings)
        own.setdefault("predictions", ())
        for name in ("hook_names", "label_names", "labels", "predictions"):
            own[name] = tuple(own[name])
        own["concept_ids"] = tuple(map(tuple, own["concept_ids"]))
        salient = SalientTokens(**with_new_names(SalientTokens, own["salient"]))
        own["salient"] = replace(salient, words=tuple(salient.words))
        own["rows"] = tuple(map(AblationRow.from_dict, own["rows"]))
        return cls(**own)
