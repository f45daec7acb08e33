"""Texts as a model reads them, and the words that their tokens are part of."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bae_lens import offline as demo
from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.concept_ablation.texts import encode_texts, rationale_words
from tests.helpers import make_model

TEMPLATE = "Review: {text}\nSentiment:"


# Tokens


CORPUS = ["Review: a good film, a bad film, an unbelievably good film\nSentiment: good. 1975 é"] * 4


def stub(tokenizer: PreTrainedTokenizerFast, n_ctx: int = 64) -> Any:
    """What is asked of a model."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        cfg=SimpleNamespace(n_ctx=n_ctx),
        to_tokens=lambda text: (
            torch.tensor([[tokenizer.bos_token_id, *tokenizer(text).input_ids]])
            if tokenizer.bos_token
            else torch.tensor([tokenizer(text).input_ids])
        ),
    )


@pytest.fixture(scope="module")
def gpt() -> Any:
    """Byte-level BPE, which joins a space to the word after it; its BOS is put there by the model."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<bos>"], show_progress=False
    )
    bpe.train_from_iterator(CORPUS, trainer)
    return stub(PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>"))


@pytest.fixture(scope="module")
def bert() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "film", "bad", "un", "##believ"]
    words += ["##ably", "review", "sentiment", ":", ",", ".", "##s"]
    pieces = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()  # pyright: ignore[reportAttributeAccessIssue]
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    pieces.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return stub(
        PreTrainedTokenizerFast(
            tokenizer_object=pieces,
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            pad_token="[PAD]",
        )
    )


def encode(model: Any, texts: list[str], **options: Any) -> Any:
    return encode_texts(model, texts, **{"context_size": 64, "readout": "last", **options})


def tokens_of(model: Any, row: torch.Tensor) -> list[str]:
    return model.tokenizer.convert_ids_to_tokens(row.tolist())


def test_wordpieces_are_parts_of_words(bert):
    encoded = encode(bert, ["Unbelievably  good, films", "bad"])

    assert tokens_of(bert, encoded.tokens[0]) == (
        ["[CLS]", "un", "##believ", "##ably", "good", ",", "film", "##s", "[SEP]"]
    )
    assert encoded.word_of.tolist() == [[-1, 0, 0, 0, 1, 2, 3, 3, -1], [-1, 0] + [-1] * 7]
    assert encoded.words == [["Unbelievably", "good", ",", "films"], ["bad"]]
    assert encoded.spans == [[(0, 12), (14, 18), (18, 19), (20, 25)], [(0, 3)]]
    assert encoded.attention_mask.tolist() == [[True] * 9, [True] * 3 + [False] * 6]
    assert encoded.readout.tolist() == [7, 1]
    assert encoded.n_truncated == 0


def test_bytes_are_parts_of_words_without_their_space(gpt):
    encoded = encode(gpt, [" good film. 日é", "good"])

    words = encoded.words[0]
    assert words == ["good", "film", ".", "日é"]
    assert encoded.spans[0] == [(1, 5), (6, 10), (10, 11), (12, 14)]
    assert tokens_of(gpt, encoded.tokens[0, :3]) == ["<bos>", "Ġgood", "Ġfilm"]
    # The space before 日 is a token of its own, and no part of the word.
    assert encoded.word_of[0].tolist() == [-1, 0, 1, 2, -1] + [3] * (encoded.tokens.shape[1] - 5)
    assert encoded.tokens[1, 0] == gpt.tokenizer.bos_token_id
    assert encoded.attention_mask[1].sum() == encoded.readout[1] + 1


def test_a_text_begins_as_the_model_has_it():
    model = make_model()
    encoded = encode(model, ["word1 word2"], context_size=16)

    assert torch.equal(encoded.tokens, model.to_tokens("word1 word2"))
    assert encoded.word_of.tolist() == [[-1, 0, 1]]
    assert encode(model, ["word1 word2"], context_size=16, readout="first").readout.tolist() == [0]


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_the_template_is_part_of_no_word(name, request):
    model = request.getfixturevalue(name)

    encoded = encode(model, ["a good film {text}", "bad"], template=TEMPLATE)

    assert encoded.words[0][:3] == ["a", "good", "film"]
    assert encoded.spans[1] == [(0, 3)]
    of_words = encoded.word_of[1] == 0
    assert "".join(tokens_of(model, encoded.tokens[1, of_words])).strip("Ġ") == "bad"
    assert (encoded.word_of[1] >= 0).sum() == of_words.sum()
    # After the text and before [SEP].
    assert tokens_of(model, encoded.tokens[1, encoded.readout[1, None]]) == [":"]


def test_a_token_that_covers_text_and_template_is_part_of_the_word(gpt):
    # One token "Ġgood", of which the template has the space or some letters.
    for template, text in ((" {text}", "good"), (" go{text}", "od"), ("{text}od", " go")):
        encoded = encode(gpt, [text], template=template)

        assert tokens_of(gpt, encoded.tokens[0]) == ["<bos>", "Ġgood"]
        assert encoded.words == [[text.strip()]]
        assert encoded.word_of.tolist() == [[-1, 0]]
    space = encode(gpt, [" "], template="{text}good")
    assert space.words == [[]]
    assert space.word_of.max() == -1


def test_words_are_parted_at_space_where_the_tokenizer_does_not():
    # As Llama-2's and Gemma's: all of a text is one word to them.
    whole = Tokenizer(models.BPE({c: i for i, c in enumerate("▁ab")}, []))
    whole.normalizer = normalizers.Replace(" ", "▁")  # pyright: ignore[reportAttributeAccessIssue]
    model = stub(PreTrainedTokenizerFast(tokenizer_object=whole))

    encoded = encode(model, ["ab  ba a"])

    assert encoded.words == [["ab", "ba", "a"]]
    assert encoded.word_of.tolist() == [[0, 0, -1, -1, 1, 1, -1, 2]]


# Length


@pytest.mark.parametrize("name", ["gpt", "bert"])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_long_texts_are_cut_and_the_template_stays(name, template, request, caplog):
    model = request.getfixturevalue(name)
    text = "a good film, " * 20
    texts = [text, "bad", text]

    with caplog.at_level(logging.WARNING):
        encoded = encode(model, texts, context_size=40, template=template)

    (record,) = [r for r in caplog.records if "bae_lens" in r.name]
    assert record.getMessage() == "2 of 3 texts were too long and cut to 40 tokens."
    assert encoded.n_truncated == 2
    assert 37 <= encoded.attention_mask[0].sum() <= 40
    n = len(encoded.words[0])
    assert encoded.words[0] == (["a", "good", "film", ","] * 20)[:n]
    cut = text[: encoded.spans[0][-1][1]]
    whole = encode(model, [cut], template=template)
    assert whole.n_truncated == 0
    assert torch.equal(encoded.tokens[0, encoded.attention_mask[0]], whole.tokens[0])
    assert encoded.readout[0] == whole.readout[0]


def test_a_text_that_fits_is_whole(bert, caplog):
    text = "a good film"

    assert encode(bert, [text], context_size=5).n_truncated == 0
    assert not caplog.records
    assert encode(bert, [text], context_size=4).words == [["a", "good"]]


def test_a_character_of_several_tokens_is_kept_or_cut_whole(gpt):
    n_tokens = encode(gpt, ["a日日"]).tokens.shape[1]

    assert n_tokens == 8
    assert encode(gpt, ["a日日"], context_size=7).words == [["a日"]]


def test_a_text_is_cut_without_the_space_before_what_goes(gpt):
    # As RoBERTa's, whose tokens begin after the space that is in them.
    tokenizer = copy.deepcopy(gpt.tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)

    encoded = encode(stub(tokenizer), [" good film bad bad"], context_size=4)

    assert tokens_of(gpt, encoded.tokens[0]) == ["<bos>", "Ġgood", "Ġfilm", "Ġbad"]


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_a_template_that_leaves_no_room_is_refused(name, request):
    model = request.getfixturevalue(name)
    shortest = int(encode(model, ["a"], template=TEMPLATE).attention_mask.sum())

    assert encode(model, ["a bad"], template=TEMPLATE, context_size=shortest).words == [["a"]]
    with pytest.raises(ValueError, match=r"no room for a text.*larger context_size or a shorter"):
        encode(model, ["a bad"], template=TEMPLATE, context_size=shortest - 1)


# Errors


@pytest.mark.parametrize("template", ["Review:", "{text} {text}", ""])
def test_a_template_has_one_place_for_the_text(bert, template):
    with pytest.raises(ValueError, match=r"\{text\} has to stand in the template once"):
        encode(bert, ["a"], template=template)


def test_a_text_without_a_token_is_named(bert):
    with pytest.raises(ValueError, match=r"no token of text 1, '\\u200b'"):
        encode(bert, ["a", "\u200b"])
    # The template's tokens are there to be read.
    assert encode(bert, ["a", "\u200b"], template=TEMPLATE).words == [["a"], []]


def test_what_cannot_be_encoded_is_refused(bert):
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        encode(SimpleNamespace(tokenizer=None), ["a"])
    with pytest.raises(ValueError, match="the slow SimpleNamespace"):
        encode(SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False)), ["a"])
    with pytest.raises(ValueError, match="more than the model's 64"):
        encode(bert, ["a"], context_size=65)
    with pytest.raises(ValueError, match="'last' or 'first'; got 'mean'"):
        encode(bert, ["a"], readout="mean")
    with pytest.raises(ValueError, match="no texts"):
        encode(bert, [])


# Evidence


def test_evidence_covers_words_in_whole_or_in_part(bert):
    texts = ["a good\n film, a bad film"] * 8
    rationales = ["good  film,", "ood fi", "film", "a bad film", "Good", None, " ", "good film, a."]

    found = rationale_words(encode(bert, texts), texts, rationales)

    assert found == [{1, 2, 3}, {1, 2}, {2}, {4, 5, 6}, set(), set(), set(), set()]


def test_evidence_that_was_cut_off_covers_nothing(bert):
    texts = ["a good film , a bad film"]
    encoded = encode(bert, texts, context_size=5)

    assert rationale_words(encoded, texts, ["bad"]) == [set()]
    assert rationale_words(encoded, texts, ["film , a bad"]) == [{2}]
    with pytest.raises(ValueError, match=r"texts \(1\) and rationales \(2\)"):
        rationale_words(encoded, texts, ["bad", None])


# Real tokenizers


@pytest.mark.real_model
@pytest.mark.parametrize("name", [demo.MODEL_NAME, demo.ENCODER_NAME])
def test_words_of_real_reviews_are_what_their_tokens_say(name):
    model: Any = demo.load_model(name, "TransformerBridge")
    texts = LabeledTexts.read(demo.DATASET_NAME).sample(100).texts
    texts += [" Good  film. xé日 1975 don't", "“Well…” – naïve!"]

    for template in (None, TEMPLATE):
        encoded = encode_texts(model, texts, context_size=128, readout="last", template=template)

        assert 0 < encoded.n_truncated < len(texts)
        assert encoded.attention_mask.sum(1).max() <= 128
        for text, words, spans, tokens, word_of in zip(
            texts, encoded.words, encoded.spans, encoded.tokens, encoded.word_of, strict=True
        ):
            assert words == [text[a:b] for a, b in spans]
            assert all(word and word == word.strip() for word in words)
            ends = [position for span in spans for position in span]
            assert ends == sorted(ends)
            for k, word in enumerate(words):
                read = model.tokenizer.decode(tokens[word_of == k]).replace(" ", "")
                if (
                    name == demo.ENCODER_NAME
                ):  # lower case, no accents, space around what is Chinese
                    word = model.tokenizer.backend_tokenizer.normalizer.normalize_str(word).strip()
                assert read == word
    if name == demo.MODEL_NAME:
        whole = encode_texts(model, texts[-2:], context_size=128, readout="last")
        for text, row, mask in zip(texts[-2:], whole.tokens, whole.attention_mask, strict=True):
            assert torch.equal(row[mask], model.to_tokens(text)[0])


# Models that have no BOS


@pytest.mark.parametrize("readout", ["last", "first"])
def test_a_text_of_a_model_without_bos_has_none(readout):
    model = make_model()
    with_bos = encode_texts(model, ["word1 word2"], context_size=16, readout=readout)
    model.cfg.default_prepend_bos = False
    encoded = encode_texts(model, ["word1 word2", "word3"], context_size=16, readout=readout)
    assert with_bos.tokens.tolist() == [[0, 5, 6]]
    assert torch.equal(encoded.tokens[:1], model.to_tokens("word1 word2"))
    assert encoded.tokens[1, 0].item() == 7
    assert encoded.word_of.tolist() == [[0, 1], [0, -1]]
    assert encoded.readout.tolist() == ([1, 0] if readout == "last" else [0, 0])
    assert encoded.words == [["word1", "word2"], ["word3"]]
    # The room of the BOS that the tokenizer puts there and the model has not is the text's.
    cut = encode_texts(model, ["word1 word2 word3 word4"], context_size=3, readout=readout)
    assert cut.tokens.tolist() == [[5, 6, 7]]


@pytest.mark.parametrize("text", [None, 5, b"word1", ["word1"], "word1 \ud800"])
def test_what_is_no_text_is_refused_by_its_number(text):
    with pytest.raises(ValueError, match=r"^Text 1 has "):
        encode_texts(make_model(), ["word1", text], context_size=16, readout="last")


def test_a_nul_and_control_characters_are_characters_like_others():
    texts = ["word1\0word2 word3", "\x1b[2J word1", "word1\u202e word2"]
    encoded = encode_texts(make_model(), texts, context_size=16, readout="last")
    assert encoded.words[0][-1] == "word3"
