"""The off-diagonal covariance penalty, in closed form, by the method that is cheapest for the code."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.covariance_pairs import pairs_value_and_grad
from bae_lens.nn.covariance_strips import strips_value_and_grad
from bae_lens.nn.sparse_code import BitCounts, SparseCode

Method = Literal["auto", "tiles", "strips", "pairs"]

# A tile of 1,024 × 1,024 floats fits a core's cache and still feeds the matrix units.
_TILE = 1024
# Nanoseconds on two cores: a multiply-add of a tile; two additions, and a pair of bits, in a strip; a
# multiply-add of a sparse product (``benchmarks/speed.py --costs``).
_TILES, _STRIPS, _PAIRS = 0.018, (0.05, 0.3), 30.0


def off_diagonal_covariance(
    codes: Float[Tensor, "*batch d_sae"], method: Method = "auto"
) -> Float[Tensor, ""]:
    """Σ_{i≠j} |C_ij|, with C the unbiased covariance of the latents over the batch.

    The covariance penalty of arXiv 2509.20997 (as its release computes it). Equal to autograd
    through ``torch.cov`` in value and, where no C_ij is zero, in gradient; a covariance that is
    exactly zero gets the subgradient 0 (between bits this is decided in integers, where float
    noise would pick a sign at random).

    Value and gradient are computed together, and no dense d_sae × d_sae matrix is ever held:

    * ``"tiles"``: tile by tile and each pair of latents once, 3·n·d_sae² multiply-adds. For any
      activations; the others are for zeros and ones, and leave anything else to it;
    * ``"strips"``: all pairs of bits, but only rows where they are on: for m of these 2·m·d_sae
      additions, and a few operations for each of d_sae² pairs;
    * ``"pairs"``: only pairs of bits that fire together, a multiply-add for each bit that is on in a row
      and each partner that it has in the batch: the one that grows linearly in d_sae.

    Args:
        codes: bits or any real activations, any leading shape. Computed in float32 whatever the
            dtype (float64 for float64 codes), autocast or not.
        method: ``"auto"`` takes the cheapest by the batch's own counts; off the CPU always tiles,
            which need not wait for the counts.

    Returns:
        A float32 scalar (float64 for float64 codes).

    Raises:
        ValueError: if there are fewer than two rows, or no such method.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}.")
    flat = codes.reshape(-1, codes.shape[-1])
    if flat.shape[0] < 2:
        raise ValueError(
            "off_diagonal_covariance needs at least two rows of codes, since the unbiased covariance "
            f"divides by n - 1; got shape {tuple(codes.shape)}."
        )
    return _operator(flat, method, flat.requires_grad and torch.is_grad_enabled())[0]


# An operator of its own, so that a compiled training pass need not look into it: which method is
# cheaper depends on the data.
@torch.library.custom_op(
    "bae_lens::off_diagonal_covariance",
    mutates_args=(),
    schema="(Tensor codes, str method, bool needs_grad) -> (Tensor, Tensor)",
)
def _operator(codes: Tensor, method: Method, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """Value and gradient, which is empty where it is not needed."""
    with torch.autocast(codes.device.type, enabled=False):
        value, grad = _value_and_grad(codes, method, needs_grad)
    return value, codes.new_empty(0) if grad is None else grad.to(codes.dtype)


@_operator.register_fake
def _(codes: Tensor, method: Method, needs_grad: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    dtype = torch.promote_types(codes.dtype, torch.float32)
    grad = torch.empty_like(codes) if needs_grad else codes.new_empty(0)
    return codes.new_empty((), dtype=dtype), grad


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_value: Tensor, _: Any) -> tuple[Tensor, None, None]:
    (grad,) = ctx.saved_tensors
    return grad_value.to(grad.dtype) * grad, None, None


_operator.register_autograd(_backward, setup_context=_keep_gradient)


def _value_and_grad(
    codes: Tensor, method: Method, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    dtype = torch.promote_types(codes.dtype, torch.float32)
    # Elsewhere the counts would have to be waited for.
    if method == "auto" and codes.device.type != "cpu":
        method = "tiles"
    if method != "tiles":
        bits = BitCounts.of(codes)
        method = cheapest(bits.counts, len(codes)) if method == "auto" else method
        code = SparseCode.of(codes, bits) if method != "tiles" else None
        if code is not None and method == "strips":
            return strips_value_and_grad(code, dtype, needs_grad)
        if code is not None:
            return pairs_value_and_grad(code, dtype, needs_grad)
    return _tiles_value_and_grad(codes, needs_grad)


def cheapest(counts: Float[Tensor, " d"], n: int) -> Method:
    """The method for bits that fire so often in ``n`` rows, by the operations that each needs."""
    costs = expected_costs(counts, n)
    return min(costs, key=costs.__getitem__)


def expected_costs(counts: Float[Tensor, " d"], n: int) -> dict[Method, float]:
    """Nanoseconds of each method, roughly.

    Of the partners of a bit only a bound is known before they are listed: as many as are on beside
    it in the rows where it fires.
    """
    d, counts = len(counts), counts.double()
    n_on = float(counts.sum())
    multiply_adds = float((counts * (counts * n_on / n).clamp(max=d)).sum()) + n_on**2 / n
    return {
        "tiles": _TILES * n * d**2,
        "strips": _STRIPS[0] * n_on * d + _STRIPS[1] * d**2,
        "pairs": _PAIRS * multiply_adds,
    }


def _tiles_value_and_grad(codes: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
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
