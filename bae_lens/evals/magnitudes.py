"""Magnitudes in cells that can be counted, so that a code has a length in bits.

Those of a real-valued code are quantized; a code of levels has cells of its own.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.checks.fields import Number, check
from bae_lens.nn import check_level_values, level_counts

# At 0 bits a cell is so many times the root mean square of the magnitudes wide. Cells reach to so many
# times it in either direction, so that a few outliers cannot ask for gigabytes of them.
_RANGE, _REACH = 4.0, 64.0
MAX_BITS = 16


class MagnitudeQuantizer:
    """Cells of one width for the magnitudes of all latents, counted in units of the output.

    A magnitude times the norm of its decoder row is what the latent adds to the reconstruction. One
    step for all of them spreads the error evenly, and with entropy-coded cells that is close to the
    best a scalar quantizer can do, and shorter than cells fitted to each latent's own range. A value is
    restored as the mean of its latent's values in its cell when the quantizer was fitted.

    Args:
        bits: resolution: a step is 2^(−bits) × 4 × the root mean square of all magnitudes (in units of
            the output) where latents fire.
        norms: ``[d_sae]``, norms of the decoder rows.
        step: width of a cell, in units of the output.
        first_cell: index of the lowest cell, ⌊smallest magnitude / step⌋.
        restored: ``[d_sae, n_cells]``, what each cell stands for, as an activation.
    """

    def __init__(
        self,
        bits: float,
        norms: Float[Tensor, " d_sae"],
        step: float,
        first_cell: int,
        restored: Float[Tensor, "d_sae n_cells"],
    ) -> None:
        self.bits = bits
        self.norms = norms
        self.step = step
        self.first_cell = first_cell
        self.restored = restored

    def is_same(self, other: MagnitudeQuantizer) -> bool:
        """Whether both put values into the same cells."""
        mine, theirs = ((q.step, q.first_cell, q.n_cells) for q in (self, other))
        return mine == theirs and torch.equal(self.norms.cpu(), other.norms.cpu())

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.norms)

    @property
    def n_cells(self) -> int:
        """Cells a latent; values beyond those seen when fitting fall into the outermost."""
        return self.restored.shape[1]

    @classmethod
    @torch.no_grad()
    def fit(
        cls, acts: Float[Tensor, "n d_sae"], W_dec: Float[Tensor, "d_sae d_out"], bits: float
    ) -> MagnitudeQuantizer:
        """Set the step and the values of the cells from some of a code's activations.

        Args:
            acts: activations, best of tokens that are not scored afterwards.
            W_dec: the decoder.
            bits: resolution, see the class.

        Raises:
            ValueError: if ``bits`` is negative or more than 16, nothing fires, or a value is NaN or infinite.
        """
        bits = check("bits", bits, Number(least=0, most=MAX_BITS))
        if not (acts.isfinite().all() and W_dec.isfinite().all()):
            raise ValueError(
                "Activations or decoder have NaN or infinite values, which no cell can hold."
            )
        norms = W_dec.float().norm(dim=1)
        fired, d_sae = acts != 0, acts.shape[1]
        values = (acts.float() * norms)[fired]
        if len(values) == 0:
            raise ValueError(
                "No latent fires on these tokens, so there are no magnitudes to set a resolution by. "
                "Give more tokens."
            )
        size = values.square().mean().sqrt().item()
        if size == 0:
            raise ValueError("The decoder is all zeros, so magnitudes have no size in the output.")
        step = _RANGE * size / 2**bits
        values = values.clamp(-_REACH * size, _REACH * size)
        lowest, highest = (values.min() / step).floor(), (values.max() / step).floor()
        n_cells = int(highest - lowest) + 1
        cells = (torch.arange(n_cells, device=acts.device) + lowest + 0.5) * step
        middle = cells / norms.clamp(min=1e-12).unsqueeze(1)
        quantizer = cls(bits, norms, step, int(lowest), middle)
        # Where values were seen, their mean in place of the middle of the cell.
        flat = quantizer._flat_cells(acts, fired)
        n = torch.bincount(flat, minlength=d_sae * n_cells).reshape(d_sae, n_cells)
        total = torch.zeros(d_sae * n_cells, dtype=torch.float64, device=acts.device)
        total.index_add_(0, flat, acts[fired].double())
        mean = (total.reshape(d_sae, n_cells) / n.clamp(min=1)).float()
        quantizer.restored = torch.where(n > 0, mean, middle)
        return quantizer

    @torch.no_grad()
    def quantize(self, acts: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
        """Activations with the magnitudes that their cells stand for; what is 0 stays 0."""
        fired = acts != 0
        acts = acts if acts.is_floating_point() else acts.float()
        quantized = torch.zeros_like(acts)
        restored = self.restored.to(acts).flatten()
        quantized[fired] = restored[self._flat_cells(acts, fired)]
        return quantized

    @torch.no_grad()
    def count(self, acts: Float[Tensor, "n d_sae"]) -> Int[Tensor, "d_sae n_cells"]:
        """How many tokens fall into each latent's cells, where it fires."""
        flat = self._flat_cells(acts, acts != 0)
        return torch.bincount(flat, minlength=self.restored.numel()).reshape(self.restored.shape)

    def _flat_cells(self, acts: Tensor, fired: Tensor) -> Tensor:
        """``latent · n_cells + cell`` of every value that is not 0, row by row."""
        latent = fired.nonzero()[:, 1]
        scaled = acts[fired].float() * self.norms.to(acts.device)[latent]
        cell = (scaled / self.step).floor().long() - self.first_cell
        return latent * self.n_cells + cell.clamp(0, self.n_cells - 1)


class LevelCounter:
    """Counts the levels of a code whose latents have few values, which the SAE knows: no resolution is chosen.

    Args:
        values: ``[d_sae, L]``, the values of each latent where it fires, in ascending order.

    Raises:
        ValueError: if they are not that.
    """

    def __init__(self, values: Float[Tensor, "d_sae L"]) -> None:
        check_level_values(values)
        self.values = values.detach().clone()

    def is_same(self, other: LevelCounter) -> bool:
        """Whether both are of the same values."""
        mine, theirs = (levels.values.double().cpu() for levels in (self, other))
        return torch.equal(mine, theirs)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.values)

    @property
    def n_cells(self) -> int:
        """Levels a latent, 0 not among them."""
        return self.values.shape[1]

    def count(self, acts: Float[Tensor, "n d_sae"]) -> Int[Tensor, "d_sae L"]:
        """How many tokens have each level of each latent, where it fires."""
        return level_counts(acts, self.values)


def magnitude_entropy(cell_counts: Int[Tensor, "d_sae n_cells"], n_tokens: int) -> float:
    """Bits per token of the cells, each latent's given that it fires.

    Args:
        cell_counts: tokens in each latent's cells, where it fires.
        n_tokens: all tokens.
    """
    cells = cell_counts.double()
    fired = cells.sum(1)
    nats = torch.xlogy(fired, fired).sum() - torch.xlogy(cells, cells).sum()
    return nats.item() / (n_tokens * math.log(2))
