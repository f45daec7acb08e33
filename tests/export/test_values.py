"""What ``encode`` gives, told from what was kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bae_lens.examples import Histogram
from bae_lens.export.values import LatentValues, utf8
from tests.export.seen import TEXTS, at_hook, make_standard, seen, true_code
from tests.helpers import CONTEXT_SIZE, make_bae, make_clvq, make_model

MODEL = make_model()
DICTIONARIES = {
    "bits": lambda: at_hook(make_bae()),
    "levels": lambda: at_hook(make_bae(n_levels=3)),
    "real-valued": make_standard,
    "one-hot": lambda: at_hook(make_clvq(d_out=16)),
}


@pytest.mark.parametrize("name", DICTIONARIES)
def test_windows_have_what_encode_gives(name: str) -> None:
    sae: Any = DICTIONARIES[name]()
    records = seen(MODEL, sae)
    values = LatentValues.of(records, sae)
    codes = [true_code(MODEL, sae, MODEL.to_tokens(text)[:, :CONTEXT_SIZE])[0] for text in TEXTS]
    n_compared = 0
    for latent in records.latents:
        for example in (*latent.strongest, *latent.random):
            first = example.position - example.marked
            true = codes[example.text][first : first + len(example.tokens), latent.index]
            found = torch.tensor(values.window(latent, example))
            torch.testing.assert_close(found, true, rtol=2e-3, atol=1e-4)
            n_compared += 1
    assert n_compared > 40
    if name == "bits":
        assert any(latent.when_off for latent in records.latents)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_density_and_mean_are_those_of_the_code(name: str) -> None:
    sae: Any = DICTIONARIES[name]()
    records = seen(MODEL, sae)
    values = LatentValues.of(records, sae)
    tokens = [MODEL.to_tokens(text)[:, :CONTEXT_SIZE] for text in TEXTS]
    code = torch.cat([true_code(MODEL, sae, own)[own > 3] for own in tokens])
    assert len(code) == records.n_tokens
    exact = name != "real-valued"
    for latent in records.latents:
        own = code[:, latent.index]
        assert values.n_active(latent) == int((own != 0).sum())
        assert values.density(latent) == pytest.approx(float((own != 0).float().mean()))
        mean = values.mean(latent)
        if not (own != 0).any():
            assert mean is None
            continue
        true = float(own[own != 0].abs().mean())
        assert mean == pytest.approx(true, rel=1e-5 if exact else 0.045)
        assert sum(n for _, n in values.counts(latent)) == values.n_active(latent)


def test_examples_of_another_dictionary_and_of_an_earlier_version_are_refused() -> None:
    sae = at_hook(make_bae())
    records = seen(MODEL, sae)
    with pytest.raises(ValueError, match="is of other weights"):
        LatentValues.of(records, at_hook(make_bae(seed=1)))
    latent = next(latent for latent in records.latents if latent.strongest)
    old = latent.strongest[0]._replace(activations=None)
    with pytest.raises(ValueError, match="Collect them anew: bae-lens report PATH --save_examples"):
        LatentValues.of(records, sae).window(latent, old)


def test_what_is_not_known_is_none() -> None:
    sae = make_standard()
    records = seen(MODEL, sae)
    values = LatentValues.of(records, sae)
    old = replace(records.latents[0], histogram=None)
    assert (values.counts(old), values.mean(old)) == ([], None)
    # Two bins from 1 and from 2^(1/8): geometric middles 2^(1/16) and 2^(3/16).
    known = replace(records.latents[0], histogram=Histogram(0, (3, 1)))
    assert values.counts(known) == [(2 ** (1 / 16), 3), (2 ** (3 / 16), 1)]


def test_text_that_utf8_cannot_hold() -> None:
    assert utf8("a\ud800b é") == "a?b é"
