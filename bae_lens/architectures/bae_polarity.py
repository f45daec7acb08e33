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
TRAINING_STATISTICS = ("firing_rate", "n_updates", "log_entropy_multiplier")


def is_mostly_on(firing_rate: Float[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
    """Which bits are on more often than off."""
    return firing_rate > 0.5


def to_inference(state_dict: dict[str, Any], apply_b_dec_to_input: bool) -> None:
    """Turn the state of a ``TrainingBAE`` into that of a ``BAE``.

    Entries are replaced and never written into, since they are the live weights.

    Args:
        state_dict: changed in place.
        apply_b_dec_to_input: whether ``b_dec`` is subtracted from the input.
    """
    flipped = is_mostly_on(state_dict["firing_rate"])
    for name in TRAINING_STATISTICS:
        del state_dict[name]
    state_dict |= flip_bits(
        **state_dict, flipped=flipped, apply_b_dec_to_input=apply_b_dec_to_input
    )
    state_dict["flipped"] = flipped


def to_training(state_dict: dict[str, Any]) -> None:
    """Turn the state of a ``BAE`` into that of a ``TrainingBAE`` which goes on from where it is.

    Args:
        state_dict: changed in place.
    """
    del state_dict["flipped"]
    b_enc = state_dict["b_enc"]
    state_dict["firing_rate"] = torch.zeros_like(b_enc)
    # Not 0, which would have it calibrated anew.
    state_dict["n_updates"] = torch.ones_like(b_enc[0], dtype=torch.int64)
    state_dict["log_entropy_multiplier"] = torch.zeros_like(b_enc[0])


def inverted_log_sparsity(
    log_sparsity: Float[Tensor, " d_sae"], flipped: Bool[Tensor, " d_sae"]
) -> Float[Tensor, " d_sae"]:
    """SAELens' log10 firing rates as they are after the ``flipped`` bits were inverted."""
    rate = 10 ** widened(log_sparsity)
    inverted = torch.log10(1 - rate + 1e-10).to(log_sparsity.dtype)
    return torch.where(flipped.to(log_sparsity.device), inverted, log_sparsity)
