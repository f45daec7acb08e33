"""The state of a ``TrainingBAE`` and that of a ``BAE``, each made from the other.

A ``BAE`` has no bit that is mostly on: saving for inference inverts those (see ``flip_bits``), and
what was counted of them, their sparsity and the L0, is inverted with them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.nn import flip_bits, widened

# Buffers of a TrainingBAE that a BAE does not have.
TRAINING_STATISTICS = ("firing_rate", "level_shares", "n_updates", "log_entropy_multiplier")
# What inverting a latent reads or changes, as far as a BAE has it.
_INVERTED = ("W_enc", "b_enc", "W_dec", "b_dec", "scale", "threshold_gaps", "level_heights")


def is_mostly_on(
    firing_rate: Float[Tensor, " d_sae"], level_shares: Float[Tensor, "d_sae L"] | None = None
) -> Bool[Tensor, " d_sae"]:
    """Which latents are at their highest level more often than off; of a bit: on more often than off.

    Args:
        firing_rate: share of tokens on which each latent is on.
        level_shares: share of tokens on which it is at each level from 1; None for one bit a latent.
    """
    return firing_rate > 0.5 if level_shares is None else level_shares[:, -1] > 1 - firing_rate


def to_inference(state_dict: dict[str, Any], apply_b_dec_to_input: bool) -> None:
    """Turn the state of a ``TrainingBAE`` into that of a ``BAE``.

    Entries are replaced and never written into, since they are the live weights.

    Args:
        state_dict: changed in place.
        apply_b_dec_to_input: whether ``b_dec`` is subtracted from the input.
    """
    flipped = is_mostly_on(state_dict["firing_rate"], state_dict.get("level_shares"))
    for name in TRAINING_STATISTICS:
        state_dict.pop(name, None)
    weights = {name: state_dict[name] for name in _INVERTED if name in state_dict}
    state_dict |= flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=apply_b_dec_to_input)
    state_dict["flipped"] = flipped


def to_training(state_dict: dict[str, Any]) -> None:
    """Turn the state of a ``BAE`` into that of a ``TrainingBAE`` which goes on from where it is.

    Args:
        state_dict: changed in place.
    """
    del state_dict["flipped"]
    b_enc = state_dict["b_enc"]
    state_dict["firing_rate"] = torch.zeros_like(b_enc)
    if "threshold_gaps" in state_dict:
        n_levels = state_dict["threshold_gaps"].shape[1] + 1
        state_dict["level_shares"] = torch.zeros_like(b_enc)[:, None].repeat(1, n_levels)
    # Not 0, which would have it calibrated anew.
    state_dict["n_updates"] = torch.ones_like(b_enc[0], dtype=torch.int64)
    state_dict["log_entropy_multiplier"] = torch.zeros_like(b_enc[0])


def inverted_log_sparsity(
    log_sparsity: Float[Tensor, " d_sae"],
    flipped: Bool[Tensor, " d_sae"],
    level_shares: Float[Tensor, "d_sae L"] | None = None,
) -> Float[Tensor, " d_sae"]:
    """SAELens' log10 firing rates as they are after the ``flipped`` latents were inverted.

    A bit is off where it was on. Of a latent of levels SAELens has not counted how often it is at the
    highest one, which is where it is off now; that is read from its ``level_shares``.
    """
    if level_shares is None:
        rate = 10 ** widened(log_sparsity)
    else:
        rate = level_shares[:, -1].to(log_sparsity.device)
    inverted = torch.log10(1 - rate + 1e-10).to(log_sparsity.dtype)
    return torch.where(flipped.to(log_sparsity.device), inverted, log_sparsity)
