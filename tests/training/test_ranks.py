"""Steps on several ranks are those that one process takes on all rows: losses, gradients, weights, statistics.

Processes are launched once for each number of ranks, and train every case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from sae_lens import BatchTopKTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE
from sae_lens.config import LoggingConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingTopKTranscoderConfig
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.distributed import n_ranks, rank
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.fit import fit_activations
from bae_lens.training.ranks import train_on_ranks
from tests.distributed.ranks import on_ranks, results_of
from tests.helpers import (
    D_IN,
    D_OUT,
    D_SAE,
    LENGTH,
    clvq_cfg,
    make_rows,
    make_sparse_activations,
    trainer_cfg,
    training_cfg,
)

# Whole texts for 2 and for 3 ranks; no number of rows is a power of two.
BATCH, STEPS = 6 * LENGTH, 20
RANKS = (1, 2, 3)
NAN_STEPS = (7, 12)


def sparse() -> Tensor:
    return 3 * make_sparse_activations(5 * BATCH).double()


def packed() -> Tensor:
    return make_rows(5 * BATCH).double()


PENALTIES: dict[str, Any] = {
    "entropy_coefficient": 3e-3,
    "covariance_coefficient": 3e-3,
    "max_density": 0.1,
    "density_coefficient": 3.0,
    "normalize_activations": "expected_average_only_in",
    "dtype": "float64",
}
CASES: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "bae": (lambda: training_cfg(**PENALTIES), sparse),
    "bae, levels and feedback": (
        lambda: training_cfg(
            **PENALTIES,
            n_levels=3,
            feedback_steps=2,
            target_entropy=12.0,
            curvature_coefficient=0.5,
        ),
        sparse,
    ),
    "bae, fidelity": (
        lambda: training_cfg(**PENALTIES, target_entropy=None, target_unexplained_variance=0.3),
        sparse,
    ),
    "clvq_vae": (
        lambda: clvq_cfg(
            decoder="token", top_k=3, temperature=0.5, revive_after=2, d_sae=14, dtype="float64"
        ),
        packed,
    ),
    "clvq_vae, transformer": (
        lambda: clvq_cfg(decoder="transformer", top_k=3, revive_after=2, d_sae=14, dtype="float64"),
        packed,
    ),
    "clvq_vae, predictive": (
        lambda: clvq_cfg(
            decoder="token",
            encoder="predictive",
            predictor_hidden=9,
            top_k=2,
            d_sae=14,
            dtype="float64",
        ),
        packed,
    ),
    "topk_transcoder": (
        lambda: TrainingTopKTranscoderConfig(
            d_in=D_IN, d_out=D_OUT, d_sae=D_SAE, k=3, dtype="float64"
        ),
        packed,
    ),
    "topk": (
        lambda: TopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=3,
            dtype="float64",
            normalize_activations="expected_average_only_in",
        ),
        sparse,
    ),
    "topk, whitened": (
        lambda: TopKTrainingSAEConfig(
            d_in=D_IN,
            d_sae=D_SAE,
            k=3,
            dtype="float64",
            normalize_activations="covariance_whitening",
        ),
        sparse,
    ),
}
# Of a CLVQ-VAE distances and running means are in float32 whatever its dtype.
TOLERANCE = {"clvq_vae": 1e-5}
# What would be the same of ranks that only see their own rows, or of cases in which nothing happens.
HAPPENED = {
    "clvq_vae": "metrics/revived_codes",
    "topk_transcoder": "losses/auxiliary_reconstruction_loss",
    "topk": "losses/auxiliary_reconstruction_loss",
    "bae": "losses/covariance_loss",
    "bae, levels and feedback": "losses/density_loss",
    "bae, fidelity": "losses/entropy_loss",
}


def make_trainer(case: str) -> SAETrainer[Any, Any]:
    config, rows = CASES[case][0](), CASES[case][1]()
    # Ranks start apart: it is rank 0's weights that all have, and draws that are alike afterwards.
    torch.manual_seed(rank())
    sae = get_sae_training_class(config.architecture())[0](config)
    length = LENGTH if case.startswith("clvq") else 1
    replay = ReplayedActivations(rows, BATCH, sequence_length=length, is_common=True)
    cfg = trainer_cfg(
        STEPS,
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        dead_feature_window=3,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=1),
    )
    trainer = SAETrainer(cfg, sae, replay)
    skip_steps_not_finite(trainer)
    train_on_ranks(trainer)
    torch.manual_seed(5)
    return trainer


def recorded(trainer: SAETrainer[Any, Any], each: Callable[[], None] = lambda: None) -> dict:
    """What a training was: the log and the gradients of each step, and the state at its end."""
    take_step, clip = trainer.step, torch.nn.utils.clip_grad_norm_
    log: list[dict[str, float]] = []
    gradients: list[Tensor] = []

    def clip_and_look(parameters: Any, *args: Any, **kwargs: Any) -> Tensor:
        parameters = [*parameters]
        norm = clip(parameters, *args, **kwargs)
        gradients.append(
            torch.cat([g.reshape(-1) for p in parameters if (g := p.grad) is not None])
        )
        return norm

    def step(batch: Tensor) -> Any:
        each()
        output = take_step(batch)
        log.append(
            trainer.build_train_step_log_dict(
                output=output, n_training_samples=trainer.n_training_samples
            )
        )
        return output

    trainer.step = step
    torch.nn.utils.clip_grad_norm_ = clip_and_look
    try:
        trainer.fit()
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
    return {
        "log": log,
        "gradients": gradients,
        "state": trainer.sae.state_dict(),
        "fired": trainer.act_freq_scores,
        "since": trainer.n_forward_passes_since_fired,
        "samples": trainer.n_training_samples,
        "seen": trainer.n_frac_active_samples,
    }


def with_bad_rows() -> dict[str, Any]:
    """NaN in a row of the last rank, twice; and in the batches that scale is estimated from, once."""
    trainer = make_trainer("bae")
    rows = iter(trainer.data_provider)
    # 2 + 1 batches of the estimate come first.
    bad = {1, *(3 + n for n in NAN_STEPS)}

    def provider():
        for i, batch in enumerate(rows):
            spoilt = batch.clone()
            if i in bad and rank() == n_ranks() - 1:
                spoilt[-1, 0] = torch.nan
            yield spoilt

    trainer.data_provider = provider()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("bae_lens.training.finite_steps").addHandler(handler)
    return recorded(trainer) | {"messages": messages}


def not_alike() -> str:
    torch.manual_seed(0)
    config = training_cfg(d_sae=D_SAE + rank())
    trainer = SAETrainer(
        trainer_cfg(2, train_batch_size_samples=BATCH),
        get_sae_training_class("bae")[0](config),
        iter([]),
    )
    with pytest.raises(
        ValueError, match=r"same autoencoder; rank 0 has .*40.* rank 1 .*41"
    ) as caught:
        train_on_ranks(trainer)
    return str(caught.value)


def everything() -> dict[str, Any]:
    torch.set_num_threads(1)
    results: dict[str, Any] = {case: recorded(make_trainer(case)) for case in CASES}
    results["bad rows"] = with_bad_rows()
    activations = make_sparse_activations(4 * BATCH)
    results["fit"] = fit_activations(training_cfg(), activations, 10, BATCH).state_dict()
    batch_topk = BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)
    results["batchtopk"] = fit_activations(batch_topk, activations, 10, BATCH).state_dict()
    results["refused"] = []
    if n_ranks() > 1:
        results["refused"].append(not_alike())
        with pytest.raises(ValueError, match=r"49 rows cannot be divided among [23] processes"):
            fit_activations(training_cfg(), activations, 1, 49)
        trainer = make_trainer("bae")
        with pytest.raises(ValueError, match=r"must have \d+ of the 48 rows .* this one got 48"):
            trainer.step(torch.zeros(BATCH, D_IN))
    return results


@cache
def on(n: int) -> list[dict[str, Any]]:
    return [everything()] if n == 1 else results_of(on_ranks(n, everything, seconds=120))


def tolerance(case: str) -> float:
    return next((t for name, t in TOLERANCE.items() if case.startswith(name)), 1e-12)


def assert_same_training(one: dict[str, Any], other: dict[str, Any], rtol: float) -> None:
    close: dict[str, Any] = {"rtol": rtol, "atol": rtol}
    assert len(one["log"]) == len(other["log"]) == STEPS
    for first, second in zip(one["log"], other["log"], strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), name
            if name.startswith("losses/"):
                assert second[name] == pytest.approx(value, rel=rtol, abs=rtol, nan_ok=True), name
    for first, second in zip(one["gradients"], other["gradients"], strict=True):
        torch.testing.assert_close(second, first, **close, equal_nan=True)
    assert one["state"].keys() == other["state"].keys()
    for name, value in one["state"].items():
        torch.testing.assert_close(other["state"][name], value, **close, msg=name)
    for name in ("fired", "since", "samples", "seen"):
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("n", RANKS[1:])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_as_one_process_does(case: str, n: int) -> None:
    (alone,) = on(1)
    for own in on(n):
        assert_same_training(alone[case], own[case], tolerance(case))
    if (name := HAPPENED.get(case)) is not None:
        assert any(line[name] > 0 for line in alone[case]["log"]), name


@pytest.mark.parametrize("n", RANKS[1:])
@pytest.mark.parametrize("case", [*CASES, "bad rows"])
def test_ranks_agree_to_the_bit(case: str, n: int) -> None:
    first, *others = (own[case] for own in on(n))
    for other in others:
        for name, value in first["state"].items():
            assert torch.equal(value, other["state"][name]), name
        for gradient, same in zip(first["gradients"], other["gradients"], strict=True):
            assert torch.equal(gradient.nan_to_num(), same.nan_to_num())
        # NaN is not equal to itself.
        assert str(first["log"]) == str(other["log"])


@pytest.mark.parametrize("n", RANKS[1:])
def test_a_rank_with_nan_lets_all_skip_the_step(n: int) -> None:
    (alone,) = on(1)
    for own in on(n):
        assert own["bad rows"]["log"][-1]["details/n_skipped_steps"] == len(NAN_STEPS)
        assert_same_training(alone["bad rows"], own["bad rows"], tolerance("bae"))
        skipped = [m for m in own["bad rows"]["messages"] if "is skipped" in m]
        assert len(skipped) == len(NAN_STEPS)
        expected = f"on rank {n - 1}, 1 of its {BATCH // n} activations are NaN or infinite"
        assert all(expected in message for message in skipped)


@pytest.mark.parametrize("n", RANKS[1:])
def test_activations_in_memory_are_fitted_by_all_ranks(n: int) -> None:
    (alone,) = on(1)
    for own in on(n):
        for name, value in alone["fit"].items():
            torch.testing.assert_close(own["fit"][name], value, rtol=1e-4, atol=1e-4, msg=name)
        # The k largest of each rank's rows are not those of the batch: near, and the same on all ranks.
        threshold = alone["batchtopk"]["topk_threshold"].item()
        assert own["batchtopk"]["topk_threshold"].item() == pytest.approx(threshold, rel=0.1)
        assert torch.equal(own["batchtopk"]["W_dec"], on(n)[0]["batchtopk"]["W_dec"])


@pytest.mark.parametrize("n", RANKS[1:])
def test_what_ranks_do_not_have_in_common_is_refused_on_each(n: int) -> None:
    assert len({own["refused"][0] for own in on(n)}) == 1


def test_one_process_is_left_alone() -> None:
    trainer = SAETrainer(trainer_cfg(2), TrainingSAE.from_dict(training_cfg().to_dict()), iter([]))
    before = dict(vars(trainer))
    train_on_ranks(trainer)
    assert vars(trainer) == before
