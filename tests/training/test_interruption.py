from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens import TrainingBAE
from bae_lens.training.interruption import StoppedBetweenSteps, stop_between_steps
from tests.helpers import BATCH, batches_of, make_activations, trainer_cfg, training_cfg

N_STEPS = 6


def make_trainer(at_step: Callable[[int], None] = lambda step: None) -> SAETrainer[Any, Any]:
    """A trainer that calls ``at_step`` with the step's number in the middle of every step."""
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(normalize_activations="none"))
    forward = sae.training_forward_pass

    def forward_and_call(step_input: Any) -> Any:
        at_step(step_input.n_training_steps)
        return forward(step_input)

    sae.training_forward_pass = forward_and_call
    data = batches_of(make_activations(512))
    return SAETrainer(trainer_cfg(N_STEPS, lr_end=1e-4), sae, data)


def kill_at(step: int, number: int = signal.SIGINT, times: int = 1) -> Callable[[int], None]:
    def at_step(current: int) -> None:
        for _ in range(times if current == step else 0):
            os.kill(os.getpid(), number)

    return at_step


@pytest.fixture
def hears_hang_ups() -> Iterator[None]:
    """SIGHUP as it is by default: under nohup it is ignored, and left so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hang_ups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_step_is_finished_first(number: int):
    trainer = make_trainer(kill_at(3, number))
    with pytest.raises(InterruptedException), stop_between_steps(trainer):
        trainer.fit()
    assert trainer.n_training_steps == 4
    assert trainer.n_training_samples == 4 * BATCH
    assert trainer.sae.n_updates == 4


@pytest.mark.parametrize("times", [1, 2])
def test_a_second_signal_changes_nothing(times: int):
    trainer = make_trainer(kill_at(3, times=times))
    with pytest.raises(StoppedBetweenSteps), stop_between_steps(trainer):
        trainer.fit()
    assert trainer.n_training_steps == trainer.sae.n_updates == 4


def test_a_third_signal_stops_at_once_and_says_that_the_state_is_of_no_step():
    trainer = make_trainer(kill_at(3, times=3))
    with pytest.raises(InterruptedException) as caught, stop_between_steps(trainer):
        trainer.fit()
    assert not isinstance(caught.value, StoppedBetweenSteps)
    assert trainer.n_training_steps == 3
    assert trainer.sae.n_updates == 3


def test_signals_after_the_last_step_wait_for_what_follows():
    done = []
    with stop_between_steps(trainer := make_trainer()):
        trainer.fit()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        done.append("saved")
    assert done == ["saved"]


def test_before_the_first_step_there_is_nothing_to_finish():
    with pytest.raises(InterruptedException) as caught, stop_between_steps(make_trainer()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not isinstance(caught.value, StoppedBetweenSteps)


def test_in_the_last_step_the_run_is_completed():
    trainer = make_trainer(kill_at(N_STEPS - 1))
    with stop_between_steps(trainer):
        trainer.fit()
    assert trainer.n_training_steps == N_STEPS


def test_handlers_and_trainer_are_left_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer = make_trainer(kill_at(1))
    with pytest.raises(InterruptedException), stop_between_steps(trainer):
        trainer.fit()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    trainer.fit()
    assert trainer.n_training_steps == N_STEPS


def test_it_does_nothing_in_another_thread():
    trainer = make_trainer()

    def fit() -> None:
        with stop_between_steps(trainer):
            trainer.fit()

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert trainer.n_training_steps == N_STEPS
