"""The covariance penalty of any activations, a tile of the matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# A tile of 1,024 × 1,024 floats fits a core's cache and still feeds the matrix units; a GPU wants fewer
# and larger ones.
_TILE, _TILE_GPU = 1024, 4096
# Since torch 2.8.
_HAS_WIDER_PRODUCT = "dtype" in torch.ops.aten.mm.overloads()


def tiles_value_and_grad(
    codes: Tensor, needs_grad: bool, product_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor | None]:
    """Σ_{i≠j} |C_ij| and its gradient.

    Args:
        codes: ``[n, d]``.
        needs_grad: whether to compute the gradient; None stands in its place otherwise.
        product_dtype: dtype of what goes into the matrix products, which are summed in float32. Bits and
            signs are exact in bfloat16; None: that of the codes, at least float32.
    """
    n, d = codes.shape
    x = codes.to(torch.promote_types(codes.dtype, torch.float32))
    mean = x.mean(0)
    # Covariance ignores a shift. Columns of bits keep theirs at 0, so that all counts below are
    # integers and a zero covariance is an exact zero; any other column is centered, for precision.
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
    x = x.to(product_dtype or x.dtype)
    tile = _TILE if x.device.type == "cpu" else _TILE_GPU
    size = math.ceil(d / math.ceil(d / tile))
    blocks = [slice(start, min(start + size, d)) for start in range(0, d, size)]
    for a, rows in enumerate(blocks):
        for b, cols in enumerate(blocks[a:], start=a):
            count = _product(x[:, rows].T, x[:, cols]).to(exact)
            scaled = n * count - torch.outer(total[rows].to(exact), total[cols].to(exact))
            if a == b:
                scaled.fill_diagonal_(0)
            value += scaled.abs().sum() * (1 if a == b else 2)
            if signed_rows is None or signed_mean is None:
                continue
            sign = scaled.sign().to(mean.dtype)
            signed_mean[cols] += mean[rows] @ sign
            if a != b:
                signed_mean[rows] += sign @ mean[cols]
            sign = sign.to(x.dtype)
            signed_rows[:, cols] += _product(x[:, rows], sign)
            if a != b:
                signed_rows[:, rows] += _product(x[:, cols], sign.T)
    value = (value / (n * (n - 1))).to(mean.dtype)
    if signed_rows is None or signed_mean is None:
        return value, None
    # ∂/∂x = 2/(n−1) · (x − mean) · sign(C)
    return value, (signed_rows - signed_mean).mul_(2 / (n - 1))


def tiles_of_columns(
    bits: Callable[[slice], Tensor],
    shape: tuple[int, int],
    columns: slice,
    needs_grad: bool,
    dtype: torch.dtype,
    product_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What some columns of the covariance matrix of bits add to Σ_{i≠j} |C_ij|, and the gradient to them.

    Args:
        bits: gives zeros and ones ``[n, k]`` of k latents, from a multiple of eight on: a tile at a time, so that
            they may be kept in a form that takes less memory.
        shape: n and d, of all bits.
        columns: which of the d; they begin with a multiple of eight.
        needs_grad: whether to compute the gradient, of all rows to these columns.
        dtype: of what is returned.
        product_dtype: as in ``tiles_value_and_grad``.
    """
    n, d = shape
    x = bits(slice(0, 0))
    tile = _TILE if x.device.type == "cpu" else _TILE_GPU
    blocks = [slice(start, min(start + tile, d)) for start in range(0, d, tile)]
    total = torch.cat([bits(block).sum(0, dtype=dtype) for block in blocks])
    mean = total / n
    has_float64 = x.device.type != "mps"
    exact = torch.float64 if n > 4096 and has_float64 else dtype
    product_dtype = product_dtype or dtype
    value = total.new_zeros((), dtype=exact)
    grad = total.new_empty(n, columns.stop - columns.start) if needs_grad else None
    for start in range(columns.start, columns.stop, tile):
        cols = slice(start, min(start + tile, columns.stop))
        of_cols = bits(cols).to(product_dtype)
        signed_rows = total.new_zeros(n, cols.stop - start)
        signed_mean = torch.zeros_like(mean[cols])
        for rows in blocks:
            of_rows = bits(rows).to(product_dtype)
            count = _product(of_rows.T, of_cols).to(exact)
            scaled = n * count - torch.outer(total[rows].to(exact), total[cols].to(exact))
            first, last = max(rows.start, start), min(rows.stop, cols.stop)
            if first < last:
                own = scaled[first - rows.start : last - rows.start, first - start : last - start]
                own.fill_diagonal_(0)
            value += scaled.abs().sum()
            if grad is None:
                continue
            sign = scaled.sign().to(dtype)
            signed_mean += mean[rows] @ sign
            signed_rows += _product(of_rows, sign.to(product_dtype))
        if grad is not None:
            grad[:, start - columns.start : cols.stop - columns.start] = signed_rows - signed_mean
    value = (value / (n * (n - 1))).to(dtype)
    return value, None if grad is None else grad.mul_(2 / (n - 1))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Summed in float32 and left there, where a product of bfloat16 would be rounded to it."""
    if a.dtype != torch.bfloat16:
        return a @ b
    if a.is_cuda and _HAS_WIDER_PRODUCT:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
