"""Random tokens with what fires there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from bae_lens.examples import LatentRecords
from bae_lens.examples.collector import Collector
from bae_lens.examples.corpus import NOTHING, TokenBlock, place_dtype
from bae_lens.examples.records import ExampleSettings
from bae_lens.examples.token_text import TokenStrings
from tests.examples.planted import planted_records

SMALL = ExampleSettings(n_tokens=None, n_left=1, n_right=1, n_corpus_tokens=50)


def block(acts: np.ndarray) -> TokenBlock:
    n = len(acts)
    places = np.empty(n, place_dtype(SMALL))
    places["text"], places["position"] = np.arange(n) // 10, np.arange(n) % 10
    places["window"] = NOTHING
    places["window"][:, 1] = np.arange(n)
    firings = sparse.csr_matrix(acts.astype(np.float32))
    return TokenBlock(firings, np.arange(n), places, np.full(n, -1))


def acts_of(n: int = 400, n_latents: int = 6) -> np.ndarray:
    rates = np.array([0.0, 0.05, 0.3, 0.6, 0.95, 1.0])
    return np.random.default_rng(0).random((n, n_latents)) < rates


def corpus_tokens(acts: np.ndarray, size: int, strength: Any = "activation", **overrides):
    collector = Collector(acts.shape[1], strength, replace(SMALL, **overrides), 0)
    whole = block(acts)
    for begin in range(0, len(acts), size):
        collector.update(whole[begin : begin + size])
    return collector.corpus_tokens(TokenStrings(None)), collector.when_off


@pytest.mark.parametrize("size", [1, 37, 400])
@pytest.mark.parametrize("strength", ["activation", "surprise"])
def test_what_fires_at_each(size, strength):
    acts = acts_of()
    tokens, when_off = corpus_tokens(acts, size, strength)

    assert when_off.tolist() == [False] * 3 + [strength == "surprise"] * 3
    assert tokens is not None
    assert len({(t.example.text, t.example.position) for t in tokens}) == 50
    for token in tokens:
        row = 10 * token.example.text + token.example.position
        assert token.example.tokens == (row,)
        assert token.latents == tuple(np.flatnonzero(acts[row] != when_off))


def test_batches_do_not_matter_and_the_seed_does():
    acts = acts_of()
    assert (
        corpus_tokens(acts, 1)[0]
        == corpus_tokens(acts, 400)[0]
        != corpus_tokens(acts, 400, seed=1)[0]
    )


def test_every_token_is_as_likely():
    counts = np.zeros(400)
    for seed in range(200):
        for token in corpus_tokens(acts_of(), 400, seed=seed)[0] or ():
            counts[10 * token.example.text + token.example.position] += 1
    # Binomial, 200 trials of 1/8: 25 ± 4.7.
    assert counts.sum() == 200 * 50
    assert counts.std() < 6
    assert abs(counts[:200].mean() - 25) < 1


def test_few_tokens_and_none():
    assert len(corpus_tokens(acts_of(20), 400)[0] or ()) == 20
    assert corpus_tokens(acts_of(20), 400, n_corpus_tokens=0)[0] is None


def test_json_and_back(tmp_path):
    records = planted_records()
    records.save(tmp_path / "e.json")
    assert LatentRecords.load(tmp_path / "e.json") == records

    values = records.to_dict()
    del values["corpus_tokens"]
    assert LatentRecords.from_dict(values) == replace(records, corpus_tokens=None)
