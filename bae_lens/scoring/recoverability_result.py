"""What a bag-of-words classifier told of a model's predictions, and how good that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from bae_lens.charts import Level, intervals
from bae_lens.checks.consistency import check_indices, check_lengths, check_that
from bae_lens.checks.fields import check_fields, whole
from bae_lens.checks.old_names import renamed_fields
from bae_lens.files.json_file import ResultOfWeights
from bae_lens.results import Table
from bae_lens.scoring.bag_of_words import CANNOT_TELL
from bae_lens.scoring.nmi import PredictionNMI
from bae_lens.stats import Interval, balanced_interval, shown, wider

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What the reader is given: of a concept, and for comparison.
Given = Literal["words and contexts", "words", "contexts", "class shares", "word", "text"]
OF_CONCEPT: tuple[Given, ...] = ("words and contexts", "words", "contexts", "class shares")
GIVEN: tuple[Given, ...] = (*OF_CONCEPT, "word", "text")
# Who predicts, by the names of AblationSettings.predicted_by.
PREDICTORS = {
    "probe": "the probe",
    "head": "the classifier's head",
    "label_words": "the model, by the label words,",
}
# For tables and figures.
SHOWN: dict[Given, str] = {
    "words and contexts": "words and contexts of the concept",
    "words": "its words",
    "contexts": "its contexts",
    "class shares": "its class shares, no words",
    "word": "the salient word alone",
    "text": "the whole text",
}


@dataclass(frozen=True)
class RecoverabilitySettings:
    """Settings of ``RecoverabilityTask``.

    Args:
        n_words (int): Words of a concept that are shown at most.
        n_contexts (int): Contexts of a concept that are shown at most.
        seed (int): Of the halves of the reference texts, the examples, and the folds that the reader's
            penalty is chosen on.

    Raises:
        ValueError: if a value is outside its range.
    """

    n_words: int = 10
    n_contexts: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self, {"n_words": whole(1), "n_contexts": whole(1), "seed": whole(0, 2**32 - 1)}
        )


@renamed_fields(beyond="excess_over")
@dataclass(frozen=True)
class Recoverability(ResultOfWeights):
    """What a bag-of-words classifier tells of a model's predictions from a dictionary's concepts.

    Attributes:
        dictionary: what it is called.
        hook_names: where its concepts are read, and where a probe reads.
        class_names: of the classes.
        predictions: what is predicted of each text (never its label).
        concepts: the concept of each text's salient token; −1: none is active there, or only a bit
            that is mostly on, which is told by where it is off.
        said: by what the reader was given, the class that it tells of each text; −1: it cannot tell.
            ``"words and contexts"``: the concept's words and contexts; ``"words"`` and ``"contexts"``: one of them;
            ``"class shares"``: no classifier, but the class that is most frequent, for its share of all
            tokens, where the concept fires in the reference texts: what the concept tells if not put
            in words; ``"word"``: the salient token's word alone; ``"text"``: the whole text.
        n_learned: texts that the reader learned from.
        n_shown: other texts, which words and contexts are of.
        settings: of the task.
        predicted_by: who predicts: ``"head"``, ``"label_words"`` or ``"probe"``.
        nmi: how much the codes of all words, salient or not, tell of the predictions; None where an older
            version did not measure it.
    """

    _file_of = "result of RecoverabilityTask.recover"

    dictionary: str
    hook_names: tuple[str, str]
    class_names: tuple[str, ...]
    predictions: tuple[int, ...]
    concepts: tuple[int, ...]
    said: Mapping[Given, tuple[int, ...]]
    n_learned: int
    n_shown: int
    settings: RecoverabilitySettings
    predicted_by: str = "probe"
    nmi: PredictionNMI | None = None

    def check(self) -> None:
        """See ``JsonResult``."""
        n, n_classes = len(self.predictions), len(self.class_names)
        check_that(n > 0, "predictions must be of one text at least", self.predictions)
        check_lengths(n, "texts", concepts=self.concepts)
        check_indices("predictions", self.predictions, n_classes)
        check_that(
            self.predicted_by in PREDICTORS,
            f"predicted_by must be one of {', '.join(PREDICTORS)}",
            self.predicted_by,
        )
        check_that(min(self.concepts) >= -1, "concepts must be -1 at least", min(self.concepts))
        for given, said in self.said.items():
            check_lengths(n, "texts", **{given: said})
            check_indices(f"said[{given!r}]", said, n_classes, least=CANNOT_TELL)

    def score(self, given: Given = "words and contexts") -> Interval:
        """Balanced accuracy over the classes that are predicted, with its 95 % bootstrap interval.

        "Cannot tell" counts as a guess. Of what a concept shows the bootstrap is over concepts or over
        texts, whichever leaves more open: what misleads does so for all texts of its concept.
        That other texts would have shown other words and contexts is in neither.

        Raises:
            ValueError: if nothing was told from that.
        """
        return self._interval(self.credits(given), given)

    def credits(self, given: Given = "words and contexts") -> np.ndarray:
        """``[n]``: 1 where the reader is right, 0 where it is wrong, chance where it cannot tell."""
        said = self._said(given)
        return (said == self.predictions) + (said == CANNOT_TELL) * self.chance

    def excess_over(self, other: Given = "word", given: Given = "words and contexts") -> Interval:
        """Return by how much what is given tells more than something else, paired by text.

        More than the salient word alone is what a concept adds to it.
        """
        return self._interval(self.credits(given) - self.credits(other), given)

    def difference(self, other: Recoverability, given: Given = "words and contexts") -> Interval:
        """Return by how much another dictionary is worse on the same texts, paired by text.

        Raises:
            ValueError: if it is of other texts.
        """
        if other.predictions != self.predictions:
            raise ValueError(
                "The two were not told about the same texts and predictions; recover both with one "
                "RecoverabilityTask."
            )
        difference = self.credits(given) - other.credits(given)
        return wider(self._interval(difference, given), other._interval(difference, given))

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(set(self.predictions))

    @property
    def n_concepts(self) -> int:
        """Different concepts of these texts: one for all tells nothing, one per text is as good as it."""
        return len(set(self.concepts) - {-1})

    def table(self) -> str:
        """Markdown: what the concept shows beside what the salient word says alone."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """What the concept shows beside what the salient word says alone, as cells."""
        rows = []
        for given in GIVEN:
            if given in self.said:
                has_both = given in OF_CONCEPT and "word" in self.said
                excess = shown(self.excess_over("word", given)) if has_both else "–"
                rows.append((SHOWN[given], shown(self.score(given)), excess))
        counts = Counter(self.predictions)
        classes = ", ".join(f"{counts[i]} {name}" for i, name in enumerate(self.class_names))
        n_unreadable = self.said["words and contexts"].count(CANNOT_TELL)
        nmi = "" if self.nmi is None else f" NMI of words' codes with the prediction: {self.nmi}."
        return Table(
            ("the reader sees", "balanced accuracy", "excess over the word"),
            rows,
            [
                f"{self.dictionary}, concepts of {self.hook_names[0]}. What {PREDICTORS[self.predicted_by]} predicts of "
                f"{len(self.predictions)} texts: {classes}; chance is {self.chance:.3f}. They have "
                f"{self.n_concepts} different concepts; in {n_unreadable} texts "
                "the concept shows no word that the classifier knows. It learned from "
                f"{self.n_learned} other texts, and words and contexts are of {self.n_shown} others still. 95 % bootstrap intervals over concepts or texts, the wider.{nmi}"
            ],
        )

    def plot(self, title: str = "") -> Figure:
        """Draw the balanced accuracy by what the reader sees, with 95 % intervals, beside chance.

        Args:
            title: Above the figure.

        Raises:
            ImportError: If matplotlib is missing; the message is the command to run.
        """
        given: list[Given] = [one for one in GIVEN if one in self.said]
        return intervals(
            {SHOWN[one]: self.score(one) for one in given},
            "balanced accuracy of the reader",
            Level(self.chance, "chance"),
            title,
            hollow=[SHOWN[one] for one in given if one not in OF_CONCEPT],
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        own["settings"] = RecoverabilitySettings(**values["settings"])
        own["nmi"] = values.get("nmi") and PredictionNMI.from_dict(values["nmi"])
        own["said"] = {
            # What an older version called it.
            "words and contexts" if given == "view" else given: tuple(said)
            for given, said in values["said"].items()
        }
        return cls(**own)

    def _said(self, given: Given) -> np.ndarray:
        if given not in self.said:
            raise ValueError(f"Nothing was told from {given!r}; there is {', '.join(self.said)}.")
        return np.array(self.said[given])

    def _interval(self, values: np.ndarray, given: Given) -> Interval:
        seed, classes = self.settings.seed, self.predictions
        by_text = balanced_interval(values.tolist(), classes, seed=seed)
        if given not in OF_CONCEPT:
            return by_text
        return wider(by_text, balanced_interval(values.tolist(), classes, self.concepts, seed))
