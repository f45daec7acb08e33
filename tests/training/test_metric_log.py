from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    LoggingConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
)
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens import TrainingBAE
from bae_lens.training import MetricLog
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    batches_of,
    make_sparse_activations,
    trainer_cfg,
    training_cfg,
)


def make_trainer(n_steps: int, **overrides: Any) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(covariance_coefficient=1e-4))
    data = batches_of(make_sparse_activations(512))
    return SAETrainer(trainer_cfg(n_steps, lr_end=1e-4, **overrides), sae, data)


def read(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_are_what_wandb_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sent = []
    monkeypatch.setattr(
        "sae_lens.training.sae_trainer.wandb.log",
        lambda metrics, step: sent.append({"step": step} | metrics),
    )
    wandb_on = LoggingConfig(log_to_wandb=True, wandb_log_frequency=3)
    trainer = make_trainer(10, logger=wandb_on)
    MetricLog(tmp_path / "metrics.jsonl", every=3).attach(trainer)
    trainer.fit()
    assert [line["step"] for line in sent] == [2, 5, 8]
    assert read(tmp_path / "metrics.jsonl") == sent


def test_without_wandb_it_holds_saelens_metrics_and_the_architectures(tmp_path: Path):
    trainer = make_trainer(4)
    MetricLog(tmp_path / "new" / "folder" / "metrics.jsonl", every=2).attach(trainer)
    trainer.fit()
    first, last = read(tmp_path / "new" / "folder" / "metrics.jsonl")
    assert {
        "losses/overall_loss",
        "losses/mse_loss",
        "losses/entropy_loss",
        "losses/covariance_loss",
        "metrics/explained_variance",
        "metrics/l0",
        "metrics/entropy",
        "metrics/covariance",
        "metrics/dense_rate",
        "metrics/dead_rate",
        "sparsity/dead_features",
        "details/current_learning_rate",
        "details/entropy_coefficient",
    } <= first.keys()
    assert first["details/n_training_samples"] == 2 * BATCH
    assert last["details/n_training_samples"] == 4 * BATCH


def test_metrics_that_are_only_computed_on_logging_steps_are_there(tmp_path: Path):
    sae = MatchingPursuitTrainingSAE(MatchingPursuitTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE))
    data = batches_of(make_sparse_activations(512))
    trainer = SAETrainer(trainer_cfg(4, lr_end=1e-4), sae, data)
    MetricLog(tmp_path / "metrics.jsonl", every=2).attach(trainer)
    trainer.fit()
    assert all("metrics/residual_norm" in line for line in read(tmp_path / "metrics.jsonl"))


def test_each_line_is_on_disk_when_its_step_is_over(tmp_path: Path):
    trainer = make_trainer(4)
    path = tmp_path / "metrics.jsonl"
    MetricLog(path, every=1).attach(trainer)
    batch = next(trainer.data_provider)
    trainer.step(batch)
    assert len(read(path)) == 1


def test_a_number_that_is_not_finite_is_null(tmp_path: Path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.write(3, {"a": float("nan"), "b": float("inf"), "c": 1.5, "d": 2})
    assert read(log.path) == [{"step": 3, "a": None, "b": None, "c": 1.5, "d": 2}]


def test_a_new_run_begins_a_new_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    MetricLog(path).write(9, {"a": 1.0})
    MetricLog(path).attach(make_trainer(1))
    assert path.read_text() == ""


def test_a_resumed_run_keeps_what_is_behind_it_and_drops_what_is_not(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, every=1)
    for step in range(6):
        log.write(step, {"a": float(step)})
    trainer = make_trainer(6)
    trainer.n_training_steps = 4
    log.attach(trainer)
    assert [line["step"] for line in read(path)] == [0, 1, 2, 3]
    trainer.step(next(trainer.data_provider))
    assert [line["step"] for line in read(path)] == [0, 1, 2, 3, 4]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, every=1)
    log.write(0, {"a": 1.0})
    with path.open("a") as file:
        file.write('{"step": 1, "a": 0.')
    trainer = make_trainer(6)
    trainer.n_training_steps = 2
    log.attach(trainer)
    assert [line["step"] for line in read(path)] == [0]


@pytest.mark.parametrize("every", [0, -1])
def test_every_must_be_positive(every: int, tmp_path: Path):
    with pytest.raises(ValueError, match=f"positive number of steps; got {every}"):
        MetricLog(tmp_path / "metrics.jsonl", every)
