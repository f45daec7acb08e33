"""What a reader is shown of a latent or code."""

from __future__ import annotations

from typing import NamedTuple

from bae_lens.examples.records import LatentRecords
from bae_lens.scoring.judges.judge import MarkedText
from bae_lens.scoring.tested_latents import one_per_text


class WordsAndContexts(NamedTuple):
    """Words and contexts of a latent, without its number or the name of its dictionary.

    Attributes:
        words: tokens at which it fires most often, without space around them.
        contexts: random examples, each from another text.
    """

    words: tuple[str, ...]
    contexts: tuple[MarkedText, ...]


def words_and_contexts_of(
    records: LatentRecords, latent: int, n_words: int = 10, n_contexts: int = 5
) -> WordsAndContexts:
    """The view of a latent; empty where it did not fire, shorter where it fired too seldom.

    Args:
        records: of the dictionary.
        latent: which one.
        n_words: words at most; of tokens that differ in space only, one.
        n_contexts: contexts at most.
    """
    own = records[latent]
    words = dict.fromkeys(word for count in own.top_tokens if (word := count.string.strip()))
    contexts = one_per_text(own.random)[:n_contexts]
    return WordsAndContexts(tuple(words)[:n_words], tuple(map(MarkedText.of, contexts)))
