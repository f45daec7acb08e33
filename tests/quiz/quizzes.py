"""Recoveries that are planted, and readers of quizzes who follow rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bae_lens.quiz.questions import QuizItem, QuizKey
from bae_lens.quiz.scores import QuizAnswer, QuizAnswers
from bae_lens.scoring.recoverability_result import Recoverability, RecoverabilitySettings
from tests.helpers import known
from tests.report.helpers import make_records

CLASSES = ("negative", "positive")
N_TEXTS, N_LATENTS = 40, 30
PREDICTIONS = tuple(int(i % 4 == 0) for i in range(N_TEXTS))
# Each of them never one that the other has, so that who asks of which can be seen.
CONCEPTS = {
    "sharp one": tuple(10 * PREDICTIONS[i] + i % 10 for i in range(N_TEXTS)),
    "blunt one": tuple(20 + i % 9 for i in range(N_TEXTS)),
}
EVIDENCE = {name: make_records(N_LATENTS, n_examples=5, seed=i) for i, name in enumerate(CONCEPTS)}
Rule = Callable[[QuizItem], int | None]


def recoverability(concepts: Sequence[int], **changes: Any) -> Recoverability:
    own: dict[str, Any] = {
        "dictionary": "its architecture",
        "hook_names": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"),
        "class_names": CLASSES,
        "predictions": PREDICTIONS,
        "concepts": tuple(concepts),
        "said": {},
        "n_learned": 100,
        "n_shown": 100,
        "settings": RecoverabilitySettings(),
    }
    return Recoverability(**{**own, **changes})


RECOVERIES = {name: recoverability(concepts) for name, concepts in CONCEPTS.items()}


def answered(key: QuizKey, rule: Rule, reader: str = "anna", seconds: float = 2.0) -> QuizAnswers:
    """By a rule, which has to say the same of the items of one question."""
    said = {item.question: rule(item) for item in key.items}
    answers = [QuizAnswer(q, c, seconds + q / 8) for q, c in sorted(said.items()) if c is not None]
    return QuizAnswers(key.quiz, reader, tuple(answers))


def shown_class(item: QuizItem) -> int:
    """What "sharp one" shows without an error, and the other one not at all."""
    return int(item.latent >= 10)


def known_mean(interval: Any) -> float:
    return known(None if interval is None else interval.mean)
