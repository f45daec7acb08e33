"""What cannot be computed stays visible: NaN in, NaN out, also past a comparison, which is False for NaN."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nan, where


def nan_where_not_finite(
    outputs: Float[Tensor, "*batch d_out"], x: Float[Tensor, "*batch d_in"]
) -> Float[Tensor, "*batch d_out"]:
    """The outputs, with NaN in place of those of an input that has NaN or infinity in it.

    Args:
        outputs: of a function whose own would hide it, as a code of bits does.
        x: its input; may have heads in dimensions of their own where the outputs have them flattened.
    """
    is_finite = x.flatten(outputs.ndim - 1).isfinite().all(-1, keepdim=True)
    return where(is_finite.to(outputs.device), outputs, nan)
