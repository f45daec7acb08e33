"""The one-bit step and its surrogate gradients."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Surrogate = Literal["sigmoid", "identity", "paper"]
SURROGATES: tuple[str, ...] = get_args(Surrogate)


def binarize(
    pre: Float[Tensor, "*batch d_sae"],
    surrogate: Surrogate = "sigmoid",
    temperature: float = 1.0,
) -> Float[Tensor, "*batch d_sae"]:
    """One bit per latent: 1 where ``pre > 0``, else 0, with a surrogate for the gradient.

    The step has no useful derivative, so the backward pass multiplies by one of:

    * ``"sigmoid"``: σ'(pre/τ)/τ, the derivative of the step's smooth version. Latents far from
      their threshold get none.
    * ``"identity"``: 1, the straight-through estimator. The authors' release computes g·(1 − g) of
      the *upstream* gradient g, which for the small g of training is this.
    * ``"paper"``: pre·(1 − pre), as printed in arXiv 2509.20997, Eq. 6. It is negative outside
      (0, 1), where it turns the gradient round.

    Args:
        pre: pre-activations, any leading shape.
        surrogate: which derivative the backward pass uses.
        temperature: τ, width of the sigmoid; only ``"sigmoid"`` reads it.

    Returns:
        A tensor of zeros and ones with the shape and dtype of ``pre``.

    Raises:
        ValueError: if ``surrogate`` is not one of the three names or ``temperature`` is not
            positive.

    Examples:
        >>> pre = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
        >>> bits = binarize(pre, "identity")
        >>> bits.tolist()
        [0.0, 0.0, 1.0]
        >>> bits.sum().backward()
        >>> pre.grad.tolist()
        [1.0, 1.0, 1.0]
    """
    check_surrogate(surrogate, temperature)
    return _Binarize.apply(pre, surrogate, temperature)  # pyright: ignore[reportReturnType]


def check_surrogate(surrogate: str, temperature: float) -> None:
    """Refuse what no step can have for a gradient.

    Raises:
        ValueError: if ``surrogate`` is not one of the three names or ``temperature`` is not positive.
    """
    if surrogate not in SURROGATES:
        raise ValueError(f"surrogate must be one of {', '.join(SURROGATES)}; got {surrogate!r}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0; got {temperature}.")


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, surrogate: Surrogate, temperature: float) -> Tensor:
        ctx.surrogate, ctx.temperature = surrogate, temperature
        ctx.save_for_backward(pre)
        return (pre > 0).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        (pre,) = ctx.saved_tensors
        if ctx.surrogate == "sigmoid":
            s = (pre / ctx.temperature).sigmoid_()
            # grad · s·(1 − s), in one pass.
            grad = torch.ops.aten.sigmoid_backward(grad, s).div_(ctx.temperature)
        elif ctx.surrogate == "paper":
            grad = grad * (pre * (1 - pre))
        return grad, None, None
