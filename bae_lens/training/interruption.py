"""Stop signals that take effect between two training steps."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens.distributed import any_soon, n_ranks

logger = logging.getLogger(__name__)

# What an ended terminal or ssh session sends is the last of them; Windows has none.
_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
# The third is from somebody whom the step's end does not come soon enough for.
_MOST_SIGNALS = 2


class StoppedBetweenSteps(InterruptedException):
    """Everything is as the last step left it: a checkpoint written now is exact."""


@contextmanager
def stop_between_steps(trainer: SAETrainer[Any, Any]) -> Iterator[None]:
    """While inside, let SIGINT, SIGTERM and SIGHUP end ``trainer.fit()`` at the end of a step.

    SAELens raises wherever the signal finds it, which may be after a batch was counted and before
    it was trained on, or while a file is written. Here the step is finished first, and whatever
    follows the last step is finished too, so that a checkpoint written afterwards is one that the run
    can go on from exactly. A second signal changes nothing; a third raises at once, as does the
    first one before the first step: then no state is there that could be saved. Outside the main
    thread, where no signal arrives, nothing is changed, nor for a signal that the process ignores
    (nohup); afterwards the handlers are those of before. A signal to one rank stops all of them at the
    same step, the one after it.

    Raises:
        StoppedBetweenSteps: out of ``trainer.fit()``, at the end of a step.
        InterruptedException: SAELens' own, from anywhere.
    """
    # fit() calls it first thing in every step, before it takes a batch.
    begin_step = trainer.maybe_reset_sparsity
    is_training = False
    n_signals = 0
    is_asked: Callable[[], bool] | None = None

    def is_to_stop() -> bool:
        nonlocal is_asked
        if n_ranks() == 1:
            return n_signals > 0
        # What was asked at the step before is known by now, and waiting for it costs nothing.
        if is_asked is not None and is_asked():
            return True
        is_asked = any_soon(n_signals > 0)
        return False

    def begin_step_unless_stopped() -> dict[str, Any]:
        nonlocal is_training
        is_training = True
        if is_to_stop():
            raise StoppedBetweenSteps
        return begin_step()

    def on_signal(signal_number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal n_signals
        n_signals += 1
        if n_signals > _MOST_SIGNALS or not is_training:
            raise InterruptedException
        logger.warning(
            "Stopping after this training step. A third signal stops at once, and saves nothing."
            if n_signals == 1
            else "Still stopping; one more signal stops at once, and saves nothing."
        )

    is_heard = threading.current_thread() is threading.main_thread()
    if not is_heard and n_ranks() == 1:
        yield
        return
    previous = {
        number: signal.signal(number, on_signal)
        for number in (_SIGNALS if is_heard else ())
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    trainer.maybe_reset_sparsity = begin_step_unless_stopped
    try:
        yield
    finally:
        trainer.maybe_reset_sparsity = begin_step
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
