"""Metrics for any SAELens SAE: densities and entropy of the code, CE against zero- and mean-ablation."""

from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.evals.code_summary import CodeSummary
from bae_lens.evals.codebook_use import CodebookSummary, CodebookUse
from bae_lens.evals.magnitudes import MagnitudeQuantiser
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.run import run_evals
from bae_lens.evals.summarise import CodeEvaluation, Reconstructed, summarise_code

__all__ = [
    "CodeEvaluation",
    "CodeStatistics",
    "CodeSummary",
    "CodebookSummary",
    "CodebookUse",
    "MagnitudeQuantiser",
    "Reconstructed",
    "mean_ablation_ce",
    "run_evals",
    "summarise_code",
]
