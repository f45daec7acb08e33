"""Ablations: of vectors that were read, and inside the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.passes import pool
from bae_lens.concept_ablation.removals import Removal
from bae_lens.concept_ablation.task import AblationTask
from bae_lens.evals.reconstruction import next_token_loss
from bae_lens.nn import widened


@dataclass
class Outcome:
    """What predictions are read from after an ablation, and how much it took away.

    Attributes:
        vectors: of each text.
        own_logits: of the model itself; None where it was not asked.
        removed_norm: ‖v − v'‖ / ‖v‖, the mean over all vectors that were ablated.
    """

    vectors: Float[Tensor, "n d"]
    own_logits: Float[Tensor, "n n_classes"] | None
    removed_norm: float


def ablate_vectors(task: AblationTask, i: int, removal: Removal) -> Outcome:
    """The stored vectors of the lower (0) or upper (1) hook point less a removal."""
    vectors = task.vectors[i]
    center = vectors.mean(0) if task.settings.center else None
    removed = removal(vectors, torch.arange(len(vectors)), center)
    return Outcome(vectors - removed, None, _relative_norm(removed, vectors).mean().item())


@torch.no_grad()
def ablate_passes(
    task: AblationTask, place: str, removal: Removal, desc: str, asks_model: bool = True
) -> Outcome:
    """Upper vectors of passes whose lower activations are less a removal.

    Args:
        task: the texts.
        place: ``"salient token"`` or ``"all tokens"``.
        removal: what is taken out.
        desc: of the progress bar.
        asks_model: go on to the model's own logits of the classes, if it is asked at all.
    """
    vectors = torch.empty_like(task.vectors[1])
    own = task.own if asks_model else None
    logits = torch.empty(len(task.data), task.n_classes)
    total, n = 0.0, 0
    for batch in task.reader.batches(desc):
        where = batch.at
        if place == names.SALIENT:
            where = torch.arange(where.shape[1]) == task.salient.position[batch.examples][:, None]
        center = task.centers(batch) if task.settings.center else None
        edit = _Edit(removal, batch.examples, where, center)
        seen = task.reader.run(batch, edit, None if own is None else own.logits_at(batch))
        vectors[batch.examples] = pool(seen.upper, batch.read.to(seen.upper.device)).float().cpu()
        if own is not None and seen.logits is not None:
            logits[batch.examples] = own.read(seen.logits)
        total, n = total + edit.norms.sum().item(), n + len(edit.norms)
    return Outcome(vectors, None if own is None else logits, total / max(n, 1))


@torch.no_grad()
def ordinary_losses(task: AblationTask, removal: Removal | None) -> Float[Tensor, " n_texts"]:
    """Cross-entropy of each ordinary text in nats per token, a removal taken out of every token.

    Each text is read with what is removed from one of the examples.

    Args:
        task: its ``ordinary`` texts are read.
        removal: None for the untouched model, which is read once a task.

    Returns:
        Nothing where the model predicts no next token; NaN for a text of one token.
    """
    reader = task.ordinary
    if reader is None:
        return torch.empty(0)
    if removal is None and "ordinary" in task.measured:
        return task.measured["ordinary"]
    # Half the examples away, since the ordinary texts may be the examples.
    n = len(task.data)
    example = (torch.arange(len(reader)) + n // 2) % n
    losses = torch.full((len(reader),), torch.nan)
    for batch in reader.batches("Ordinary text"):
        edit = None
        if removal is not None:
            mean = task.sample.lower_mean if task.settings.center else None
            edit = _Edit(removal, example[batch.examples], batch.text.valid, mean)
        seen = reader.run(batch, edit, "all")
        assert seen.logits is not None
        for row, i in enumerate(batch.examples.tolist()):
            one = type(batch.text)(*(x[row : row + 1] for x in batch.text if x is not None))
            losses[i] = next_token_loss(seen.logits[row : row + 1], one).mean().item()
    if removal is None:
        task.measured["ordinary"] = losses
    return losses


class _Edit:
    """Takes a removal out of the lower activations, where it is told to."""

    def __init__(
        self,
        removal: Removal,
        index: Int[Tensor, " batch"],
        where: Bool[Tensor, "batch pos"],
        center: Tensor | None,
    ) -> None:
        self.removal, self.index, self.where, self.center = removal, index, where, center
        self.norms = torch.empty(0)

    def __call__(self, acts: Tensor) -> Tensor:
        center = None if self.center is None else self.center.to(acts)
        removed = self.removal(acts, self.index, center)
        where = self.where.to(acts.device)
        self.norms = _relative_norm(removed, acts)[where].float().cpu()
        return torch.where(where[..., None], acts - removed, acts)


def _relative_norm(removed: Tensor, whole: Tensor) -> Tensor:
    removed, whole = widened(removed), widened(whole)
    return removed.norm(dim=-1) / whole.norm(dim=-1).clamp(min=1e-12)
