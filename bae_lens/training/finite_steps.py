"""Training steps that are not finite change nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import TRAINER_STATE_FILENAME
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

logger = logging.getLogger(__name__)

SKIPPED_KEY = "details/n_skipped_steps"
# In a row: it is not one bad text then, and nothing will be learned any more.
_MOST_IN_A_ROW = 10
# Of all steps.
_MOST_SHARE = 0.01
_STATISTICS = ("n_forward_passes_since_fired", "act_freq_scores", "n_frac_active_samples")


class NotFiniteError(ValueError):
    """Too many training steps were not finite."""


def skip_steps_not_finite(trainer: SAETrainer[Any, Any]) -> None:
    """Skip and count each step of this trainer whose loss or gradient is NaN or infinite.

    Such a step leaves no trace: the weights, the optimizer's moments, the autoencoder's buffers
    (running rates, a codebook's means, a budget's coefficient) and SAELens' own statistics are those
    of before. It counts as a step all the same, so that a run has the length and the schedules that
    it was given. The log has the number of steps skipped so far as ``details/n_skipped_steps``. One
    number a step is waited for.

    Raises:
        NotFiniteError: out of the trainer's step: after ten such steps in a row, or when they are
            more than ten and 1 % of all.
    """
    guard = _Guard(trainer)
    train_step, optimizer_step = trainer._train_step, trainer.optimizer.step
    log_dict = trainer.build_train_step_log_dict

    @wraps(train_step)
    def step(sae: Any, sae_in: Tensor) -> TrainStepOutput:
        guard.keep()
        with _outputs_seen(sae, guard.see):
            output = train_step(sae, sae_in)
        guard.judge(sae_in, output)
        return output

    @wraps(optimizer_step)
    def step_if_finite(*args: Any, **kwargs: Any) -> Any:
        return optimizer_step(*args, **kwargs) if guard.is_finite() else None

    @wraps(log_dict)
    def log_dict_with_count(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return log_dict(*args, **kwargs) | {SKIPPED_KEY: guard.n_skipped}

    trainer._train_step = step
    trainer.optimizer.step = step_if_finite
    trainer.build_train_step_log_dict = log_dict_with_count


@contextmanager
def _outputs_seen(sae: Any, see: Callable[[TrainStepOutput], None]) -> Iterator[None]:
    """Show what ``training_forward_pass`` gives, before it is taken backward."""
    forward, own = sae.training_forward_pass, vars(sae).get("training_forward_pass")

    def forward_and_show(*args: Any, **kwargs: Any) -> TrainStepOutput:
        output = forward(*args, **kwargs)
        see(output)
        return output

    sae.training_forward_pass = forward_and_show
    try:
        yield
    finally:
        if own is None:
            del sae.training_forward_pass
        else:  # compiled, or somebody else's
            sae.training_forward_pass = own


class _Guard:
    """What a step may change without the optimizer, as it was before."""

    def __init__(self, trainer: SAETrainer[Any, Any]) -> None:
        self.trainer = trainer
        self.n_skipped = self.n_in_a_row = 0
        n_steps = trainer.cfg.total_training_samples // trainer.cfg.train_batch_size_samples
        self.most = max(_MOST_IN_A_ROW, int(_MOST_SHARE * n_steps))
        self._loss: Tensor | None = None
        self._was_finite = True
        self._bad_gradient = ""

    @torch.no_grad()
    def keep(self) -> None:
        trainer = self.trainer
        self.buffers = {name: b.clone() for name, b in trainer.sae.named_buffers()}
        self.statistics = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name in _STATISTICS
            for value in (getattr(trainer, name),)
        }

    @torch.no_grad()
    def restore(self) -> None:
        # In place: the autoencoder, or something compiled, may hold on to the tensor.
        for name, buffer in self.trainer.sae.named_buffers():
            if name in self.buffers:
                buffer.copy_(self.buffers[name])
        for name, value in self.statistics.items():
            setattr(self.trainer, name, value)

    def see(self, output: TrainStepOutput) -> None:
        self._loss = output.loss.detach()

    def is_finite(self) -> bool:
        """Loss and gradients, once they are clipped: by an infinite norm, which leaves NaN behind."""
        named = [(n, p.grad) for n, p in self.trainer.sae.named_parameters() if p.grad is not None]
        total = torch.nn.utils.get_total_norm([gradient for _, gradient in named])
        if self._loss is not None:
            total = total + self._loss.float()
        self._was_finite = bool(total.isfinite())
        self._bad_gradient = ""
        if not self._was_finite:
            self._bad_gradient = next((n for n, g in named if not g.isfinite().all()), "")
        return self._was_finite

    def judge(self, sae_in: Tensor, output: TrainStepOutput) -> None:
        """Count a step that was not finite, and undo it."""
        if self._was_finite:
            self.n_in_a_row = 0
            return
        self.restore()
        self.n_skipped += 1
        self.n_in_a_row += 1
        number = self.trainer.n_training_steps + 1
        what = self._what(sae_in, output)
        if self.n_in_a_row < _MOST_IN_A_ROW and self.n_skipped <= self.most:
            logger.warning("Step %d is skipped: %s.", number, what)
            return
        raise NotFiniteError(
            f"Training stopped at step {number}: {what}. {self.n_skipped} steps were not finite and "
            f"were skipped, {self.n_in_a_row} of them in a row. {_last_checkpoint(self.trainer)} Look "
            "at the activations at the hook point, lower lr or the coefficients, or train in a wider "
            "dtype."
        )

    def _what(self, sae_in: Tensor, output: TrainStepOutput) -> str:
        bad = ~sae_in.isfinite()
        if bad.any():
            rows = int(bad.flatten(0, -2).any(-1).sum())
            return f"{rows} of its {len(sae_in)} activations are NaN or infinite"
        for name, loss in {**output.losses, "loss": output.loss}.items():
            if not torch.as_tensor(loss).isfinite().all():
                return f"{name} is {torch.as_tensor(loss).float().mean().item()}"
        return f"the gradient of {self._bad_gradient} is NaN or infinite"


def _last_checkpoint(trainer: SAETrainer[Any, Any]) -> str:
    folder = trainer.cfg.checkpoint_path
    found = [] if folder is None else list(Path(folder).glob(f"*/{TRAINER_STATE_FILENAME}"))
    if not found:
        return "There is no checkpoint to go back to (n_checkpoints)."
    last = max(found, key=lambda path: path.stat().st_mtime).parent
    return f"The last checkpoint is {last}."
