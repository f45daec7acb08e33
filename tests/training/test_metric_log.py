from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
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
from bae_lens.training.metric_log import read_metric_log
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    batches_of,
    make_sparse_activations,
    trainer_cfg,
    training_cfg,
)

STORE, TRAINER = SPEEDS = (
    "performance/store_tokens_per_second",
    "performance/trainer_tokens_per_second",
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
    lines = read(tmp_path / "metrics.jsonl")
    assert [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines] == sent


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
    with pytest.raises(
        ValueError, match=f"every must be a whole number of at least 1; got {every}"
    ):
        MetricLog(tmp_path / "metrics.jsonl", every)


# Speed


class Clock:
    """Goes on only when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def takes(clock: Clock, seconds: Callable[[], float], do: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same, in a time by the clock."""

    @wraps(do)
    def do_slowly(*args: Any, **kwargs: Any) -> Any:
        clock.now += seconds()
        return do(*args, **kwargs)

    return do_slowly


def make_slow_trainer(clock: Clock, n_steps: int) -> SAETrainer[Any, Any]:
    """Step i reads for i + 1 seconds, trains for 10 (i + 1), and is at other things for 1000."""
    trainer = make_trainer(n_steps)
    read = takes(clock, lambda: trainer.n_training_steps + 1, partial(next, trainer.data_provider))
    trainer.data_provider = iter(read, None)
    trainer._train_step = takes(
        clock, lambda: 10 * (trainer.n_training_steps + 1), trainer._train_step
    )
    for name in ("_checkpoint_if_needed", "build_train_step_log_dict", "maybe_reset_sparsity"):
        setattr(trainer, name, takes(clock, lambda: 1000, getattr(trainer, name)))
    return trainer


def test_speed_is_by_the_time_of_the_store_and_of_the_trainer(tmp_path: Path, clock: Clock):
    trainer = make_slow_trainer(clock, 5)
    MetricLog(tmp_path / "metrics.jsonl", every=2).attach(trainer)
    trainer.fit()
    first, last = read(tmp_path / "metrics.jsonl")
    assert (first[STORE], first[TRAINER]) == (2 * BATCH / 3, 2 * BATCH / 30)
    assert (last[STORE], last[TRAINER]) == (2 * BATCH / 7, 2 * BATCH / 70)


def test_batches_that_were_not_read_in_fit_have_no_speed(tmp_path: Path, clock: Clock):
    trainer = make_slow_trainer(clock, 3)
    MetricLog(tmp_path / "metrics.jsonl", every=1).attach(trainer)
    trainer.step(next(trainer.data_provider))
    trainer.n_training_steps += 1
    trainer.fit()
    first, *rest = read(tmp_path / "metrics.jsonl")
    assert STORE not in first
    assert first[TRAINER] == BATCH / 10
    assert [line[STORE] for line in rest] == [BATCH / 2, BATCH / 3]


def test_where_no_time_has_passed_there_is_no_speed(tmp_path: Path, clock: Clock):
    trainer = make_trainer(2)
    MetricLog(tmp_path / "metrics.jsonl", every=1).attach(trainer)
    trainer.fit()
    assert all(not set(SPEEDS) & line.keys() for line in read(tmp_path / "metrics.jsonl"))


def test_a_resumed_run_has_the_speed_of_its_own_steps(tmp_path: Path, clock: Clock):
    trainer = make_slow_trainer(clock, 6)
    trainer.n_training_steps, trainer.n_training_samples = 3, 3 * BATCH
    MetricLog(tmp_path / "metrics.jsonl", every=2).attach(trainer)
    trainer.fit()
    assert [line[STORE] for line in read(tmp_path / "metrics.jsonl")] == [BATCH / 4, 2 * BATCH / 11]


def test_only_steps_with_a_line_wait_for_the_device(tmp_path: Path):
    waited: list[int] = []

    class Loss(torch.Tensor):
        def item(self) -> float:
            waited.append(trainer.n_training_steps)
            return super().item()

    trainer = make_trainer(6)
    take_step = trainer._train_step

    def train(*args: Any, **kwargs: Any) -> Any:
        output = take_step(*args, **kwargs)
        return replace(output, loss=output.loss.detach().as_subclass(Loss))

    trainer._train_step = train
    MetricLog(tmp_path / "metrics.jsonl", every=3).attach(trainer)
    trainer.fit()
    assert set(waited) == {2, 5}


# Reading


def test_a_metric_log_as_columns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "losses/mse_loss": 2.5}\n{"step": 10, "losses/mse_loss": 1.5}\n')

    assert read_metric_log(path) == {"step": [0, 10], "losses/mse_loss": [2.5, 1.5]}


def test_missing_values_of_a_metric_log_are_nan(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"a": 1.0}, {"a": None, "b": 2.0}, {"b": 0.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    log = read_metric_log(str(path))

    assert list(log) == ["a", "b"]
    assert log["a"][0] == 1.0
    assert math.isnan(log["a"][1])
    assert math.isnan(log["a"][2])
    assert math.isnan(log["b"][0])
    assert log["b"][1:] == [2.0, 0.0]


def test_an_empty_metric_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")

    assert read_metric_log(tmp_path / "metrics.jsonl") == {}


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9, "losses/mse_loss": 2.0}\n{"step": 19, "losses/mse')

    assert read_metric_log(path) == {"step": [9], "losses/mse_loss": [2.0]}
