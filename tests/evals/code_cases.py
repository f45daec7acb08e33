"""Codes whose statistics are known, for the tests of ``CodeStatistics``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bae_lens.evals import CodeStatistics, CodeSummary, MagnitudeQuantizer


def code_with_rates(rates: list[float], n: int = 1000) -> Tensor:
    """Activations ``[n, len(rates)]`` in which latent j fires on exactly ``rates[j]`` of the rows."""
    rows = torch.arange(n).unsqueeze(1)
    return (rows < torch.tensor([round(rate * n) for rate in rates])).float()


def random_acts(n: int, d: int, seed: int = 0, density: float = 0.4) -> Tensor:
    """Positive magnitudes where latents fire."""
    generator = torch.Generator().manual_seed(seed)
    fired = torch.rand(n, d, generator=generator) < density
    return (torch.rand(n, d, generator=generator) + 0.1) * fired


def summary_of(
    acts: Tensor,
    flipped: list[bool] | Tensor | None = None,
    W_dec: Tensor | None = None,
    **settings: Any,
) -> CodeSummary:
    statistics = CodeStatistics(
        acts.shape[-1],
        flipped=None if flipped is None else torch.as_tensor(flipped),
        **settings,
    )
    statistics.update(acts)
    return statistics.compute(W_dec)


def quantizer_of(acts: Tensor, bits: float = 3) -> MagnitudeQuantizer:
    return MagnitudeQuantizer.fit(acts, torch.eye(acts.shape[1]), bits)


def entropy_bits(p: float) -> float:
    return sum(-q * math.log2(q) for q in (p, 1 - p) if q > 0)


VALUES = torch.tensor([[1.0, 2.0, 4.0], [0.1, 0.2, 0.3], [3.0, 5.0, 5.5], [1.0, 1.5, 9.0]])
