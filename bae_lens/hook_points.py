"""Where an SAE reads and where it writes, and the heads there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens import SAE
from torch import Tensor


def hook_names(sae: SAE[Any]) -> tuple[str, str]:
    """Names of the hook point that an SAE reads and of the one that it writes, which may be the same.

    Raises:
        ValueError: if its metadata names no hook point.
    """
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError("The SAE's metadata names no hook point (metadata.hook_name).")
    return metadata.hook_name, metadata.hook_name_out or metadata.hook_name


def output_is_decoded_code(sae: SAE[Any]) -> bool:
    """Whether ``decode(encode(x))`` is all of ``sae(x)``.

    It is not for SAELens' skip transcoders, whose ``decode`` leaves the skip connection out, nor for
    a CLVQ-VAE with ``decoder_memory="encoder"``.
    """
    return not hasattr(sae, "W_skip") and getattr(sae.cfg, "decoder_memory", "codes") == "codes"


def take_heads(activations: Tensor, head_index: int | None) -> Tensor:
    """``[batch, pos, d]``: one head, or all of them side by side.

    Raises:
        ValueError: if there is no such head.
    """
    if head_index is None:
        return activations.flatten(2)
    n_heads = activations.shape[2] if activations.ndim == 4 else 0
    if not -n_heads <= head_index < n_heads:
        raise ValueError(
            f"The SAE's metadata.hook_head_index is {head_index}, but its hook point has "
            f"{n_heads or 'no'} heads: its activations have shape {tuple(activations.shape)}."
        )
    return activations[:, :, head_index]


def put_heads(activations: Tensor, new: Tensor, head_index: int | None) -> Tensor:
    """``activations`` with what ``take_heads`` takes replaced."""
    if head_index is None:
        return new.reshape(activations.shape)
    activations = activations.clone()
    activations[:, :, head_index] = new
    return activations


@contextmanager
def flat_heads(sae: SAE[Any]) -> Iterator[None]:
    """Let an SAE of ``hook_z`` take its heads flattened, as a store gives them."""
    if not sae.hook_z_reshaping_mode:
        yield
        return
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        sae.turn_on_forward_pass_hook_z_reshaping()
