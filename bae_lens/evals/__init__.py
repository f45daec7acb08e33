"""Metrics for any SAELens SAE: densities and entropy of the code, CE against zero- and mean-ablation."""

from bae_lens.checks.old_names import renamed_names
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.evals.code_summary import CodeSummary
from bae_lens.evals.codebook_use import CodebookSummary, CodebookUse
from bae_lens.evals.magnitudes import MagnitudeQuantizer
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.run import run_evals
from bae_lens.evals.summarize import CodeEvaluation, Reconstructed, summarize_code

__all__ = [
    "CodeEvaluation",
    "CodeStatistics",
    "CodeSummary",
    "CodebookSummary",
    "CodebookUse",
    "MagnitudeQuantizer",
    "Reconstructed",
    "mean_ablation_ce",
    "run_evals",
    "summarize_code",
]

__getattr__ = renamed_names(
    __name__, MagnitudeQuantiser="MagnitudeQuantizer", summarise_code="summarize_code"
)
