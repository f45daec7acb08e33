"""Cross-Layer VQ-VAE (CLVQ-VAE), arXiv 2506.20040, as a SAELens architecture.

``x → z = (1 − α)·x + α·LN(W·x + b) → nearest of K codes → decoder → ŷ``, where x is a token's
activation at a lower hook point and ŷ the reconstruction of its activation at a higher one. All
that passes from one to the other is which code each token has: with the ``token`` decoder its own,
with the ``transformer`` decoder also those of the tokens before it.

With ``encoder="predictive"`` it is ``x → z = f(x) → nearest of K codes = ŷ``: f is trained to predict the
higher activation y, and codes are of its space. Nothing is lost by that, as
``E‖y − e_k‖² = E‖y − E[y|x]‖² + E‖E[y|x] − e_k‖²`` for any choice k of a code by x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from typing_extensions import override

from bae_lens.architectures.clvq_vae_base import CLVQVAEBase, only_tokens
from bae_lens.architectures.clvq_vae_config import CLVQVAEConfig, TrainingCLVQVAEConfig
from bae_lens.architectures.clvq_vae_training import TrainingCLVQVAE, drop_statistics
from bae_lens.architectures.cross_layer import CrossLayerSAE
from bae_lens.checks.finite import check_finite_weights
from bae_lens.nn import PredictiveEncoder

# pyright: reportIncompatibleVariableOverride=false

__all__ = [
    "CLVQVAE",
    "CLVQVAEConfig",
    "TrainingCLVQVAE",
    "TrainingCLVQVAEConfig",
    "only_tokens",
]


class CLVQVAE(CLVQVAEBase):
    """Cross-Layer VQ-VAE for inference: ``encode`` gives the one-hot of the nearest code.

    Buffers: ``codebook`` [K, d_in], in float32 whatever the dtype, in the units of the encoder's
    output (inputs centered by ``input_mean`` and times ``input_scale``; of a predictive encoder [K, d_out]
    and those of the target, centered by ``target_mean`` and over ``target_scale``); ``scale`` [K], what an
    activation is worth, 1 unless the norms of ``W_dec`` were folded into it.

    With the transformer decoder, a model's key-value cache hides the codes of earlier tokens:
    generate with ``use_past_kv_cache=False`` (``attached`` refuses such a cache).
    """

    float32_buffers = (*CrossLayerSAE.float32_buffers, "codebook")

    cfg: CLVQVAEConfig

    def __init__(self, cfg: CLVQVAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        shape = (self.cfg.d_sae, self.d_code)
        self.register_buffer("codebook", torch.randn(shape, device=self.device))

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        drop_statistics(state_dict)

    @classmethod
    @torch.no_grad()
    def from_prediction(
        cls,
        layers: Sequence[tuple[ArrayLike, ArrayLike]],
        codes: ArrayLike,
        metadata: SAEMetadata | None = None,
    ) -> CLVQVAE:
        """With a predictive encoder whose weights are known: a regression, and clusters of what it says.

        Of scikit-learn's ``Ridge``: ``[(ridge.coef_, ridge.intercept_)]``; of its ``MLPRegressor`` with one
        hidden layer, ``[(w.T, b) for w, b in zip(mlp.coefs_, mlp.intercepts_)]``. Codes are then the centers
        of its ``KMeans`` on ``predict(lower)``, or the mean higher activation of each cluster.

        Args:
            layers: weight ``[out, in]`` and bias ``[out]`` of one layer, or of two with a ReLU between
                them, from activations at the lower hook point to those at the higher.
            codes: ``[K, d_out]``, in the units of the higher hook point.
            metadata: with the names of the hook points, which evals and ``attached`` ask for.

        Raises:
            ValueError: if there are neither one nor two layers, a shape does not fit the others, or a
                value is NaN or infinite.

        Examples:
            >>> sae = CLVQVAE.from_prediction([(torch.eye(2), torch.zeros(2))], [[1.0, 0.0], [0.0, 1.0]])
            >>> sae(torch.tensor([[3.0, 1.0]])).tolist()
            [[1.0, 0.0]]
        """
        encoder = PredictiveEncoder.of_layers(
            [(_float32(weight), _float32(bias)) for weight, bias in layers]
        )
        codebook = _float32(codes)
        d_out, d_in = encoder.linear.weight.shape
        if codebook.ndim != 2 or codebook.shape[1] != d_out or len(codebook) == 0:
            raise ValueError(
                f"codes must be [K, {d_out}], as wide as what the last layer gives; got shape "
                f"{tuple(codebook.shape)}."
            )
        cfg = CLVQVAEConfig(
            d_in=d_in,
            d_sae=len(codebook),
            d_out=d_out,
            encoder="predictive",
            predictor_hidden=encoder.d_hidden,
            decoder="token",
            metadata=metadata or SAEMetadata(),
        )
        sae = cls(cfg)
        sae.encoder = encoder
        sae.codebook.copy_(codebook)
        check_finite_weights(sae)
        return sae


def _float32(values: ArrayLike) -> Tensor:
    return torch.as_tensor(np.asarray(values)).float()
