"""Metrics for any SAELens SAE: densities raw and folded, CE against zero- and mean-ablation."""

from bae_lens.evals.code_statistics import CodeStatistics, CodeSummary, summarise_code
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.run import run_evals

__all__ = ["CodeStatistics", "CodeSummary", "mean_ablation_ce", "run_evals", "summarise_code"]
