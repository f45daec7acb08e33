"""Binary Autoencoder (BAE): one-bit features, arXiv 2509.20997, as a SAELens architecture.

``x → bits = 1[(x − b_dec)·W_enc + b_enc > 0] → acts = bits·scale → x̂ = acts·W_dec + b_dec``.
The training loss is SAELens' reconstruction error plus penalties on the *minibatch*: the entropy of
its bits, the covariance between them, and the density of those that fire too often.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.sae_fields import SAE_FIELDS, TRAINING_SAE_FIELDS
from bae_lens.architectures.saving import save_whole
from bae_lens.checks.fields import (
    Number,
    OneOf,
    Rule,
    check,
    check_fields,
    is_valid,
    number_or_none,
    positive,
    whole,
)
from bae_lens.checks.finite import check_finite_weights
from bae_lens.nn import (
    SURROGATES,
    Float32Buffers,
    Surrogate,
    binarize,
    calibrated_weights,
    check_budget,
    decode_sparse,
    entropy_of_rates,
    flip_bits,
    follow_budget,
    off_diagonal_covariance,
    widened,
)

# The density penalty begins below the density that must not be passed, so that held-out text,
# which varies about the minibatch's mean, does not pass it either.
_DENSITY_MARGIN = 0.8
# What counts as dense where no cap says so, as in the literature.
_DENSE = 0.1
_TRAINING_FIELDS: Mapping[str, Rule] = {
    **TRAINING_SAE_FIELDS,
    "surrogate": OneOf(SURROGATES),
    "temperature": positive(),
    "initial_firing_rate": Number(above=0, below=1, or_none=True),
    "entropy_coefficient": Number(least=0),
    "entropy_warm_up_steps": whole(0),
    "entropy_start_step": whole(0),
    "entropy_floor": Number(least=0),
    "target_entropy": positive(
        words=("d_in",), or_none=True, hint="bits per token; 'd_in' is one per input dimension"
    ),
    "target_unexplained_variance": Number(above=0, below=1, or_none=True),
    "covariance_coefficient": Number(least=0),
    "covariance_warm_up_steps": whole(0),
    "max_density": Number(above=0, most=1, or_none=True),
    "density_coefficient": Number(least=0),
}
_STATISTICS = ("firing_rate", "n_updates", "log_entropy_multiplier")
# Firing rates are a running mean over about this many steps.
_FIRING_RATE_STEPS = 100


@dataclass
class BAEConfig(SAEConfig):
    """Configuration class for a BAE; all its fields are those of ``SAEConfig``.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, SAE_FIELDS)
        super().__post_init__()


@dataclass
class TrainingBAEConfig(TrainingSAEConfig):
    """Configuration class for training a BAE.

    Coefficients are in SAELens' units: the reconstruction error is summed over d_in and averaged
    over tokens. They refer to inputs of mean norm √d_in, which is why ``normalize_activations``
    defaults to ``"expected_average_only_in"`` here (SAELens: ``"none"``): a one-bit code has no
    magnitudes that could absorb another scale. Remember ``n_batches_for_norm_estimate``, whose
    default of 1,000 batches draws four million tokens.

    Args:
        surrogate (str): Gradient of the one-bit step: ``"sigmoid"``, ``"identity"`` (what the
            authors' release does in effect) or ``"paper"`` (x(1 − x), as printed).
        temperature (float): Width of the sigmoid surrogate.
        initial_firing_rate (float | None): On the first batch, centre the input, scale the
            encoder to pre-activations of unit variance, set the thresholds so that every bit fires
            on this share of the batch, and scale the decoder to fit. dH/dp is 0 at p = 1/2, so a
            code that starts balanced hardly moves. ``None``: start as SAELens initialises.
        entropy_coefficient (float): Weight of the minibatch's marginal entropy (per bit). With a
            ``target_entropy`` only where it starts from.
        entropy_warm_up_steps (int): Steps of linear warm-up of the entropy coefficient, from step 0.
        entropy_start_step (int): Steps before which the entropy term is off (the release:
            500 epochs).
        entropy_floor (float): The entropy term is off while the entropy is at or below this many
            bits (the release's ``entropy_threshold``).
        target_entropy (float | str | None): Budget in bits per token that the entropy coefficient
            follows, up and down; ``"d_in"`` means one bit per input dimension, ``None`` a fixed
            coefficient.
        target_unexplained_variance (float | None): Name the fidelity instead: the entropy coefficient
            rises while less than this share of each minibatch's variance is left unexplained, and
            falls while more is. Needs ``target_entropy=None``.
        covariance_coefficient (float): Weight of Σ_{i≠j} |C_ij|. Off by default: under an entropy
            budget it costs explained variance or does nothing measurable on a language model
            (``benchmarks/bae_recipe.py``).
        covariance_warm_up_steps (int): Steps of linear warm-up of the covariance coefficient.
        max_density (float | None): Bits that fire on more than this share of tokens are pushed
            back, from 0.8 of it on. ``None``: no such term.
        density_coefficient (float): Weight of that push, per unit of density and latent.
        d_in (int): Input dimension. Inherited from SAEConfig.
        d_sae (int): Number of bits. Inherited from SAEConfig.
        decoder_init_norm (float | None): Inherited from TrainingSAEConfig; with
            ``initial_firing_rate`` set, the norm is then scaled to fit the first batch.
        normalize_activations (str): Inherited from SAEConfig; for the default see above.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    normalize_activations: str = "expected_average_only_in"  # type: ignore[assignment]
    surrogate: Surrogate = "sigmoid"
    temperature: float = 0.5
    initial_firing_rate: float | None = number_or_none(0.04)
    entropy_coefficient: float = 0.04
    entropy_warm_up_steps: int = 0
    entropy_start_step: int = 0
    entropy_floor: float = 0.0
    target_entropy: float | str | None = number_or_none("d_in", "d_in")
    target_unexplained_variance: float | None = number_or_none(None)
    covariance_coefficient: float = 0.0
    covariance_warm_up_steps: int = 0
    max_density: float | None = number_or_none(0.1)
    density_coefficient: float = 2.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "bae"

    @override
    def __post_init__(self) -> None:
        check_fields(self, _TRAINING_FIELDS)
        super().__post_init__()
        if self.target_unexplained_variance is not None and self.target_entropy is not None:
            raise ValueError(
                "The entropy coefficient can follow one target only: set target_entropy to None, or "
                f"target_unexplained_variance; got {self.target_entropy!r} and "
                f"{self.target_unexplained_variance}."
            )

    @property
    def target_entropy_bits(self) -> float | None:
        """``target_entropy`` as a number of bits per token, or None where there is no target."""
        return float(self.d_in) if self.target_entropy == "d_in" else self.target_entropy  # type: ignore[return-value]

    @classmethod
    def paper(
        cls, d_in: int, expansion: int = 4, entropy_start_step: int = 0, **overrides: Any
    ) -> TrainingBAEConfig:
        """The recipe of the authors' release, in SAELens' units.

        α_e = α_c = 1e-7 of an element-mean loss (here times d_in), identity surrogate, fixed
        coefficients, no calibration, no budget, no density cap, ``b_dec`` on the output only.
        Train it with Adam at lr 5e-4, batch 512, for 2,000 epochs, the entropy term from epoch 500
        on: give ``entropy_start_step`` as 500 × the number of batches in your data.

        What differs from the release: its inputs are not normalised, where here they have mean norm
        √d_in, so that the coefficients mean the same on every model (for the release's own, pass
        ``normalize_activations="none"``); SAELens' trainer clips gradients at norm 1; weights start
        as SAELens starts them (decoder Kaiming uniform, encoder its transpose) and not as
        ``torch.nn.Linear`` does; the release's surrogate is g·(1 − g) of the upstream gradient g,
        for whose small values ``"identity"`` stands in; and its entropy, log₂(p + 1e-10), pushes a
        bit that is silent in the batch further off, where ours leaves it alone.

        Args:
            d_in: input dimension.
            expansion: d_sae / d_in.
            entropy_start_step: steps before which the entropy term is off.
            **overrides: any field of this config.
        """
        d_in, expansion = check("d_in", d_in, whole(1)), check("expansion", expansion, whole(1))
        recipe: dict[str, Any] = {
            "d_in": d_in,
            "d_sae": expansion * d_in,
            "surrogate": "identity",
            "initial_firing_rate": None,
            "entropy_coefficient": 1e-7 * d_in,
            "entropy_start_step": entropy_start_step,
            "target_entropy": None,
            "covariance_coefficient": 1e-7 * d_in,
            "max_density": None,
            "apply_b_dec_to_input": False,
            "decoder_init_norm": None,
        }
        return cls(**(recipe | overrides))


def _surrogate_of(cfg: BAEConfig) -> dict[str, Any]:
    """How a saved BAE was trained, for ``binarize``; what it does not say is as by default."""
    details = cfg.metadata.training_architecture_details
    details = details if isinstance(details, dict) else {}
    surrogate, temperature = details.get("surrogate"), details.get("temperature")
    default = TrainingBAEConfig
    return {
        "surrogate": surrogate if surrogate in SURROGATES else default.surrogate,
        "temperature": temperature if is_valid(temperature, positive()) else default.temperature,
    }


class _OneBitSAE(SAE[Any]):
    """What the training and the inference class share: weights, scale and how to fold them."""

    b_enc: nn.Parameter
    scale: Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))
        # A bit has no magnitude: where a decoder norm is folded away, it goes here.
        self.register_buffer("scale", torch.ones_like(self.b_enc.data))

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


class BAE(_OneBitSAE):
    """Binary Autoencoder for inference: ``encode`` gives ``scale`` or 0, never anything between.

    A gradient with respect to its activations is exact, also where they are 0. Below them, at the
    pre-activations and the input, it is the surrogate of the training (``surrogate`` and
    ``temperature`` in ``metadata.training_architecture_details``), since a step has none of its own.

    Buffers: ``scale`` [d_sae], and ``flipped`` [d_sae], True where the bit was inverted when the SAE
    was saved because it was on for more than half of the tokens; the density before that is 1 minus
    the density of the bit here.
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
        return partial(binarize, **_surrogate_of(self.cfg))

    @override
    def encode(self, x: Tensor) -> Tensor:
        """Bits times ``scale``: ``[..., d_in]`` → ``[..., d_sae]``."""
        sae_in = self.process_sae_in(x)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * self.scale)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "firing_rate" in state_dict:
            _convert_to_inference(state_dict, self.cfg.apply_b_dec_to_input)
        # SAELens' loader casts whatever is in the file to the SAE's dtype.
        if "flipped" in state_dict:
            state_dict["flipped"] = state_dict["flipped"].bool()

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction: ``[..., d_sae]`` → ``[..., d_in]``."""
        sae_out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        sae_out = self.run_time_activation_norm_fn_out(sae_out)
        return self.reshape_fn_out(sae_out, self.d_head)


class TrainingBAE(Float32Buffers, _OneBitSAE, TrainingSAE[TrainingBAEConfig]):
    """Binary Autoencoder under training, on SAELens' own trainer.

    Losses beside SAELens' ``mse_loss``: ``entropy_loss``, ``covariance_loss``, ``density_loss``.
    State beside the weights, whatever the model's dtype and saved with every checkpoint: float32
    ``firing_rate`` [d_sae] (running mean over about 100 steps), int64 ``n_updates`` (steps behind it;
    0 before calibration), and float32 ``log_entropy_multiplier`` (where the budget has moved the coefficient).
    """

    float32_buffers = ("firing_rate", "log_entropy_multiplier")

    cfg: TrainingBAEConfig
    firing_rate: Tensor
    n_updates: Tensor
    log_entropy_multiplier: Tensor

    def __init__(self, cfg: TrainingBAEConfig, use_error_term: bool = False):
        if cfg.target_entropy_bits is not None:
            check_budget(cfg.target_entropy_bits, cfg.d_sae, cfg.max_density)
        super().__init__(cfg, use_error_term)
        # Mirrors n_updates > 0, so that no step has to ask the device.
        self._is_calibrated = cfg.initial_firing_rate is None
        self.register_load_state_dict_post_hook(_note_loaded_calibration)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        rates = torch.zeros(self.cfg.d_sae, dtype=torch.float32, device=self.device)
        self.register_buffer("firing_rate", rates)
        # A whole number: as a float it would count no further than 2²⁴.
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64, device=self.device))
        self.register_buffer("log_entropy_multiplier", torch.zeros_like(rates[0]))

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return partial(binarize, surrogate=self.cfg.surrogate, temperature=self.cfg.temperature)

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        cfg = self.cfg
        return {
            "entropy": TrainCoefficientConfig(cfg.entropy_coefficient, cfg.entropy_warm_up_steps),
            "covariance": TrainCoefficientConfig(
                cfg.covariance_coefficient, cfg.covariance_warm_up_steps
            ),
            "density": 0.0 if cfg.max_density is None else cfg.density_coefficient,
        }

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bits times ``scale``, and pre-activations, both ``[..., d_sae]``."""
        sae_in, b_enc = self.process_sae_in(x), self.b_enc
        # A hook may bring in a gradient of its own.
        may_have_grad = x.requires_grad or bool(self.hook_sae_input._forward_hooks)
        if self.cfg.apply_b_dec_to_input and not may_have_grad:
            # Of the input's gradient only its sum over tokens is wanted, for b_dec. Summing before
            # W_enc and not after it saves a matrix product; what is added is exactly 0.
            sae_in = sae_in.detach()
            moved = (self.b_dec.detach() - self.b_dec)[None]
            b_enc = b_enc + (moved @ self.W_enc.detach())[0]
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre) * self.scale), hidden_pre

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction: ``[..., d_sae]`` → ``[..., d_in]``."""
        sae_out = self.hook_sae_recons(decode_sparse(feature_acts, self.W_dec) + self.b_dec)
        sae_out = self.run_time_activation_norm_fn_out(sae_out)
        return self.reshape_fn_out(sae_out, self.d_head)

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        if not self._is_calibrated:
            with torch.autocast(self.device.type, enabled=False):
                self.calibrate(step_input.sae_in)
        output = super().training_forward_pass(step_input)

        with torch.no_grad():
            rate = self._firing_rate_of(output.feature_acts)
            entropy = entropy_of_rates(rate)
            spent = self._budget_spent(entropy, step_input.sae_in, output.sae_out)
            self._update_statistics(rate, spent)
        output.metrics["entropy"] = entropy
        output.metrics["entropy_multiplier"] = self.log_entropy_multiplier.exp()
        # A callable is evaluated on logging steps only.
        output.metrics["covariance"] = partial(_covariance, output.feature_acts.detach())
        dense = self.firing_rate > (self.cfg.max_density or _DENSE)
        output.metrics["dense_rate"] = dense.float().mean()
        if step_input.dead_neuron_mask is not None:
            output.metrics["dead_rate"] = step_input.dead_neuron_mask.float().mean()
        return output

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        cfg, coefficients = self.cfg, step_input.coefficients
        rate = self._firing_rate_of(feature_acts)
        entropy = entropy_of_rates(rate)
        is_on = (self.n_updates >= cfg.entropy_start_step) & (entropy.detach() > cfg.entropy_floor)
        losses = {
            "entropy_loss": coefficients["entropy"]
            * self.log_entropy_multiplier.exp()
            * is_on
            * entropy
        }
        # Not computed where it weighs nothing.
        losses["covariance_loss"] = (
            coefficients["covariance"]
            * off_diagonal_covariance(feature_acts / self.scale, is_binary=True)
            if coefficients["covariance"] > 0
            else entropy.new_zeros(())
        )
        if coefficients["density"] > 0 and cfg.max_density is not None:
            excess = (rate - _DENSITY_MARGIN * cfg.max_density).relu()
            losses["density_loss"] = coefficients["density"] * excess.sum()
        return losses

    def _firing_rate_of(self, feature_acts: Tensor) -> Tensor:
        acts = feature_acts.flatten(0, -2)
        counts = acts.sum(0, dtype=torch.promote_types(acts.dtype, torch.float32)) / self.scale
        # Whole numbers, but for the rounding of a scale that is not 1.
        return (counts + (counts.round() - counts).detach()) / len(acts)

    def _budget_spent(self, entropy: Tensor, sae_in: Tensor, sae_out: Tensor) -> Tensor | None:
        """Share of the budget, of entropy or of fidelity, that a step spent; None without one."""
        cfg = self.cfg
        if cfg.target_entropy_bits is not None:
            return entropy / cfg.target_entropy_bits
        if cfg.target_unexplained_variance is None:
            return None
        x, error = sae_in.flatten(0, -2).float(), (sae_out - sae_in).float()
        variance = (x - x.mean(0)).square().sum()
        return cfg.target_unexplained_variance * variance / error.square().sum().clamp(min=1e-30)

    @torch.no_grad()
    def _update_statistics(self, rate: Tensor, spent: Tensor | None) -> None:
        if spent is not None:
            moved = follow_budget(self.log_entropy_multiplier, spent)
            has_started = self.n_updates >= self.cfg.entropy_start_step
            self.log_entropy_multiplier.copy_(
                torch.where(has_started, moved, self.log_entropy_multiplier)
            )
        self.n_updates.add_(1)
        # A plain mean at first, so that the start needs no correction.
        weight = (1 / self.n_updates).clamp(min=1 / _FIRING_RATE_STEPS)
        self.firing_rate.lerp_(rate.float(), weight)

    @torch.compiler.disable()
    @torch.no_grad()
    def calibrate(self, sae_in: Tensor) -> None:
        """Set bias, encoder scale, thresholds and decoder scale from a first batch.

        Afterwards each bit fires on ``initial_firing_rate`` of this batch, rounded to whole
        tokens and at least one. ``training_forward_pass`` calls it before its first step.

        Args:
            sae_in: activations ``[..., d_in]``, scaled as the trainer scales them.

        Raises:
            ValueError: if there are fewer than two tokens, or not all values are finite.
        """
        rate = self.cfg.initial_firing_rate
        if rate is None:
            raise ValueError("calibrate needs initial_firing_rate to be a number; it is None.")
        # As process_sae_in, but before a bias is subtracted.
        x = self.run_time_activation_norm_fn_in(sae_in.to(self.dtype))
        weights = calibrated_weights(
            x.reshape(-1, x.shape[-1]),
            self.W_enc,
            self.W_dec,
            rate,
            self.cfg.apply_b_dec_to_input,
        )
        for name, value in weights.items():
            getattr(self, name).copy_(value)
        self._is_calibrated = True

    @property
    def mostly_on(self) -> Tensor:
        """Bits ``[d_sae]`` that are on more often than off, which saving for inference inverts."""
        return _mostly_on(self.firing_rate)

    def fold_log_sparsity(self, log_sparsity: Tensor) -> Tensor:
        """SAELens' log10 firing rates ``[d_sae]``, as they are after the inversion of bits."""
        rate = 10 ** widened(log_sparsity)
        folded = torch.log10(1 - rate + 1e-10).to(log_sparsity.dtype)
        return torch.where(self.mostly_on.to(log_sparsity.device), folded, log_sparsity)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "flipped" in state_dict:
            # Saved for inference, and now to be trained further from where it is.
            del state_dict["flipped"]
            state_dict["firing_rate"] = torch.zeros_like(state_dict["b_enc"])
            state_dict["n_updates"] = torch.ones_like(state_dict["b_enc"][0], dtype=torch.int64)
            state_dict["log_entropy_multiplier"] = torch.zeros_like(state_dict["b_enc"][0])
        for name in state_dict.keys() & set(_STATISTICS):
            # Older files have the number of updates as a float.
            state_dict[name] = state_dict[name].to(getattr(self, name).dtype)
        # Tensors of a file are not aligned in memory, and products of such a vector and a matrix
        # round otherwise: training on would not end with the same weights.
        for name, tensor in state_dict.items():
            state_dict[name] = tensor.clone()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        _convert_to_inference(state_dict, self.cfg.apply_b_dec_to_input)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a ``BAE``: bits that are mostly on are inverted, ``metadata.l0`` with them."""
        check_finite_weights(self)
        return save_whole(path, self._save_inference_model)

    def _save_inference_model(self, folder: Path) -> tuple[Path, Path]:
        weights_path, cfg_path = super().save_inference_model(folder)
        cfg = json.loads(cfg_path.read_text())
        if cfg["metadata"].get("l0") is not None and self.mostly_on.any():
            rate = self.firing_rate[self.mostly_on]
            cfg["metadata"]["l0"] += (1 - 2 * rate).sum().item()
            cfg_path.write_text(json.dumps(cfg))
        return weights_path, cfg_path


def _mostly_on(firing_rate: Tensor) -> Tensor:
    return firing_rate > 0.5


def _convert_to_inference(state_dict: dict[str, Tensor], apply_b_dec_to_input: bool) -> None:
    """Turn the state of a ``TrainingBAE`` into that of a ``BAE``, replacing entries."""
    flipped = _mostly_on(state_dict["firing_rate"])
    for name in _STATISTICS:
        del state_dict[name]
    state_dict |= flip_bits(
        **state_dict, flipped=flipped, apply_b_dec_to_input=apply_b_dec_to_input
    )
    state_dict["flipped"] = flipped


def _covariance(feature_acts: Tensor) -> Tensor:
    return off_diagonal_covariance((feature_acts != 0).float(), is_binary=True)


def _note_loaded_calibration(module: TrainingBAE, incompatible_keys: Any) -> None:  # noqa: ARG001
    if not module.n_updates.is_meta:
        is_off = module.cfg.initial_firing_rate is None
        module._is_calibrated = is_off or bool(module.n_updates > 0)
