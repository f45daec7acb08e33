"""What is no number is seen in what is made of it."""

from __future__ import annotations

import pytest
import torch

from bae_lens.nn import nan_where_not_finite


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_only_the_rows_that_are_not_finite_are_nan(bad):
    x, outputs = torch.ones(2, 3, 4), torch.arange(12.0).reshape(2, 3, 2)
    x[1, 2, 3] = bad
    found = nan_where_not_finite(outputs, x, 2)
    assert found[1, 2].isnan().all()
    expected = outputs.clone()
    expected[1, 2] = torch.nan
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


def test_heads_of_the_input_may_be_flattened_in_the_output():
    x = torch.ones(2, 3, 2, 2)
    x[0, 1, 1, 0] = torch.nan
    for shape in ((2, 3, 5), (2, 3, 2, 2)):
        found = nan_where_not_finite(torch.ones(shape), x, 2).flatten(2)
        assert found.isnan().all(-1).tolist() == [[False, True, False], [False] * 3]
        assert found.isnan().any(-1).tolist() == [[False, True, False], [False] * 3]


def test_the_gradient_is_the_outputs_own():
    outputs = torch.ones(3, 2, requires_grad=True)
    nan_where_not_finite(outputs, torch.ones(3, 4), 1).sum().backward()
    assert outputs.grad is not None
    assert torch.equal(outputs.grad, torch.ones(3, 2))
