"""The training of a CLVQ-VAE: calibration, steps, losses, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from bae_lens.architectures.clvq_vae_base import CLVQVAEBase
from bae_lens.architectures.clvq_vae_config import TrainingCLVQVAEConfig
from bae_lens.architectures.codebook_init import initial_codebook
from bae_lens.architectures.cross_layer import (
    count_and_mean,
    is_hooked,
    masked,
    target_and_output,
)
from bae_lens.architectures.packed_rows import unpack_rows
from bae_lens.architectures.saving import change_l0, save_whole
from bae_lens.checks.fields import check, whole
from bae_lens.checks.finite import check_finite_weights
from bae_lens.distributed import all_gather_objects, all_sum, all_sums, broadcast
from bae_lens.nn import (
    AdaptiveResidualEncoder,
    EMACodebook,
    PredictiveEncoder,
    Quantized,
    one_hot,
    squared_distances,
    straight_through,
    widened,
)

# pyright: reportIncompatibleVariableOverride=false


class _HookedActs(NamedTuple):
    """Activations of a training step as its hooks left them.

    Attributes:
        values: ``[n, K]``.
        is_changed: whether a hook changed any.
    """

    values: Tensor
    is_changed: Tensor


# Buffers of the quantizer; in a state dict they stand at the top level, as the codebook does in the
# inference class.
_QUANTIZER = "quantizer."
# What it keeps beside the codebook.
_STATISTICS = EMACodebook(1, 1, device="meta").state_dict().keys() - {"codebook"}


class TrainingCLVQVAE(CLVQVAEBase, TrainingSAE[TrainingCLVQVAEConfig]):
    """Cross-Layer VQ-VAE under training, on SAELens' own trainer.

    A training batch is rows of ``bae_lens.architectures.packed_rows.pack_rows``, or ``[n, d_in]`` for one hook point,
    reconstructed from itself (the single-layer VQ-VAE). Loss beside SAELens' ``mse_loss``:
    ``commitment_loss``; with a predictive encoder ``prediction_loss``, ‖f(x) − y‖² in the units of
    ``mse_loss``, which then has no gradient. The codebook has no gradient: it follows the encoder's output by running
    means, whose state (``ema_count``, ``ema_sum`` …, see ``EMACodebook``) is float32 whatever the
    model's dtype and saved with every checkpoint. (SAELens' loader rounds what it reads to a
    bfloat16 model's dtype first; a resumed run does not.)

    The step's ``sae_in`` is the *target*, so that SAELens' explained variance is that of the higher
    hook point; where the mask excludes a token, both it and the reconstruction are the mean of the
    others, which leaves the explained variance as it is (``explained_variance_legacy``, a mean over
    tokens, then means nothing). Its ``feature_acts`` are the nearest codes, also where another one was drawn, so that
    SAELens' sparsity is that of evaluation. A hook at ``hook_sae_acts_post`` is shown the codes that
    are decoded, drawn ones; what it puts there is decoded, and reported, in their place.

    On several ranks a batch is this rank's rows, whole texts, as many on each; all losses, and what the codebook
    follows, are of the rows of all.
    """

    computes_global_loss = True
    cfg: TrainingCLVQVAEConfig
    quantizer: EMACodebook

    def __init__(self, cfg: TrainingCLVQVAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        self.register_state_dict_post_hook(_to_top_level)
        self.register_load_state_dict_pre_hook(_from_top_level)
        self.register_load_state_dict_post_hook(_note_loaded_calibration)

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        cfg = self.cfg
        self.quantizer = EMACodebook(
            cfg.d_sae,
            self.d_code,
            decay=cfg.ema_decay,
            epsilon=cfg.laplace_epsilon,
            revive_after=cfg.revive_after,
            max_revived=cfg.max_revived,
            device=self.device,
        )

    @property
    def codebook(self) -> Float[Tensor, "K d_code"]:
        return self.quantizer.codebook

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        if self.is_predictive:
            return {}
        return {"commitment": self.cfg.commitment_coefficient}

    @override
    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot of the nearest code, and minus the squared distances, both ``[..., K]``."""
        _, hidden_pre, acts = self._encode(x)
        return acts, hidden_pre

    @override
    def encode(self, x: Tensor) -> Tensor:
        return self._encode(x)[2]

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        return CLVQVAEBase.decode(self, feature_acts)

    @torch.compiler.disable()
    @torch.no_grad()
    def calibrate(self, rows: Float[Tensor, "n width"], batch_size: int | None = None) -> None:
        """Set means, scales and codebook from activations, and the codebook's statistics with it.

        ``training_forward_pass`` calls it with its first batch if nobody did before; more tokens
        make better clusters (``CrossLayerTrainingRunner`` gives it ``initialization_tokens``).

        Args:
            rows: as a training batch; on several ranks those of each, from all of which together every one is set.
            batch_size: tokens of a training batch, for the running counts; default: these.

        Raises:
            ValueError: if not all values are finite, or there are fewer distinct tokens than codes.
        """
        batch_size = check("batch_size", batch_size, whole(1, or_none=True))
        lower, upper, _ = self.fit_units(rows)
        x = self.process_sae_in(lower)
        if isinstance(self.encoder, PredictiveEncoder):
            self.encoder.fit_linear(x, self.from_target(upper))
            for weight in self.encoder.parameters():
                weight.copy_(broadcast(weight))
        z = self.encoder(x).float()
        codebook, counts = initial_codebook(
            z, self.cfg.d_sae, self.cfg.codebook_init, self.cfg.codebook_init_seed
        )
        distances = squared_distances(z, codebook)
        if self.is_predictive:
            # As in training, the mean of what each code is to reconstruct.
            nearest = distances.argmin(-1)
            counts = torch.bincount(nearest, minlength=len(codebook)).float()
            sums = torch.zeros_like(codebook).index_add_(
                0, nearest, self.from_target(upper).float()
            )
            means = sums / counts.clamp(min=1)[:, None]
            codebook = torch.where(counts[:, None] > 0, means, codebook)
        n_rows = sum(all_gather_objects(len(rows)))
        share = (n_rows if batch_size is None else batch_size) / n_rows
        start = (codebook, counts * share, distances.amin(-1).mean())
        self.quantizer.set_codebook(*map(broadcast, start))
        self.is_calibrated = True

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step on packed rows; see the class for what it returns.

        Raises:
            ValueError: if the batch is neither packed rows nor of width d_in, or not whole
                sequences.
        """
        rows = step_input.sae_in
        if not self.is_calibrated:
            with torch.autocast(self.device.type, enabled=False):
                self.calibrate(rows)
        lower, upper, valid = unpack_rows(rows, self.cfg.d_in, self.d_out)

        # Both are zero where a token is not valid.
        upper = masked(upper, valid, self.target_mean)
        n_valid, mean = count_and_mean(upper, valid)
        target = self.from_target(upper)
        z = self.encoder(self.process_sae_in(masked(lower, valid, self.input_mean)))
        hidden_pre = self._hooked_distances(z)
        quantized = self.quantizer.quantize(
            z,
            valid,
            self.cfg.top_k if self.training else 1,
            self.cfg.temperature,
            distances=None if hidden_pre is None else -hidden_pre.detach(),
        )
        # A predictive encoder learns from its own error alone; with no decoder behind them that would round
        # codes as autocast does, they are not rounded before.
        through = z.detach().to(self.dtype) if self.is_predictive else z
        if hidden_pre is None or not is_hooked(self.hook_sae_acts_post):
            acts = None
            decoded = self._decode_sequences(straight_through(through, quantized.codes), valid, z)
        else:
            acts, decoded = self._decode_hooked(through, hidden_pre, quantized, valid)
        decoded = self.hooked_recons(decoded, valid)

        error = widened(decoded) - target
        of_encoder = widened(z) - (target if self.is_predictive else quantized.codes)
        of_encoder = torch.where(valid, of_encoder.square().sum(-1), 0).sum()
        squared, of_encoder = all_sums(error.square().sum(), of_encoder)
        losses = {"mse_loss": squared / n_valid}
        if self.is_predictive:
            losses["prediction_loss"] = of_encoder / n_valid
        else:
            commitment = step_input.coefficients["commitment"]
            losses["commitment_loss"] = commitment * (of_encoder / n_valid)
        with torch.no_grad():
            if self.training:
                self.quantizer.update(
                    z,
                    quantized.indices,
                    valid,
                    quantized.distance,
                    quantized.nearest,
                    # The mean of what a code is to reconstruct, which f need not reach.
                    values=target if self.is_predictive else None,
                )
            feature_acts = torch.zeros_like(quantized.distances, dtype=z.dtype)
            feature_acts.scatter_(1, quantized.nearest[:, None], valid[:, None].to(z.dtype))
            feature_acts *= self.scale
            if acts is not None:
                feature_acts = torch.where(acts.is_changed, acts.values, feature_acts)
            is_drawn = ((quantized.indices != quantized.nearest) & valid).sum()
            sae_in, sae_out, metrics = target_and_output(
                upper, self.target_scale * error, valid, n_valid, mean
            )
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=-quantized.distances,
            loss=torch.stack([*losses.values()]).sum(),
            losses=losses,
            # Callables are evaluated on logging steps only.
            metrics={
                **metrics,
                "drawn_off_nearest": lambda: all_sum(is_drawn) / n_valid,
                "perplexity": self.quantizer.perplexity,
                "codes_in_use": self.quantizer.codes_in_use,
                "revived_codes": partial(torch.clone, self.quantizer.n_revived),
                **self._encoder_metrics(losses, target, n_valid),
            },
        )

    def _encoder_metrics(
        self, losses: dict[str, Tensor], target: Tensor, n_valid: Tensor
    ) -> dict[str, Callable[[], Tensor]]:
        """α of a residual encoder; the explained variance of a predictive one, before it is quantized."""
        if isinstance(self.encoder, AdaptiveResidualEncoder):
            return {"alpha": partial(torch.clone, self.encoder.alpha.detach())}
        missed = losses["prediction_loss"].detach()
        return {
            "prediction_explained_variance": lambda: (
                1 - missed * n_valid / all_sum(target.square().sum()).clamp(min=1e-30)
            )
        }

    def _hooked_distances(self, z: Tensor) -> Tensor | None:
        """Minus the squared distances after their hooks; None where no hook is at the code at all."""
        if not (is_hooked(self.hook_sae_acts_pre) or is_hooked(self.hook_sae_acts_post)):
            return None
        with torch.no_grad():
            distances = squared_distances(z, self.codebook)
        # In the graph, so that a backward hook is called.
        return self.hook_sae_acts_pre(-distances.requires_grad_())

    def _decode_hooked(
        self, z: Tensor, hidden_pre: Tensor, quantized: Quantized, valid: Tensor
    ) -> tuple[_HookedActs, Tensor]:
        """The drawn codes after the hooks of ``hook_sae_acts_post``, and what they decode to.

        Gradients are those of a step without hooks, and that of the activations.
        """
        drawn = one_hot(hidden_pre, quantized.indices).to(self.dtype) * self.scale
        drawn = masked(drawn, valid)
        before = drawn.detach().clone()
        acts = self.hook_sae_acts_post(drawn)
        # The codebook is moved before the gradient is taken.
        codebook = self.codebook.to(acts.dtype, copy=True)
        with torch.autocast(z.device.type, enabled=False):
            codes = (acts / self.scale) @ codebook + (z - z.detach())
        has_code = valid & (acts != 0).any(-1)
        decoded = self._decode_sequences(codes, has_code, z)
        # As in decode, where a token without a code decodes to zero.
        nothing = (-self.target_mean / self.target_scale).to(decoded.dtype)
        decoded = torch.where((valid & ~has_code)[:, None], nothing, decoded)
        values = acts.detach()
        return _HookedActs(values, (values != before).any()), decoded

    def _decode_sequences(self, codes: Tensor, valid: Tensor, z: Tensor) -> Tensor:
        """``_run_decoder`` on flat tokens, put into their sequences for it."""
        memory = z if self.cfg.decoder_memory == "encoder" else None
        length = self.cfg.sequence_length
        if length is None or self.cfg.decoder == "token":
            return self._run_decoder(codes, valid, memory)
        if len(codes) % length:
            raise ValueError(
                f"A training batch must be whole sequences of sequence_length = {length} tokens; got "
                f"{len(codes)} tokens. Set the batch size to a multiple of {length}."
            )
        in_sequences: list[Any] = [
            None if t is None else rearrange(t, "(n t) ... -> n t ...", t=length)
            for t in (codes, valid, memory)
        ]
        return rearrange(self._run_decoder(*in_sequences), "n t d -> (n t) d")

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """Not used: the commitment needs z, which ``training_forward_pass`` has."""
        raise NotImplementedError("TrainingCLVQVAE computes its losses in training_forward_pass.")

    def fold_log_sparsity(self, log_sparsity: Tensor) -> Tensor:
        """SAELens' log10 firing rates ``[K]``, per valid token: it divides by masked ones too."""
        rate = 10 ** widened(log_sparsity)
        return torch.log10(rate / rate.sum() + 1e-10).to(log_sparsity.dtype)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """Save as a ``CLVQVAE``, with the L0 of valid tokens, each of which has one code."""
        check_finite_weights(self)
        return save_whole(path, self._save_inference_model)

    def _save_inference_model(self, folder: Path) -> tuple[Path, Path]:
        weights_path, cfg_path = super().save_inference_model(folder)
        change_l0(cfg_path, lambda _: 1.0)
        return weights_path, cfg_path

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if not _STATISTICS & state_dict.keys():
            # Saved for inference, and now to be trained further from where it is.
            codebook = state_dict["codebook"].float()
            fresh = EMACodebook(*codebook.shape, device=codebook.device)
            ones = torch.ones_like(codebook[:, 0])
            fresh.set_codebook(codebook, ones, distance=torch.zeros_like(ones[0]))
            state_dict |= fresh.state_dict()

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        drop_statistics(state_dict)


def drop_statistics(state_dict: dict[str, Any]) -> None:
    """Take out of a state dict what a codebook keeps for its training."""
    for name in _STATISTICS:
        state_dict.pop(name, None)


def _to_top_level(
    module: TrainingCLVQVAE,  # noqa: ARG001
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,  # noqa: ARG001
) -> None:
    for name in [name for name in state_dict if name.startswith(prefix + _QUANTIZER)]:
        state_dict[prefix + name.removeprefix(prefix + _QUANTIZER)] = state_dict.pop(name)


def _from_top_level(
    module: TrainingCLVQVAE, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    for name in dict(module.quantizer.named_buffers()):
        if prefix + name in state_dict:
            state_dict[prefix + _QUANTIZER + name] = state_dict.pop(prefix + name)


def _note_loaded_calibration(module: TrainingCLVQVAE, incompatible_keys: Any) -> None:  # noqa: ARG001
    n_updates = module.quantizer.n_updates
    if not n_updates.is_meta:
        module.is_calibrated = bool(n_updates > 0)
