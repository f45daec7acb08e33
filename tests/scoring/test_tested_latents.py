"""Texts in which a latent fires, and tokens at which it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bae_lens.scoring.judges.embedding import Embedder
from bae_lens.scoring.tested_latents import TestedLatents, draw, n_texts, one_per_text, purity, some
from tests.examples.planted import (
    DEAD,
    MIXED,
    PURE,
    TOKEN,
    class_encoder,
    example,
    planted_records,
)


def test_silence_is_known():
    records = planted_records()
    own = records[PURE].random
    # A text of the background in which the latent fires.
    shared = replace(
        records,
        corpus_tokens=tuple(
            b._replace(example=b.example._replace(text=own[0].text)) if i == 1 else b
            for i, b in enumerate(records.corpus_tokens or ())
        ),
    )
    for latent in (PURE, TOKEN, MIXED, DEAD):
        non_activating = TestedLatents(shared).non_activating(latent, own)
        expected = [
            b.example
            for i, b in enumerate(shared.corpus_tokens or ())
            if latent not in b.latents and i != 1
        ]
        assert list(non_activating.examples) == expected
        assert non_activating.hardest(3) == ()
    assert len(TestedLatents(shared).non_activating(None, own).examples) == 59


def test_hardest_are_the_most_alike():
    tested = TestedLatents(planted_records(), Embedder(class_encoder))
    non_activating = tested.non_activating(TOKEN, tested.examples(TOKEN))
    hardest = non_activating.hardest(9)
    assert all(e.strings[e.marked].startswith(" dog") for e in hardest)
    assert len(hardest) == 9


def test_enough_texts():
    tested = TestedLatents(planted_records(5))
    assert tested.with_texts(5) == [PURE, TOKEN, MIXED]
    assert tested.with_texts(6) == []
    assert tested.n_firing == 3


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
    assert one_per_text([other, first, second]) == (other, first)
    assert one_per_text([first, other], besides=[second]) == (other,)
    assert n_texts([other, first, second]) == 2


def test_a_text_that_is_twice_in_the_corpus_is_one_text():
    own = example(1, " a")
    again = own._replace(text=2, position=9)
    elsewhere = example(3, " b")._replace(text=2)
    assert one_per_text([own, again]) == (own,)
    assert one_per_text([again, elsewhere], besides=[own]) == ()
    assert one_per_text([own._replace(marked=0), again]) == (own._replace(marked=0), again)
    records = planted_records(5)
    doubled = tuple(
        e._replace(text=e.text + 10**6 * i) for i in range(2) for e in records[PURE].random
    )
    latents = (replace(records[PURE], random=doubled), *records.latents[1:])
    tested = TestedLatents(replace(records, latents=latents))
    assert PURE in tested.with_texts(5)
    assert PURE not in tested.with_texts(6)
    assert tested.examples(PURE) == records[PURE].random


def test_purity():
    own = [example(i, token) for i, token in enumerate([" Cat", "cat", " dog", "\n"])]
    assert purity(own) == pytest.approx(0.5)
