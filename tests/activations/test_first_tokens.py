"""The first tokens of what is read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bae_lens.activations.first_tokens import first_tokens, warn_if_text_ended


def batches(*sizes: int) -> Iterator[Tensor]:
    """Numbers in order, which nobody may ask for after the last."""
    yield from torch.arange(sum(sizes)).split(list(sizes))
    pytest.fail("a batch too many was read")


@pytest.mark.parametrize("n_tokens", [1, 3, 4, 8])
def test_no_more_is_read_than_there_has_to_be(n_tokens):
    sizes = {1: [3], 3: [3], 4: [3, 0, 4], 8: [3, 0, 4, 2]}[n_tokens]

    read = list(first_tokens(batches(*sizes), n_tokens, "", verbose=False))

    assert torch.cat(read).tolist() == list(range(n_tokens))
    assert all(len(batch) > 0 for batch in read)


def test_of_no_tokens_nothing_is_read():
    assert list(first_tokens(batches(), 0, "", verbose=False)) == []


@pytest.mark.parametrize("n_tokens", [None, 9])
def test_all_that_there_is(n_tokens):
    parts = iter([torch.arange(2), torch.arange(2, 5)])

    read = list(first_tokens(parts, n_tokens, "", verbose=False))

    assert torch.cat(read).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("n_tokens", "is_said"), [(6, True), (5, False), (None, False)])
def test_a_text_that_has_ended_is_said(n_tokens, is_said, caplog):
    warn_if_text_ended(5, n_tokens)

    assert ("The text ended after 5 of 6 tokens." in caplog.text) == is_said
