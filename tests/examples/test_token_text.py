"""Strings of tokens: together they are the text, whatever the tokenizer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bae_lens.examples.token_text import TokenStrings
from tests.helpers import make_tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    """Every byte a token, as GPT-2's rarest characters are."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "a", "walk", "##ing", "dog", "."]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.WordPiece(cleanup=False)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def sentence_piece() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "▁a", "▁dog", "▁walk", "ing", "▁"]
    tokenizer = Tokenizer(models.Unigram([(p, -1.0) for p in pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "expected"),
    [(word_piece, (" dog", " walk", "ing")), (sentence_piece, (" dog", " walk", "ing"))],
)
def test_pieces_of_words_have_no_space_before_them(make, expected):
    tokenizer = make()
    tokens = tokenizer("dog walking")["input_ids"]

    assert TokenStrings(tokenizer).of_window(tokens, 0) == expected


def test_whole_words():
    assert TokenStrings(make_tokenizer()).of_window([0, 5, 9], 1) == (" <bos>", " word1", " word5")


@pytest.mark.parametrize("marked", range(9))
def test_bytes_of_a_character_have_it_in_one_string(marked):
    tokenizer = byte_level()
    tokens = tokenizer("a é 😀!")["input_ids"]
    assert len(tokens) == 10

    strings = TokenStrings(tokenizer).of_window(tokens, marked)

    assert "".join(strings) == "a é 😀!"
    assert strings[marked]
    # Where the marked token is not among them, they are at the last.
    others = [s for i, s in enumerate(strings) if i != marked]
    assert ("é" in others) == (marked not in (2, 3))


def test_a_window_that_begins_and_ends_within_a_character():
    tokenizer = byte_level()
    tokens = tokenizer("😀ab😀")["input_ids"]

    strings = TokenStrings(tokenizer).of_window(tokens[2:8], 2)

    assert "".join(strings).strip("\ufffd") == "ab"
    assert len(strings) == 6


def test_without_a_tokenizer_a_token_is_its_id():
    assert TokenStrings(None).of_window([5, 17], 0) == ("<5>", "<17>")
