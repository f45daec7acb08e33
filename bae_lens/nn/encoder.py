"""Encoders before a quantizer: the input a little transformed, or what it says of the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bae_lens.nn.ridge import ridge_regression


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


class PredictiveEncoder(nn.Module):
    """z = W·x + b, or W·x + b + V·relu(U·x + c): the output as it is predicted from the input.

    For any codes e_k, and k chosen from x alone, E‖y − e_k‖² = E‖y − E[y|x]‖² + E‖E[y|x] − e_k‖²: the best
    code of a token is the one nearest to the prediction of y. This is that prediction, so trained.

    V starts at zero, so that the hidden layer begins as nothing; ``fit_linear`` sets W and b.

    Args:
        d_in: width of the input.
        d_out: width of the output, and of the codes.
        d_hidden: width of the hidden layer; None: there is none.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        d_hidden: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, device=device, dtype=dtype)
        self.up = self.down = None
        if d_hidden is not None:
            self.up = nn.Linear(d_in, d_hidden, device=device, dtype=dtype)
            self.down = nn.Linear(d_hidden, d_out, bias=False, device=device, dtype=dtype)
            nn.init.zeros_(self.down.weight)

    @classmethod
    @torch.no_grad()
    def of_layers(cls, layers: Sequence[tuple[Tensor, Tensor]]) -> PredictiveEncoder:
        """Of known weights ``[out, in]`` and biases ``[out]``: of one layer, or of two with a ReLU between.

        Raises:
            ValueError: if there are neither one nor two layers, or a shape does not fit.
        """
        shapes = [(tuple(weight.shape), tuple(bias.shape)) for weight, bias in layers]
        fits = len(layers) in (1, 2) and all(
            len(weight) == 2 and bias == weight[:1] for weight, bias in shapes
        )
        if not fits or (len(layers) == 2 and shapes[1][0][1] != shapes[0][0][0]):
            raise ValueError(
                "A prediction is one layer, or two with a ReLU between them, each a weight [out, in] and a "
                f"bias [out], the second as wide as what the first gives; got shapes {shapes}."
            )
        (first, first_bias), (last, last_bias) = layers[0], layers[-1]
        encoder = cls(first.shape[1], len(last), len(first) if len(layers) == 2 else None)
        encoder.linear.bias.copy_(last_bias)
        if encoder.up is None or encoder.down is None:
            encoder.linear.weight.copy_(last)
        else:
            nn.init.zeros_(encoder.linear.weight)
            encoder.up.weight.copy_(first)
            encoder.up.bias.copy_(first_bias)
            encoder.down.weight.copy_(last)
        return encoder

    @property
    def d_hidden(self) -> int | None:
        """Width of the hidden layer; None where there is none."""
        return None if self.up is None else self.up.out_features

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        z = self.linear(x)
        if self.up is None or self.down is None:
            return z
        return z + self.down(F.relu(self.up(x)))

    @torch.no_grad()
    def fit_linear(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
        """Set W and b by ridge regression of y on x, and V to zero."""
        weight, bias = ridge_regression(x, y)
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)
        if self.down is not None:
            nn.init.zeros_(self.down.weight)
