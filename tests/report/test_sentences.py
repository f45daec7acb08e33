"""Stored sentences against the dictionary asked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bae_lens.examples import ExampleSettings, collect_examples
from bae_lens.report import CodedSentence, collect_sentences
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    between,
    fit_codes,
    make_abstopk,
    make_bae,
    make_clvq,
    make_model,
    make_text,
    make_transcoder,
)

SETTINGS = ExampleSettings(n_tokens=None, n_strongest=2, n_random=2, n_neighbors=0)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def texts_of(n: int = 20) -> list[str]:
    return list(make_text(n, 7)["text"])


def with_hook(sae: Any) -> Any:
    between(sae, HOOK, None)
    return sae


def collected(model: Any, dictionary: Any, texts: Any, **options: Any) -> list[CodedSentence]:
    labels = options.get("labels")
    records = collect_examples(model, dictionary, texts, SETTINGS, labels=labels)
    return collect_sentences(model, dictionary, texts, records, **options)


def activations(model: Any, text: str) -> torch.Tensor:
    """Of the tokens after BOS."""
    _, cache = model.run_with_cache(model.to_tokens(text), names_filter=HOOK)
    return cache[HOOK][0, 1:]


@torch.no_grad()
def test_strongest_latents_of_each_token(model):
    sae = with_hook(make_transcoder())
    [sentence] = collected(model, sae, texts_of(1), n_codes=3)
    assert "".join(sentence.strings).endswith(texts_of(1)[0])
    assert sentence.codes[0] == ()  # BOS
    assert sentence.label is None
    acts = sae.encode(activations(model, texts_of(1)[0]))
    assert len(sentence.codes) == len(acts) + 1
    for codes, own in zip(sentence.codes[1:], acts, strict=True):
        values, latents = own.topk(3)
        assert [j for j, _ in codes] == latents[values > 0].tolist()
        assert [v for _, v in codes] == pytest.approx(values[values > 0].tolist(), rel=1e-4)


@torch.no_grad()
def test_of_activations_of_either_sign_the_largest_are_the_strongest(model):
    sae = make_abstopk()
    [sentence] = collected(model, sae, texts_of(1), n_codes=3)
    for codes, own in zip(
        sentence.codes[1:], sae.encode(activations(model, texts_of(1)[0])), strict=True
    ):
        latents = own.abs().topk(3).indices
        assert [j for j, _ in codes] == latents.tolist()
        assert [v for _, v in codes] == pytest.approx(own[latents].tolist(), rel=1e-4)
    assert any(value < 0 for codes in sentence.codes for _, value in codes)


@torch.no_grad()
def test_a_code_a_token(model):
    sae: Any = with_hook(make_clvq())
    texts = texts_of(4)
    fit_codes(sae, torch.cat([activations(model, text) for text in texts]))
    for sentence in collected(model, sae, texts):
        [text] = [t for t in texts if "".join(sentence.strings).endswith(t)]
        expected = sae.code_indices(activations(model, text)).tolist()
        assert [j for [(j, _)] in sentence.codes[1:]] == expected
        assert all(value <= 0 for [(_, value)] in sentence.codes[1:])


@torch.no_grad()
def test_bits_are_ranked_by_how_rare_their_value_is(model):
    sae = with_hook(make_bae())
    texts = texts_of(6)
    records = collect_examples(model, sae, texts, SETTINGS)
    assert any(latent.when_off for latent in records.latents)
    for sentence in collect_sentences(model, sae, texts, records, n_codes=5):
        [text] = [t for t in texts if "".join(sentence.strings).endswith(t)]
        bits = (sae.encode(activations(model, text)) != 0).tolist()
        for codes, own in zip(sentence.codes[1:], bits, strict=True):
            fires = [x for x in records.latents if own[x.index] != x.when_off]
            rare = sorted(fires, key=lambda x: (x.rate, x.index))[:5]
            assert [j for j, _ in codes] == [x.index for x in rare]
            assert [v for _, v in codes] == pytest.approx([-math.log2(x.rate) for x in rare])


def test_labels_are_those_of_the_texts(model):
    texts = texts_of(12)
    label_of = {text: f"class {i % 3}" for i, text in enumerate(texts)}
    sentences = collected(
        model, with_hook(make_transcoder()), texts, labels=list(label_of.values()), n_sentences=9
    )
    assert len(sentences) == 9
    for sentence in sentences:
        [text] = [t for t in texts if "".join(sentence.strings).endswith(t)]
        assert sentence.label == label_of[text]


def test_long_texts_are_cut(model):
    sentences = collected(
        model, with_hook(make_transcoder()), list(make_text(3, 12)["text"]), n_tokens=5
    )
    assert {len(s.strings) for s in sentences} == {len(s.codes) for s in sentences} == {5}


def test_all_texts_if_there_are_fewer(model):
    assert len(collected(model, with_hook(make_transcoder()), texts_of(3), n_sentences=40)) == 3


def test_a_dataset_as_the_dictionary_was_trained(model):
    sae = with_hook(make_transcoder())
    [first, _] = collected(model, sae, make_text(), n_sentences=2)
    assert len(first.strings) == CONTEXT_SIZE


@pytest.mark.parametrize("name", ["n_sentences", "n_codes", "n_tokens"])
def test_numbers_below_one_are_refused(model, name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1; got 0"):
        collected(model, with_hook(make_transcoder()), texts_of(2), **{name: 0})


def test_evidence_of_another_dictionary_is_refused(model):
    sae, other = with_hook(make_transcoder()), with_hook(make_clvq())
    records = collect_examples(model, other, texts_of(2), SETTINGS)
    with pytest.raises(ValueError, match="collected is of 10 latents, the dictionary has 40"):
        collect_sentences(model, sae, texts_of(2), records)
