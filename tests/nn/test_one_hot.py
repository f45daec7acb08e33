"""A one-hot of the largest score, whose entries have gradients and whose scores have none."""

from __future__ import annotations

import pytest
import torch

from bae_lens.nn import one_hot


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_one_at_the_largest_score(shape, dtype):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    code = one_hot(scores)
    assert code.dtype == dtype
    assert torch.equal(code, torch.nn.functional.one_hot(scores.argmax(-1), 5).to(dtype))


def test_another_code_can_be_told():
    code = one_hot(torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([1, 2]))
    assert code.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_every_entry_has_a_gradient_and_no_score_has():
    scores = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    code = one_hot(scores)
    code.retain_grad()
    weight = torch.tensor([5.0, 7.0, -2.0])
    (code * weight).sum().backward()
    assert code.grad is not None
    assert code.grad.tolist() == [weight.tolist()]
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0, 0, 0]]


def test_without_gradients_nothing_is_built():
    scores = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert one_hot(scores).grad_fn is None
    assert one_hot(scores.detach()).grad_fn is None
