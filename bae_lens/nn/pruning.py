"""Which bits of a code are enough for a linear decoder.

Two greedy searches for one aim. Neither is the better one everywhere: where the vectors are made of
bits, taking the best bit first finds them; on a language model, taking the worst bit away leaves the
shorter code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.nn.entropy import binary_entropy

# Keeps duplicated bits, whose Gram matrix is singular, within reach of float64.
_RIDGE = 1e-9
# A bit of which less than this share is news, beside those selected, is one of them again.
_NEWS = 1e-6
_ROWS = 8192

Kept = tuple[Int[Tensor, " n_kept"], Float[Tensor, "n_kept d_in"], Float[Tensor, " d_in"]]


def prune_bits(
    codes: Float[Tensor, "n d_sae"], x: Float[Tensor, "n d_in"], max_unexplained: float
) -> Kept:
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
    moments = _Moments.of(codes, x)
    gram = moments.gram + _RIDGE * len(codes) * torch.eye(len(moments.gram), device=x.device)
    inverse = torch.linalg.inv(gram)
    weights = inverse @ moments.target
    error = moments.error(weights)
    allowed = torch.maximum(max_unexplained * moments.variance, error * (1 + 1e-6))

    alive = torch.arange(len(gram), device=x.device)
    here = torch.ones(len(gram), dtype=torch.bool, device=x.device)
    while here.any():
        # What the squared error rises by if one bit goes and the others are refitted.
        cost = weights.square().sum(1) / inverse.diagonal().clamp(min=1e-300)
        fits = here & (error + cost <= allowed)
        score = torch.where(fits, cost / moments.entropy[alive], torch.inf)
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
    return moments.fit(alive[here])


def select_bits(
    codes: Float[Tensor, "n d_sae"], x: Float[Tensor, "n d_in"], max_unexplained: float
) -> Kept:
    """Add bits one by one until a least-squares decoder of them explains enough.

    Forward selection (orthogonal least squares): each time the bit that takes most off the squared
    error of all that are selected already, refitted.

    Args:
        codes: bits (0 or 1), of many more rows than columns.
        x: what they stand for.
        max_unexplained: share of the variance of ``x`` about its mean that may be left unexplained.
            Where even all bits leave more than that, every bit that adds anything is selected.

    Returns:
        As ``prune_bits``.
    """
    moments = _Moments.of(codes, x)
    # What is left of each bit, and of its products with x, beside the bits selected so far.
    gram, target = moments.gram.clone(), moments.target.clone()
    own = gram.diagonal().clone()
    error = moments.variance.clone()
    selected = torch.zeros(len(gram), dtype=torch.bool, device=x.device)
    while error > max_unexplained * moments.variance and not selected.all():
        left = gram.diagonal()
        is_news = ~selected & (left > _NEWS * own)
        gain = torch.where(is_news, target.square().sum(1) / left.clamp(min=1e-300), 0)
        best = int(gain.argmax())
        if gain[best] <= 1e-9 * moments.variance:
            break
        error = error - gain[best]
        selected[best] = True
        column = gram[:, best] / gram[best, best]
        target = target - torch.outer(column, target[best])
        gram = gram - torch.outer(column, gram[best])
    return moments.fit(selected.nonzero().squeeze(1))


@dataclass(frozen=True)
class _Moments:
    """Second moments of the bits that vary, with each other and with what they stand for."""

    varying: Tensor
    mean_bits: Tensor
    mean_x: Tensor
    entropy: Tensor
    gram: Tensor
    target: Tensor
    variance: Tensor

    @classmethod
    def of(cls, codes: Tensor, x: Tensor) -> _Moments:
        mean_bits = codes.mean(0, dtype=torch.float64)
        varying = ((mean_bits > 0) & (mean_bits < 1)).nonzero().squeeze(1)
        mean_bits, mean_x = mean_bits[varying], x.mean(0, dtype=torch.float64)
        gram = mean_bits.new_zeros(len(varying), len(varying))
        target = mean_bits.new_zeros(len(varying), x.shape[1])
        variance = mean_bits.new_zeros(())
        # In parts, since float64 copies of everything would be the largest thing in memory.
        for some_codes, some_x in zip(codes.split(_ROWS), x.split(_ROWS), strict=True):
            bits = some_codes[:, varying].double() - mean_bits
            centered = some_x.double() - mean_x
            gram += bits.T @ bits
            target += bits.T @ centered
            variance += centered.square().sum()
        return cls(varying, mean_bits, mean_x, binary_entropy(mean_bits), gram, target, variance)

    def error(self, weights: Tensor) -> Tensor:
        """Squared error of a decoder, never below 0."""
        explained = (2 * self.target - self.gram @ weights).mul(weights).sum()
        return (self.variance - explained).clamp(min=0)

    def fit(self, kept: Tensor) -> Kept:
        """The least-squares decoder of some of the bits, anew, without the rounding of all the steps."""
        gram = self.gram[kept][:, kept]
        # Where nothing may be lost, bits that are duplicates but for rounding stay.
        gram = gram + torch.diag(_RIDGE * gram.diagonal())
        weights = torch.linalg.solve(gram, self.target[kept])
        return self.varying[kept], weights, self.mean_x - self.mean_bits[kept] @ weights
