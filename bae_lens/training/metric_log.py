"""Training metrics as JSON lines: what SAELens sends to W&B, kept where there is no W&B."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens.checks.fields import check, whole
from bae_lens.checks.typed import check_types
from bae_lens.distributed import n_ranks
from bae_lens.files.json_file import finite_or_none, parse_json
from bae_lens.files.whole import write_text

logger = logging.getLogger(__name__)


class MetricLog:
    """A JSONL file with one object every so many training steps.

    Each object holds ``step``, as W&B counts it (steps done before this one), and everything that
    ``SAETrainer.build_train_step_log_dict`` gives under SAELens' names: losses, explained variance,
    L0, learning rate and coefficients, tokens so far (``details/n_training_samples``), and the
    architecture's own metrics (``metrics/entropy`` …). A number that is not finite is null. Every
    line is on disk when the step that it describes is over.

    Two more say where the time goes, in tokens per second over the steps since the line before:

    * ``performance/store_tokens_per_second``, by the time in which batches were got: the language
      model's, unless activations are replayed; with ``prefetch_llm_batches`` what is left of it to
      wait for. W&B's sparsity log is in it too, once in ``feature_sampling_window`` steps.
    * ``performance/trainer_tokens_per_second``, by the time in ``trainer.step``.

    Evals, checkpoints and this log itself count for neither. A CUDA device works through a queue: a
    step's time is what queueing its work took, and waiting, which may be for work queued by the
    other of the two. Only the step of a line waits for the queue to be empty, as its metrics do
    anyway, so the two times together are right over a line and their division is not the device's.
    On several ranks the tokens are those of all, by rank 0's time.
    A figure is left out where nothing was timed, as when ``step`` is called by other than ``fit``.

    Args:
        path: of the file; its folder is made when the first line is written.
        every: steps between two lines. SAELens' ``logger.wandb_log_frequency`` gives lines on the
            very steps that it sends to W&B.

    Raises:
        ValueError: if ``every`` is not positive.
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        self.path = Path(path)
        self.every = check("every", every, whole(1))
        self._has_failed = False

    def attach(self, trainer: SAETrainer[Any, Any], earlier: str | Path | None = None) -> None:
        """Write whenever this trainer has taken a logging step, from the step it is now at.

        A new run empties the file. A run resumed at step n keeps the lines of the steps before n;
        those after it, written by a run that went on beyond its last checkpoint, are dropped.

        Args:
            trainer: at the step that it begins with.
            earlier: file with the lines of the steps before; the log itself, if omitted.
        """
        self._keep_before(trainer.n_training_steps, Path(earlier or self.path))
        # fit() calls the one first thing in every step, then takes a batch, then calls the other.
        begin_step, take_step = trainer.maybe_reset_sparsity, trainer.step
        stopwatch = _Stopwatch()

        def is_logging_step() -> bool:
            return (trainer.n_training_steps + 1) % self.every == 0

        @wraps(begin_step)
        def begin_step_and_read() -> dict[str, Any]:
            sparsity = begin_step()
            stopwatch.start()
            return sparsity

        @wraps(take_step)
        def step(batch: torch.Tensor) -> TrainStepOutput:
            stopwatch.stop("store", len(batch) * n_ranks())
            stopwatch.start()
            output = take_step(batch)
            if is_logging_step():
                # Waits for the device, whose work is only queued so far.
                output.loss.item()
            stopwatch.stop("trainer", len(batch) * n_ranks())
            if is_logging_step():
                metrics = trainer.build_train_step_log_dict(
                    output=output, n_training_samples=trainer.n_training_samples
                )
                self.write(trainer.n_training_steps, metrics | stopwatch.tokens_per_second())
            return output

        trainer.maybe_reset_sparsity = begin_step_and_read
        trainer.step = step
        if not trainer.cfg.logger.log_to_wandb:
            # Some architectures compute a metric only where SAELens says that it will be logged.
            trainer._is_logging_step = is_logging_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. Where it cannot be written (a full disk), that is logged and training goes on."""
        line = {"step": step} | {name: finite_or_none(value) for name, value in metrics.items()}
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew each time: nothing is left in a buffer by a run that is killed.
            with self.path.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            if not self._has_failed:
                logger.warning("Metrics cannot be written to %s: %s.", self.path, error)
            self._has_failed = True
            with suppress(OSError):  # Half a line, which the next one would be joined to.
                os.truncate(self.path, size)

    def _keep_before(self, step: int, earlier: Path) -> None:
        if not earlier.exists():
            return
        lines = earlier.read_text("utf-8", "replace").splitlines(keepends=True)
        write_text(self.path, "".join(line for line in lines if _step_of(line) < step))


def read_metric_log(path: str | Path) -> dict[str, list[float]]:
    """Read a training run's ``metrics.jsonl`` as columns, NaN where a line lacks a value.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no object of numbers by name. The last one may be cut short, of a run
            that was killed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    rows: list[dict[str, float | None]] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            row = parse_json(line)
            check_types(row, dict[str, float | None], "what it holds")
        except ValueError as error:
            raise ValueError(
                f"{path} is no log of a training run: line {number} is no object of numbers by name "
                f"({str(error).removesuffix('.')})."
            ) from error
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: [math.nan if (value := row.get(name)) is None else value for row in rows]
        for name in names
    }


class _Stopwatch:
    """Tokens per second of several kinds of work that take turns."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._done: dict[str, tuple[int, float]] = {}  # kind → tokens, seconds

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, kind: str, n_tokens: int) -> None:
        """Count the time since the start for a kind of work; nothing where there was no start."""
        if self._started is None:
            return
        tokens, seconds = self._done.get(kind, (0, 0.0))
        seconds += time.perf_counter() - self._started
        self._done[kind] = tokens + n_tokens, seconds
        self._started = None

    def tokens_per_second(self) -> dict[str, float]:
        """Throughput since the last call, by its name in the log."""
        done, self._done = self._done, {}
        return {
            f"performance/{kind}_tokens_per_second": tokens / seconds
            for kind, (tokens, seconds) in done.items()
            if seconds > 0
        }


def _step_of(line: str) -> float:
    """The line's step; infinity for one that was cut off when its run was killed, or is of no log."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
