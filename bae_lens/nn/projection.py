"""Subspaces, one per example, and how to project them out of vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.precision import widened

# Singular values below this share of the largest count as zero.
_RANK_TOLERANCE = 1e-4


def orthonormal_basis(vectors: Float[Tensor, "*batch k d"]) -> Float[Tensor, "*batch r d"]:
    """Orthonormal rows with the span of the given ones.

    Where the rows of an entry are dependent or zero, rows of zeros stand for what is missing, so
    that the rank is the number of rows that are not. r is the smaller of k and d.

    Args:
        vectors: a few vectors for each entry of the batch.

    Examples:
        >>> basis = orthonormal_basis(torch.tensor([[3.0, 0.0], [6.0, 0.0]]))
        >>> basis.abs().round(decimals=4).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
        >>> subspace_rank(basis).item()
        1.0
    """
    _, s, rows = torch.linalg.svd(widened(vectors), full_matrices=False)
    is_there = (s > _RANK_TOLERANCE * s[..., :1]) & (s > torch.finfo(s.dtype).tiny)
    return rows * is_there[..., None]


def subspace_rank(basis: Float[Tensor, "*batch r d"]) -> Float[Tensor, "*batch"]:
    """The rank of each subspace, from the basis that ``orthonormal_basis`` returned."""
    return basis.square().sum((-1, -2)).round()


def component(
    vectors: Float[Tensor, "*batch d"],
    basis: Float[Tensor, "*batch r d"],
    center: Float[Tensor, " d"] | None = None,
) -> Float[Tensor, "*batch d"]:
    """The part of v − center that lies in the subspace; v less it is v with the subspace projected out.

    With a center what is left has the center's coordinates in the subspace, without one none. Computed
    in float32 at least, and given in the dtype of the vectors.

    Args:
        vectors: v.
        basis: orthonormal rows, or rows of zeros.
        center: nought if omitted.
    """
    x = widened(vectors)
    basis = basis.to(x)
    x = x if center is None else x - center.to(x)
    return torch.einsum("...d,...rd,...re->...e", x, basis, basis).to(vectors.dtype)
