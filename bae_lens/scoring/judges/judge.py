"""The one interface of everything that judges latents: questions in, answers out."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from bae_lens.examples.records import Example

Kind = Literal["explain", "match", "intruder", "same", "compare"]

# Longest phrase that is taken for an answer, in characters.
MAX_PHRASE = 200
# Characters of corpus text that could end a line or a quotation, change what is seen of it, mark a
# token, or be read as a control token of a chat format.
_ESCAPED = {"«", "»", "<"}
_ESCAPED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Those that reverse what stands after them.
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class LimitReached(RuntimeError):
    """A judge has used up what it was allowed. All answers up to then are kept; run again to go on."""


class JudgeUnavailable(RuntimeError):
    """A judge could not be asked. All answers up to then are kept; run again to go on."""


class MarkedText(NamedTuple):
    """A token in its context.

    Attributes:
        before: text before it.
        token: its own text, space included.
        after: text after it.
    """

    before: str
    token: str
    after: str

    @classmethod
    def of(cls, example: Example) -> MarkedText:
        """The marked token of an example."""
        strings, i = example.strings, example.marked
        return cls("".join(strings[:i]), strings[i], "".join(strings[i + 1 :]))

    @property
    def text(self) -> str:
        """All of it."""
        return self.before + self.token + self.after

    @property
    def span(self) -> tuple[int, int]:
        """Where the token begins and ends in the text, without space around it."""
        n_space = len(self.token) - len(self.token.lstrip())
        begin = len(self.before) + n_space
        return begin, begin + len(self.token.strip())


@dataclass(frozen=True)
class Question:
    """One thing to be judged.

    Attributes:
        kind: what is asked: to ``"explain"`` examples by a phrase; whether a phrase and an example
            ``"match"``; which example is the ``"intruder"``; whether two phrases say the ``"same"``;
            to ``"compare"`` two groups of examples.
        system: who the judge is and how it answers, as text.
        user: the question, as text.
        choices: the answers there are; empty: a phrase.
        groups: the examples again, for judges that do not read the text: one group each for
            ``"intruder"`` (as many as choices), two for ``"compare"``.
        max_tokens: of the answer.
        seed: of a judge that samples.
    """

    kind: Kind
    system: str
    user: str
    choices: tuple[str, ...] = ()
    groups: tuple[tuple[MarkedText, ...], ...] = ()
    max_tokens: int = 16
    seed: int = 0


class Judge(Protocol):
    """A model, a person, or anything else that answers questions."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    @property
    def caveat(self) -> str:
        """What its answers can and cannot say, in a few sentences, shown beside every score."""
        ...

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """Of each question one of its choices, or a phrase; None where there is no usable answer.

        Raises:
            LimitReached: if no more may be asked. What was answered is kept where the judge keeps
                answers.
            JudgeUnavailable: if the judge cannot be reached.
            ValueError: if it is no judge of such questions.
        """
        ...


def quoted(text: str) -> str:
    """Text from elsewhere as a JSON string on one line, so that it cannot pass for anything else.

    Quotation marks, backslashes, line ends, invisible characters, «, » and < are escaped.
    """
    return "".join(map(_escaped, json.dumps(text, ensure_ascii=False)))


# Questions show the same examples again and again.
@lru_cache(maxsize=4096)
def quoted_example(example: MarkedText) -> str:
    """The same of an example, with «» around the marked token; no other « or » is left in it."""
    begin, end = example.span
    text = example.text
    parts = [quoted(part)[1:-1] for part in (text[:begin], text[begin:end], text[end:])]
    if begin == end:  # Space only: the mark is around all of it.
        parts = [quoted(part)[1:-1] for part in example]
    return f'"{parts[0]}«{parts[1]}»{parts[2]}"'


def quoted_list(examples: Sequence[MarkedText]) -> str:
    """Numbered from 1, a line each."""
    return "\n".join(f"{i}. {quoted_example(e)}" for i, e in enumerate(examples, 1))


def _escaped(character: str) -> str:
    if character in _ESCAPED or unicodedata.category(character) in _ESCAPED_CATEGORIES:
        return (
            json.dumps(character)[1:-1] if not character.isascii() else f"\\u{ord(character):04x}"
        )
    return character


def read_answer(text: str, choices: Sequence[str]) -> str | None:
    """The answer that a text is, or None.

    Reasoning in ``<think>`` is left out. Of choices, one has to stand alone, in any case and with any
    punctuation around it: "Yes." is "yes", and "Yes, because …" is no answer, for it may end in a
    "but". A phrase is one line, without quotation marks around it, no longer than ``MAX_PHRASE``, and
    of characters that can be shown and saved.
    """
    text = re.sub(r"^\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    if choices:
        bare = text.strip(" \t\r\n.,;:!?\"'`*()[]").casefold()
        return next((choice for choice in choices if choice.casefold() == bare), None)
    if len(text) > MAX_PHRASE:
        return None
    phrase = text.replace("\t", " ").strip(" \"'`*").removesuffix(".")
    return phrase if is_answer(phrase, ()) else None


def is_answer(answer: object, choices: Sequence[str]) -> bool:
    """Whether it can be taken as it is: one of the choices, or a phrase on one line in which nothing is
    half a character, or ends lines, moves the cursor or turns the order of letters around."""
    if not isinstance(answer, str):
        return False
    if choices:
        return answer in choices
    return (
        0 < len(answer) <= MAX_PHRASE
        and len(answer.splitlines()) == 1
        and not any(unicodedata.category(c) in ("Cc", "Cs") or c in _TURNING for c in answer)
    )


def answers_of(judge: Judge, questions: Sequence[Question]) -> list[str | None]:
    """``judge.ask``, with None in place of what is no answer to its question.

    Raises:
        ValueError: if there is not one answer for each question.
    """
    answers = list(judge.ask(questions))
    if len(answers) != len(questions):
        raise ValueError(
            f"The judge {judge.name!r} gave {len(answers)} answers to {len(questions)} questions."
        )
    return [
        answer if is_answer(answer, question.choices) else None
        for question, answer in zip(questions, answers, strict=True)
    ]
