"""Collectives on tensors and objects; the identity where there is one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bae_lens.distributed.ranks import n_ranks, rank
from bae_lens.operators import custom_op

T = TypeVar("T")


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks, the same to the bit on each; differentiable.

    The gradient passes as it is: where every rank computes the loss L of the global sum S = Σ_r s_r, dL/dS is
    known on each, and dL/dS·ds_r/dθ is that rank's share of dL/dθ, to be added up by ``sum_gradients``.
    (``torch.distributed.nn.all_reduce`` sums gradients too, for losses that differ between ranks.)

    Args:
        x: any shape, the same on all ranks; added up in float32 at least.
    """
    return x if n_ranks() == 1 else _all_sum(x)


def all_sums(*xs: Tensor) -> tuple[Tensor, ...]:
    """``all_sum`` of several tensors by one all-reduce, in the widest of their dtypes.

    Whole numbers that go with float32 come back rounded beyond 2²⁴.
    """
    if n_ranks() == 1:
        return xs
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    total = _all_sum(torch.cat([x.reshape(-1).to(dtype) for x in xs]))
    parts = total.split([x.numel() for x in xs])
    return tuple(part.reshape(x.shape).to(x.dtype) for part, x in zip(parts, xs, strict=True))


def all_mean(x: Tensor) -> Tensor:
    """Mean over ranks, differentiable: of means over rows, of which each rank has as many, the global mean."""
    return x if n_ranks() == 1 else _all_sum(x / n_ranks())


def all_max(x: Tensor) -> Tensor:
    """Elementwise maximum over ranks, without a gradient."""
    if n_ranks() == 1:
        return x
    most = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def all_any(flag: bool) -> bool:
    """Whether it is true on any rank. Waits for all of them."""
    if n_ranks() == 1:
        return flag
    return bool(all_max(torch.tensor(int(flag), device=_device_for_numbers())))


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks in rank order, ``[R·n, ...]``, without a gradient.

    Args:
        x: ``[n, ...]``, of the same shape and dtype on all ranks.
    """
    if n_ranks() == 1:
        return x
    return _all_gather_rows(x.detach(), n_ranks())


def all_to_all_rows(x: Tensor) -> Tensor:
    """What each rank has for this one: part r of the result is part ``rank()`` of rank r's ``x``.

    Args:
        x: ``[R·n, ...]``, R parts of n rows, of the same shape and dtype on all ranks.
    """
    if n_ranks() == 1:
        return x
    x = x.detach().contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x)
    return received


def all_gather_objects(value: T) -> list[T]:
    """What each rank has, in rank order; pickled, so it must come from this package's own processes."""
    if n_ranks() == 1:
        return [value]
    values: list[Any] = [None] * n_ranks()
    dist.all_gather_object(values, value)
    return values


def broadcast(x: Tensor) -> Tensor:
    """Rank 0's tensor, without a gradient; ``x`` gives shape and dtype on the others."""
    if n_ranks() == 1:
        return x
    copy = x.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(copy, src=0)
    return copy


def broadcast_object(value: T) -> T:
    """Rank 0's object, pickled."""
    if n_ranks() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0)
    return value if rank() == 0 else values[0]


def send_object(value: Any, to: int) -> None:
    """Hand an object to another rank, which calls ``receive_object``; pickled."""
    dist.send_object_list([value], to)


def receive_object(source: int) -> Any:
    """What another rank hands over with ``send_object``."""
    values: list[Any] = [None]
    dist.recv_object_list(values, source)
    return values[0]


def any_soon(flag: bool) -> Callable[[], bool]:
    """``all_any`` of which the answer is asked for later: what is returned waits for it.

    On CPU tensors where the group can, so that no device is waited for.
    """
    if n_ranks() == 1:
        return lambda: flag
    most = torch.tensor(int(flag), device=_device_for_numbers())
    work = dist.all_reduce(most, dist.ReduceOp.MAX, async_op=True)

    def answer() -> bool:
        if work is not None:
            work.wait()
        return bool(most)

    return answer


def barrier() -> None:
    """Wait until every rank is here."""
    all_any(False)


# Operators of their own, so that a compiled training pass need not look into them.
@custom_op("all_sum", "(Tensor x) -> Tensor")
def _all_sum(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else x.dtype
    total = x.to(wide, memory_format=torch.contiguous_format, copy=True)
    return sum_in_place([total])[0].to(x.dtype)


@_all_sum.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _pass_on(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG001
    return grad


_all_sum.register_autograd(_pass_on)


@custom_op("all_gather_rows", "(Tensor x, int n_ranks) -> Tensor")
def _all_gather_rows(x: Tensor, n_ranks: int) -> Tensor:
    x = x.contiguous()
    rows = x.new_empty(n_ranks * len(x), *x.shape[1:])
    dist.all_gather([*rows.chunk(n_ranks)], x)
    return rows


@_all_gather_rows.register_fake
def _(x: Tensor, n_ranks: int) -> Tensor:
    return x.new_empty(n_ranks * len(x), *x.shape[1:])


def sum_in_place(xs: Sequence[Tensor]) -> Sequence[Tensor]:
    """All-reduce contiguous tensors where they are, all under way at once."""
    works = [dist.all_reduce(x, dist.ReduceOp.SUM, async_op=True) for x in xs if x.numel()]
    for work in works:
        if work is not None:
            work.wait()
    return xs


def _device_for_numbers() -> torch.device:
    """Where this process group can reduce a number of Python: on the CPU, unless its backend has none."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
