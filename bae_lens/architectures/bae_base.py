"""What a BAE does in training and in inference alike: its code, the scale of it, how it is folded and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.code_kind import CodeKind
from bae_lens.architectures.saving import save_whole
from bae_lens.checks.finite import check_finite_weights
from bae_lens.nn import (
    decode_sparse,
    heights_of,
    inverse_softplus,
    nan_where_not_finite,
    quantize_levels,
    thresholds_of,
    with_feedback,
)

# Gaps between thresholds, and heights of levels above the first, where no batch calibrates them.
_STEP = 0.5


class Encoded(NamedTuple):
    """What a BAE makes of its input.

    Attributes:
        acts: activations, past their hook.
        pre: pre-activations that they come from, after feedback, past their hook.
        counts: rows in which each threshold is passed; None where there is one a latent.
        zero: to be added to the reconstruction error, see ``quantize_levels``; None where nothing is.
    """

    acts: Float[Tensor, "*batch d_sae"]
    pre: Float[Tensor, "*batch d_sae"]
    counts: Float[Tensor, "d_sae L"] | None
    zero: Float[Tensor, ""] | None


class BAEBase(SAE[Any]):
    """What the training and the inference class share: weights, code, scale and how to fold them.

    Beside SAELens' weights there are ``b_enc`` and the buffer ``scale``, both [d_sae]; where
    ``n_levels`` is more than 1, the parameters ``threshold_gaps`` and ``level_heights``, both
    [d_sae, n_levels - 1], from which ``thresholds`` and ``heights`` are made; and where
    ``feedback_steps`` is more than 0, ``feedback_gain`` [d_sae]. Where a whitening was folded in, feedback
    goes on comparing residuals as in training, by the buffer ``residual_whitening`` [d_in, d_in].
    """

    b_enc: nn.Parameter
    threshold_gaps: nn.Parameter
    level_heights: nn.Parameter
    feedback_gain: nn.Parameter
    scale: Tensor
    residual_whitening: Tensor | None

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device))
        if cfg.n_levels > 1:
            start = inverse_softplus(torch.full_like(self.b_enc.data, _STEP))
            start = start[:, None].repeat(1, cfg.n_levels - 1)
            self.threshold_gaps = nn.Parameter(start)
            self.level_heights = nn.Parameter(start.clone())
        if cfg.feedback_steps > 0:
            # What training starts from; an SAE for inference loads its own.
            gain = getattr(cfg, "initial_feedback_gain", 0.0)
            self.feedback_gain = nn.Parameter(torch.full_like(self.b_enc.data, gain))
        self.register_buffer("residual_whitening", None)
        # A bit has no magnitude: where a decoder norm is folded away, it goes here.
        self.register_buffer("scale", torch.ones_like(self.b_enc.data))

    # The code

    @property
    def code_kind(self) -> CodeKind:
        """As many values as there are levels."""
        return CodeKind(n_values=self.cfg.n_levels)

    @property
    def thresholds(self) -> Float[Tensor, "d_sae L"]:
        """What a pre-activation has to pass for each level, ascending from 0."""
        if self.cfg.n_levels == 1:
            return torch.zeros_like(self.b_enc)[:, None]
        return thresholds_of(self.threshold_gaps)

    @property
    def heights(self) -> Float[Tensor, "d_sae L"]:
        """What each level adds to the activation, before ``scale``; the first adds 1."""
        if self.cfg.n_levels == 1:
            return torch.ones_like(self.b_enc)[:, None]
        return heights_of(self.level_heights)

    @property
    def level_values(self) -> Float[Tensor, "d_sae L"]:
        """The values that each latent's activation can have where it fires, ascending."""
        return self.heights.cumsum(1) * self.scale[:, None]

    def surrogate_options(self) -> dict[str, Any]:
        """Surrogate and temperature of the steps, by the names of ``binarize``'s arguments."""
        raise NotImplementedError

    def quantized(self, pre: Tensor, curvature: Tensor | None = None) -> Encoded:
        """Activations ``[..., d_sae]`` of pre-activations, and what the training wants to know of them.

        Args:
            pre: pre-activations ``[..., d_sae]``.
            curvature: ``[d_sae]``, of the reconstruction error in each activation, before ``scale``.
        """
        if self.cfg.n_levels == 1 and curvature is None:
            return Encoded(self.activation_fn(pre) * self.scale, pre, None, None)
        code = quantize_levels(
            pre.reshape(-1, pre.shape[-1]),
            self.thresholds,
            self.heights,
            **self.surrogate_options(),
            curvature=curvature,
        )
        counts = None if self.cfg.n_levels == 1 else code.counts
        return Encoded(code.acts.reshape(pre.shape) * self.scale, pre, counts, code.zero)

    def encoded(self, sae_in: Tensor, b_enc: Tensor, curvature: Tensor | None = None) -> Encoded:
        """Activations and pre-activations, past their hooks.

        Args:
            sae_in: what ``process_sae_in`` returned, ``[..., d_in]``.
            b_enc: the encoder's bias.
            curvature: as ``quantized`` takes it.
        """
        pre = sae_in @ self.W_enc + b_enc
        if self.cfg.feedback_steps > 0:
            centered = sae_in if self.cfg.apply_b_dec_to_input else sae_in - self.b_dec
            pre = with_feedback(
                pre,
                centered,
                self.W_enc,
                self.feedback_gain,
                lambda pre: decode_sparse(self.quantized(pre).acts, self.W_dec),
                self.cfg.feedback_steps,
                self.residual_whitening,
            )
        code = self.quantized(self.hook_sae_acts_pre(pre), curvature)
        # Not _replace, which torch before 2.9 does not compile.
        return Encoded(self.hook_sae_acts_post(code.acts), code.pre, code.counts, code.zero)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction: ``[..., d_in]`` → ``[..., d_in]``; NaN of an input that is not finite in the SAE's type, whose bits
        would hide it."""
        n_batch_dims = x.ndim - (2 if self.hook_z_reshaping_mode else 1)
        return nan_where_not_finite(super().forward(x), x.to(self.dtype), n_batch_dims)

    def reconstruction(self, product: Tensor) -> Tensor:
        """What activations times ``W_dec`` become, past the hook: ``[..., d_in]``, in the input's units."""
        sae_out = self.hook_sae_recons(product + self.b_dec)
        sae_out = self.run_time_activation_norm_fn_out(sae_out)
        return self.reshape_fn_out(sae_out, self.d_head)

    # Files

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        check_finite_weights(self)
        return save_whole(path, super().save_model)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "residual_whitening" in state_dict:
            self.residual_whitening = self.W_dec.new_empty(self.cfg.d_in, self.cfg.d_in)

    @override
    @torch.no_grad()
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        super().fold_activation_whitening(mean, whitening_matrix, unwhitening_matrix)
        if self.cfg.feedback_steps > 0:
            self.residual_whitening = whitening_matrix.to(self.device, self.dtype)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        """Fold decoder norms into ``scale`` (SAELens: into the encoder, whose thresholds ignore it)."""
        norms = self.get_W_dec_norm()
        self.W_dec.data.div_(norms.unsqueeze(1))
        self.scale.mul_(norms)
        return norms
