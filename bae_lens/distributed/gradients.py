"""The gradient of the global batch from the shares that ranks have."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bae_lens.distributed.collectives import sum_in_place
from bae_lens.distributed.ranks import n_ranks

# Bytes from which a gradient is reduced where it is. Packing it would need as much memory again, and two
# copies that take longer than one more collective.
_LARGE = 2**20


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every ``.grad`` over ranks: after the backward pass and before clipping.

    Large gradients are all-reduced in place and all others in one flat buffer, in float32 at least. Where a
    parameter has no gradient on this rank, it counts as zero; where it has none on any, it stays None. All ranks
    end with the same bits.

    Args:
        parameters: the same ones on all ranks, in one order.
    """
    if n_ranks() == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    missing = [p.grad is None for p in wanted]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
    if not gradients:
        return
    wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in gradients]
    is_large = [w.nbytes >= _LARGE and w.is_contiguous() for w in wide]
    small = [w for w, large in zip(wide, is_large, strict=True) if not large]
    # Whether any rank has a gradient of it travels with them.
    dtype = torch.float64 if torch.float64 in {w.dtype for w in wide} else torch.float32
    present = torch.tensor([not m for m in missing], device=wide[0].device, dtype=dtype)
    flat = torch.cat([present, *(w.reshape(-1).to(dtype) for w in small)])
    sum_in_place([flat, *(w for w, large in zip(wide, is_large, strict=True) if large)])
    n_present, *sums = flat.split([len(present), *(w.numel() for w in small)])
    left = iter(sums)
    # Only a rank that misses one has to look, and to wait for the device.
    is_anywhere = (n_present > 0).tolist() if any(missing) else [True] * len(wanted)
    for p, gradient, w, large, anywhere in zip(
        wanted, gradients, wide, is_large, is_anywhere, strict=True
    ):
        total: Tensor = w if large else next(left).reshape(gradient.shape)
        if not anywhere:
            p.grad = None
            continue
        if total is not gradient:
            gradient.copy_(total)
        p.grad = gradient
