"""What lies beside the weights of a saved autoencoder: its sparsity, and the names of all of it."""

from __future__ import annotations

from typing import Any

from sae_lens import TrainingSAE
from sae_lens.constants import SPARSITY_FILENAME
from torch import Tensor

from bae_lens.architectures.bae import TrainingBAE
from bae_lens.architectures.clvq_vae import TrainingCLVQVAE
from bae_lens.training.outputs import METRICS_FILENAME, UNFINISHED_METRICS_FILENAME

# What a folder holds of one autoencoder beside its weights and config.
OF_ONE_SAE = (METRICS_FILENAME, UNFINISHED_METRICS_FILENAME, SPARSITY_FILENAME)


def as_saved(sae: TrainingSAE[Any], log_sparsity: Tensor | None) -> Tensor | None:
    """SAELens' sparsity ``[d_sae]`` of the autoencoder that it saves for inference."""
    if log_sparsity is None or not isinstance(sae, (TrainingBAE, TrainingCLVQVAE)):
        return log_sparsity
    return sae.fold_log_sparsity(log_sparsity)
