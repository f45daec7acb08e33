"""What a cross-layer autoencoder is trained on: the same tokens at two hook points."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class PairedBatch(NamedTuple):
    """Whole sequences, their activations at two hook points, and which positions count.

    Attributes:
        tokens: token ids.
        lower: activations at the hook point that is read.
        upper: activations at the hook point that is to be rebuilt; ``lower`` itself where it is
            the same one.
        valid: True where a token is neither padding nor special.
    """

    tokens: Int[Tensor, "batch pos"]
    lower: Float[Tensor, "batch pos d_in"]
    upper: Float[Tensor, "batch pos d_out"]
    valid: Bool[Tensor, "batch pos"]
