"""Tensor maths of the codes: torch, and SciPy's sparse products; nothing here knows of SAELens."""

from bae_lens.nn.binarize import SURROGATES, Surrogate, binarize
from bae_lens.nn.budget import check_budget, follow_budget
from bae_lens.nn.calibration import calibrated_weights
from bae_lens.nn.codebook import EMACodebook, Quantized
from bae_lens.nn.covariance import covariance_on_ranks, off_diagonal_covariance
from bae_lens.nn.decode import decode_sparse
from bae_lens.nn.decoders import CausalTransformerDecoder, TokenDecoder
from bae_lens.nn.encoder import AdaptiveResidualEncoder, PredictiveEncoder
from bae_lens.nn.entropy import binary_entropy, entropy_of_rates, marginal_entropy
from bae_lens.nn.feedback import with_feedback
from bae_lens.nn.joint_entropy import (
    ChowLiuTree,
    chance_co_firing,
    chow_liu_entropy,
    chow_liu_tree,
    miller_madow_correction,
    mutual_information,
    plug_in_entropy,
)
from bae_lens.nn.level_index import (
    check_level_values,
    level_counts,
    level_indices,
    levels_of_entries,
)
from bae_lens.nn.levels import (
    LevelCode,
    heights_of,
    inverse_softplus,
    quantize_levels,
    thresholds_of,
)
from bae_lens.nn.not_finite import nan_where_not_finite
from bae_lens.nn.one_hot import one_hot
from bae_lens.nn.polarity import flip_bits
from bae_lens.nn.precision import Float32Buffers, widened
from bae_lens.nn.projection import component, orthonormal_basis, subspace_rank
from bae_lens.nn.pruning import prune_bits, select_bits
from bae_lens.nn.quantize import (
    nearest_codes,
    sample_codes,
    squared_distances,
    straight_through,
)

__all__ = [
    "SURROGATES",
    "AdaptiveResidualEncoder",
    "CausalTransformerDecoder",
    "ChowLiuTree",
    "EMACodebook",
    "Float32Buffers",
    "LevelCode",
    "PredictiveEncoder",
    "Quantized",
    "Surrogate",
    "TokenDecoder",
    "binarize",
    "binary_entropy",
    "calibrated_weights",
    "chance_co_firing",
    "check_budget",
    "check_level_values",
    "chow_liu_entropy",
    "chow_liu_tree",
    "component",
    "covariance_on_ranks",
    "decode_sparse",
    "entropy_of_rates",
    "flip_bits",
    "follow_budget",
    "heights_of",
    "inverse_softplus",
    "level_counts",
    "level_indices",
    "levels_of_entries",
    "marginal_entropy",
    "miller_madow_correction",
    "mutual_information",
    "nan_where_not_finite",
    "nearest_codes",
    "off_diagonal_covariance",
    "one_hot",
    "orthonormal_basis",
    "plug_in_entropy",
    "prune_bits",
    "quantize_levels",
    "sample_codes",
    "select_bits",
    "squared_distances",
    "straight_through",
    "subspace_rank",
    "thresholds_of",
    "widened",
    "with_feedback",
]
