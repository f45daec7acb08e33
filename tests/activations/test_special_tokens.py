from typing import Any

import pytest
import torch

from bae_lens.activations.special_tokens import (
    TextStart,
    special_token_ids,
    special_token_mask,
    text_start,
)
from tests.helpers import make_bridge, make_model, make_neox_bridge, make_tokenizer


def test_true_asks_the_tokenizer():
    tokenizer: Any = make_tokenizer()
    expected = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    assert expected <= set(special_token_ids(make_model(), True))


@pytest.mark.parametrize(("exclude", "ids"), [(False, []), ([7, 3], [7, 3]), (iter([5]), [5])])
def test_otherwise_the_ids_are_the_callers(exclude, ids):
    assert special_token_ids(None, exclude) == ids


def test_without_a_tokenizer_the_error_says_what_to_give():
    with pytest.raises(ValueError, match="give their token ids as exclude_special_tokens"):
        special_token_ids(object(), True)


def test_the_mask_has_the_tokens_shape():
    tokens = torch.tensor([[1, 5], [7, 1]])
    assert special_token_mask(tokens, [1, 7]).tolist() == [[True, False], [True, True]]
    assert not special_token_mask(tokens, []).any()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([True], "must be True, False or token ids; got"),
        (["<bos>"], "must be True, False or token ids"),
        ([1, -1], "must be True, False or token ids"),
        ([1.0], "must be True, False or token ids"),
        (range(44), "names all 44 tokens of the model's vocabulary"),
        ([*range(50)], "so that no token is left"),
    ],
)
def test_what_is_no_id_or_leaves_no_token_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        special_token_ids(make_model(), ids)


def test_ids_may_be_a_tensors_and_all_but_one():
    ids: Any = torch.arange(43)
    assert special_token_ids(make_model(), ids) == list(range(43))
    assert special_token_ids(make_model(), None) == []  # pyright: ignore[reportArgumentType]


# How texts begin


def of_hooked(_) -> Any:
    return make_model()


@pytest.mark.parametrize("make", [of_hooked, make_bridge, make_neox_bridge])
@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("by_tokenizer", [True, False])
def test_a_text_begins_as_to_tokens_has_it(make, wanted: bool, by_tokenizer: bool, tmp_path):
    model = make(tmp_path)
    # WordLevel tokenizers add nothing by themselves: BOS comes from a template, or from the model.
    model.tokenizer = make_tokenizer()
    model.tokenizer.add_bos_token = by_tokenizer
    model.cfg.tokenizer_prepends_bos = by_tokenizer
    model.cfg.default_prepend_bos = wanted
    text = "word1 word2"
    own = model.tokenizer(text)["input_ids"]
    assert (own[0] == 0) == by_tokenizer

    start = text_start(model)

    expected = model.to_tokens(text)[0].tolist()
    assert start.of(own) == expected == [0] * wanted + [5, 6]
    assert start.n_more == wanted - by_tokenizer
    plain = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text_start(model, add_special_tokens=False).of(plain) == expected


def test_a_neox_has_no_bos_by_itself(tmp_path):
    assert text_start(make_neox_bridge(tmp_path)).of([5, 6]) in ([5, 6], [6])
    assert make_neox_bridge(tmp_path).cfg.default_prepend_bos is False


def test_an_unknown_letter_that_is_called_bos_is_not_taken_for_one():
    # As of GPT-2, whose unknown token is its BOS.
    model: Any = make_model()
    model.tokenizer.unk_token = model.tokenizer.bos_token
    assert text_start(model).of(model.tokenizer("word1")["input_ids"]) == [0, 5]


def test_a_start_drops_what_the_tokenizer_put_there():
    assert TextStart([], 1).of([0, 5, 6]) == [5, 6]
    assert TextStart([0], 0).of([5, 6]) == [0, 5, 6]
    assert (TextStart([], 1).n_more, TextStart([0], 0).n_more) == (-1, 1)
