"""What a reader is shown."""

from __future__ import annotations

from dataclasses import replace

from bae_lens.examples import Count
from bae_lens.scoring import MarkedText
from bae_lens.scoring.shown_examples import View, view_of
from tests.examples.planted import DEAD, PURE, planted_evidence


def test_that_words_are_without_space_and_once() -> None:
    evidence = planted_evidence()
    counts = [(" cat", 5), ("cat", 3), ("\n", 2), (" dog", 1)]
    own = replace(evidence[PURE], top_tokens=tuple(Count(s, n, 1.0, 0) for s, n in counts))
    evidence = replace(evidence, latents=(own, *evidence.latents[1:]))
    assert view_of(evidence, PURE).words == ("cat", "dog")
    assert view_of(evidence, PURE, n_words=1).words == ("cat",)


def test_that_contexts_are_random_examples_of_different_texts() -> None:
    evidence = planted_evidence()
    own = evidence[PURE]
    doubled = tuple(example for example in own.random for _ in range(2))
    evidence = replace(evidence, latents=(replace(own, random=doubled), *evidence.latents[1:]))
    expected = tuple(MarkedText.of(example) for example in own.random[:3])
    assert view_of(evidence, PURE, n_contexts=3).contexts == expected


def test_that_a_latent_that_never_fires_has_an_empty_view() -> None:
    assert view_of(planted_evidence(), DEAD) == View((), ())
