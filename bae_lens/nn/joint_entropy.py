"""Joint entropy of a code of bits, from counts: what the sum over latents leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.nn.entropy import binary_entropy

_LN2 = 0.6931471805599453
# Float32 counts no further: of so many rows a product of bits is exact.
EXACT_ROWS = 2**24


@dataclass(frozen=True, eq=False)
class ChowLiuTree:
    """The tree of pairwise dependences that explains most of a code's total correlation.

    Attributes:
        entropy: Σ_j H₂(p_j) − Σ of ``information``, in bits: the entropy of the best distribution in
            which each latent depends on one other at most, and so an upper bound of the joint entropy.
        parent: ``[d_sae]``, the latent that each hangs on; −1 for the root and for those that do not
            vary.
        information: ``[d_sae]``, mutual information of each with its parent, in bits.
    """

    entropy: float
    parent: Int[Tensor, " d_sae"]
    information: Float[Tensor, " d_sae"]


def chow_liu_tree(
    n_fired: Int[Tensor, " d_sae"], co_fired: Callable[[int], Int[Tensor, " d_sae"]], n: int
) -> ChowLiuTree:
    """Maximum spanning tree over the mutual information between latents (Chow and Liu, 1968).

    The marginal entropy counts a duplicated bit twice; this bound counts it once, and takes off
    whatever else a tree of pairs can explain. What it cannot see is redundancy of a higher order: of
    two fair bits and their exclusive or it says three bits, where there are two.

    As an estimate it is biased downwards: each branch is the largest of many noisy informations.
    ``chance_co_firing`` shows by how much. Below about 20 tokens per latent do not rely on it.

    Prim's algorithm, a row of counts at a time: memory is that of a few rows.

    Args:
        n_fired: tokens on which each latent fires.
        co_fired: latent → tokens on which it fires together with each of the others. Asked for once
            per latent.
        n: tokens.
    """
    n_fired = n_fired.cpu().long()
    live = ((n_fired > 0) & (n_fired < n)).nonzero().squeeze(1)
    parent = torch.full_like(n_fired, -1)
    information = torch.zeros(len(n_fired), dtype=torch.float64)
    if len(live) > 0:
        counts = n_fired[live]
        best = torch.full((len(live),), -1.0, dtype=torch.float64)
        best_parent = torch.full_like(live, -1)
        outside = torch.ones(len(live), dtype=torch.bool)
        newest = 0
        for _ in range(len(live) - 1):
            outside[newest] = False
            row = co_fired(int(live[newest])).cpu().long()[live]
            shared = mutual_information(row, counts[newest], counts, n)
            better = outside & (shared > best)
            best[better] = shared[better]
            best_parent[better] = live[newest]
            newest = int(torch.where(outside, best, -2.0).argmax())
        parent[live] = best_parent
        # The root hangs on nothing; it is the one that was never outside.
        information[live] = best.clamp(min=0)
    marginal = binary_entropy(n_fired.double() / n).sum()
    return ChowLiuTree((marginal - information.sum()).item(), parent, information)


def chow_liu_entropy(codes: Float[Tensor, "n d_sae"]) -> float:
    """Chow–Liu bound of the joint entropy of bits in memory, in bits per row: see ``chow_liu_tree``.

    Args:
        codes: bits (0 or 1).

    Examples:
        A bit and its copy are one bit, which the sum over latents counts twice.

        >>> bit = torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> chow_liu_entropy(torch.stack([bit, bit], dim=1))
        1.0
    """
    d_sae = codes.shape[1]
    counts = torch.zeros(d_sae, d_sae, dtype=torch.int64, device=codes.device)
    for some in codes.split(EXACT_ROWS):
        bits = some.float()
        counts += (bits.T @ bits).long()
    return chow_liu_tree(counts.diagonal(), lambda latent: counts[latent], len(codes)).entropy


def chance_co_firing(
    n_fired: Int[Tensor, " d_sae"], n: int, seed: int = 0
) -> Callable[[int], Int[Tensor, " d_sae"]]:
    """Counts as independent latents of the same rates would show them: the control of a Chow–Liu tree.

    Each pair's count is hypergeometric, as if the one column had been shuffled. What total
    correlation a tree finds in these, it finds in noise.

    Args:
        n_fired: tokens on which each latent fires.
        n: tokens.
        seed: seed of the draws.

    Returns:
        For ``chow_liu_tree``, which asks for each latent once; repeated calls draw anew.
    """
    generator = np.random.default_rng(seed)
    counts = n_fired.cpu().long().numpy()

    def row(i: int) -> Tensor:
        return torch.from_numpy(generator.hypergeometric(counts[i], n - counts[i], counts))

    return row


def mutual_information(
    both: Int[Tensor, "*shape"], first: Int[Tensor, "*shape"], second: Int[Tensor, "*shape"], n: int
) -> Float[Tensor, "*shape"]:
    """Mutual information of two bits from their counts among n tokens, in bits, elementwise.

    Args:
        both: tokens on which both fire.
        first, second: tokens on which each fires.
        n: tokens.

    Returns:
        float64; never negative.
    """
    # In a narrow type a difference would wrap round.
    both, first, second = (x.long() for x in (both, first, second))
    table = (both, first - both, second - both, n - first - second + both)
    margins = (first, n - first, second, n - second)
    total = torch.tensor(n, dtype=torch.float64)
    sums = [sum(_xlogx(x.double()) for x in cells) for cells in (table, margins)]
    return ((sums[0] - sums[1] + _xlogx(total)) / (n * _LN2)).clamp(min=0)


def plug_in_entropy(counts: Int[Tensor, " n_values"]) -> float:
    """Entropy of observed frequencies, in bits: −Σ c/n·log₂(c/n).

    Of n tokens it cannot pass log₂ n, whatever the truth.

    Args:
        counts: how often each value was seen.

    Examples:
        >>> plug_in_entropy(torch.tensor([2, 1, 1]))
        1.5
    """
    counts = counts.double()
    n = counts.sum()
    return float((_xlogx(n) - _xlogx(counts).sum()) / (n * _LN2))


def miller_madow_correction(n_fired: Int[Tensor, " d_sae"], n: int) -> Float[Tensor, ""]:
    """What a marginal entropy taken over n tokens is low by on average: m/(2·n·ln 2) bits.

    m is the number of latents seen in both states (Miller, 1955). To first order in 1/n: it is too
    little where a latent fires on a few tokens only.
    """
    n_fired = n_fired.long()
    varying = ((n_fired > 0) & (n_fired < n)).sum()
    return varying.double() / (2 * n * _LN2)


def _xlogx(x: Tensor) -> Tensor:
    return torch.xlogy(x, x)
