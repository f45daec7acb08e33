"""Evidence of planted latents, an encoder that sees what was planted, and judges that follow rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bae_lens.examples.records import (
    CorpusToken,
    Example,
    ExampleSettings,
    LatentRecord,
    LatentRecords,
)
from bae_lens.scoring.judges.judge import MarkedText, Question

# Words of a class begin with its name. Latents fire at ...
CLASSES = ("cat", "dog", "sun", "sea", "red", "ice")
# ... all words of a class, one word of a class, words of all classes, nothing.
PURE, TOKEN, MIXED, DEAD = 0, 1, 2, 3
N_WORDS, N_DIMENSIONS = 12, 32


def word(c: int, k: int) -> str:
    return f" {CLASSES[c]}{k}"


def example(text: int, token: str, strength: float = 1.0) -> Example:
    strings = (f" before{text}", token, f" after{text}")
    return Example((7, 8, 9), 1, strength, text, 5, strings)


def planted_records(n_examples: int = 12, n_corpus_tokens: int = 60) -> LatentRecords:
    rng = np.random.default_rng(0)
    words = {
        PURE: [word(0, k) for k in range(N_WORDS)],
        TOKEN: [word(1, 3)] * N_WORDS,
        MIXED: [word(k % len(CLASSES), k) for k in range(N_WORDS)],
    }
    firing = {latent: set(own) for latent, own in words.items()}
    latents = []
    for latent, own in words.items():
        tokens = [own[i % N_WORDS] for i in range(2 * n_examples)]
        examples = [example(1000 * latent + i, token) for i, token in enumerate(tokens)]
        shuffled = [examples[i] for i in rng.permutation(len(examples))]
        half = (tuple(shuffled[:n_examples]), tuple(shuffled[n_examples:]))
        latents.append(LatentRecord(latent, False, 2 * n_examples, 0.1, *half, (), 0))
    latents.append(LatentRecord(DEAD, False, 0, 0.0, (), (), (), 0))
    corpus_tokens = []
    for i in range(n_corpus_tokens):
        token = word(i % len(CLASSES), i // len(CLASSES) % N_WORDS)
        at = tuple(latent for latent, own in firing.items() if token in own)
        corpus_tokens.append(CorpusToken(example(9000 + i, token), at))
    return LatentRecords(
        dictionary="planted",
        hook_name="blocks.0.hook_resid_post",
        strength="activation",
        neighbor_measure="phi",
        n_tokens=1000,
        n_texts=100,
        settings=ExampleSettings(n_tokens=None),
        latents=tuple(latents),
        corpus_tokens=tuple(corpus_tokens),
    )


def class_encoder(texts: Sequence[MarkedText]) -> np.ndarray:
    """Near each other for words of a class."""
    vectors = np.zeros((len(texts), N_DIMENSIONS))
    for row, text in zip(vectors, texts, strict=True):
        name = text.token.strip()
        row[:] = 0.3 * np.random.default_rng(list(name.encode())).standard_normal(N_DIMENSIONS)
        row[CLASSES.index(name.rstrip("0123456789"))] += 4.0
    return vectors


class RuleJudge:
    """Answers by a function, and remembers what it was asked."""

    name, caveat = "rule", "It follows a rule."

    def __init__(self, rule: Callable[[Question], str | None]) -> None:
        self.rule = rule
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        self.asked += questions
        return [self.rule(question) for question in questions]

    def of_kind(self, kind: str) -> list[Question]:
        return [question for question in self.asked if question.kind == kind]
