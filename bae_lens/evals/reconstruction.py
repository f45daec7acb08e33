"""What the language model loses when it goes on from an SAE's reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.special_tokens import special_token_mask


@torch.no_grad()
def mean_ablation_ce(
    model: HookedRootModule,
    hook_name: str,
    token_batches: Sequence[Tensor],
    special_tokens: Sequence[int] = (),
    hook_head_index: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    verbose: bool = False,
) -> float:
    """Cross-entropy with every activation at a hook point replaced by their mean.

    Zero-ablation, SAELens' baseline, takes the mean away too, and any reconstruction that gives
    back no more than the mean scores well against it. Here the mean stays, and the positions of
    special tokens, whose activations can be a hundred times larger, are left as they are.

    Args:
        model: a hooked language model.
        hook_name: where to ablate.
        token_batches: each ``[batch, position]``. The mean is taken over the same tokens.
        special_tokens: token ids that are neither replaced, nor in the mean, nor scored.
        hook_head_index: the one head to ablate, at hook points that have heads.
        model_kwargs: passed to the model.
        verbose: show progress bars.

    Returns:
        Mean cross-entropy per token, in nats, over positions whose own token is not special (as
        SAELens' evals count).
    """
    kwargs = model_kwargs or {}

    def head(acts: Tensor) -> Tensor:
        return acts if hook_head_index is None else acts[:, :, hook_head_index]

    def batches(what: str) -> Iterable[Tensor]:
        return tqdm(token_batches, desc=what, leave=False, disable=not verbose)

    total, n = torch.zeros(()), 0
    for tokens in batches("Mean activation"):
        _, cache = model.run_with_cache(
            tokens,
            prepend_bos=False,
            names_filter=[hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
            **kwargs,
        )
        kept = head(cache[hook_name])[~special_token_mask(tokens, special_tokens)]
        total = total.to(kept.device) + kept.double().sum(0)
        n += len(kept)
    mean = total / n

    losses: list[Tensor] = []
    for tokens in batches("Mean ablation"):
        is_special = special_token_mask(tokens, special_tokens)

        def ablate(acts: Tensor, hook: HookPoint, skip: Tensor = is_special) -> Tensor:  # noqa: ARG001
            part = head(acts)
            skip = skip.to(acts.device).reshape(*skip.shape, *[1] * (part.ndim - 2))
            replaced = torch.where(skip, part, mean.to(acts))
            if hook_head_index is None:
                return replaced
            acts = acts.clone()
            acts[:, :, hook_head_index] = replaced
            return acts

        loss = model.run_with_hooks(
            tokens,
            return_type="loss",
            loss_per_token=True,
            fwd_hooks=[(hook_name, ablate)],
            **kwargs,
        )
        losses.append(loss[~is_special[:, : loss.shape[1]]])
    return torch.cat(losses).mean().item()
