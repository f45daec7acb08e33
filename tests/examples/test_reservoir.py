"""Reservoirs against sorting everything, and keys against chance."""

from __future__ import annotations

import numpy as np
import pytest

from bae_lens.examples.reservoir import FiringKeys, Reservoir, strongest_first

PLACE = np.dtype([("token", np.int64), ("window", np.int32, (3,))])
N_LATENTS, N_TOKENS = 12, 500


def make_firings(density: float = 0.2, levels: int = 0, seed: int = 0):
    """Tokens, latents and strengths in the order of the corpus; of few levels, so that many tie."""
    rng = np.random.default_rng(seed)
    rates = density * np.linspace(0, 2, N_LATENTS)  # the first never fires
    tokens, latents = (rng.random((N_TOKENS, N_LATENTS)) < rates).nonzero()
    strengths = rng.normal(size=len(tokens)).astype(np.float32)
    if levels:
        strengths = np.round(strengths * levels) / np.float32(levels)
    return tokens, latents, strengths


def places_of(tokens):
    places = np.empty(len(tokens), PLACE)
    places["token"], places["window"] = tokens, tokens[:, None] + np.arange(3)
    return places


def filled(firings, n: int, chunk: int, strongest: bool, seed: int = 0) -> Reservoir:
    reservoir, keys = Reservoir(N_LATENTS, n, PLACE), FiringKeys(seed, N_LATENTS)
    tokens, latents, strengths = firings
    for begin in range(0, N_TOKENS, chunk):
        indices = np.arange(begin, min(begin + chunk, N_TOKENS))
        own = (tokens >= begin) & (tokens < begin + chunk)
        rows, j, s = tokens[own] - begin, latents[own], strengths[own]
        priorities = keys.of_tokens(indices)[rows] + keys.of_latents[j]
        if strongest:
            priorities = strongest_first(s, priorities)
        reservoir.offer(j, priorities, s, rows, places_of(indices))
    return reservoir


def state(reservoir: Reservoir):
    parts = (reservoir.priorities, reservoir.strengths, reservoir.places)
    return [part.tobytes() for part in parts]


@pytest.mark.parametrize("strongest", [True, False])
@pytest.mark.parametrize("levels", [0, 2])
def test_any_chunks_give_the_same(strongest, levels):
    firings = make_firings(levels=levels)

    whole = state(filled(firings, 7, N_TOKENS, strongest))

    for chunk in (1, 33, 256):
        assert state(filled(firings, 7, chunk, strongest)) == whole


@pytest.mark.parametrize("n", [1, 5, 200])
def test_the_strongest_are_those_of_sorting_everything(n):
    tokens, latents, strengths = firings = make_firings()
    reservoir = filled(firings, n, 64, strongest=True)

    for latent in range(N_LATENTS):
        own = latents == latent
        order = np.argsort(-strengths[own])[:n]
        kept, places = reservoir.of(latent)
        assert kept.tolist() == strengths[own][order].tolist()
        assert places["token"].tolist() == tokens[own][order].tolist()
        assert (places["window"] == places["token"][:, None] + np.arange(3)).all()


def test_random_ones_are_those_of_the_smallest_keys():
    tokens, latents, _ = firings = make_firings()
    reservoir, keys = filled(firings, 6, 100, strongest=False, seed=3), FiringKeys(3, N_LATENTS)

    for latent in range(N_LATENTS):
        own = tokens[latents == latent]
        with np.errstate(over="ignore"):
            order = np.argsort(keys.of_tokens(own) + keys.of_latents[latent])[:6]
        assert reservoir.of(latent)[1]["token"].tolist() == own[order].tolist()


def test_of_equal_strengths_other_tokens_are_kept_than_at_random():
    tokens, latents, strengths = make_firings(density=0.5)
    firings = (tokens, latents, np.ones_like(strengths))

    strongest, random = (filled(firings, 5, 50, is_strong) for is_strong in (True, False))

    for latent in range(1, N_LATENTS):
        one, other = (r.of(latent)[1]["token"].tolist() for r in (strongest, random))
        assert len(one) == len(other) == 5
        assert set(one).isdisjoint(other)


def test_strengths_of_either_sign_and_any_size_are_in_order():
    values = np.array([-np.inf, -3e38, -2, -1e-40, 0, 1e-40, 1, 1.0000001, 3e38, np.inf])
    strengths = values.astype(np.float32)

    priorities = strongest_first(strengths, np.zeros(len(strengths), np.uint64))

    assert (np.diff(priorities[::-1].astype(object)) > 0).all()


def test_samples_are_uniform_over_the_corpus():
    n_latents, n_tokens, n = 2000, 1000, 5
    keys = FiringKeys(0, n_latents)
    all_keys = keys.of_tokens(np.arange(n_tokens))[None] + keys.of_latents[:, None]
    sampled = np.argsort(all_keys, axis=1)[:, :n]

    # Ten parts of the corpus: 10,000 draws. Chi-squared with 9 degrees of freedom: 27.9 at 0.1 %.
    counts = np.bincount(sampled.ravel() // (n_tokens // 10), minlength=10)
    expected = sampled.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9
    # Latents draw apart: two of them share n²/N = 0.025 tokens by chance.
    pairs = np.random.default_rng(0).integers(n_latents, size=(3000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    shared = [len(np.intersect1d(sampled[a], sampled[b])) for a, b in pairs]
    assert np.mean(shared) == pytest.approx(n**2 / n_tokens, abs=0.015)


def test_seeds_draw_apart():
    draws = [
        np.argsort(FiringKeys(seed, 1).of_tokens(np.arange(1000)))[:20] for seed in (0, 1, 2**63)
    ]

    assert len(np.intersect1d(draws[0], draws[1])) < 5
    assert len(np.intersect1d(draws[0], draws[2])) < 5


def test_no_two_tokens_have_the_same_key():
    keys = FiringKeys(7, 1).of_tokens(np.arange(200_000))

    assert len(np.unique(keys)) == 200_000


def test_memory_does_not_grow():
    reservoir = Reservoir(4, 3, PLACE)
    sizes = [part.nbytes for part in (reservoir.priorities, reservoir.strengths, reservoir.places)]
    rng = np.random.default_rng(0)

    for _ in range(50):
        latents = rng.integers(4, size=100)
        priorities = rng.integers(2**63, size=100).astype(np.uint64)
        strengths = np.zeros(100, np.float32)
        reservoir.offer(latents, priorities, strengths, np.arange(100), places_of(np.arange(100)))

    parts = (reservoir.priorities, reservoir.strengths, reservoir.places)
    assert [part.nbytes for part in parts] == sizes
    assert all(part.base is None for part in parts)
