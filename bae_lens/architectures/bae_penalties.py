"""The penalties of a BAE's training step: entropy, covariance and density of the minibatch's code.

On several ranks the minibatch is that of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.architectures.bae_config import TrainingBAEConfig
from bae_lens.distributed import all_mean, all_sum, all_sums, n_ranks
from bae_lens.nn import covariance_on_ranks, entropy_of_rates

# The density penalty begins below the density that must not be passed, so that held-out text,
# which varies about the minibatch's mean, does not pass it either.
_DENSITY_MARGIN = 0.8
# Counts of each level before any is seen.
_LEVEL_PRIOR = 0.5


class BatchRates(NamedTuple):
    """A minibatch's firing rates, computed once a step for penalties, budget, log and statistics.

    Attributes:
        firing_rate: share of the minibatch's tokens on which each latent is on.
        entropy: of the code, in bits per token: Σ_j H₂ of these, and what the levels add.
        level_shares: share of tokens on which each latent is at each level from 1; None for bits.
        level_entropy: what of the entropy the level given firing is; None for bits.
    """

    firing_rate: Float[Tensor, " d_sae"]
    entropy: Float[Tensor, ""]
    level_shares: Float[Tensor, "d_sae L"] | None = None
    level_entropy: Float[Tensor, ""] | None = None

    @classmethod
    def of(
        cls, feature_acts: Float[Tensor, "*batch d_sae"], scale: Float[Tensor, " d_sae"]
    ) -> BatchRates:
        """The rates of activations, each 0 or its ``scale``, this rank's rows; differentiable."""
        acts = feature_acts.flatten(0, -2)
        counts = all_sum(acts.sum(0, dtype=torch.promote_types(acts.dtype, torch.float32))) / scale
        # Whole numbers, but for the rounding of a scale that is not 1.
        firing_rate = (counts + (counts.round() - counts).detach()) / (len(acts) * n_ranks())
        return cls(firing_rate, entropy_of_rates(firing_rate))

    @classmethod
    def of_levels(
        cls,
        counts: Float[Tensor, "d_sae L"],
        n: int,
        level_shares: Float[Tensor, "d_sae L"],
        n_before: Float[Tensor, ""],
    ) -> BatchRates:
        """The rates of a code of levels; differentiable.

        The entropy of a latent is that of its level, being off included: H₂(p) + p·H(level | on). The
        first is the minibatch's, as for a bit. The second would be biased low by (L − 1)/(2·n·ln 2) bits
        a latent, which at small budgets makes levels free, and has an infinite gradient at a level that
        the minibatch lacks. So it is what the minibatch's levels cost by a code made from the batches
        before: Σ_l q_l·(−log₂ r_l) with q_l the minibatch's shares and r_l those of the running mean
        given firing, by the estimator of Krichevsky and Trofimov, who add half a count to each level.
        Being of data that the code has not seen, it is no lower than the entropy on held-out tokens.

        Args:
            counts: rows in which each threshold is passed, of this rank's.
            n: rows of all ranks.
            level_shares: running mean of the shares of levels.
            n_before: rows that it is a mean of.
        """
        passed = all_sum(counts) / n
        shares = passed - torch.nn.functional.pad(passed[:, 1:], (0, 1))
        seen = level_shares * n_before + _LEVEL_PRIOR
        price = -torch.log2(seen / seen.sum(1, keepdim=True))
        level_entropy = (shares * price).sum()
        firing_rate = passed[:, 0]
        entropy = entropy_of_rates(firing_rate) + level_entropy
        return cls(firing_rate, entropy, shares, level_entropy)

    def detach(self) -> BatchRates:
        """The same numbers without a graph."""
        return BatchRates(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]


def penalties(
    cfg: TrainingBAEConfig,
    coefficients: Mapping[str, float],
    bits: Callable[[], Float[Tensor, "*batch d_sae"]],
    rates: BatchRates,
    entropy_multiplier: Float[Tensor, ""],
    has_started: Bool[Tensor, ""],
) -> dict[str, Tensor]:
    """The losses beside the reconstruction error, by the names under which they are logged.

    Args:
        cfg: floor of the entropy, and cap of the density.
        coefficients: those of ``"entropy"``, ``"covariance"`` and ``"density"`` at this step.
        bits: gives what is on, as zeros and ones with a gradient.
        rates: of the code.
        entropy_multiplier: what the budget has made of the entropy's coefficient.
        has_started: whether the entropy term's first step has come.
    """
    entropy = rates.entropy
    is_on = has_started & (entropy.detach() > cfg.entropy_floor)
    losses = {"entropy_loss": coefficients["entropy"] * entropy_multiplier * is_on * entropy}
    # Not computed where it weighs nothing.
    losses["covariance_loss"] = (
        coefficients["covariance"] * covariance_on_ranks(bits())
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
    variance = (x - all_mean(x.mean(0))).square().sum()
    variance, missed = all_sums(variance, error.square().sum())
    return cfg.target_unexplained_variance * variance / missed.clamp(min=1e-30)


@torch.no_grad()
def covariance_of(feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
    """Σ_{i≠j} |C_ij| of the bits, for the log."""
    return covariance_on_ranks((feature_acts != 0).float())
