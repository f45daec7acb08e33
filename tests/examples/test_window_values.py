"""What a latent has at every token of a window, against the model read by hand; and how strongly it fires."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bae_lens.examples import (
    Example,
    ExampleSettings,
    LatentRecord,
    LatentRecords,
    collect_examples,
    corpus,
)
from bae_lens.nn import level_indices
from tests.helpers import (
    HOOK,
    SINK,
    between,
    make_bae,
    make_clvq,
    make_model,
    make_sinking_model,
    make_transcoder,
)

SETTINGS = ExampleSettings(n_tokens=None, n_strongest=4, n_random=4, n_left=3, n_right=2)
CODES = {
    "real numbers": lambda: make_transcoder(),
    "bits": lambda: make_bae(),
    "levels": lambda: make_bae(n_levels=3),
    "codes": lambda: make_clvq(),
}


def texts_of(n: int = 50) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"word{w}" for w in rng.integers(40, size=3 + i % 6)) for i in range(n)]


def made(kind: str) -> Any:
    sae = between(CODES[kind](), HOOK, None)
    if kind == "bits":
        with torch.no_grad():
            # So that some bits are on at most tokens, and say something where they are off.
            sae.b_enc[::3] += 3
    return sae


def by_hand(model: Any, sae: Any, kind: str) -> dict[tuple[int, int], torch.Tensor]:
    """What each latent has at a text and position; NaN where a code is not the token's."""
    values = {}
    for i, text in enumerate(texts_of()):
        tokens = model.to_tokens(text)
        x = model.run_with_cache(tokens, names_filter=[HOOK])[1][HOOK][0].detach()
        with torch.no_grad():
            if kind == "codes":
                distances = sae.code_distances(x)
                found = torch.full_like(distances, torch.nan)
                found.scatter_(1, distances.argmin(1, keepdim=True), -distances.amin(1)[:, None])
            elif kind == "bits":
                found = sae.process_sae_in(x) @ sae.W_enc + sae.b_enc
            else:
                found = sae.encode(x)
        for position in range(1, tokens.shape[1]):
            values[i, position] = found[position]
    return values


def examples_in(latent: LatentRecord) -> Iterator[Example]:
    yield from latent.strongest
    yield from latent.random
    yield from latent.more_random or ()


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("size", [4096, 7])
def test_every_token_of_a_window_has_what_the_latent_has_there(kind, size, monkeypatch):
    # Blocks of 7 tokens begin and end within windows.
    monkeypatch.setattr(corpus, "_MAX_BLOCK", size)
    model, sae = make_model(), made(kind)
    values = by_hand(model, sae, kind)

    records = collect_examples(model, sae, texts_of(), SETTINGS)

    n_elsewhere = n_off = 0
    for latent in records.latents:
        for e in examples_in(latent):
            assert e.activations is not None
            assert len(e.activations) == len(e.tokens)
            for k, found in enumerate(e.activations):
                place = (e.text, e.position + k - e.marked)
                if place not in values:
                    assert place[1] == 0, "BOS does not count"
                    assert found is None
                    continue
                expected = float(values[place][latent.index])
                if kind == "bits":
                    expected = max(-expected if latent.when_off else expected, 0)
                    n_off += latent.when_off and expected > 0
                if math.isnan(expected):
                    assert found is None
                    continue
                assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
                n_elsewhere += k != e.marked and expected != 0
    assert n_elsewhere > 20
    assert (n_off > 20) == (kind == "bits")


def test_tokens_that_are_left_out_or_not_read_have_no_value():
    model, sae = make_sinking_model(), made("bits")
    records = collect_examples(model, sae, texts_of(), replace(SETTINGS, n_tokens=103))
    n_sinks = n_unread = 0
    for latent in records.latents:
        for e in examples_in(latent):
            assert e.activations is not None
            assert e.activations[e.marked]
            for token, value in zip(e.tokens[1:], e.activations[1:], strict=True):
                n_sinks += token == SINK
                n_unread += token != SINK and value is None
                assert not (token == SINK and value is not None)
    assert n_sinks > 5
    # The reading ends within a text.
    assert n_unread > 0
    again = collect_examples(model, sae, texts_of(), SETTINGS, exclude_outlier_tokens=False)
    assert any(
        e.activations[k] is not None
        for latent in again.latents
        for e in examples_in(latent)
        for k, token in enumerate(e.tokens)
        if token == SINK and e.activations is not None
    )


@pytest.mark.parametrize("kind", CODES)
def test_how_strongly_it_fires_is_counted(kind):
    model, sae = make_model(), made(kind)
    x = torch.stack(list(by_hand(model, sae, kind).values()))

    records = collect_examples(model, sae, texts_of(), SETTINGS)

    for latent in records.latents:
        own = x[:, latent.index]
        if kind == "levels":
            levels = level_indices(x, sae.level_values)[:, latent.index]
            assert latent.histogram is None
            assert latent.levels is not None
            assert latent.levels.values == tuple(sae.level_values[latent.index].tolist())
            assert latent.levels.counts == tuple(int((levels == k).sum()) for k in (1, 2, 3))
            continue
        assert latent.levels is None
        assert latent.histogram is not None
        own = -own if latent.when_off else own
        fires = ~own.isnan() if kind == "codes" else own > 0 if kind == "bits" else own != 0
        size = own[fires].abs().numpy()
        assert sum(latent.histogram.counts) == latent.n_firings == len(size)
        if len(size) > 0:
            # Of rounded values, which may be a bin away.
            edges = latent.histogram.edges
            assert edges[0] <= size.min() * 1.001 + 1e-6
            assert edges[-1] >= size.max() * 0.999
            median = latent.histogram.quantile(0.5)
            assert np.quantile(size, 0.5, method="lower") * 0.9 <= median
            assert median <= np.quantile(size, 0.5, method="higher") * 1.1 + 1e-6


def test_files_without_them_load_and_those_with_them_round_trip(tmp_path):
    for kind in CODES:
        records = collect_examples(make_model(), made(kind), texts_of(), SETTINGS)
        records.save(tmp_path / "examples.json")
        assert LatentRecords.load(tmp_path / "examples.json") == records
        old = json.loads((tmp_path / "examples.json").read_text())
        for latent in old["latents"]:
            for name in ("histogram", "levels"):
                latent.pop(name, None)
            for e in (*latent["strongest"], *latent["random"], *(latent["more_random"] or ())):
                del e["activations"]
        (tmp_path / "old.json").write_text(json.dumps(old))
        read = LatentRecords.load(tmp_path / "old.json")
        for own, before in zip(records.latents, read.latents, strict=True):
            assert (before.histogram, before.levels) == (None, None)
            assert before.strongest == tuple(e._replace(activations=None) for e in own.strongest)
        # One value too few.
        old["latents"][3]["strongest"][0]["activations"] = [1.0]
        (tmp_path / "old.json").write_text(json.dumps(old))
        with pytest.raises(ValueError, match="activations must have one entry for each"):
            LatentRecords.load(tmp_path / "old.json")
