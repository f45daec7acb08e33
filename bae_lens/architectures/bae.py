"""Binary Autoencoder (BAE): one-bit features, arXiv 2509.20997, as a SAELens architecture.

``x → bits = 1[(x − b_dec)·W_enc + b_enc > 0] → acts = bits·scale → x̂ = acts·W_dec + b_dec``.
The training loss is SAELens' reconstruction error plus penalties on the *minibatch*: the entropy of
its code, the covariance between bits, and the density of those that fire too often.

Two things are ours. With ``n_levels`` L > 1 a latent has L thresholds on its one direction and is off or
at a level: ``act_j = scale_j·Σ_l h_jl·1[pre_j > t_jl]`` with t_j1 = 0 and h_j1 = 1; the paper speaks of
decoding more than one bit a unit without a formula. With ``feedback_steps`` the encoder takes in what its
code has left, ``pre ← pre + gain ⊙ (x − b_dec − acts·W_dec)·W_enc``, before it is quantized once more.

``bae_config`` has the settings, ``bae_training`` the class that is trained, ``bae_penalties`` its
losses, and ``bae_polarity`` what becomes of its state when it is saved for inference. The class for
inference is here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from bae_lens.architectures.bae_base import BAEBase
from bae_lens.architectures.bae_config import BAEConfig, TrainingBAEConfig, temperature_of
from bae_lens.architectures.bae_polarity import to_inference
from bae_lens.architectures.bae_training import TrainingBAE
from bae_lens.architectures.sae_fields import training_details
from bae_lens.checks.fields import is_valid, positive
from bae_lens.nn import SURROGATES, binarize

__all__ = ["BAE", "BAEConfig", "TrainingBAE", "TrainingBAEConfig"]


class BAE(BAEBase):
    """Binary Autoencoder for inference: ``encode`` gives 0 or one of ``level_values``, never anything else.

    Of one bit a latent that is 0 or ``scale``.

    A gradient with respect to its activations is exact, also where they are 0. Below them, at the
    pre-activations and the input, it is the surrogate of the training (``surrogate`` and
    ``temperature`` in ``metadata.training_architecture_details``), since a step has none of its own.

    Buffers: ``scale`` [d_sae], and ``flipped`` [d_sae], True where the latent was inverted when the SAE
    was saved: a bit because it was on for more than half of the tokens, a latent of levels because it was
    at its highest more often than off. The density of a bit before that is 1 minus its density here; of
    levels, 1 minus the share of tokens at the highest level here.
    """

    cfg: BAEConfig
    flipped: Tensor

    def __init__(self, cfg: BAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.register_buffer("flipped", torch.zeros_like(self.scale, dtype=torch.bool))

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return partial(binarize, **self.surrogate_options())

    @override
    def surrogate_options(self) -> dict[str, Any]:
        return _surrogate_of(self.cfg)

    @override
    def encode(self, x: Tensor) -> Tensor:
        """The code: ``[..., d_in]`` → ``[..., d_sae]``."""
        return self.encoded(self.process_sae_in(x), self.b_enc).acts

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction: ``[..., d_sae]`` → ``[..., d_in]``."""
        return self.reconstruction(feature_acts @ self.W_dec)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "firing_rate" in state_dict:
            to_inference(state_dict, self.cfg.apply_b_dec_to_input)
        # SAELens' loader casts whatever is in the file to the SAE's dtype.
        if "flipped" in state_dict:
            state_dict["flipped"] = state_dict["flipped"].bool()


def _surrogate_of(cfg: BAEConfig) -> dict[str, Any]:
    """How a saved BAE was trained, for ``binarize``; what it does not say is as by default."""
    details = training_details(cfg)
    surrogate: Any = details.get("surrogate")
    temperature: Any = details.get("temperature")
    known = surrogate if surrogate in SURROGATES else TrainingBAEConfig.surrogate
    width = temperature if is_valid(temperature, positive()) else "auto"
    return {"surrogate": known, "temperature": temperature_of(width, cfg.n_levels)}
