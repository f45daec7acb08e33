"""How much each token at the lower hook point has to do with a prediction: of the model, or of a probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.concept_ablation.passes import Batch, Reader, frozen, pool
from bae_lens.concept_ablation.predictors import OwnLogits
from bae_lens.concept_ablation.settings import Attribution
from bae_lens.nn import widened

# Scores of sentence vectors [batch, d], or of the model's own logits [batch, n_classes], one per text;
# which texts they are of is told.
Score = Callable[[Tensor, Int[Tensor, " batch"]], Float[Tensor, " batch"]]


class Attributed(NamedTuple):
    """Attributions of a batch.

    Attributes:
        scores: of each position; nought where nothing is ablated (padding, BOS).
        missing: share of the score's change from the baseline that the attributions do not add up
            to; integrated gradients would have none with infinitely many steps.
        lower: the activations at the lower hook point.
    """

    scores: Float[Tensor, "batch pos"]
    missing: Float[Tensor, " batch"]
    lower: Float[Tensor, "batch pos d_in"]


def attribute(
    reader: Reader,
    batch: Batch,
    score: Score,
    baseline: Float[Tensor, "batch pos d_in"],
    method: Attribution = "integrated_gradients",
    n_steps: int = 16,
    own: OwnLogits | None = None,
) -> Attributed:
    """Attribute a score of the sentence vector at the upper hook point, or of the model's own logits, to
    positions at the lower.

    Integrated gradients (arXiv 1703.01365) along the straight line from the baseline to the
    activations, all positions together, by Gauss–Legendre quadrature; or its first-order form, the
    gradient at the activations times their difference from the baseline. Both are summed over d.

    Args:
        reader: the model with its hook points.
        batch: texts of the reader.
        score: what is attributed.
        baseline: where "nothing" is. Of positions that are not in ``batch.at`` the activation itself
            is kept all along.
        method: one of the two.
        n_steps: gradients a text, of integrated gradients.
        own: the model goes on to its logits, and these are scored as they are read here; None: the
            sentence vector is.

    Raises:
        ValueError: if the score does not depend on the lower activations.
    """
    lower = reader.lower(batch)
    at = batch.at.to(lower.device)[..., None]
    start = torch.where(at, baseline.to(lower), lower)
    change = lower - start
    if method == "integrated_gradients":
        nodes, weights = np.polynomial.legendre.leggauss(n_steps)
        steps = list(zip((nodes + 1) / 2, weights / 2, strict=True))
    else:
        steps = [(1.0, 1.0)]

    def scored(x: Tensor) -> Tensor:
        seen = reader.run(batch, lambda _: x, None if own is None else own.logits_at(batch))
        if own is not None and seen.logits is not None:
            return score(own.read(seen.logits), batch.examples)
        return score(pool(seen.upper, batch.read.to(seen.upper.device)), batch.examples)

    gradient = torch.zeros_like(widened(lower))
    with frozen(reader.model), torch.enable_grad():
        for at_step, weight in steps:
            x = (start + float(at_step) * change).requires_grad_()
            total = scored(x).sum()
            # The parameters are frozen, so x alone can have asked for gradients.
            if not total.requires_grad:
                what = "read at {1!r} does" if own is None else "said by the model itself does"
                raise ValueError(
                    f"What is {what} not depend on {{0!r}}: is the lower hook point the lower one?".format(
                        *reader.hook_names
                    )
                )
            gradient += float(weight) * torch.autograd.grad(total, x)[0]
    scores = (gradient * widened(change)).sum(-1)
    with torch.no_grad():
        # A probe's score is on the CPU, wherever the model is.
        whole = (scored(lower) - scored(start)).to(scores.device)
    missing = (whole - scores.sum(1)).abs() / whole.abs().clamp(min=1e-6)
    return Attributed(scores.cpu(), missing.cpu(), lower.cpu())
