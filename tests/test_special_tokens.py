from typing import Any

import pytest
import torch

from bae_lens.special_tokens import special_token_ids, special_token_mask
from tests.helpers import make_model, make_tokenizer


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
