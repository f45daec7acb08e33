"""A budget of entropy or of fidelity: the coefficient that follows a target."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.entropy import binary_entropy
from bae_lens.nn.precision import widened

logger = logging.getLogger(__name__)

# The coefficient's logarithm moves by at most 0.02 a step, and does so from a third off target on.
# It stays within ±12 of where it started, so that a target that cannot be met does not wind it up
# without end.
_RATE, _GAIN, _LIMIT = 0.02, 3.0, 12.0


def follow_budget(log_multiplier: Float[Tensor, ""], spent: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Where the logarithm of the coefficient's multiplier goes after a step that spent this much.

    Args:
        log_multiplier: where it is.
        spent: share of the budget, 1 where it is met: the minibatch's entropy over its target, or
            the unexplained variance that may be left over that which is.

    Returns:
        float32 (float64 for float64), since a step is less than what bfloat16 tells apart.

    Examples:
        On target it stays; a third or more above it, it rises by the most that a step may.

        >>> start = torch.tensor(0.0)
        >>> follow_budget(start, torch.tensor(1.0)).item()
        0.0
        >>> round(follow_budget(start, torch.tensor(1.5)).item(), 4)
        0.02
    """
    log_multiplier, spent = widened(log_multiplier), widened(spent)
    step = _RATE * (_GAIN * (spent - 1)).clamp(-1, 1)
    return (log_multiplier + step).clamp(-_LIMIT, _LIMIT)


def check_budget(target: float, d_sae: int, max_density: float | None, n_levels: int = 1) -> None:
    """Refuse a budget that no code of this size can use, and warn of one that the cap forbids.

    A latent of L levels carries at most log₂(L + 1) bits, and H₂(c) + c·log₂ L where it fires on a share c
    of tokens.

    Args:
        target: bits per token.
        d_sae: latents.
        max_density: cap of their density.
        n_levels: levels L beside being off.

    Raises:
        ValueError: if ``target`` is more than all latents can carry.
    """
    most = d_sae * math.log2(n_levels + 1)
    if target > most:
        of_what = f"{d_sae} bits" if n_levels == 1 else f"{d_sae} latents of {n_levels} levels"
        raise ValueError(
            f"target_entropy is {target:g} bits per token, but {of_what} (d_sae) carry at most "
            f"{most:g}. Lower the target, raise d_sae, or set target_entropy to None."
        )
    balanced = n_levels / (n_levels + 1)
    density = balanced if max_density is None else min(max_density, balanced)
    of_latent = binary_entropy(torch.tensor(density)).item() + density * math.log2(n_levels)
    reachable = d_sae * of_latent
    if target > reachable:
        logger.warning(
            "target_entropy is %g bits per token, but %d latents of density at most %g (max_density) "
            "carry no more than %.0f: the entropy will stay below its target.",
            *(target, d_sae, density, reachable),
        )
