"""Where an SAE reads and where it writes in a model, the heads there, and how wide it is."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.checks.suggest import did_you_mean


def hook_names(sae: SAE[Any]) -> tuple[str, str]:
    """Names of the hook point that an SAE reads and of the one that it writes, which may be the same.

    Raises:
        ValueError: if its metadata names no hook point.
    """
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError("The SAE's metadata names no hook point (metadata.hook_name).")
    return metadata.hook_name, metadata.hook_name_out or metadata.hook_name


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


def hook_shape(model: HookedRootModule, hook_name: str, **model_kwargs: Any) -> torch.Size:
    """Shape of one token's activation at a hook point: ``[d]``, or ``[heads, d_head]``.

    Args:
        model: any model that SAELens' store takes; it is run on a single token.
        hook_name: of the hook point.
        **model_kwargs: for ``model.run_with_cache``.

    Raises:
        ValueError: if the model has no such hook, it does not fire, or it has no activation for each token
            (as attention patterns).
    """
    if hook_name not in model.hook_dict:
        raise ValueError(
            f"The model has no hook {hook_name!r}. {did_you_mean(hook_name, model.hook_dict)}"
        )
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            token,
            names_filter=[hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
            prepend_bos=False,
            **model_kwargs,
        )
    if hook_name not in cache:
        raise ValueError(
            f"The model has the hook {hook_name!r}, but it does not fire in a forward pass. Some "
            "hooks are off unless the model's config switches them on (use_attn_result, "
            "use_split_qkv_input, use_hook_mlp_in)."
        )
    shape = cache[hook_name].shape
    # Patterns are [batch, heads, query, key]; of one head, one by one for one token.
    if len(shape) < 3 or shape[:2] != (1, 1) or shape[2:] == (1, 1):
        raise ValueError(
            f"{hook_name!r} has no activation for each token: one token gives the shape {tuple(shape)}, and [1, 1, d] or "
            "[1, 1, heads, d_head] was expected. Name another hook point."
        )
    return shape[2:]


def hook_width(
    model: HookedRootModule,
    hook_name: str,
    hook_head_index: int | None = None,
    **model_kwargs: Any,
) -> int:
    """Width of the activations that SAELens' store takes from a hook point.

    Args:
        model: any model that SAELens' store takes; it is run on a single token.
        hook_name: of the hook point.
        hook_head_index: one head of it; without it, heads are flattened.
        **model_kwargs: for ``model.run_with_cache``.

    Raises:
        ValueError: if the model has no such hook, it does not fire, or it has no such head.
    """
    shape = hook_shape(model, hook_name, **model_kwargs)
    if hook_head_index is None:
        return shape.numel()
    n_heads = shape[0] if len(shape) > 1 else 0
    if hook_head_index >= n_heads:
        raise ValueError(
            f"hook_head_index is {hook_head_index}, but {hook_name!r} has {n_heads or 'no'} heads."
        )
    return shape[1:].numel()
