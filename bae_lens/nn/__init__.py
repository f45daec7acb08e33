"""Tensor maths of the codes: torch only, nothing here knows of SAELens."""

from bae_lens.nn.binarize import SURROGATES, Surrogate, binarize
from bae_lens.nn.budget import check_budget, follow_budget
from bae_lens.nn.calibration import calibrated_weights
from bae_lens.nn.covariance import off_diagonal_covariance
from bae_lens.nn.entropy import binary_entropy, marginal_entropy
from bae_lens.nn.polarity import flip_bits

__all__ = [
    "SURROGATES",
    "Surrogate",
    "binarize",
    "binary_entropy",
    "calibrated_weights",
    "check_budget",
    "flip_bits",
    "follow_budget",
    "marginal_entropy",
    "off_diagonal_covariance",
]
