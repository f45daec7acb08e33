"""Stop signals that take effect between two training steps."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_between_steps(trainer: SAETrainer[Any, Any]) -> Iterator[None]:
    """While inside, let SIGINT and SIGTERM end ``trainer.fit()`` at the end of a step.

    SAELens raises wherever the signal finds it, which may be after a batch was counted and before
    it was trained on. Here the step is finished first, so that a checkpoint written afterwards is
    one that the run can go on from exactly. Before the first step, and on a second signal, it
    raises at once. Outside the main thread, where no signal arrives, nothing is changed; afterwards
    the handlers are those of before.

    Raises:
        InterruptedException: SAELens' own, out of ``trainer.fit()``.
    """
    # fit() calls it first thing in every step, before it takes a batch.
    begin_step = trainer.maybe_reset_sparsity
    is_training = is_requested = False

    def begin_step_unless_stopped() -> dict[str, Any]:
        nonlocal is_training
        is_training = True
        if is_requested:
            raise InterruptedException
        return begin_step()

    def on_signal(signal_number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal is_requested
        if is_requested or not is_training:
            raise InterruptedException
        is_requested = True
        logger.warning("Stopping after this training step; a second signal stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    trainer.maybe_reset_sparsity = begin_step_unless_stopped
    try:
        yield
    finally:
        trainer.maybe_reset_sparsity = begin_step
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
