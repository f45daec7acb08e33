"""Weights that are numbers: what is NaN or infinite is neither saved nor measured."""

from __future__ import annotations

import torch


def check_finite_weights(module: torch.nn.Module, what: str = "the autoencoder") -> None:
    """That no weight and no buffer is NaN or infinite.

    Args:
        module: any module.
        what: to call it in the message.

    Raises:
        ValueError: naming the first tensor that has one, and how many there are.
    """
    for name, value in module.state_dict().items():
        if not value.is_floating_point() or value.isfinite().all():
            continue
        n_bad = int((~value.isfinite()).sum())
        raise ValueError(
            f"{n_bad} of the {value.numel()} numbers in {name} of {what} are NaN or infinite: there is "
            "nothing to be learned from it. Train it anew, or go back to an earlier checkpoint."
        )
