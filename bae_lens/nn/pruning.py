"""Which bits of a code a linear decoder can do without."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.nn.entropy import binary_entropy

# Keeps duplicated bits, whose Gram matrix is singular, within reach of float64.
_RIDGE = 1e-9


def prune_bits(
    codes: Float[Tensor, "n d_sae"], x: Float[Tensor, "n d_in"], max_unexplained: float
) -> tuple[Int[Tensor, " n_kept"], Float[Tensor, "n_kept d_in"], Float[Tensor, " d_in"]]:
    """Take bits away one by one while a refitted decoder still explains enough.

    Backward elimination with a least-squares decoder: of the bits whose loss keeps the unexplained
    variance within ``max_unexplained``, the one goes whose loss costs the least squared error per bit
    of marginal entropy that it frees; the decoder of the others is refitted in closed form after each.
    Duplicated bits go first, since they cost nothing. Constant bits go at once.

    Args:
        codes: bits (0 or 1), of many more rows than columns.
        x: what they stand for.
        max_unexplained: share of the variance of ``x`` about its mean that may be left unexplained.
            Where even all bits leave more than that, only what is redundant to rounding error goes.

    Returns:
        Indices of the bits kept, ascending, and the decoder for them: weights and bias.
    """
    x, z = x.double(), codes.double()
    mean_x, mean_z = x.mean(0), z.mean(0)
    kept = ((mean_z > 0) & (mean_z < 1)).nonzero().squeeze(1)
    x, z = x - mean_x, z[:, kept] - mean_z[kept]
    entropy = binary_entropy(mean_z[kept])
    variance = x.square().sum()
    gram, target = z.T @ z, z.T @ x
    gram.diagonal().add_(_RIDGE * len(z))
    inverse = torch.linalg.inv(gram)
    weights = inverse @ target
    error = (x - z @ weights).square().sum()
    allowed = torch.maximum(max_unexplained * variance, error * (1 + 1e-6))

    alive = torch.arange(len(kept), device=x.device)
    here = torch.ones(len(kept), dtype=torch.bool, device=x.device)
    while here.any():
        # What the squared error rises by if one bit goes and the others are refitted.
        cost = weights.square().sum(1) / inverse.diagonal().clamp(min=1e-300)
        score = torch.where(here & (error + cost <= allowed), cost / entropy[alive], torch.inf)
        worst = int(score.argmin())
        if not score[worst].isfinite():
            break
        error = error + cost[worst]
        column = inverse[:, worst] / inverse[worst, worst]
        weights = weights - torch.outer(column, weights[worst])
        inverse = inverse - torch.outer(column, inverse[worst])
        here[worst] = False
        # The matrices shrink with the code, by halves, since copying them each time costs more.
        if 2 * here.sum() < len(here):
            alive, weights, inverse = alive[here], weights[here], inverse[here][:, here]
            here = here[here]
    alive = alive[here]
    # Anew from the Gram matrix, without the rounding of all those steps.
    weights = torch.linalg.solve(gram[alive][:, alive], target[alive])
    kept = kept[alive]
    return kept, weights, mean_x - mean_z[kept] @ weights
