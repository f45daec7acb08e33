"""What a reader is shown."""

from __future__ import annotations

from dataclasses import replace

from bae_lens.examples import Count
from bae_lens.scoring import MarkedText
from bae_lens.scoring.words_and_contexts import WordsAndContexts, words_and_contexts_of
from tests.examples.planted import DEAD, PURE, planted_records


def test_that_words_are_without_space_and_once() -> None:
    records = planted_records()
    counts = [(" cat", 5), ("cat", 3), ("\n", 2), (" dog", 1)]
    own = replace(records[PURE], top_tokens=tuple(Count(s, n, 1.0, 0) for s, n in counts))
    records = replace(records, latents=(own, *records.latents[1:]))
    assert words_and_contexts_of(records, PURE).words == ("cat", "dog")
    assert words_and_contexts_of(records, PURE, n_words=1).words == ("cat",)


def test_that_contexts_are_random_examples_of_different_texts() -> None:
    records = planted_records()
    own = records[PURE]
    doubled = tuple(example for example in own.random for _ in range(2))
    records = replace(records, latents=(replace(own, random=doubled), *records.latents[1:]))
    expected = tuple(MarkedText.of(example) for example in own.random[:3])
    assert words_and_contexts_of(records, PURE, n_contexts=3).contexts == expected


def test_that_a_latent_that_never_fires_has_an_empty_view() -> None:
    assert words_and_contexts_of(planted_records(), DEAD) == WordsAndContexts((), ())
