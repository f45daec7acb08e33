"""What people told from the words and contexts of a quiz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import Self

from bae_lens.checks.consistency import check_lengths
from bae_lens.checks.suggest import index_of
from bae_lens.files.json_file import JsonResult, finite_or_none, load_json
from bae_lens.quiz.questions import QuizItem, QuizKey
from bae_lens.results import Table
from bae_lens.scoring.bag_of_words import CANNOT_TELL
from bae_lens.stats import Interval, balanced_interval, krippendorff_alpha, shown, wider

# Of a reader's name in characters, and of a time in seconds.
_LONGEST_NAME, _LONGEST_TIME = 60, 1e9
_COUNTS = ("right", "wrong", "cannot tell", "unanswered")


class QuizAnswer(NamedTuple):
    """An answer to one question.

    Attributes:
        question: which one.
        choice: index of a class; −1: the reader cannot tell.
        seconds: that the question was on the screen.
    """

    question: int
    choice: int
    seconds: float


@dataclass(frozen=True)
class QuizAnswers:
    """The answers of one reader.

    Attributes:
        quiz: see ``QuizKey.quiz``.
        reader: what the reader is called.
        answers: one per question at most.
    """

    quiz: str
    reader: str
    answers: tuple[QuizAnswer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, as the page saves them."""
        return asdict(self) | {"answers": [answer._asdict() for answer in self.answers]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], name: str = "unnamed") -> QuizAnswers:
        """What ``to_dict`` gave, or a page saved.

        Args:
            values: from elsewhere: anything may stand in them.
            name: of the reader, who may leave it out.

        Raises:
            ValueError: if they are no answers.
        """
        quiz, reader, answers = (values[field.name] for field in fields(cls))
        if not (isinstance(quiz, str) and isinstance(reader, str) and isinstance(answers, list)):
            raise ValueError("quiz and reader must be strings, and answers a list")
        found = tuple(map(_answer, answers))
        numbers = [answer.question for answer in found]
        if len(set(numbers)) < len(numbers):
            raise ValueError("a question is answered twice")
        return cls(quiz, _name(reader) or name, found)

    @classmethod
    def load(cls, path: str | Path) -> QuizAnswers:
        """What a page saved. A reader without a name is called as the file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        expected = "file of answers that a quiz saved"
        of_file = partial(cls.from_dict, name=_name(Path(path).stem))
        return load_json(path, expected, of_file, *(field.name for field in fields(cls)))


class QuizTally(NamedTuple):
    """How items were answered."""

    n_right: int
    n_wrong: int
    n_cannot_tell: int
    n_unanswered: int


@dataclass(frozen=True)
class QuizResult(JsonResult):
    """Result of ``score_quiz``.

    Attributes:
        key: what was asked.
        answers: of each reader, each with a name of its own.
    """

    _file_of = "result of score_quiz"

    key: QuizKey
    answers: tuple[QuizAnswers, ...]

    def check(self) -> None:
        """See ``JsonResult``."""
        self.key.check()
        check_lengths(len(self.answers), "readers", readers=set(self.readers))
        for own in self.answers:
            _check_answers(self.key, own)

    @property
    def readers(self) -> tuple[str, ...]:
        """The names of the readers."""
        return tuple(answers.reader for answers in self.answers)

    @property
    def chance(self) -> float:
        """Balanced accuracy of guessing."""
        return 1 / len(self.key.class_names)

    def accuracy(
        self, dictionary: str, reader: str | None = None, *, control: bool = False
    ) -> Interval | None:
        """Balanced accuracy over the classes that are predicted, with its 95 % bootstrap interval.

        "Cannot tell" counts as a guess, so that nothing is won or lost by guessing; what is unanswered
        is left out. The bootstrap is over texts, of each the mean of its readers, or over
        questions, whichever leaves more open: that other readers, or
        the same ones another day, would answer differently is not in it.

        Args:
            dictionary: its name.
            reader: one of them; None: all.
            control: of the control items.

        Returns:
            None where there are no answers.

        Raises:
            ValueError: if there is no such name.
        """
        values, classes, questions = [], [], []
        for item, choices in self._choices(dictionary, reader, control):
            if known := [choice for choice in choices if choice is not None]:
                values.append(fmean(self._worth(item, choice) for choice in known))
                classes.append(item.predicted)
                questions.append(item.question)
        if not values:
            return None
        seed = self.key.settings.seed
        return wider(
            balanced_interval(values, classes, seed=seed),
            # One that was answered once counts for several items.
            balanced_interval(values, classes, questions, seed),
        )

    def tally(
        self, dictionary: str, reader: str | None = None, *, control: bool = False
    ) -> QuizTally:
        """How many items were answered how; of several readers together.

        Raises:
            ValueError: if there is no such name.
        """
        counts = Counter(
            _kind(item, choice)
            for item, choices in self._choices(dictionary, reader, control)
            for choice in choices
        )
        return QuizTally(*(counts[name] for name in _COUNTS))

    def alpha(self) -> float | None:
        """Agreement of readers: Krippendorff's alpha (nominal) over questions, controls too.

        "Cannot tell" is a value like another.

        Returns:
            None with one reader, where no two answered the same question, or all answers are the same.

        Raises:
            ImportError: if the package krippendorff is missing; the message is the command to run.
        """
        table = np.full((len(self.answers), self.key.n_questions), np.nan)
        for row, own in zip(table, self.answers, strict=True):
            for answer in own.answers:
                row[answer.question] = answer.choice
        return krippendorff_alpha(table, "nominal") if len(table) > 1 else None

    def median_seconds(self, reader: str | None = None) -> float | None:
        """Median time per question that was answered; None where none was.

        Raises:
            ValueError: if there is no such reader.
        """
        found = [answer.seconds for own in self._of(reader) for answer in own.answers]
        return median(found) if found else None

    def table(self) -> str:
        """Markdown: each number beside its control. Readers' agreement is in it where krippendorff is
        installed."""
        return self.to_table().markdown()

    def to_table(self) -> Table:
        """Each number beside its control, as cells."""
        rows = []
        for row in self._rows():
            own, control = row.accuracy, row.control
            reader = "all" if row.reader is None else row.reader
            rows.append((row.dictionary, reader, shown(own), shown(control), *map(str, row.tally)))
        key = self.key
        n_asked = len({item.text for item in key.items})
        notes = [
            f"{n_asked} texts, the same of each dictionary, drawn from {key.n_with_concepts} of "
            f"{key.n_texts} in which every dictionary has a concept, in {key.n_questions} questions: a "
            "question that several items share is asked once, and its answer counts for each. Balanced "
            f"over the classes that the model predicts; chance is {self.chance:.3f}, and so much is "
            '"cannot tell" worth; what is unanswered is left out. 95 % bootstrap intervals over '
            "texts; that other readers differ is not in them. A control shows a text's class with the "
            "concept of another text, of another class where there is one: it is at chance where "
            "words and contexts tell nothing, and below it where they tell the class.",
            "Median seconds a question: "
            + ", ".join(f"{r} {shown(self.median_seconds(r), 1)}" for r in self.readers)
            + ".",
        ]
        if len(self.answers) > 1:
            try:
                notes.append(f"Krippendorff's alpha of the readers: {shown(self.alpha(), 2)}.")
            except ImportError as e:
                notes.append(f"Krippendorff's alpha of the readers: {e}")
        return Table(("", "reader", "balanced accuracy", "control", *_COUNTS), rows, notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON, the scores that follow from it too."""
        return {
            "key": self.key.to_dict(),
            "answers": [own.to_dict() for own in self.answers],
            "chance": self.chance,
            "scores": [row.to_dict() for row in self._rows()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        answers = tuple(map(QuizAnswers.from_dict, values["answers"]))
        return cls(QuizKey.from_dict(values["key"]), answers)

    def _rows(self) -> list[_Row]:
        readers = (None, *self.readers) if len(self.readers) > 1 else self.readers
        return [
            _Row(
                name,
                reader,
                self.accuracy(name, reader),
                self.accuracy(name, reader, control=True),
                self.tally(name, reader),
            )
            for name in self.key.dictionaries
            for reader in readers
        ]

    def _of(self, reader: str | None) -> tuple[QuizAnswers, ...]:
        if reader is None:
            return self.answers
        return (self.answers[index_of(self.readers, reader, "reader")],)

    def _choices(
        self, dictionary: str, reader: str | None, control: bool
    ) -> list[tuple[QuizItem, list[int | None]]]:
        """Each item with the readers' answers; None: unanswered."""
        which = index_of(self.key.dictionaries, dictionary, "dictionary")
        said = [{a.question: a.choice for a in own.answers} for own in self._of(reader)]
        return [
            (item, [own.get(item.question) for own in said])
            for item in self.key.items
            if (item.dictionary, item.is_control) == (which, control)
        ]

    def _worth(self, item: QuizItem, choice: int) -> float:
        return self.chance if choice == CANNOT_TELL else float(choice == item.predicted)


class _Row(NamedTuple):
    dictionary: str
    reader: str | None
    accuracy: Interval | None
    control: Interval | None
    tally: QuizTally

    def to_dict(self) -> dict[str, Any]:
        """Plain values; null for the bounds of an interval that has none."""
        own = self._asdict() | {"tally": self.tally._asdict()}
        for name, interval in (("accuracy", self.accuracy), ("control", self.control)):
            own[name] = interval and [finite_or_none(value) for value in interval]
        return own


def score_quiz(key: QuizKey, answers: Sequence[QuizAnswers]) -> QuizResult:
    """Compare readers' answers with what the model predicted.

    Args:
        key: of the quiz.
        answers: of each reader. Of readers of the same name the later ones get a number.

    Raises:
        ValueError: if there are no answers, some are of another quiz, or of a question or class that it
            lacks, or the same ones are given twice.
    """
    if not answers:
        raise ValueError("There are no answers to score.")
    for own in answers:
        _check_answers(key, own)
    given = [own.answers for own in answers if own.answers]
    if len(set(given)) < len(given):
        raise ValueError(
            "The same answers are given twice, to the fraction of a second. Leave one out."
        )
    named: dict[str, QuizAnswers] = {}
    for own in answers:
        name, n = own.reader, 1
        while name in named:
            n += 1
            name = f"{own.reader} ({n})"
        named[name] = QuizAnswers(own.quiz, name, own.answers)
    return QuizResult(key, tuple(named.values()))


def _kind(item: QuizItem, choice: int | None) -> str:
    if choice is None:
        return "unanswered"
    if choice == CANNOT_TELL:
        return "cannot tell"
    return "right" if choice == item.predicted else "wrong"


def _answer(values: Any) -> QuizAnswer:
    if not isinstance(values, dict) or not set(QuizAnswer._fields) <= set(values):
        raise ValueError(f"an answer must have {', '.join(QuizAnswer._fields)}")
    question, choice, seconds = (values[name] for name in QuizAnswer._fields)
    for name, value in (("question", question), ("choice", choice)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} must be a whole number; got {_short(value)}")
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _LONGEST_TIME:
        raise ValueError(
            f"seconds must be a number from 0 to {_LONGEST_TIME:g}; got {_short(seconds)}"
        )
    return QuizAnswer(question, choice, float(seconds))


def _check_answers(key: QuizKey, own: QuizAnswers) -> None:
    if own.quiz != key.quiz:
        raise ValueError(
            f"The answers of {own.reader!r} are of another quiz ({own.quiz[:8]}…, not "
            f"{key.quiz[:8]}…). Give the key that was written with the page they answered."
        )
    for answer in own.answers:
        if not 0 <= answer.question < key.n_questions:
            raise ValueError(
                f"{own.reader!r} answered question {answer.question}; those of this quiz are 0 to "
                f"{key.n_questions - 1}."
            )
        if not CANNOT_TELL <= answer.choice < len(key.class_names):
            raise ValueError(
                f"{own.reader!r} chose {answer.choice} in question {answer.question}; the choices are "
                f"0 to {len(key.class_names) - 1}, and {CANNOT_TELL} for cannot tell."
            )


def _name(text: str) -> str:
    """What can be printed of a name, on one line and not too long."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:_LONGEST_NAME].strip()


def _short(value: Any) -> str:
    return repr(value)[:40]
