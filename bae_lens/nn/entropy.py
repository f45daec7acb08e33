"""Entropy of a code, in bits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.precision import widened


def binary_entropy(p: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """H₂(p) = −p·log₂ p − (1 − p)·log₂(1 − p) in bits, elementwise; 0 at p = 0 and p = 1.

    In float32 whatever narrower dtype p has (float64 for float64).

    Examples:
        >>> binary_entropy(torch.tensor([0.25, 0.5])).tolist()
        [0.811278..., 1.0]
    """
    p = widened(p)
    return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / _LN2


def marginal_entropy(codes: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """Sum over latents of the entropy of each latent's bit in this batch, in bits.

    With p_j the mean of column j over all leading dimensions, the value is Σ_j H₂(p_j), the
    "margin entropy" of arXiv 2509.20997. It is an upper bound of the joint entropy of the code,
    reached only when the bits are independent, and as an estimate from n rows it is low by about
    1/(2·n·ln 2) bits for each latent that varies.

    The value is exact (0·log 0 = 0). The gradient is log₂((1 − p)/p)/n in every row, and 0 for a
    latent that does not vary in the batch. The release adds 1e-10 inside the logarithms instead,
    which pushes a silent latent further off with 33 bits/n (``benchmarks/bae_recipe.py`` shows what
    that does).

    Args:
        codes: bits (0 or 1), any leading shape. Reduced in float32 whatever the dtype.

    Returns:
        A float32 scalar (float64 for float64 codes), in bits.

    Raises:
        ValueError: if there is no row.

    Examples:
        Of two latents the first is on for half of the rows, the second never varies.

        >>> marginal_entropy(torch.tensor([[1.0, 1.0], [0.0, 1.0]])).item()
        1.0
    """
    flat = codes.reshape(-1, codes.shape[-1])
    if flat.shape[0] == 0:
        raise ValueError(
            f"marginal_entropy needs at least one row of codes; got shape {tuple(codes.shape)}."
        )
    if not flat.is_floating_point():
        return entropy_of_rates(flat.sum(0, dtype=torch.int64) / flat.shape[0])
    dtype = torch.promote_types(flat.dtype, torch.float32)
    return entropy_of_rates(flat.sum(0, dtype=dtype) / flat.shape[0])


def entropy_of_rates(p: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """Σ_j H₂(p_j) in bits of firing rates; the gradient is 0 where a latent does not vary.

    In float32 whatever narrower dtype p has (float64 for float64).
    """
    return _EntropyOfRates.apply(widened(p))  # pyright: ignore[reportReturnType]


class _EntropyOfRates(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return binary_entropy(p).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,) = grad_outputs
        (p,) = ctx.saved_tensors
        return grad * torch.where((p > 0) & (p < 1), torch.log2((1 - p) / p), 0)


_LN2 = 0.6931471805599453
