from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import Ridge

from bae_lens.nn.ridge import ridge_regression


@pytest.mark.parametrize("n", [3, 200])
def test_it_is_scikit_learns_with_d_in_times_the_mean_variance_as_penalty(n):
    torch.manual_seed(0)
    x, y = 5 + torch.randn(n, 7) * torch.arange(1, 8), torch.randn(n, 3) - 2

    weight, bias = ridge_regression(x, y)

    penalty = 7 * x.double().var(0, correction=0).mean().item()
    expected = Ridge(penalty).fit(x.double().numpy(), y.double().numpy())
    torch.testing.assert_close(
        weight.double(), torch.from_numpy(expected.coef_), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        bias.double(), torch.from_numpy(expected.intercept_), rtol=1e-4, atol=1e-4
    )


def test_a_constant_input_says_nothing_and_the_mean_is_left():
    y = torch.tensor([[1.0, 4.0], [3.0, 0.0]])

    weight, bias = ridge_regression(torch.ones(2, 3), y)

    assert torch.equal(weight, torch.zeros(2, 3))
    assert torch.equal(bias, torch.tensor([2.0, 2.0]))
