"""The architectures as the shared rows see them, and how each is made, trained and fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import (
    BAE,
    CLVQVAE,
    BAEConfig,
    CLVQVAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
    TrainingBAE,
    TrainingBAEConfig,
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
)
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_OUT,
    D_SAE,
    HOOK,
    HOOK_OUT,
    LENGTH,
    N_CODES,
    batches_of,
    clvq_cfg,
    make_activations,
    make_bae,
    make_clvq,
    make_pairs,
    make_rows,
    make_sparse_activations,
    make_training_bae,
    make_training_clvq,
    trainer_cfg,
    training_cfg,
)

BAE_STATISTICS = ("firing_rate", "n_updates", "log_entropy_multiplier")
LEVEL_TENSORS = ("threshold_gaps", "level_heights", "feedback_gain", "level_shares")
CLVQ_STATISTICS = ("ema_count", "ema_sum", "nearest_count", "nearest_distance")
CLVQ_COUNTERS = ("steps_unused", "n_updates", "n_revived")
UNITS = ("input_mean", "input_scale", "target_mean", "target_scale")
METADATA = {"hook_name": HOOK, "hook_name_out": HOOK_OUT, "model_name": "tiny"}


# Autoencoders after some training


def trained_bae(**overrides: Any) -> TrainingBAE:
    """A TrainingBAE after a few steps, every statistic different from where it began."""
    sae = TrainingBAE(training_cfg(normalize_activations="none", target_entropy=4.0, **overrides))
    SAETrainer(trainer_cfg(7), sae, batches_of(make_sparse_activations(7 * BATCH))).fit()
    assert all(getattr(sae, name).any() for name in BAE_STATISTICS)
    return sae


def with_dead_codes(sae: TrainingCLVQVAE, rows: Tensor) -> TrainingCLVQVAE:
    """Calibrated, but with all codes but one far from anything: revival has its hands full."""
    sae.calibrate(rows, batch_size=BATCH)
    codes = sae.codebook + 50 * (torch.arange(N_CODES) > 0)[:, None]
    sae.quantizer.set_codebook(codes, torch.ones(N_CODES), torch.tensor(1.0))
    return sae


def trained_clvq(steps: int = 7, **overrides: Any) -> TrainingCLVQVAE:
    """A TrainingCLVQVAE after a few steps, every statistic different from where it began."""
    settings = {"revive_after": 1, "max_revived": 1, **overrides}
    rows = make_rows(steps * BATCH, d_out=settings.get("d_out", D_OUT))
    sae = with_dead_codes(TrainingCLVQVAE(clvq_cfg(**settings)), rows)
    SAETrainer(trainer_cfg(steps), sae, batches_of(rows)).fit()
    state = sae.state_dict()
    assert all(state[name].any() for name in (*CLVQ_STATISTICS, *CLVQ_COUNTERS, *UNITS))
    return sae


def topk_cfg(**overrides: Any) -> TrainingTopKTranscoderConfig:
    return TrainingTopKTranscoderConfig(
        **{"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "k": 5, **overrides}
    )


def make_training_topk(**overrides: Any) -> TrainingTopKTranscoder:
    """A calibrated TrainingTopKTranscoder with random weights, its units far from one."""
    sae = TrainingTopKTranscoder(topk_cfg(**overrides))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = make_rows(d_out=sae.d_out, masked=False)
    rows[:, :-1] = 5 * rows[:, :-1] + 1
    sae.calibrate(rows)
    return sae


def trained_topk(**overrides: Any) -> TrainingTopKTranscoder:
    sae = make_training_topk(**overrides)
    SAETrainer(trainer_cfg(5), sae, batches_of(make_rows(5 * BATCH, d_out=sae.d_out))).fit()
    return sae


def make_topk(**overrides: Any) -> TopKTranscoder:
    source = make_training_topk(**overrides)
    state = dict(source.state_dict())
    source.process_state_dict_for_saving_inference(state)
    own = TopKTranscoderConfig.__dataclass_fields__
    cfg = {name: getattr(source.cfg, name) for name in own}
    sae = TopKTranscoder(TopKTranscoderConfig(**cfg))
    sae.load_state_dict(state)
    return sae


def make_flipped_bae(**overrides: Any) -> BAE:
    sae = make_bae(**overrides)
    sae.flipped[3] = True
    return sae


def sequences(n: int = 4 * BATCH, seed: int = 0) -> Tensor:
    """Inputs of whole sequences, as a transformer decoder reads them."""
    return make_pairs(n, seed=seed)[0].reshape(-1, LENGTH, D_IN)


# The cases


@dataclass
class Architecture:
    """One architecture, with one setting of it, for the rows that all share."""

    name: str
    inference: tuple[type[SAE[Any]], type[Any]]
    """Class and config."""
    training: tuple[type[TrainingSAE[Any]], type[Any]]
    """Class and config."""
    make: Callable[..., SAE[Any]]
    """For inference, with random weights; takes fields of the config."""
    make_training: Callable[..., TrainingSAE[Any]]
    """For training, calibrated, with random weights; takes fields of the config."""
    trained: Callable[..., TrainingSAE[Any]]
    """After a few steps, every statistic different from where it began."""
    inputs: Callable[[], Tensor]
    batch: Callable[..., Tensor]
    """Rows of a training batch, of so many tokens and a seed."""
    configs: dict[str, Callable[[], Any]]
    """Training configs that set every field to something else somewhere."""
    inference_configs: dict[str, Callable[[], Any]]
    in_a_model: dict[str, Any] = field(default_factory=dict)
    """Fields with which it fits between the tiny model's hook points."""
    tensors: tuple[str, ...] = ()
    """Tensors that a checkpoint must have."""


def _everything(config: Any, **fields: Any) -> Callable[[], Any]:
    return lambda: config(**fields, metadata=SAEMetadata(**METADATA))


_CLVQ_FIELDS: dict[str, Any] = {
    "d_out": 7,
    "decoder_memory": "codes",
    "decoder_layers": 1,
    "decoder_width": 24,
    "decoder_heads": 3,
    "decoder_mlp_width": 5,
    "dtype": "bfloat16",
    "normalize_activations": "expected_average_only_in",
}


def _clvq(decoder: str, **encoder: Any) -> Architecture:
    """With the encoder of these fields, or the paper's."""
    own = {"decoder": decoder, **encoder}
    sizes = {"d_in": 8, "d_sae": 24, **own}
    return Architecture(
        name="clvq_vae",
        inference=(CLVQVAE, CLVQVAEConfig),
        training=(TrainingCLVQVAE, TrainingCLVQVAEConfig),
        make=lambda **k: make_clvq(**{**own, **k}),
        make_training=lambda **k: make_training_clvq(**{**own, **k}),
        trained=lambda **k: trained_clvq(**{**own, **k}),
        inputs=sequences,
        batch=lambda n=BATCH, seed=0: make_rows(n, seed=seed),
        configs={
            "defaults": lambda: TrainingCLVQVAEConfig(d_in=D_IN, d_sae=N_CODES, **own),  # type: ignore[arg-type]
            "no d_out": lambda: clvq_cfg(d_out=None, top_k=2, codebook_init="random", **own),
            "everything else": _everything(
                clvq_cfg,
                **_CLVQ_FIELDS,
                **own,
                top_k=2,
                temperature=0.5,
                ema_decay=0.9,
                laplace_epsilon=1e-3,
                revive_after=None,
                max_revived=1,
                commitment_coefficient=0.3,
                codebook_init="random",
                codebook_init_seed=4,
                sequence_length=None,
            ),
        },
        inference_configs={
            "defaults": _everything(CLVQVAEConfig, **sizes),
            "everything else": _everything(CLVQVAEConfig, **sizes, **_CLVQ_FIELDS),
        },
        in_a_model={"d_out": D_IN},
        tensors=(
            "codebook",
            "scale",
            "target_mean",
            "encoder.linear.weight" if encoder else "encoder.a",
            *CLVQ_STATISTICS,
        ),
    )


def _bae(**code: int) -> Architecture:
    """Of one bit a latent, or of the code that these fields give."""
    return Architecture(
        name="bae",
        inference=(BAE, BAEConfig),
        training=(TrainingBAE, TrainingBAEConfig),
        make=lambda **k: make_flipped_bae(**{**code, **k}),
        make_training=lambda **k: make_training_bae(**{**code, **k}),
        trained=lambda **k: trained_bae(**{**code, **k}),
        inputs=lambda: make_activations(20),
        batch=lambda n=BATCH, seed=0: make_sparse_activations(n, seed=seed),
        configs={
            "defaults": lambda: training_cfg(**code),
            "a budget": lambda: training_cfg(target_entropy=5.0, surrogate="identity", **code),
            "paper": lambda: TrainingBAEConfig.paper(D_IN, entropy_start_step=7),
            "everything off": lambda: training_cfg(
                initial_firing_rate=None,
                target_entropy=None,
                max_density=None,
                decoder_init_norm=None,
            ),
            "everything else": _everything(
                training_cfg,
                **code,
                surrogate="paper",
                temperature=0.5,
                target_entropy=12.5,
                entropy_warm_up_steps=3,
                covariance_warm_up_steps=4,
                entropy_start_step=5,
                entropy_floor=2.0,
                dtype="bfloat16",
                normalize_activations="layer_norm",
                apply_b_dec_to_input=False,
            ),
        },
        inference_configs={
            "everything else": _everything(
                BAEConfig,
                **code,
                d_in=8,
                d_sae=24,
                dtype="float64",
                apply_b_dec_to_input=False,
                normalize_activations="layer_norm",
            )
        },
        tensors=("W_enc", "b_enc", "scale", *BAE_STATISTICS, *(LEVEL_TENSORS if code else ())),
    )


ARCHITECTURES = {
    "bae": _bae(),
    "bae, levels and feedback": _bae(n_levels=3, feedback_steps=2),
    "clvq_vae, token": _clvq("token"),
    "clvq_vae, transformer": _clvq("transformer"),
    "clvq_vae, predictive": _clvq("token", encoder="predictive", predictor_hidden=20),
    "topk_transcoder": Architecture(
        name="topk_transcoder",
        inference=(TopKTranscoder, TopKTranscoderConfig),
        training=(TrainingTopKTranscoder, TrainingTopKTranscoderConfig),
        make=make_topk,
        make_training=make_training_topk,
        trained=trained_topk,
        inputs=sequences,
        batch=lambda n=BATCH, seed=0: make_rows(n, seed=seed),
        configs={
            "no d_out": lambda: topk_cfg(d_out=None),
            "everything else": _everything(
                topk_cfg,
                aux_loss_coefficient=0.5,
                rescale_acts_by_decoder_norm=False,
                dtype="bfloat16",
            ),
        },
        inference_configs={
            "everything else": _everything(
                TopKTranscoderConfig, d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=7
            )
        },
        in_a_model={"d_out": D_IN},
        tensors=("W_enc", "b_enc", "W_dec", "b_dec", *UNITS),
    ),
}


def in_a_model(architecture: Architecture, **metadata: Any) -> SAE[Any]:
    """For inference, with the metadata that a model, its stores and evals ask for."""
    said = SAEMetadata(
        context_size=CONTEXT_SIZE,
        prepend_bos=True,
        **{**METADATA, "hook_name_out": HOOK_OUT if architecture.in_a_model else None, **metadata},
    )
    return architecture.make(metadata=said, **architecture.in_a_model)
