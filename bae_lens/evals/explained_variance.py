"""SAELens' explained variance, of which parts can be counted apart."""

from __future__ import annotations

from sae_lens.evals import ExplainedVarianceCalculator


class ExplainedVariance(ExplainedVarianceCalculator):
    """``ExplainedVarianceCalculator`` with ``merge``."""

    def merge(self, other: ExplainedVarianceCalculator) -> None:
        """Add what another instance has counted."""
        if other.sum_x is not None:
            self.sum_x = other.sum_x if self.sum_x is None else self.sum_x + other.sum_x
        self.sum_squared_norm += other.sum_squared_norm
        self.sum_squared_residual += other.sum_squared_residual
        self.num_samples += other.num_samples
