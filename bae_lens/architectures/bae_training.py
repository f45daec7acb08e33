"""The Binary Autoencoder under training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from bae_lens.architectures.bae_base import BAEBase, Encoded
from bae_lens.architectures.bae_config import TrainingBAEConfig
from bae_lens.architectures.bae_penalties import (
    BatchRates,
    budget_spent,
    covariance_of,
    penalties,
)
from bae_lens.architectures.bae_polarity import (
    TRAINING_STATISTICS,
    inverted_log_sparsity,
    is_mostly_on,
    to_inference,
    to_training,
)
from bae_lens.architectures.saving import change_l0, save_whole
from bae_lens.checks.finite import check_finite_weights
from bae_lens.distributed import all_gather_rows, all_mean, broadcast, n_ranks
from bae_lens.nn import (
    Float32Buffers,
    binarize,
    calibrated_weights,
    check_budget,
    decode_sparse,
    follow_budget,
    widened,
)

# What counts as dense where no cap says so, as in the literature.
_DENSE = 0.1
# Firing rates are a running mean over about this many steps.
_FIRING_RATE_STEPS = 100


class TrainingBAE(Float32Buffers, BAEBase, TrainingSAE[TrainingBAEConfig]):
    """Binary Autoencoder under training, on SAELens' own trainer.

    Losses beside SAELens' ``mse_loss``: ``entropy_loss``, ``covariance_loss``, ``density_loss``.
    State beside the weights, whatever the model's dtype and saved with every checkpoint: float32
    ``firing_rate`` [d_sae] (running mean over about 100 steps), int64 ``n_updates`` (steps behind it;
    0 before calibration), and float32 ``log_entropy_multiplier`` (where the budget has moved the
    coefficient). With several levels a latent also float32 ``level_shares`` [d_sae, n_levels], the
    running mean of the share of tokens at each level from 1.

    On several ranks (an initialized process group) a batch is this rank's rows, as many on each, and all losses
    and statistics are of the rows of all. A loss of a subclass's own is to be one too:
    ``bae_lens.distributed.all_mean`` of a mean over tokens.
    """

    computes_global_loss = True
    float32_buffers = ("firing_rate", "level_shares", "log_entropy_multiplier")

    cfg: TrainingBAEConfig
    firing_rate: Tensor
    level_shares: Tensor
    n_updates: Tensor
    log_entropy_multiplier: Tensor

    def __init__(self, cfg: TrainingBAEConfig, use_error_term: bool = False):
        if cfg.target_entropy_bits is not None:
            check_budget(cfg.target_entropy_bits, cfg.d_sae, cfg.max_density, cfg.n_levels)
        super().__init__(cfg, use_error_term)
        # Mirrors n_updates > 0, so that no step has to ask the device.
        self._is_calibrated = cfg.initial_firing_rate is None
        # Of the step that is under way, for calculate_aux_loss.
        self._rates: BatchRates | None = None
        self.register_load_state_dict_post_hook(_note_loaded_calibration)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        rates = torch.zeros(self.cfg.d_sae, dtype=torch.float32, device=self.device)
        self.register_buffer("firing_rate", rates)
        if self.cfg.n_levels > 1:
            shares = rates[:, None].repeat(1, self.cfg.n_levels)
            self.register_buffer("level_shares", shares)
        # A whole number: as a float it would count no further than 2²⁴.
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64, device=self.device))
        self.register_buffer("log_entropy_multiplier", torch.zeros_like(rates[0]))

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return partial(binarize, **self.surrogate_options())

    @override
    def surrogate_options(self) -> dict[str, Any]:
        return {"surrogate": self.cfg.surrogate, "temperature": self.cfg.step_temperature}

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        cfg = self.cfg
        coefficients: dict[str, float | TrainCoefficientConfig] = {
            "entropy": TrainCoefficientConfig(cfg.entropy_coefficient, cfg.entropy_warm_up_steps),
            "covariance": TrainCoefficientConfig(
                cfg.covariance_coefficient, cfg.covariance_warm_up_steps
            ),
            "density": 0.0 if cfg.max_density is None else cfg.density_coefficient,
        }
        if cfg.step_curvature > 0:
            coefficients["curvature"] = TrainCoefficientConfig(
                cfg.step_curvature, cfg.curvature_warm_up_steps
            )
        return coefficients

    # Encoding and decoding

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and pre-activations, both ``[..., d_sae]``."""
        encoded = self._encoded(x)
        return encoded.acts, encoded.pre

    def _encoded(self, x: Tensor, curvature: Tensor | None = None) -> Encoded:
        sae_in, b_enc = self.process_sae_in(x), self.b_enc
        # A hook may bring in a gradient of its own.
        may_have_grad = x.requires_grad or bool(self.hook_sae_input._forward_hooks)
        if self.cfg.apply_b_dec_to_input and not may_have_grad:
            # Of the input's gradient only its sum over tokens is wanted, for b_dec. Summing before
            # W_enc and not after it saves a matrix product; what is added is exactly 0.
            sae_in = sae_in.detach()
            moved = (self.b_dec.detach() - self.b_dec)[None]
            b_enc = b_enc + (moved @ self.W_enc.detach())[0]
        return self.encoded(sae_in, b_enc, curvature)

    @torch.no_grad()
    def _curvature(self, sae_in: Tensor, coefficient: float | None) -> Tensor | None:
        """Of ``mse_loss`` in each latent's activation: 2‖scale·row‖² over the tokens, times a coefficient."""
        if coefficient is None:
            return None
        rows = (widened(self.W_dec) * self.scale[:, None]).square().sum(1)
        return 2 * coefficient * rows * (self.cfg.d_in / max(sae_in.numel() * n_ranks(), 1))

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction: ``[..., d_sae]`` → ``[..., d_in]``."""
        return self.reconstruction(decode_sparse(feature_acts, self.W_dec))

    # The training step

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step as SAELens takes it; rates and entropy of the bits are computed once for all readers."""
        sae_in = step_input.sae_in
        if not self._is_calibrated:
            with torch.autocast(self.device.type, enabled=False):
                self.calibrate(sae_in)
        curvature = self._curvature(sae_in, step_input.coefficients.get("curvature"))
        feature_acts, hidden_pre, counts, zero = self._encoded(sae_in, curvature)
        sae_out = self.decode(feature_acts)
        rates = self._rates_of(feature_acts, counts)
        # On a GPU the loss of two types has no gradient.
        dtype = torch.promote_types(sae_out.dtype, sae_in.dtype)
        mse_loss = all_mean(
            self.mse_loss_fn(sae_out.to(dtype), sae_in.to(dtype)).sum(dim=-1).mean()
        )
        if zero is not None:
            mse_loss = mse_loss + zero
        self._rates = rates
        of_bits = self.calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        self._rates = None

        rates = rates.detach()
        self._update_statistics(rates, budget_spent(self.cfg, rates.entropy, sae_in, sae_out))
        dense = self.firing_rate > (self.cfg.max_density or _DENSE)
        metrics: dict[str, Any] = {
            "entropy": rates.entropy,
            "entropy_multiplier": self.log_entropy_multiplier.exp(),
            # A callable is evaluated on logging steps only.
            "covariance": partial(covariance_of, feature_acts.detach()),
            "dense_rate": dense.float().mean(),
        }
        if rates.level_entropy is not None:
            metrics["level_entropy"] = rates.level_entropy
        if step_input.dead_neuron_mask is not None:
            metrics["dead_rate"] = step_input.dead_neuron_mask.float().mean()
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=hidden_pre,
            loss=sum(of_bits.values(), start=mse_loss),
            losses={"mse_loss": mse_loss, **of_bits},
            metrics=metrics,
        )

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The losses beside ``mse_loss``; a subclass may have others, as of any SAE of SAELens."""
        rates = self._rates
        if rates is None:
            rates = self._rates_of(feature_acts, self.quantized(hidden_pre).counts)
        is_one_bit = self.cfg.n_levels == 1
        return penalties(
            self.cfg,
            step_input.coefficients,
            lambda: feature_acts / self.scale if is_one_bit else self.activation_fn(hidden_pre),
            rates,
            self.log_entropy_multiplier.exp(),
            self.n_updates >= self.cfg.entropy_start_step,
        )

    def _rates_of(self, feature_acts: Tensor, counts: Tensor | None) -> BatchRates:
        if counts is None:
            return BatchRates.of(feature_acts, self.scale)
        n = feature_acts[..., 0].numel() * n_ranks()
        n_before = n * self.n_updates.clamp(max=_FIRING_RATE_STEPS)
        return BatchRates.of_levels(counts, n, self.level_shares, n_before)

    @torch.no_grad()
    def _update_statistics(self, rates: BatchRates, spent: Tensor | None) -> None:
        if spent is not None:
            moved = follow_budget(self.log_entropy_multiplier, spent)
            has_started = self.n_updates >= self.cfg.entropy_start_step
            self.log_entropy_multiplier.copy_(
                torch.where(has_started, moved, self.log_entropy_multiplier)
            )
        self.n_updates.add_(1)
        # A plain mean at first, so that the start needs no correction.
        weight = (1 / self.n_updates).clamp(min=1 / _FIRING_RATE_STEPS)
        self.firing_rate.lerp_(rates.firing_rate.float(), weight)
        if rates.level_shares is not None:
            self.level_shares.lerp_(rates.level_shares.float(), weight)

    @torch.compiler.disable()
    @torch.no_grad()
    def calibrate(self, sae_in: Tensor) -> None:
        """Set bias, encoder scale, thresholds and decoder scale from a first batch.

        Afterwards each bit fires on ``initial_firing_rate`` of this batch, rounded to whole
        tokens and at least one. ``training_forward_pass`` calls it before its first step.

        Args:
            sae_in: activations ``[..., d_in]``, scaled as the trainer scales them; on several ranks the rows of
                each, from all of which together every one is set.

        Raises:
            ValueError: if there are fewer than two tokens, or not all values are finite.
        """
        rate = self.cfg.initial_firing_rate
        if rate is None:
            raise ValueError("calibrate needs initial_firing_rate to be a number; it is None.")
        # As process_sae_in, but before a bias is subtracted.
        x = self.run_time_activation_norm_fn_in(sae_in.to(self.dtype))
        weights = calibrated_weights(
            all_gather_rows(x.reshape(-1, x.shape[-1])),
            self.W_enc,
            self.W_dec,
            rate,
            self.cfg.apply_b_dec_to_input,
            self.cfg.n_levels,
        )
        for name, value in weights.items():
            getattr(self, name).copy_(broadcast(value))
        self._is_calibrated = True

    # Files

    @property
    def mostly_on(self) -> Tensor:
        """Latents ``[d_sae]`` that are at their highest level more often than off, which saving for
        inference inverts."""
        return is_mostly_on(self.firing_rate, self._level_shares)

    @property
    def _level_shares(self) -> Tensor | None:
        return self.level_shares if self.cfg.n_levels > 1 else None

    def fold_log_sparsity(self, log_sparsity: Tensor) -> Tensor:
        """SAELens' log10 firing rates ``[d_sae]``, as they are after the inversion of latents."""
        return inverted_log_sparsity(log_sparsity, self.mostly_on, self._level_shares)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "flipped" in state_dict:
            # Saved for inference, and now to be trained further from where it is.
            to_training(state_dict)
        for name in state_dict.keys() & set(TRAINING_STATISTICS):
            # Older files have the number of updates as a float.
            state_dict[name] = state_dict[name].to(getattr(self, name).dtype)
        # Tensors of a file are not aligned in memory, and products of such a vector and a matrix
        # round otherwise: training on would not end with the same weights.
        for name, tensor in state_dict.items():
            state_dict[name] = tensor.clone()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        to_inference(state_dict, self.cfg.apply_b_dec_to_input)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a ``BAE``: latents that are mostly on are inverted, ``metadata.l0`` with them."""
        check_finite_weights(self)
        return save_whole(path, self._save_inference_model)

    def _save_inference_model(self, folder: Path) -> tuple[Path, Path]:
        weights_path, cfg_path = super().save_inference_model(folder)
        if self.mostly_on.any():
            # An inverted latent is off where it was at its highest level, which of a bit is where it was on.
            shares, rate = self._level_shares, self.firing_rate
            highest = rate if shares is None else shares[:, -1]
            change = (1 - rate - highest)[self.mostly_on].sum().item()
            change_l0(cfg_path, lambda l0: l0 + change)
        return weights_path, cfg_path


def _note_loaded_calibration(module: TrainingBAE, incompatible_keys: Any) -> None:  # noqa: ARG001
    if not module.n_updates.is_meta:
        is_off = module.cfg.initial_firing_rate is None
        module._is_calibrated = is_off or bool(module.n_updates > 0)
