"""Texts in which a latent fires, and tokens at which it is silent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bae_lens.scoring.judges.embedding import Embedder
from bae_lens.scoring.test_items import Subjects, draw, n_texts, one_a_text, purity, some
from tests.examples.planted import (
    DEAD,
    MIXED,
    PURE,
    TOKEN,
    class_encoder,
    example,
    planted_evidence,
)


def test_silence_is_known():
    evidence = planted_evidence()
    own = evidence[PURE].random
    # A text of the background in which the latent fires.
    shared = replace(
        evidence,
        background=tuple(
            b._replace(example=b.example._replace(text=own[0].text)) if i == 1 else b
            for i, b in enumerate(evidence.background or ())
        ),
    )
    for latent in (PURE, TOKEN, MIXED, DEAD):
        silent = Subjects(shared).silent(latent, own)
        expected = [
            b.example
            for i, b in enumerate(shared.background or ())
            if latent not in b.latents and i != 1
        ]
        assert list(silent.examples) == expected
        assert silent.hardest(3) == ()
    assert len(Subjects(shared).silent(None, own).examples) == 59


def test_hardest_are_the_most_alike():
    subjects = Subjects(planted_evidence(), Embedder(class_encoder))
    silent = subjects.silent(TOKEN, subjects.examples(TOKEN))
    hardest = silent.hardest(9)
    assert all(e.strings[e.marked].startswith(" dog") for e in hardest)
    assert len(hardest) == 9


def test_enough_texts():
    subjects = Subjects(planted_evidence(5))
    assert subjects.with_texts(5) == [PURE, TOKEN, MIXED]
    assert subjects.with_texts(6) == []
    assert subjects.n_firing == 3


def test_drawing():
    assert draw([3, 5, 9], None, 0) == draw([3, 5, 9], 4, 0) == (3, 5, 9)
    drawn = draw(range(100), 10, 0)
    assert len(set(drawn)) == 10
    assert drawn == tuple(sorted(drawn)) == draw(range(100), 10, 0) != draw(range(100), 10, 1)
    # Of a part of them, those that were drawn of all and are in it come first.
    some_of = range(0, 100, 2)
    assert {i for i in drawn if i in some_of} <= set(draw(some_of, 10, 0))
    own = [example(i, " a") for i in range(6)]
    found = some(np.random.default_rng(0), own, 4)
    assert len({e.text for e in found}) == 4
    assert len(some(np.random.default_rng(0), own, 9)) == 6


def test_one_a_text():
    first, second, other = example(1, " a"), example(1, " b"), example(2, " c")
    assert one_a_text([other, first, second]) == (other, first)
    assert one_a_text([first, other], besides=[second]) == (other,)
    assert n_texts([other, first, second]) == 2


def test_a_text_that_is_twice_in_the_corpus_is_one_text():
    own = example(1, " a")
    again = own._replace(text=2, position=9)
    elsewhere = example(3, " b")._replace(text=2)
    assert one_a_text([own, again]) == (own,)
    assert one_a_text([again, elsewhere], besides=[own]) == ()
    assert one_a_text([own._replace(marked=0), again]) == (own._replace(marked=0), again)
    evidence = planted_evidence(5)
    doubled = tuple(
        e._replace(text=e.text + 10**6 * i) for i in range(2) for e in evidence[PURE].random
    )
    latents = (replace(evidence[PURE], random=doubled), *evidence.latents[1:])
    subjects = Subjects(replace(evidence, latents=latents))
    assert PURE in subjects.with_texts(5)
    assert PURE not in subjects.with_texts(6)
    assert subjects.examples(PURE) == evidence[PURE].random


def test_purity():
    own = [example(i, token) for i, token in enumerate([" Cat", "cat", " dog", "\n"])]
    assert purity(own) == pytest.approx(0.5)
