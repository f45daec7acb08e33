"""What latents usually are where they fire."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bae_lens import steer, usual_strengths
from bae_lens.examples import ExampleSettings, collect_examples
from tests.attach.test_attach import hook_of
from tests.helpers import (
    HOOK,
    between,
    make_abstopk,
    make_bae,
    make_bridge,
    make_model,
    make_text,
    make_tokens,
)


@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_are_means_over_the_tokens_where_they_fire(kind: str, tmp_path: Path) -> None:
    model = make_model() if kind == "hooked" else make_bridge(tmp_path)
    sae = make_bae(n_levels=3)
    sae.cfg.metadata.hook_name = hook_of(model)
    with torch.no_grad():
        sae.b_enc[7] = -1e4
    tokens = make_tokens(4, 9)
    tokens[1, 4] = 1
    code = sae.encode(model.run_with_cache(tokens)[1][hook_of(model)])[tokens > 2]
    expected = code.sum(0) / (code != 0).sum(0)

    usual = usual_strengths(model, sae, tokens)

    assert usual[7].isnan()
    assert expected.isnan()[7]
    torch.testing.assert_close(usual, expected, equal_nan=True)
    texts = ["word1 word2 word3", "word5 word8"]
    as_tokens = [model.to_tokens(text)[0] for text in texts]
    by_text = usual_strengths(model, sae, texts)
    assert not torch.equal(by_text, usual)
    alone = [usual_strengths(model, sae, t[None]) for t in as_tokens]
    assert all((by_text[~a.isnan()] > 0).all() for a in alone)
    with pytest.raises(ValueError, match="nothing was measured"):
        usual_strengths(model, sae, [])


def test_of_activations_of_either_sign_they_are_mean_magnitudes() -> None:
    model, sae = make_model(), make_abstopk()
    tokens = make_tokens(4, 9)
    code = sae.encode(model.run_with_cache(tokens)[1][HOOK])[tokens > 3]
    expected = code.abs().sum(0) / (code != 0).sum(0)
    usual = usual_strengths(model, sae, tokens)
    torch.testing.assert_close(usual, expected, equal_nan=True)
    records = collect_examples(
        model, sae, make_text(), ExampleSettings(n_tokens=600, n_random=2000)
    )
    latent = next(
        r
        for r in records.latents
        if r.random and min(e.strength for e in r.random) < 0 < max(e.strength for e in r.random)
    )
    mean = sum(abs(e.strength) for e in latent.random) / latent.n_firings
    with steer(model, sae, {latent.index: -1}, usual=records):
        by_records = model(tokens)
    with steer(model, sae, {latent.index: -mean}, raw=True):
        torch.testing.assert_close(by_records, model(tokens))


def test_records_have_them_too() -> None:
    model, sae = make_model(), between(make_bae(n_levels=3), hook_out=None)
    settings = ExampleSettings(n_tokens=600, n_random=2000)
    records = collect_examples(model, sae, make_text(), settings)
    latent = next(r for r in records.latents if 20 < r.n_firings < 400)
    assert len(latent.random) == latent.n_firings
    mean = sum(e.strength for e in latent.random) / latent.n_firings
    tokens = make_tokens()
    with steer(model, sae, {latent.index: 1}, usual=records):
        by_records = model(tokens)
    with steer(model, sae, {latent.index: mean}, raw=True):
        torch.testing.assert_close(by_records, model(tokens))

    other = between(make_bae(2, n_levels=3), hook_out=None)
    with (
        pytest.raises(ValueError, match="other weights"),
        steer(model, other, {1: 1}, usual=records),
    ):
        pass
    less = between(make_bae(d_sae=8, n_levels=3), hook_out=None)
    with (
        pytest.raises(ValueError, match="of 40 latents"),
        steer(model, less, {1: 1}, usual=records),
    ):
        pass
