"""TopK transcoder: SAELens' TopK from one hook point to another, trainable.

SAELens has transcoders for inference only. This one trains on its trainer with batches of two hook
points, and is the plain baseline that a cross-layer method has to be measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopK, act_times_W_dec
from sae_lens.saes.transcoder import Transcoder, TranscoderConfig
from torch import Tensor, nn
from typing_extensions import override

from bae_lens.architectures.cross_layer import (
    CrossLayerSAE,
    TrainingAcrossLayers,
    check_cross_layer,
    count_and_mean,
    masked,
    refuse_error_term,
    target_and_output,
)
from bae_lens.architectures.packed_rows import unpack_rows
from bae_lens.architectures.sae_fields import (
    CROSS_LAYER_FIELDS,
    SAE_FIELDS,
    TRAINING_SAE_FIELDS,
    training_details,
)
from bae_lens.architectures.saving import save_whole
from bae_lens.checks.fields import Flag, Number, Rule, check_fields, whole
from bae_lens.checks.finite import check_finite_weights
from bae_lens.distributed import all_sums, n_ranks

# pyright: reportIncompatibleVariableOverride=false

_UNITS = CrossLayerSAE.float32_buffers
_RESCALE = "rescale_acts_by_decoder_norm"
_TRAINING_FIELDS: Mapping[str, Rule] = {
    "k": whole(1),
    "use_sparse_activations": Flag(),
    "aux_loss_coefficient": Number(least=0),
    _RESCALE: Flag(),
}


@dataclass
class TopKTranscoderConfig(TranscoderConfig):
    """Configuration class for a TopK transcoder; the other fields are those of ``TranscoderConfig``.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    apply_b_dec_to_input: bool = False
    """Must be False: what the decoder adds belongs to another hook point."""

    k: int = 100
    """Latents that fire for each token."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_transcoder"

    @override
    def __post_init__(self) -> None:
        check_fields(self, {**SAE_FIELDS, **CROSS_LAYER_FIELDS, "k": whole(1)})
        check_cross_layer(self)
        super().__post_init__()
        # From a training config that does not say; SAELens' class wants a number.
        self.d_out = self.d_in if self.d_out is None else self.d_out
        _check_k(self.k, self.d_sae)


@dataclass
class TrainingTopKTranscoderConfig(TrainingAcrossLayers, TopKTrainingSAEConfig):
    """Configuration class for training a TopK transcoder.

    The other fields are those of SAELens' ``TopKTrainingSAEConfig``, ``k`` among them.

    Raises:
        ValueError: if a value is of another type than its field's or outside its range.
    """

    apply_b_dec_to_input: bool = False
    """Must be False: what the decoder adds belongs to another hook point."""

    d_out: int | None = None
    """Width of the higher hook point. None means that of the lower one, ``d_in``."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_transcoder"

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> TrainingTopKTranscoderConfig:
        # A file saved for inference says only there how its norms were taken.
        details = config_dict.get("metadata", {}).get("training_architecture_details") or {}
        known = {name: details[name] for name in (_RESCALE,) if name in details}
        return super().from_dict(known | config_dict)

    @override
    def __post_init__(self) -> None:
        check_fields(self, {**TRAINING_SAE_FIELDS, **CROSS_LAYER_FIELDS, **_TRAINING_FIELDS})
        check_cross_layer(self)
        _check_k(self.k, self.d_sae)
        super().__post_init__()


class TopKTranscoder(Transcoder):
    """TopK transcoder for inference; a SAELens ``Transcoder`` whose activation is TopK."""

    cfg: TopKTranscoderConfig

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        check_finite_weights(self)
        return save_whole(path, super().save_model)

    @override
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> TopKTranscoder:
        return cls(TopKTranscoderConfig.from_dict(config_dict))  # pyright: ignore[reportArgumentType]

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        return TopK(self.cfg.k)

    def __init__(self, cfg: TopKTranscoderConfig, use_error_term: bool = False):
        super().__init__(cfg)
        if use_error_term:
            self.use_error_term = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction at the higher hook point: ``[..., d_in]`` → ``[..., d_out]``."""
        refuse_error_term(self)
        return self.hook_sae_output(super().forward(x))

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        """Fold a norm that all rows of ``W_dec`` share, as those of a trained one do."""
        return _fold_common_norm(self)

    @override
    def fold_activation_whitening(
        self, mean: Tensor, whitening_matrix: Tensor, unwhitening_matrix: Tensor
    ) -> None:
        raise NotImplementedError(
            "The whitening of one hook point cannot be folded into a transcoder to another."
        )

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if set(_UNITS) <= state_dict.keys():
            details = training_details(self.cfg)
            _convert_to_inference(state_dict, details.get(_RESCALE, True))


class TrainingTopKTranscoder(CrossLayerSAE, TopKTrainingSAE):
    """TopK transcoder under training: batches are rows of ``bae_lens.architectures.packed_rows.pack_rows``.

    ``calibrate`` sets the units of input and target; ``CrossLayerTrainingRunner`` calls it, and
    without it they are those of the activations. The step's ``sae_in`` is the target, as for
    ``TrainingCLVQVAE``. Saved for inference, the units are folded into the weights. On several ranks a batch
    is this rank's rows, and all losses are of the rows of all.
    """

    computes_global_loss = True
    cfg: TrainingTopKTranscoderConfig

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        kwargs: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, **kwargs))
        if self.d_out != self.cfg.d_in:
            # SAELens ties the start of the encoder to the decoder; of another width each has its own.
            W_dec = nn.init.kaiming_uniform_(torch.empty(self.cfg.d_sae, self.d_out, **kwargs))
            if self.cfg.decoder_init_norm is not None:
                W_dec *= self.cfg.decoder_init_norm / W_dec.norm(dim=1, keepdim=True)
            self.W_dec = nn.Parameter(W_dec)
        self.register_units()

    @torch.no_grad()
    def calibrate(self, rows: Tensor, batch_size: int | None = None) -> None:  # noqa: ARG002
        """Set the units from activations, as in ``TrainingCLVQVAE.calibrate``."""
        self.fit_units(rows)
        self.is_calibrated = True

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        check_finite_weights(self)
        return save_whole(path, super().save_inference_model)

    @override
    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction at the higher hook point: ``[..., d_sae]`` → ``[..., d_out]``."""
        return self.hook_sae_recons(self.to_target(self._decode(feature_acts)))

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.refuse_error_term()
        return super().forward(x)

    @override
    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> Tensor:
        """Fold the norms of ``W_dec`` into the encoder, where that leaves the choice as it is."""
        if self.cfg.rescale_acts_by_decoder_norm:
            return super().fold_and_get_W_dec_norm()
        return _fold_common_norm(self)

    @override
    def fold_W_dec_norm(self) -> None:
        self.fold_and_get_W_dec_norm()

    def _decode(self, feature_acts: Tensor) -> Tensor:
        """What activations decode to, in units of the target's standard deviation, about its mean."""
        rescale = self.cfg.rescale_acts_by_decoder_norm
        return act_times_W_dec(feature_acts, self.W_dec, rescale) + self.b_dec

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """A step on packed rows.

        Raises:
            ValueError: if the batch is neither packed rows nor of width d_in.
        """
        lower, upper, valid = unpack_rows(step_input.sae_in, self.cfg.d_in, self.d_out)
        feature_acts, hidden_pre = self.encode_with_hidden_pre(
            masked(lower, valid, self.input_mean)
        )
        decoded = self.hooked_recons(self._decode(feature_acts), valid)
        upper = masked(upper, valid, self.target_mean)
        n_valid, mean = count_and_mean(upper, valid)
        target = (upper - self.target_mean) / self.target_scale
        error = masked(decoded - target, valid)
        # Its residual is target minus output, of which excluded tokens have none, but it is a mean
        # over all rows.
        aux = self.calculate_aux_loss(
            replace(step_input, sae_in=target),
            feature_acts,
            masked(hidden_pre, valid),
            masked(decoded, valid),
        )
        means = (loss / n_ranks() for loss in aux.values())
        squared, *means = all_sums(error.square().sum(), *means)
        losses = {"mse_loss": squared / n_valid}
        share = len(valid) * n_ranks() / n_valid
        losses |= {name: loss * share for name, loss in zip(aux, means, strict=True)}
        acts = feature_acts.to_dense() if feature_acts.is_sparse else feature_acts
        sae_in, sae_out, metrics = target_and_output(
            upper, self.target_scale * error, valid, n_valid, mean
        )
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=sae_out,
            feature_acts=masked(acts, valid),
            hidden_pre=hidden_pre,
            loss=losses["mse_loss"] + losses["auxiliary_reconstruction_loss"],
            losses=losses,
            metrics={**metrics},
        )

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        # Not self.device: SAELens loads into a model that is on "meta".
        device = next(iter(state_dict.values())).device
        plain = {
            "input_mean": torch.zeros(self.cfg.d_in, device=device),
            "input_scale": torch.ones((), device=device),
            "target_mean": torch.zeros(self.d_out, device=device),
            "target_scale": torch.ones((), device=device),
        }
        is_saved_for_inference = not plain.keys() & state_dict.keys()
        if is_saved_for_inference:
            # The units are in the weights.
            state_dict |= plain
        # Otherwise it may have been saved before anything was trained.
        self.is_calibrated = is_saved_for_inference or any(
            not torch.equal(state_dict[name], value)
            for name, value in plain.items()
            if name in state_dict
        )

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        # Not SAELens' TopK: it folds in place.
        _convert_to_inference(state_dict, self.cfg.rescale_acts_by_decoder_norm)


def _check_k(k: int, d_sae: int) -> None:
    if k > d_sae:
        raise ValueError(f"k must be at most d_sae = {d_sae}; got {k}.")


def _fold_common_norm(sae: Any) -> Tensor:
    """Scale ``W_dec`` by one factor and the encoder by its inverse, which keeps the order of latents.

    Rows that are zero have no norm to be folded, and stay.

    Raises:
        NotImplementedError: if norms differ by more than the rounding of their dtype.
    """
    W_dec = sae.W_dec
    norms = W_dec.to(torch.promote_types(W_dec.dtype, torch.float32)).norm(dim=-1)
    live = norms[norms > 0]
    if len(live) == 0:
        return sae.get_W_dec_norm()
    norm = live.mean()
    spread = ((live - norm).abs().max() / norm).item()
    if spread > max(1e-4, 2 * torch.finfo(W_dec.dtype).eps):
        raise NotImplementedError(
            "Folding the norms of W_dec would change which latents are among the k largest, since they "
            f"are between {live.min():g} and {live.max():g}. Train with rescale_acts_by_decoder_norm, "
            "as by default, which leaves them equal in what is saved for inference."
        )
    W_dec.data.div_(norm)
    sae.W_enc.data.mul_(norm)
    sae.b_enc.data.mul_(norm)
    return torch.where(norms > 0, norm, 0).clamp(min=1e-8).to(W_dec.dtype)


@torch.no_grad()
def _convert_to_inference(state_dict: dict[str, Tensor], rescale: bool) -> None:
    """Fold norms and units into the weights, replacing entries."""
    input_mean, input_scale, target_mean, target_scale = (
        state_dict.pop(name).float() for name in _UNITS
    )
    W_enc, b_enc = state_dict["W_enc"].float(), state_dict["b_enc"].float()
    W_dec, b_dec = state_dict["W_dec"].float(), state_dict["b_dec"].float()
    if rescale:
        norm = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
    W_enc = W_enc * input_scale
    folded = {
        "W_enc": W_enc,
        "b_enc": b_enc - input_mean @ W_enc,
        "W_dec": W_dec * target_scale,
        "b_dec": b_dec * target_scale + target_mean,
    }
    for name, value in folded.items():
        state_dict[name] = value.to(state_dict[name].dtype).contiguous()
