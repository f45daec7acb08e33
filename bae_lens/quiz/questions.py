"""A quiz for people: from a concept's view alone, which class did the model predict?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from typing_extensions import Self

from bae_lens.checks.consistency import check_indices, check_lengths, check_that
from bae_lens.examples.records import LatentRecords
from bae_lens.files.json_file import JsonResult
from bae_lens.files.whole import write_bytes
from bae_lens.html_page import html_page
from bae_lens.quiz.settings import QuizSettings
from bae_lens.scoring.judges.answer_cache import key_of
from bae_lens.scoring.words_and_contexts import words_and_contexts_of

if TYPE_CHECKING:
    from bae_lens.scoring.recoverability_result import Recoverability


class QuizItem(NamedTuple):
    """A text with a concept, which one of the questions shows.

    Attributes:
        question: which one.
        dictionary: which of the dictionaries.
        text: index of the text.
        predicted: the class that the model predicts of it.
        latent: that is shown: of the text's salient token; of a control, of another text's.
        is_control: whether it is one.
    """

    question: int
    dictionary: int
    text: int
    predicted: int
    latent: int
    is_control: bool


@dataclass(frozen=True)
class QuizKey(JsonResult):
    """What a quiz asks, and of what: the part of it that readers must not see.

    Attributes:
        quiz: a hash of what the page asks.
        class_names: the answers there are.
        dictionaries: their names.
        n_questions: different sets of words and contexts. One that several items share is asked once.
        items: of all dictionaries.
        n_texts: texts that have been scored.
        n_with_concepts: those in which every dictionary has a concept, of which some were drawn.
        settings: of the quiz.
    """

    _file_of = "key of a quiz"

    quiz: str
    class_names: tuple[str, ...]
    dictionaries: tuple[str, ...]
    n_questions: int
    items: tuple[QuizItem, ...]
    n_texts: int
    n_with_concepts: int
    settings: QuizSettings

    def check(self) -> None:
        """See ``JsonResult``."""
        check_lengths(len(set(self.dictionaries)), "names", dictionaries=self.dictionaries)
        asked = {item.question for item in self.items}
        check_that(
            asked == set(range(len(asked))) and self.n_questions == len(asked),
            f"items must ask all of {self.n_questions} questions and no other",
            sorted(asked),
        )
        for item in self.items:
            check_indices("items.dictionary", [item.dictionary], len(self.dictionaries))
            check_indices("items.predicted", [item.predicted], len(self.class_names))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self) | {"items": [item._asdict() for item in self.items]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        own["items"] = tuple(QuizItem(**item) for item in values["items"])
        own["settings"] = QuizSettings(**values["settings"])
        return cls(**own)


def write_quiz(
    path: str | Path,
    recoverabilities: Mapping[str, Recoverability],
    records: Mapping[str, LatentRecords],
    settings: QuizSettings | None = None,
) -> QuizKey:
    """Write a page that asks people what the model predicted, and beside it the key of its answers.

    The page shows words and contexts of concepts one by one, of all dictionaries mixed in random order; it holds
    no answer, no name of a dictionary and no number of a latent. All dictionaries are asked about the
    same texts, drawn at random from those in which each has a concept, of every predicted class as many
    where there are enough. Beside these stand controls: the same texts with the concept of another one,
    of another predicted class where there is one, best a concept that is asked about nowhere else.

    A view that several items share is asked once: nobody has to answer it again, or can tell from seeing
    it again that there must be something about it. Its answer counts for each of the items.

    Args:
        path: of the page; its key is written beside it, see ``key_path``.
        recoveries: of each dictionary by name, all by one ``RecoverabilityTask``.
        records: of each of them; words and contexts are of it.
        settings: see ``QuizSettings``.

    Returns:
        The key.

    Raises:
        ValueError: if there is no dictionary, one has no examples, they are not of the same texts,
            predictions and classes, or there is no text in which each has a concept.
    """
    settings = settings or QuizSettings()
    predictions, class_names = _check(recoverabilities, records)
    concepts = [own.concepts for own in recoverabilities.values()]
    with_concepts = [i for i in range(len(predictions)) if all(own[i] >= 0 for own in concepts)]
    if not with_concepts:
        raise ValueError(
            f"None of the {len(predictions)} texts has a concept in each of the dictionaries "
            f"{', '.join(map(repr, recoverabilities))}. Ask about fewer dictionaries, or more texts."
        )
    rng = np.random.default_rng(settings.seed)
    items = _items(concepts, predictions, with_concepts, settings, rng)
    names = tuple(recoverabilities)
    views = [
        words_and_contexts_of(
            records[names[item.dictionary]], item.latent, settings.n_words, settings.n_contexts
        )
        for item in items
    ]
    distinct = list(dict.fromkeys(views))
    questions = [distinct[k] for k in rng.permutation(len(distinct))]
    number = {view: k for k, view in enumerate(questions)}
    content = {"classes": class_names, "questions": questions}
    key = QuizKey(
        quiz=key_of(content),
        class_names=class_names,
        dictionaries=names,
        n_questions=len(questions),
        items=tuple(
            item._replace(question=number[view]) for item, view in zip(items, views, strict=True)
        ),
        n_texts=len(predictions),
        n_with_concepts=len(with_concepts),
        settings=settings,
    )
    html = html_page(
        {"quiz": key.quiz, **content},
        "bae_lens.quiz",
        "quiz.html",
        styles=["quiz.css"],
        scripts=["quiz.js"],
    )
    key.save(key_path(path))
    write_bytes(path, html.encode("utf-8"))
    return key


def key_path(path: str | Path) -> Path:
    """Where the key of a page lies: beside ``quiz.html`` as ``quiz.key.json``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.key.json")


def _check(
    recoverabilities: Mapping[str, Recoverability], records: Mapping[str, LatentRecords]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The predictions and the names of classes, which all share."""
    if not recoverabilities or set(recoverabilities) != set(records):
        raise ValueError(
            "A quiz is of one dictionary at least, each with its examples by the same name; got "
            f"recoveries of {sorted(recoverabilities)} and examples of {sorted(records)}."
        )
    first = next(iter(recoverabilities.values()))
    for name, own in recoverabilities.items():
        if (own.predictions, own.class_names) != (first.predictions, first.class_names):
            raise ValueError(
                f"{name!r} is not of the same texts and predictions as {next(iter(recoverabilities))!r}, so "
                "that people could not compare them. Recover all with one RecoverabilityTask."
            )
        if max(own.concepts, default=-1) >= len(records[name]):
            raise ValueError(
                f"{name!r} has concept {max(own.concepts)}, and its examples are of "
                f"{len(records[name])} latents. Give the examples of this dictionary."
            )
    return tuple(first.predictions), tuple(first.class_names)


def _items(
    concepts: Sequence[Sequence[int]],
    predictions: Sequence[int],
    with_concepts: Sequence[int],
    settings: QuizSettings,
    rng: np.random.Generator,
) -> list[QuizItem]:
    """Draw the items of all dictionaries, before it is known which question shows which."""
    texts = _draw(with_concepts, predictions, settings.n_texts, rng)
    items: list[QuizItem] = []
    for d, own in enumerate(concepts):
        items += [QuizItem(-1, d, i, predictions[i], own[i], False) for i in texts]
        asked = {own[i] for i in texts}
        for i in texts[: settings.n_controls]:
            latent = _other_concept(i, own, predictions, with_concepts, asked, rng)
            if latent is not None:
                items.append(QuizItem(-1, d, i, predictions[i], latent, True))
                asked.add(latent)
    return items


def _draw(
    texts: Sequence[int], predictions: Sequence[int], n: int, rng: np.random.Generator
) -> list[int]:
    """``n`` of the texts in random order, a class after the other while each has some left."""
    of_class: dict[int, list[int]] = {}
    for i in rng.permutation(texts).tolist():
        of_class.setdefault(predictions[i], []).append(i)
    rounds = chain.from_iterable(zip_longest(*of_class.values()))
    return [i for i in rounds if i is not None][:n]


def _other_concept(
    text: int,
    concepts: Sequence[int],
    predictions: Sequence[int],
    texts: Sequence[int],
    asked: set[int],
    rng: np.random.Generator,
) -> int | None:
    """The concept of another one of the texts; None where all have the same."""
    others = [i for i in rng.permutation(texts).tolist() if concepts[i] != concepts[text]]
    if not others:
        return None
    # A concept that is asked about already would only have its answers counted again.
    return concepts[
        min(others, key=lambda i: (predictions[i] == predictions[text], concepts[i] in asked))
    ]
