"""The architectures, and their entry in SAELens' registries.

``bae`` (with ``bae_config``, ``bae_training``, ``bae_penalties``, ``bae_polarity``), ``clvq_vae``
(with ``clvq_vae_config``, ``clvq_vae_base``, ``clvq_vae_training``) and ``topk_transcoder``; beside them what several of them share:
``code_kind``, by which each says what its code is made of, ``cross_layer`` and ``packed_rows`` for two hook
points, ``codebook_init``, ``sae_fields``, ``saving``.
"""

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

__all__ = [
    "BAE",
    "CLVQVAE",
    "BAEConfig",
    "CLVQVAEConfig",
    "TopKTranscoder",
    "TopKTranscoderConfig",
    "TrainingBAE",
    "TrainingBAEConfig",
    "TrainingCLVQVAE",
    "TrainingCLVQVAEConfig",
    "TrainingTopKTranscoder",
    "TrainingTopKTranscoderConfig",
    "register_architectures",
]

# Class and config for inference, then those for training; the configs say the name.
_ARCHITECTURES = (
    ((BAE, BAEConfig), (TrainingBAE, TrainingBAEConfig)),
    ((CLVQVAE, CLVQVAEConfig), (TrainingCLVQVAE, TrainingCLVQVAEConfig)),
    (
        (TopKTranscoder, TopKTranscoderConfig),
        (TrainingTopKTranscoder, TrainingTopKTranscoderConfig),
    ),
)


def register_architectures() -> None:
    """Enter every architecture in SAELens' two registries, for inference and for training.

    SAELens refuses a second registration. Ours gives way on a reload of this package, and only
    then: another plug-in's architecture of the same name is not overwritten.

    Raises:
        ValueError: if another package has registered an architecture under one of the names.
    """
    for inference, training in _ARCHITECTURES:
        _register(registry.SAE_CLASS_REGISTRY, *inference)
        _register(registry.SAE_TRAINING_CLASS_REGISTRY, *training)


def _register(known: dict[str, tuple[Any, Any]], sae: type[Any], config: type[Any]) -> None:
    architecture = config.architecture()
    current = known.get(architecture)
    if current is not None and current[0].__module__ != sae.__module__:
        raise ValueError(
            f"SAELens already has an architecture {architecture!r}, from {current[0].__module__}; "
            "bae_lens cannot register its own under that name."
        )
    known[architecture] = (sae, config)


register_architectures()
