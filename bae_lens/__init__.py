"""Binary Autoencoders and Cross-Layer VQ-VAEs for SAELens and TransformerLens."""

from typing import Any

from sae_lens import registry

from bae_lens.architectures.bae import BAE, BAEConfig, TrainingBAE, TrainingBAEConfig
from bae_lens.architectures.clvq_vae import (
    CLVQVAE,
    CLVQVAEConfig,
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
)
from bae_lens.architectures.topk_transcoder import (
    TopKTranscoder,
    TopKTranscoderConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
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


def _register(
    known: dict[str, tuple[Any, Any]], architecture: str, sae: type[Any], config: type[Any]
) -> None:
    """Enter an architecture in one of SAELens' two registries.

    SAELens refuses a second registration. Ours gives way on a reload of this package, and only
    then: another plug-in's architecture of the same name is not overwritten.
    """
    current = known.get(architecture)
    if current is not None and current[0].__module__ != sae.__module__:
        raise ValueError(
            f"SAELens already has an architecture {architecture!r}, from {current[0].__module__}; "
            "bae_lens cannot register its own under that name."
        )
    known[architecture] = (sae, config)


for _name, _sae, _config, _training, _training_config in (
    ("bae", BAE, BAEConfig, TrainingBAE, TrainingBAEConfig),
    ("clvq_vae", CLVQVAE, CLVQVAEConfig, TrainingCLVQVAE, TrainingCLVQVAEConfig),
    (
        "topk_transcoder",
        TopKTranscoder,
        TopKTranscoderConfig,
        TrainingTopKTranscoder,
        TrainingTopKTranscoderConfig,
    ),
):
    _register(registry.SAE_CLASS_REGISTRY, _name, _sae, _config)
    _register(registry.SAE_TRAINING_CLASS_REGISTRY, _name, _training, _training_config)

keep_old_names()
