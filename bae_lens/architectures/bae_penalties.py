"""The penalties of a BAE's training step: entropy, covariance and density of the minibatch's bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.architectures.bae_config import TrainingBAEConfig
from bae_lens.nn import entropy_of_rates, off_diagonal_covariance

# The density penalty begins below the density that must not be passed, so that held-out text,
# which varies about the minibatch's mean, does not pass it either.
_DENSITY_MARGIN = 0.8


class BatchRates(NamedTuple):
    """A minibatch's firing rates, computed once a step for penalties, budget, log and statistics.

    Attributes:
        firing_rate: share of the minibatch's tokens on which each bit is on.
        entropy: Σ_j H₂ of these, in bits per token.
    """

    firing_rate: Float[Tensor, " d_sae"]
    entropy: Float[Tensor, ""]

    @classmethod
    def of(
        cls, feature_acts: Float[Tensor, "*batch d_sae"], scale: Float[Tensor, " d_sae"]
    ) -> BatchRates:
        """The rates of activations, each 0 or its ``scale``; differentiable."""
        acts = feature_acts.flatten(0, -2)
        counts = acts.sum(0, dtype=torch.promote_types(acts.dtype, torch.float32)) / scale
        # Whole numbers, but for the rounding of a scale that is not 1.
        firing_rate = (counts + (counts.round() - counts).detach()) / len(acts)
        return cls(firing_rate, entropy_of_rates(firing_rate))

    def detach(self) -> BatchRates:
        """The same numbers without a graph."""
        return BatchRates(self.firing_rate.detach(), self.entropy.detach())


def penalties(
    cfg: TrainingBAEConfig,
    coefficients: Mapping[str, float],
    feature_acts: Float[Tensor, "*batch d_sae"],
    scale: Float[Tensor, " d_sae"],
    rates: BatchRates,
    entropy_multiplier: Float[Tensor, ""],
    has_started: Bool[Tensor, ""],
) -> dict[str, Tensor]:
    """The losses beside the reconstruction error, by the names under which they are logged.

    Args:
        cfg: floor of the entropy, and cap of the density.
        coefficients: those of ``"entropy"``, ``"covariance"`` and ``"density"`` at this step.
        feature_acts: each 0 or its ``scale``.
        scale: what a bit is worth.
        rates: those of ``feature_acts``.
        entropy_multiplier: what the budget has made of the entropy's coefficient.
        has_started: whether the entropy term's first step has come.
    """
    entropy = rates.entropy
    is_on = has_started & (entropy.detach() > cfg.entropy_floor)
    losses = {"entropy_loss": coefficients["entropy"] * entropy_multiplier * is_on * entropy}
    # Not computed where it weighs nothing.
    losses["covariance_loss"] = (
        coefficients["covariance"] * off_diagonal_covariance(feature_acts / scale, is_binary=True)
        if coefficients["covariance"] > 0
        else entropy.new_zeros(())
    )
    if coefficients["density"] > 0 and cfg.max_density is not None:
        excess = (rates.firing_rate - _DENSITY_MARGIN * cfg.max_density).relu()
        losses["density_loss"] = coefficients["density"] * excess.sum()
    return losses


@torch.no_grad()
def budget_spent(
    cfg: TrainingBAEConfig,
    entropy: Float[Tensor, ""],
    sae_in: Float[Tensor, "*batch d_in"],
    sae_out: Float[Tensor, "*batch d_in"],
) -> Float[Tensor, ""] | None:
    """Share of the budget, of entropy or of fidelity, that a step spent; None without one."""
    if cfg.target_entropy_bits is not None:
        return entropy / cfg.target_entropy_bits
    if cfg.target_unexplained_variance is None:
        return None
    x, error = sae_in.flatten(0, -2).float(), (sae_out - sae_in).float()
    variance = (x - x.mean(0)).square().sum()
    return cfg.target_unexplained_variance * variance / error.square().sum().clamp(min=1e-30)


@torch.no_grad()
def covariance_of(feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """Σ_{i≠j} |C_ij| of the bits, for the log."""
    return off_diagonal_covariance((feature_acts != 0).float(), is_binary=True)
