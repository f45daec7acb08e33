"""The decoder's product with a code that is mostly zero, which need not read what is."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.sparse_rows import SparseRows
from bae_lens.operators import custom_op

# Share of a code up to which its rows are added up; above it a dense product is as fast, on two cores.
_DENSEST = 1 / 8


def decode_sparse(
    acts: Float[Tensor, "*batch d_sae"], weight: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "*batch d_in"]:
    """``acts @ weight``, on the CPU by the entries of ``acts`` that are not zero, if they are few.

    So is the gradient of the weight; that of ``acts`` is dense, since a surrogate asks for it where
    they are zero as well. Off the CPU, under autocast and in half precision this is the plain product:
    counting entries would wait for the device.

    Examples:
        >>> decode_sparse(torch.tensor([[0.0, 1.0, 0.0]]), torch.arange(6.0).reshape(3, 2)).tolist()
        [[2.0, 3.0]]
    """
    is_plain = (
        acts.device.type != "cpu"
        or acts.dtype != weight.dtype
        or acts.dtype not in (torch.float32, torch.float64)
        or torch.is_autocast_enabled("cpu")
    )
    if is_plain:
        return acts @ weight
    out = _product(acts.reshape(-1, acts.shape[-1]), weight)
    return out.reshape(*acts.shape[:-1], weight.shape[1])


# Operators of their own, so that a compiled training pass need not look into them: what is cheaper
# depends on the data.
@custom_op("decode_sparse", "(Tensor acts, Tensor weight) -> Tensor")
def _product(acts: Tensor, weight: Tensor) -> Tensor:
    return SparseRows.of(acts) @ weight if _is_sparse(acts) else acts @ weight


@custom_op("decode_sparse_weight", "(Tensor acts, Tensor grad) -> Tensor")
def _weight_grad(acts: Tensor, grad: Tensor) -> Tensor:
    if _is_sparse(acts):
        return SparseRows.of(acts).transposed(acts.shape[1]) @ grad.contiguous()
    return acts.T @ grad


@_product.register_fake
def _(acts: Tensor, weight: Tensor) -> Tensor:
    return acts.new_empty(acts.shape[0], weight.shape[1])


@_weight_grad.register_fake
def _(acts: Tensor, grad: Tensor) -> Tensor:
    return acts.new_empty(acts.shape[1], grad.shape[1])


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    acts, weight = ctx.saved_tensors
    of_acts, of_weight = ctx.needs_input_grad
    return grad @ weight.T if of_acts else None, _weight_grad(acts, grad) if of_weight else None


_product.register_autograd(_backward, setup_context=_keep_inputs)


def _is_sparse(acts: Tensor) -> bool:
    return bool(acts.count_nonzero() <= _DENSEST * acts.numel())
