"""Which tokens of a batch are of its texts, and the one of each at a position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bae_lens.activations.padding import PadToken, at_position, own_tokens

BOS, EOS, PAD = 0, 1, 2


def model_with(bos: int | None = BOS, eos: int | None = EOS, pad: int | None = PAD) -> Any:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return SimpleNamespace(
        tokenizer=SimpleNamespace(**dict(zip(names, (bos, eos, pad), strict=True)))
    )


def own(model: Any, rows: list[list[int]], mask: list[list[int]] | None = None) -> list[list[int]]:
    given = None if mask is None else torch.tensor(mask)
    return own_tokens(model, torch.tensor(rows), given).int().tolist()


def test_padding_is_at_the_ends_only() -> None:
    rows = [[PAD, PAD, BOS, 5, PAD, 6], [BOS, 5, 6, EOS, PAD, PAD], [PAD, BOS, 5, 6, 7, PAD]]
    expected = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]]
    assert own(model_with(), rows) == expected


def test_one_token_for_beginning_end_and_padding_as_in_gpt2() -> None:
    model = model_with(0, 0, 0)
    left = [[0, 0, 0, 5, 6], [0, 5, 6, 7, 8]]
    assert own(model, left) == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    right = [[0, 5, 6, 0, 0], [0, 5, 6, 7, 8]]
    assert own(model, right) == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    with_ends = [[0, 5, 0, 0, 0], [0, 5, 6, 7, 0]]
    assert own(model, with_ends) == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    # Texts that begin with a word.
    assert own(model, [[0, 0, 5, 6], [5, 6, 7, 8]]) == [[0, 0, 1, 1], [1, 1, 1, 1]]
    # Of one text none is known to be padding.
    assert own(model, [[0, 5, 6, 0]]) == [[1, 1, 1, 1]]


def test_what_the_model_was_told_goes_first() -> None:
    rows, mask = [[0, 0, 5, 6]], [[0, 1, 1, 0]]
    for model in (model_with(0, 0, 0), model_with(), SimpleNamespace(tokenizer=None)):
        assert own(model, rows, mask) == mask
    # One that is not of these tokens says nothing of them.
    assert own(model_with(), [[PAD, 5, 6]], [[0, 1]]) == [[0, 1, 1]]


def test_without_a_tokenizer_all_are_of_the_text() -> None:
    for model in (SimpleNamespace(tokenizer=None), SimpleNamespace(), model_with(pad=None)):
        assert own(model, [[PAD, 5, PAD]]) == [[1, 1, 1]]


def test_a_decoder_may_begin_with_padding_as_t5s_does() -> None:
    assert own(model_with(bos=None), [[PAD, 5, 6], [PAD, 7, 8]]) == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("bos", "tokens", "n"),
    [
        (BOS, [PAD, PAD, BOS, 5], 2),
        (BOS, [PAD, 5], 1),
        (BOS, [BOS, 5, PAD], 0),
        (BOS, [PAD, PAD], 0),
        (PAD, [PAD, 5], 0),
        (PAD, [PAD, PAD, PAD, 5], 2),
        (None, [PAD, PAD, 5], 1),
    ],
)
def test_padding_before_one_text(bos: int | None, tokens: list[int], n: int) -> None:
    pad = PadToken.of(model_with(bos=bos))
    assert pad is not None
    assert pad.n_leading(torch.tensor(tokens)) == n


def test_a_position_is_of_the_texts_own_tokens() -> None:
    is_own = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)

    def columns(position: int) -> list[int]:
        chosen: Tensor = at_position(is_own, position)
        assert (chosen.sum(1) == 1).all()
        return chosen.int().argmax(1).tolist()

    assert [columns(p) for p in (0, 2)] == [[2, 0, 1], [4, 2, 3]]
    assert [columns(p) for p in (-1, -3)] == [[4, 3, 4], [2, 1, 2]]
    for position in (3, -4):
        with pytest.raises(ValueError, match=rf"is {position}, and text 0 .* has 3 tokens"):
            at_position(is_own, position)
