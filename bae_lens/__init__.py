"""Binary Autoencoders and Cross-Layer VQ-VAEs for SAELens and TransformerLens."""

from bae_lens.architectures import (
    BAE,
    CLVQVAE,
    BAEConfig,
    CLVQVAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
    TrainingBAE,
    TrainingBAEConfig,
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
    register_architectures,
)
from bae_lens.attach import attached
from bae_lens.concept_ablation import concept_ablation
from bae_lens.entropy import entropy_profile
from bae_lens.evals import CodeStatistics, run_evals
from bae_lens.moved import keep_old_names
from bae_lens.training import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    ReplayedActivations,
    TrainingRunner,
    load_config,
)

__all__ = [
    "BAE",
    "CLVQVAE",
    "BAEConfig",
    "CLVQVAEConfig",
    "CodeStatistics",
    "CrossLayerRunnerConfig",
    "CrossLayerTrainingRunner",
    "ReplayedActivations",
    "TopKTranscoder",
    "TopKTranscoderConfig",
    "TrainingBAE",
    "TrainingBAEConfig",
    "TrainingCLVQVAE",
    "TrainingCLVQVAEConfig",
    "TrainingRunner",
    "TrainingTopKTranscoder",
    "TrainingTopKTranscoderConfig",
    "attached",
    "concept_ablation",
    "entropy_profile",
    "load_config",
    "run_evals",
]

register_architectures()
keep_old_names()
