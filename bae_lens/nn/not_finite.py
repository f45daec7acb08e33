"""What cannot be computed stays visible: NaN in, NaN out, also past a comparison, which is False for NaN."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nan, where


def nan_where_not_finite(
    outputs: Float[Tensor, "*batch ..."], x: Float[Tensor, "*batch ..."], n_batch_dims: int
) -> Float[Tensor, "*batch ..."]:
    """The outputs, with NaN in place of those of an input that has NaN or infinity in it.

    Args:
        outputs: of a function whose own would hide it, as a code of bits does.
        x: its input.
        n_batch_dims: dimensions of both before those of one input, of which heads may have one of their own.
    """
    is_finite = x.flatten(n_batch_dims).isfinite().all(-1)
    is_finite = is_finite[(..., *(None,) * (outputs.ndim - n_batch_dims))]
    return where(is_finite.to(outputs.device), outputs, nan)
