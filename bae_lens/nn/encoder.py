"""The encoder before the quantizer: the input, a little transformed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AdaptiveResidualEncoder(nn.Module):
    """z = (1 − α)·x + α·LN(W·x + b), with α = ½·σ(a): never more than half of z is transformed.

    The adaptive residual encoder of arXiv 2506.20040. α starts at 0.275 (a = 0.2). W starts as the
    identity, which is the first release; later ones leave it at PyTorch's random start.

    Args:
        d: width of input and output.
    """

    def __init__(
        self,
        d: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.linear = nn.Linear(d, d, device=device, dtype=dtype)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.norm = nn.LayerNorm(d, device=device, dtype=dtype)
        self.a = nn.Parameter(torch.full((), 0.2, device=device, dtype=dtype))

    @property
    def alpha(self) -> Float[Tensor, ""]:
        """Share of the transformed input in z, between 0 and ½."""
        return 0.5 * torch.sigmoid(self.a)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return (1 - self.alpha) * x + self.alpha * self.norm(self.linear(x))
