"""The covariance penalty of the bits of all ranks, each of which computes some columns of the matrix.

Every rank gets the bits of all, packed eight to a byte: of n rows of d bits n·d/8 bytes are received. Rank r
then has d/R columns of C, and the gradient of every row to those latents, 4·n·d/R bytes in float32; each gets its
own rows back, as many bytes. So the work is divided by R. On a GPU that is all that is in memory, but for tiles;
on the CPU, where sparse bits are listed, also the bits as floats.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bae_lens.distributed import all_gather_rows, all_sum, all_to_all_rows, n_ranks, rank
from bae_lens.nn.covariance.penalty import expected_costs, off_diagonal_covariance
from bae_lens.nn.covariance.strips import strips_value_and_grad
from bae_lens.nn.covariance.tiles import tiles_of_columns
from bae_lens.nn.sparse_code import BitCounts, SparseCode
from bae_lens.operators import custom_op


def covariance_on_ranks(bits: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """``off_diagonal_covariance`` of the bits of all ranks, the same on each; with one rank it is that itself.

    Its gradient is that of the global value to this rank's own rows.

    Args:
        bits: zeros and ones, this rank's rows, as many on each.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if n_ranks() == 1:
        return off_diagonal_covariance(bits, is_binary=True)
    flat = bits.reshape(-1, bits.shape[-1])
    return _operator(flat, flat.requires_grad and torch.is_grad_enabled())[0]


# An operator of its own, so that a compiled training pass need not look into it.
@custom_op("covariance_on_ranks", "(Tensor bits, bool needs_grad) -> (Tensor, Tensor)")
def _operator(bits: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """Value and gradient, which is empty where it is not needed."""
    with torch.autocast(bits.device.type, enabled=False):
        value, grad = _value_and_own_grad(bits, needs_grad)
    return value, bits.new_empty(0) if grad is None else grad.to(bits.dtype).contiguous()


@_operator.register_fake
def _(bits: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(bits.dtype, torch.float32)
    grad = bits.new_empty(bits.shape) if needs_grad else bits.new_empty(0)
    return bits.new_empty((), dtype=dtype), grad


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_value: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
    (grad,) = ctx.saved_tensors
    return None if grad_value is None else grad_value.to(grad.dtype) * grad, None


_operator.register_autograd(_backward, setup_context=_keep_gradient)


def _value_and_own_grad(bits: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor | None]:
    n, d = bits.shape
    dtype = torch.promote_types(bits.dtype, torch.float32)
    rows = all_gather_rows(packed(bits))
    # Of as many columns each, in whole bytes; the last ranks may have fewer, or none.
    width = 8 * math.ceil(d / (8 * n_ranks()))
    columns = slice(min(rank() * width, d), min((rank() + 1) * width, d))
    value, grad = _of_columns(rows, d, columns, dtype, needs_grad)
    value = all_sum(value.double() if value.device.type != "mps" else value).to(dtype)
    if grad is None:
        return value, None
    grad = torch.nn.functional.pad(grad, (0, width - grad.shape[1]))
    # Part r is what rank r has of these rows: its columns.
    parts = all_to_all_rows(grad).reshape(n_ranks(), n, width)
    return value, parts.transpose(0, 1).reshape(n, -1)[:, :d]


def _of_columns(
    rows: Tensor, d: int, columns: slice, dtype: torch.dtype, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    if rows.device.type == "cpu":
        bits = unpacked(rows, slice(0, d)).to(dtype)
        counted = BitCounts.of(bits)
        costs = expected_costs(counted.counts, len(bits))
        code = SparseCode.of(bits, counted) if costs["strips"] < costs["tiles"] else None
        if code is not None:
            return strips_value_and_grad(code, dtype, needs_grad, columns)
    return tiles_of_columns(
        partial(unpacked, rows),
        (len(rows), d),
        columns,
        needs_grad,
        dtype,
        torch.bfloat16 if rows.is_cuda else None,
    )


def packed(bits: Float[Tensor, "n d"]) -> UInt8[Tensor, "n bytes"]:
    """Bits, or what is not zero, eight to a byte; the last byte of a row is filled with zeros."""
    on = torch.nn.functional.pad(bits != 0, (0, -bits.shape[1] % 8))
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (on.reshape(len(bits), -1, 8) * places).sum(-1, dtype=torch.uint8)


def unpacked(rows: UInt8[Tensor, "n bytes"], columns: slice) -> UInt8[Tensor, "n k"]:
    """Some of the bits, from a multiple of eight on."""
    first, last = columns.start // 8, -(-columns.stop // 8)
    places = torch.arange(8, dtype=torch.uint8, device=rows.device)
    bits = ((rows[:, first:last, None] >> places) & 1).flatten(1)
    return bits[:, : columns.stop - columns.start]
