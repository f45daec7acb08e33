"""Weights and activations that are numbers: what is NaN or infinite is neither trained, saved nor measured."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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


def check_finite_activations(
    x: Float[Tensor, "*batch d"], where: str, valid: Bool[Tensor, "*batch"] | None = None
) -> None:
    """That no activation is NaN or infinite before it is encoded.

    The code cannot tell afterwards: a comparison with NaN is False, so that a BAE's code of it is all zeros, and
    the nearest code of a codebook is the first one.

    Args:
        x: activations.
        where: what to call them in the message, as the hook point they are from.
        valid: True where a token counts; others may be anything.

    Raises:
        ValueError: saying at how many tokens.
    """
    is_bad = ~x.isfinite().all(-1)
    if valid is not None:
        is_bad = is_bad & valid.to(is_bad.device)
    if n_bad := int(is_bad.sum()):
        n = is_bad.numel() if valid is None else int(valid.sum())
        raise ValueError(
            f"Activations at {where} are NaN or infinite at {n_bad} of {n} tokens, in {str(x.dtype)[6:]}: of such a "
            "token no code can be told. Are the model's weights finite, and does its type hold its activations? "
            "float16 ends at 65,504; bfloat16 and float32 do not."
        )


def check_trainable(dtype: str | torch.dtype, lr: float, lr_end: float | None = None) -> None:
    """That training has a chance to stay finite.

    Args:
        dtype: of the weights.
        lr: learning rate.
        lr_end: learning rate at the end; None: SAELens' tenth of ``lr``.

    Raises:
        ValueError: for weights in float16, in which Adam's squared gradients are 0 or infinite after a
            few steps, and for a learning rate that is no finite number of at least 0.
    """
    name = str(dtype).removeprefix("torch.")
    if name in ("float16", "half"):
        raise ValueError(
            "sae.dtype is 'float16', in which weights cannot be trained: Adam's squared gradients become 0 "
            "or infinite, and every weight NaN. Set it to 'float32' (or 'bfloat16'); autocast makes the "
            "products cheaper."
        )
    for field, value in (("lr", lr), ("lr_end", lr_end)):
        if value is not None and not _is_rate(value):
            raise ValueError(f"{field} must be a finite number of at least 0; got {value!r}.")


def _is_rate(value: Any) -> bool:
    try:
        return math.isfinite(value) and value >= 0
    except (TypeError, OverflowError):
        return False
