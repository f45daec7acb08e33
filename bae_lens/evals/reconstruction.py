"""What the language model loses when it goes on from other activations than its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.lm_utils import lm_cross_entropy_loss

from bae_lens.activations.hook_points import put_heads, take_heads
from bae_lens.activations.text_batch import TextBatch, read_hooks
from bae_lens.loading.classifiers import class_names
from bae_lens.nn import widened


@dataclass(frozen=True)
class Continuation:
    """A language model that goes on from other activations at one hook point.

    Args:
        model: a hooked language model.
        hook_name: where its activations are replaced.
        hook_head_index: the one head that is, at hook points that have heads.
        model_kwargs: passed to the model.
    """

    model: HookedRootModule
    hook_name: str
    hook_head_index: int | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def mean(self, batches: Iterable[TextBatch]) -> Float[Tensor, " d"]:
        """The mean activation of tokens that count."""
        total, n = torch.zeros(()), 0
        for batch in batches:
            _, [acts] = read_hooks(self.model, batch, [self.hook_name], self.model_kwargs)
            kept = take_heads(acts, self.hook_head_index)[batch.valid.to(acts.device)]
            total = total.to(kept.device) + kept.double().sum(0)
            n += len(kept)
        return total / n

    @torch.no_grad()
    def logits(
        self, batch: TextBatch, new: Tensor, where: Bool[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        """What the model says with the activations replaced.

        Args:
            batch: what it reads.
            new: ``[batch, pos, d]``, or what can be expanded to it.
            where: which positions are replaced; all if omitted.
        """

        def replace(acts: Tensor, hook: HookPoint) -> Tensor:  # noqa: ARG001
            old = take_heads(acts, self.hook_head_index)
            replaced = new.to(old).expand_as(old)
            if where is not None:
                replaced = torch.where(where.to(old.device)[..., None], replaced, old)
            return put_heads(acts, replaced, self.hook_head_index)

        return self.model.run_with_hooks(
            batch.tokens,
            return_type="logits",
            fwd_hooks=[(self.hook_name, replace)],
            **{**batch.model_kwargs, **self.model_kwargs},
        )


def next_token_loss(logits: Tensor, batch: TextBatch) -> Float[Tensor, " n"]:
    """Cross-entropy in nats at each position whose own token counts and has one after it."""
    scored = batch.valid[:, :-1]
    if batch.attention_mask is not None:
        scored = scored & batch.attention_mask[:, 1:]
    # Logarithms of sums over the vocabulary, in float32 whatever the model runs in.
    loss = lm_cross_entropy_loss(widened(logits), batch.tokens.to(logits.device), per_token=True)
    return loss[scored.to(loss.device)]


def kl_from(logits: Tensor, logits_after: Tensor, batch: TextBatch) -> Float[Tensor, " n"]:
    """KL(model ‖ model with other activations) in nats, at each position whose token counts."""
    scored = batch.valid.to(logits.device)
    log_p, log_q = (widened(x[scored]).log_softmax(-1) for x in (logits, logits_after))
    return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def predicts_next_token(model: HookedRootModule) -> bool:
    """Whether cross-entropy and KL mean something for a model: it is causal and has a vocabulary.

    Found out by running it on two pairs of tokens, since configs do not tell: a TransformerBridge of
    a BERT says that it is causal, and a model without a language-model head returns its hidden
    states as logits.

    Whether tokens see what comes after them is all that ``training.sentences.is_encoder_model``
    asks: a causal model without a head is no encoder, and yet predicts nothing.
    """
    if class_names(model) is not None:
        return False
    device = next(model.parameters()).device
    first = model(torch.tensor([[1, 2], [1, 3]], device=device))[:, 0].float()
    cfg = getattr(model, "cfg", None)
    sizes = {getattr(cfg, "d_vocab", None), getattr(cfg, "d_vocab_out", None)} - {None, -1}
    if sizes and first.shape[-1] not in sizes:
        return False
    # A token that sees the one after it changes with it, by far more than rounding.
    return bool((first[0] - first[1]).norm() <= 1e-3 * first[0].norm())


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
    point = Continuation(model, hook_name, hook_head_index, model_kwargs or {})
    batches = [TextBatch.of(tokens, special_tokens) for tokens in token_batches]

    def bar(what: str) -> Iterable[TextBatch]:
        return tqdm(batches, desc=what, leave=False, disable=not verbose)

    mean = point.mean(bar("Mean activation"))
    losses = [
        next_token_loss(point.logits(batch, mean, batch.valid), batch)
        for batch in bar("Mean ablation")
    ]
    return torch.cat(losses).mean().item()
