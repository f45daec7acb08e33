"""Training metrics as JSON lines: what SAELens sends to W&B, kept where there is no W&B."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens.strict_json import finite_or_none


class MetricLog:
    """A JSONL file with one object every so many training steps.

    Each object holds ``step``, as W&B counts it (steps done before this one), and everything that
    ``SAETrainer.build_train_step_log_dict`` gives under SAELens' names: losses, explained variance,
    L0, learning rate and coefficients, tokens so far (``details/n_training_samples``), and the
    architecture's own metrics (``metrics/entropy`` …). A number that is not finite is null. Every
    line is on disk when the step that it describes is over.

    Args:
        path: of the file; its folder is made when the first line is written.
        every: steps between two lines. SAELens' ``logger.wandb_log_frequency`` gives lines on the
            very steps that it sends to W&B.

    Raises:
        ValueError: if ``every`` is not positive.
    """

    def __init__(self, path: str | Path, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every must be a positive number of steps; got {every}.")
        self.path = Path(path)
        self.every = every

    def attach(self, trainer: SAETrainer[Any, Any]) -> None:
        """Write whenever this trainer has taken a logging step, from the step it is now at.

        A new run empties the file. A run resumed at step n keeps the lines of the steps before n;
        those after it, written by a run that went on beyond its last checkpoint, are dropped.
        """
        self._keep_before(trainer.n_training_steps)
        take_step = trainer.step

        def is_logging_step() -> bool:
            return (trainer.n_training_steps + 1) % self.every == 0

        @wraps(take_step)
        def step(batch: torch.Tensor) -> TrainStepOutput:
            output = take_step(batch)
            if is_logging_step():
                metrics = trainer.build_train_step_log_dict(
                    output=output, n_training_samples=trainer.n_training_samples
                )
                self.write(trainer.n_training_steps, metrics)
            return output

        trainer.step = step
        if not trainer.cfg.logger.log_to_wandb:
            # Some architectures compute a metric only where SAELens says that it will be logged.
            trainer._is_logging_step = is_logging_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line."""
        line = {"step": step} | {name: finite_or_none(value) for name, value in metrics.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Opened anew each time: nothing is left in a buffer by a run that is killed.
        with self.path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _keep_before(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = self.path.with_name(self.path.name + ".tmp")
        kept.write_text("".join(line for line in lines if _step_of(line) < step))
        kept.replace(self.path)


def _step_of(line: str) -> float:
    """The line's step; infinity for one that was cut off when its run was killed."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
