"""Scores of a code and its reconstruction with outlier tokens, beside those without them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.evals.explained_variance import ExplainedVariance


class OutlierScores:
    """Counts outliers among tokens that are scored, and scores the code with them among the others.

    Args:
        outliers: which tokens.
        hook_names: where inputs and targets are from.
    """

    def __init__(self, outliers: OutlierTokens, hook_names: tuple[str, str]) -> None:
        self.outliers, self.hook_names = outliers, hook_names
        self.n_tokens = self.n_outliers = 0
        self._n_fired = 0
        self._explained_variance = ExplainedVariance()

    def kept(self, inputs: Tensor, targets: Tensor, acts: Tensor, outputs: Tensor) -> Tensor:
        """Take in a batch; True where a token is no outlier.

        Args:
            inputs: ``[n, d_in]``, what is encoded.
            targets: ``[n, d_out]``, what is to be rebuilt.
            acts: ``[n, d_sae]``, the code.
            outputs: ``[n, d_out]``, the reconstruction.
        """
        mask = self.outliers.mask_between(self.hook_names, inputs, targets).to(acts.device)
        self.n_tokens += len(mask)
        self.n_outliers += int(mask.sum())
        self._n_fired += int((acts != 0).sum())
        self._explained_variance.add_batch(sae_output=outputs, hidden_acts=targets)
        return ~mask

    def merge(self, other: OutlierScores) -> None:
        """Add what another instance has counted, by the same norms."""
        self.n_tokens += other.n_tokens
        self.n_outliers += other.n_outliers
        self._n_fired += other._n_fired
        self._explained_variance.merge(other._explained_variance)

    def compute(self) -> dict[str, Any]:
        """How many outliers there were, by what norm, and the scores of all tokens."""
        if self.n_tokens == 0:
            return {"n_tokens": 0, "n_outlier_tokens": 0}
        return {
            "n_tokens": self.n_tokens,
            "n_outlier_tokens": self.n_outliers,
            "explained_variance_with_outliers": self._explained_variance.compute(),
            "l0_with_outliers": self._n_fired / self.n_tokens,
        }


def described(outliers: OutlierTokens, names: tuple[str, str]) -> dict[str, float]:
    """How outliers were told, as metrics."""
    norms = {"reference_norm": outliers.reference_norms[names[0]]}
    if names[0] != names[1]:
        norms["reference_norm_out"] = outliers.reference_norms[names[1]]
    return {"multiple": outliers.multiple, **norms}
