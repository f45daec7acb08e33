"""Which code each token has, as a one-hot that a gradient can be taken of."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def one_hot(
    scores: Float[Tensor, "*batch K"], indices: Int[Tensor, "*batch"] | None = None
) -> Float[Tensor, "*batch K"]:
    """1 at one code of each row, else 0, in the dtype of ``scores``.

    What is computed from the one-hot has a gradient with respect to each of its entries, also those
    that are 0. To the scores goes a gradient of exactly 0, which is the derivative of a choice almost
    everywhere: it does not change where the scores change a little.

    Args:
        scores: one per code, the larger the better.
        indices: which code; None: the one of the largest score.

    Examples:
        >>> one_hot(torch.tensor([[0.1, 0.7, 0.2]])).tolist()
        [[0.0, 1.0, 0.0]]
    """
    if indices is None:
        indices = scores.argmax(-1)
    return _OneHot.apply(scores, indices)  # pyright: ignore[reportReturnType]


class _OneHot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, indices: Tensor) -> Tensor:  # noqa: ARG004
        return torch.zeros_like(scores).scatter_(-1, indices[..., None], 1.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return torch.zeros_like(grad_outputs[0]), None
