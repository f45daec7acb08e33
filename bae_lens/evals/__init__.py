"""Metrics for any SAELens SAE: densities and entropy of the code, CE against zero- and mean-ablation.

``replacement_divergences`` tells how far what the model says next moves when the last token's activation, or all, are
replaced.
"""

from bae_lens.checks.old_names import renamed_names
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.evals.code_summary import CodeSummary
from bae_lens.evals.codebook_use import CodebookSummary, CodebookUse
from bae_lens.evals.magnitudes import MagnitudeQuantizer
from bae_lens.evals.reconstruction import mean_ablation_ce
from bae_lens.evals.replacement import (
    Divergences,
    ReplacementDivergences,
    replacement_divergences,
)
from bae_lens.evals.run import run_evals
from bae_lens.evals.summarize import CodeEvaluation, Reconstructed, summarize_code
from bae_lens.evals.verdict import eval_verdict

__all__ = [
    "CodeEvaluation",
    "CodeStatistics",
    "CodeSummary",
    "CodebookSummary",
    "CodebookUse",
    "Divergences",
    "MagnitudeQuantizer",
    "Reconstructed",
    "ReplacementDivergences",
    "eval_verdict",
    "mean_ablation_ce",
    "replacement_divergences",
    "run_evals",
    "summarize_code",
]

__getattr__ = renamed_names(
    __name__, MagnitudeQuantiser="MagnitudeQuantizer", summarise_code="summarize_code"
)
