"""Training steps that are not finite change nothing."""

from __future__ import annotations

import logging
import math
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

from bae_lens.checks.finite import check_finite_weights, check_trainable
from bae_lens.distributed import all_gather_objects, all_gather_rows, all_sum

logger = logging.getLogger(__name__)

SKIPPED_KEY = "details/n_skipped_steps"
# In a row: it is not one bad text then, and nothing will be learned any more.
_MOST_IN_A_ROW = 10
# Of all steps.
_MOST_SHARE = 0.01
_STATISTICS = ("n_forward_passes_since_fired", "act_freq_scores", "n_frac_active_samples")
# Whether buffers that are put back had been set: told by these, so that no step asks the device.
_FLAGS = ("is_calibrated", "_is_calibrated")


class NotFiniteError(ValueError):
    """Too many training steps were not finite."""


def skip_steps_not_finite(trainer: SAETrainer[Any, Any]) -> None:
    """Skip and count each step of this trainer whose loss or gradient is NaN or infinite.

    Such a step leaves no trace: the weights, the optimizer's moments, the autoencoder's buffers
    (running rates, a codebook's means, a budget's coefficient) and SAELens' own statistics are those
    of before. It counts as a step all the same, so that a run has the length and the schedules that
    it was given. The log has the number of steps skipped so far as ``details/n_skipped_steps``,
    counted from where this trainer began. One number per step is waited for.

    Batches that are not finite are left out of the trainer's estimate of scale or whitening too, and
    it writes no checkpoint of weights that are not finite.

    On several ranks a step is skipped on all of them if it is not finite on any, and the estimate is made of
    all ranks' rows, gathered.

    Raises:
        ValueError: at once, for weights that are NaN or infinite already or in float16, and for a
            learning rate that is not finite.
        NotFiniteError: out of the trainer's step, and of its estimate of scale: after ten such steps
            or batches in a row, or when steps are more than ten and 1 % of all.
    """
    check_trainable(trainer.sae.dtype, trainer.cfg.lr, trainer.cfg.lr_end)
    check_finite_weights(trainer.sae, "the autoencoder that is to be trained")
    guard = _Guard(trainer)
    train_step, optimizer_step = trainer._train_step, trainer.optimizer.step
    log_dict, save = trainer.build_train_step_log_dict, trainer.save_checkpoint

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

    @wraps(save)
    def save_if_finite(*args: Any, **kwargs: Any) -> None:
        check_finite_weights(trainer.sae, "the autoencoder in training")
        save(*args, **kwargs)

    for name in ("estimate_scaling_factor", "estimate_whitening"):
        setattr(
            trainer.activation_scaler, name, _of_finite_batches(trainer.activation_scaler, name)
        )
    trainer.save_checkpoint = save_if_finite
    trainer._train_step = step
    trainer.optimizer.step = step_if_finite
    trainer.build_train_step_log_dict = log_dict_with_count


@contextmanager
def trainers_that_skip(
    module: Any, prepare: Callable[[SAETrainer[Any, Any]], None] | None = None
) -> Iterator[None]:
    """While inside, let a module of SAELens that makes its own trainer make one that skips.

    Its runners for synthetic data hand their trainer to nobody before it trains.

    Args:
        module: of SAELens.
        prepare: what else is done to a trainer before it trains.
    """

    class SkippingTrainer(SAETrainer[Any, Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            skip_steps_not_finite(self)
            if prepare is not None:
                prepare(self)

    trainer_class = module.SAETrainer
    module.SAETrainer = SkippingTrainer
    try:
        yield
    finally:
        module.SAETrainer = trainer_class


@contextmanager
def _outputs_seen(sae: Any, see: Callable[[TrainStepOutput], None]) -> Iterator[None]:
    """Show what ``training_forward_pass`` gives, before it is taken backward."""
    forward, overridden = sae.training_forward_pass, vars(sae).get("training_forward_pass")

    def forward_and_show(*args: Any, **kwargs: Any) -> TrainStepOutput:
        output = forward(*args, **kwargs)
        see(output)
        return output

    sae.training_forward_pass = forward_and_show
    try:
        yield
    finally:
        if overridden is None:
            del sae.training_forward_pass
        else:  # compiled, or somebody else's
            sae.training_forward_pass = overridden


def _of_finite_batches(scaler: Any, name: str) -> Callable[..., None]:
    """An estimate of SAELens' scaler from the batches that are finite."""
    estimate = getattr(scaler, name)

    @wraps(estimate)
    def estimate_from(
        d_in: int, data_provider: Iterator[Tensor], *args: Any, **kwargs: Any
    ) -> None:
        try:
            estimate(d_in, _FiniteBatches(data_provider), *args, **kwargs)
        except ZeroDivisionError:
            scaler.scaling_factor = 0.0
        factor = scaler.scaling_factor
        if factor is not None and not (math.isfinite(factor) and factor > 0):
            scaler.scaling_factor = None
            raise NotFiniteError(
                f"The activations' mean norm, by which they are scaled, is {'0' if factor == 0.0 else factor} "
                "or beyond what float32 holds. Look at the activations at the hook point."
            )

    return estimate_from


class _FiniteBatches:
    """A data provider without its batches that have NaN or infinity, each with the rows of all ranks."""

    def __init__(self, batches: Iterator[Tensor]) -> None:
        self._batches = batches

    def __iter__(self) -> _FiniteBatches:
        return self

    def __next__(self) -> Tensor:
        for _ in range(_MOST_IN_A_ROW):
            batch = all_gather_rows(next(self._batches))
            if batch.isfinite().all():
                return batch
            logger.warning("A batch with NaN or infinity is left out of the estimate of the scale.")
        raise NotFiniteError(
            f"{_MOST_IN_A_ROW} batches in a row have NaN or infinite activations, from which no scale can "
            "be estimated. Look at the activations at the hook point, or read them in a wider dtype."
        )


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
        self.flags = {
            name: getattr(trainer.sae, name) for name in _FLAGS if hasattr(trainer.sae, name)
        }
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
        for name, value in self.flags.items():
            setattr(self.trainer.sae, name, value)
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
        # Gradients are those of all ranks; a loss need not be.
        self._was_finite = bool(all_sum(total).isfinite())
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
        what = _on_ranks(*self._what(sae_in, output))
        if self.n_in_a_row < _MOST_IN_A_ROW and self.n_skipped <= self.most:
            logger.warning("Step %d is skipped: %s.", number, what)
            return
        raise NotFiniteError(
            f"Training stopped at step {number}: {what}. {self.n_skipped} steps were not finite and "
            f"were skipped, {self.n_in_a_row} of them in a row. {_last_checkpoint(self.trainer)} Look "
            "at the activations at the hook point, lower lr or the coefficients, or train in a wider "
            "dtype."
        )

    def _what(self, sae_in: Tensor, output: TrainStepOutput) -> tuple[bool, str]:
        """Whether it is the activations, and what there is to say."""
        bad = ~sae_in.isfinite()
        if bad.any():
            rows = int(bad.flatten(0, -2).any(-1).sum())
            return True, f"{rows} of its {len(sae_in)} activations are NaN or infinite"
        for name, loss in {**output.losses, "loss": output.loss}.items():
            if not torch.as_tensor(loss).isfinite().all():
                return False, f"{name} is {torch.as_tensor(loss).float().mean().item()}"
        return False, f"the gradient of {self._bad_gradient} is NaN or infinite"


def _on_ranks(is_bad: bool, what: str) -> str:
    """What was not finite, on the ranks where that was the activations; else what this one has seen."""
    every = all_gather_objects((is_bad, what))
    if len(every) == 1 or not any(bad for bad, _ in every):
        return what
    return "; ".join(f"on rank {r}, {said}" for r, (bad, said) in enumerate(every) if bad)


def _last_checkpoint(trainer: SAETrainer[Any, Any]) -> str:
    folder = trainer.cfg.checkpoint_path
    states = [] if folder is None else list(Path(folder).glob(f"*/{TRAINER_STATE_FILENAME}"))
    if not states:
        return "There is no checkpoint to go back to (n_checkpoints)."
    last = max(states, key=lambda path: path.stat().st_mtime).parent
    return f"The last checkpoint is {last}."
