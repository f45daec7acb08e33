"""The off-diagonal covariance penalty, in closed form and by tiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# A tile of 1,024 × 1,024 floats fits a core's cache and still feeds the matrix units.
_TILE = 1024


def off_diagonal_covariance(codes: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """Σ_{i≠j} |C_ij|, with C the unbiased covariance of the latents over the batch.

    The covariance penalty of arXiv 2509.20997 (as its release computes it). Equal to autograd
    through ``torch.cov`` in value and, where no C_ij is zero, in gradient; a covariance that is
    exactly zero gets the subgradient 0 (between bits this is decided in integers, where float
    noise would pick a sign at random).

    Value and gradient are computed together, tile by tile and each pair of latents once:
    3·n·d_sae² multiply-adds, and no d_sae × d_sae matrix is ever held.

    Args:
        codes: bits or any real activations, any leading shape. Computed in float32 whatever the
            dtype (float64 for float64 codes), autocast or not.

    Returns:
        A float32 scalar (float64 for float64 codes).

    Raises:
        ValueError: if there are fewer than two rows.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    if flat.shape[0] < 2:
        raise ValueError(
            "off_diagonal_covariance needs at least two rows of codes, since the unbiased covariance "
            f"divides by n - 1; got shape {tuple(codes.shape)}."
        )
    return _OffDiagonalCovariance.apply(flat)  # pyright: ignore[reportReturnType]


class _OffDiagonalCovariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor) -> Tensor:
        with torch.autocast(codes.device.type, enabled=False):
            value, grad = _value_and_grad(codes, ctx.needs_input_grad[0])
        if grad is not None:
            ctx.save_for_backward(grad.to(codes.dtype))
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,) = ctx.saved_tensors
        return grad_outputs[0].to(grad.dtype) * grad


def _value_and_grad(codes: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    n, d = codes.shape
    x = codes.to(torch.promote_types(codes.dtype, torch.float32))
    mean = x.mean(0)
    # Covariance ignores a shift. Columns of bits keep theirs at 0, so that all counts below are
    # integers and a zero covariance is an exact zero; any other column is centred, for precision.
    is_bit = ((x == 0) | (x == 1)).all(0)
    x = x - torch.where(is_bit, 0, mean)
    total = x.sum(0)
    # n·N_ij and N_i·N_j go up to n², and are exact in float32 up to 2²⁴.
    has_float64 = x.device.type != "mps"
    exact = torch.float64 if n > 4096 and has_float64 else x.dtype

    value = x.new_zeros((), dtype=exact)
    # Σ_i sign(C_ij)·x_i and Σ_i sign(C_ij)·mean_i, for every j.
    signed_rows = torch.zeros_like(x) if needs_grad else None
    signed_mean = torch.zeros_like(mean) if needs_grad else None
    mean = total / n
    size = math.ceil(d / math.ceil(d / _TILE))
    blocks = [slice(start, min(start + size, d)) for start in range(0, d, size)]
    for a, rows in enumerate(blocks):
        for b, cols in enumerate(blocks[a:], start=a):
            count = (x[:, rows].T @ x[:, cols]).to(exact)
            scaled = n * count - torch.outer(total[rows].to(exact), total[cols].to(exact))
            if a == b:
                scaled.fill_diagonal_(0)
            value += scaled.abs().sum() * (1 if a == b else 2)
            if signed_rows is None or signed_mean is None:
                continue
            sign = scaled.sign().to(x.dtype)
            signed_rows[:, cols] += x[:, rows] @ sign
            signed_mean[cols] += mean[rows] @ sign
            if a != b:
                signed_rows[:, rows] += x[:, cols] @ sign.T
                signed_mean[rows] += sign @ mean[cols]
    value = (value / (n * (n - 1))).to(x.dtype)
    if signed_rows is None or signed_mean is None:
        return value, None
    # ∂/∂x = 2/(n−1) · (x − mean) · sign(C)
    return value, (signed_rows - signed_mean).mul_(2 / (n - 1))
