"""What a BAE does in training and in inference alike: bits, their scale, and how it is folded and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.code_kind import ONE_BIT
from bae_lens.architectures.saving import save_whole
from bae_lens.checks.finite import check_finite_weights


class OneBitSAE(SAE[Any]):
    """What the training and the inference class share: weights, scale and how to fold them."""

    b_enc: nn.Parameter
    scale: Tensor
    code_kind = ONE_BIT

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
        # A bit has no magnitude: where a decoder norm is folded away, it goes here.
        self.register_buffer("scale", torch.ones_like(self.b_enc.data))

    def acts_and_pre(self, sae_in: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor]:
        """Bits times ``scale``, and pre-activations, both ``[..., d_sae]``, past their hooks.

        Args:
            sae_in: what ``process_sae_in`` returned, ``[..., d_in]``.
            b_enc: the encoder's bias.
        """
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * self.scale), hidden_pre

    def reconstruction(self, product: Tensor) -> Tensor:
        """What activations times ``W_dec`` become, past the hook: ``[..., d_in]``, in the input's units."""
        sae_out = self.hook_sae_recons(product + self.b_dec)
        sae_out = self.run_time_activation_norm_fn_out(sae_out)
        return self.reshape_fn_out(sae_out, self.d_head)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        check_finite_weights(self)
        return save_whole(path, super().save_model)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        """Fold decoder norms into ``scale`` (SAELens: into the encoder, which a bit ignores)."""
        norms = self.get_W_dec_norm()
        self.W_dec.data.div_(norms.unsqueeze(1))
        self.scale.mul_(norms)
        return norms
