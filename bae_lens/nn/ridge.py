"""Linear regression in closed form, with a penalty that its number of samples decides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def ridge_regression(
    x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]
) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"]]:
    """Weight and bias, as ``torch.nn.Linear`` has them, with the least ‖W·x + b − y‖² + λ‖W‖².

    λ is d_in times the mean variance of an entry of x, as if d_in more samples had been seen, of all
    directions alike and of the mean y: next to nothing where samples are many, and enough to be
    determined where they are fewer than d_in. Solved in float64.

    Args:
        x: one sample per row, at least one, finite.
        y: what each is to give.
    """
    x, y = x.double(), y.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    # The mean variance times d_in is the trace over n. Where there is no variance, no weight: W = 0.
    penalty = gram.trace() / len(x)
    gram.diagonal().add_(torch.where(penalty > 0, penalty, 1))
    weight = torch.linalg.solve(gram, x.T @ y).T
    return weight.float(), (y_mean - weight @ x_mean).float()
