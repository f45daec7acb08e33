"""What is taken out of an activation in the name of a concept, and in that of its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.checks.install_hint import install_command
from bae_lens.nn import component, orthonormal_basis, subspace_rank, widened


class Removal(Protocol):
    """The part of activations that is to be taken out: v less it is the ablated v."""

    def __call__(
        self, x: Float[Tensor, "batch *pos d"], index: Int[Tensor, " batch"], center: Tensor | None
    ) -> Float[Tensor, "batch *pos d"]:
        """
        Args:
            x: activations of some of the examples.
            index: which examples.
            center: what a concept is looked for relative to; nought if None.
        """
        ...

    @property
    def rank(self) -> float:
        """Dimensions of what is removed, the mean over examples."""
        ...


@dataclass(frozen=True, eq=False)
class Subspace:
    """The projection on a subspace, one per example.

    Attributes:
        basis: orthonormal rows, or rows of zeros (``orthonormal_basis``).
    """

    basis: Float[Tensor, "n r d"]

    @classmethod
    def spanned_by(cls, vectors: Float[Tensor, "n k d"]) -> Subspace:
        """Remove the span of some vectors of each example."""
        return cls(orthonormal_basis(vectors))

    @classmethod
    def random(cls, like: Subspace, generator: torch.Generator) -> Subspace:
        """Gaussian directions, as many as another's."""
        n, r, d = like.basis.shape
        drawn = torch.randn(n, r, d, generator=generator)
        # An example whose own subspace lacks a dimension is not to lose more by chance.
        drawn *= like.basis.norm(dim=-1, keepdim=True).round()
        return cls.spanned_by(drawn)

    @property
    def rank(self) -> float:
        return subspace_rank(self.basis).mean().item()

    def __call__(self, x: Tensor, index: Tensor, center: Tensor | None) -> Tensor:
        basis = self.basis[index.cpu()]
        basis = basis.reshape(len(basis), *(1,) * (x.ndim - 2), *basis.shape[1:])
        return component(x, basis, center)


@dataclass(frozen=True, eq=False)
class EqualNorm:
    """Another removal, as long as a given one.

    Attributes:
        direction: which way.
        length: how far; each activation is moved as far as this one would move it.
    """

    direction: Removal
    length: Removal

    @property
    def rank(self) -> float:
        return self.direction.rank

    def __call__(self, x: Tensor, index: Tensor, center: Tensor | None) -> Tensor:
        removed = self.direction(x, index, center)
        return removed * _ratio(self.length(x, index, center), removed).to(removed.dtype)


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A removal, at most as long as a given one: what two have in common in length.

    Attributes:
        removal: what is shrunk.
        bound: each activation is moved no farther than this one would move it.
    """

    removal: Removal
    bound: Removal

    @property
    def rank(self) -> float:
        return self.removal.rank

    def __call__(self, x: Tensor, index: Tensor, center: Tensor | None) -> Tensor:
        removed = self.removal(x, index, center)
        share = _ratio(self.bound(x, index, center), removed).clamp(max=1)
        return removed * share.to(removed.dtype)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """The ratio of two vectors' lengths, in float32 at least."""
    one, other = (widened(x).norm(dim=-1, keepdim=True) for x in (one, other))
    return one / other.clamp(min=1e-12)


@dataclass(frozen=True, eq=False)
class Leace:
    """Least-squares concept erasure (arXiv 2306.03819), fitted on other folds' labels.

    The yardstick: no linear probe trained afterwards does better than chance on what it was fitted
    on, and nothing smaller does that. Unlike a dictionary's concept it has seen the labels.

    Attributes:
        erasers: one per fold, fitted on the examples that are not in it.
        fold: of each example.
        rank: of what they remove.
    """

    erasers: Sequence[Any]
    fold: Int[Tensor, " n"]
    rank: float

    def by_fold(self) -> list[Leace]:
        """One for each fold, all examples erased as those of that fold are."""
        return [
            replace(self, fold=torch.full_like(self.fold, fold))
            for fold in range(len(self.erasers))
        ]

    def __call__(self, x: Tensor, index: Tensor, center: Tensor | None) -> Tensor:  # noqa: ARG002
        removed = torch.empty_like(x)
        folds = self.fold[index.cpu()].to(x.device)
        for fold in folds.unique().tolist():
            rows = folds == fold
            erased = self.erasers[fold](x[rows].double().cpu())
            removed[rows] = x[rows] - erased.to(x)
        return removed


def leace_fitters(n_folds: int, d: int, n_classes: int) -> list[Any]:
    """An empty fitter a fold, from the package ``concept-erasure``.

    Raises:
        ImportError: if it is missing; the message is the command to run.
    """
    try:
        from concept_erasure import LeaceFitter
    except ImportError as e:
        raise ImportError(
            "LEACE needs the package concept-erasure. Install it with:\n"
            f"    {install_command('interp')}"
        ) from e
    return [LeaceFitter(d, n_classes, dtype=torch.float64) for _ in range(n_folds)]
