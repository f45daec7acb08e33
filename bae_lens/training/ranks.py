"""SAELens' trainer on several ranks: every step is one of the global batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens.distributed import (
    all_gather_objects,
    all_gather_rows,
    all_mean,
    all_sum,
    broadcast,
    n_ranks,
    own_slice,
    sum_gradients,
)
from bae_lens.nn import widened


def train_on_ranks(trainer: SAETrainer[Any, Any], *, is_logged: bool = True) -> None:
    """Let this trainer take the steps that one process would take on the rows of all ranks.

    To be called on every rank, after ``skip_steps_not_finite`` and before a log is attached; where there is one
    rank, nothing is changed. All numbers of ``trainer.cfg`` are those of the whole run
    (``train_batch_size_samples`` is the global batch), and each rank's data provider gives its own share of every
    batch: of n rows the r-th of R ranks has those from r·n/R on. What ranks then have in common, to the bit:

    * weights: rank 0's at the start, and the same gradient in every step, summed over ranks before it is clipped;
    * ``n_training_samples``, ``act_freq_scores``, ``n_forward_passes_since_fired`` (and so the dead mask), which
      count the tokens of all ranks, and the scale or whitening, estimated from all ranks' batches;
    * with ``is_logged``, what ``build_train_step_log_dict`` gives in the steps that
      ``cfg.logger.wandb_log_frequency`` names: figures of the global batch, which any rank may ask for, any
      number of times. In no other step is it to be asked on some ranks only.

    An architecture whose class says ``computes_global_loss`` gives the loss of the global batch itself. Of any
    other the loss is the mean over ranks, which is exact where it is a mean over tokens; the top k of a batch
    (BatchTopK) are taken among each rank's rows, and its running threshold is the mean over ranks.

    Args:
        trainer: at the step that it begins with.
        is_logged: whether anybody reads the log.

    Raises:
        ValueError: on every rank, if the autoencoders are not of the same class and shapes, or the batch cannot
            be divided.
    """
    if n_ranks() == 1:
        return
    own_slice(trainer.cfg.train_batch_size_samples)
    _check_alike(trainer.sae)
    with torch.no_grad():
        for tensor in (*trainer.sae.parameters(), *trainer.sae.buffers()):
            tensor.copy_(broadcast(tensor))
    take_step, train_step = trainer.step, trainer._train_step
    log_dict, every = trainer.build_train_step_log_dict, trainer.cfg.logger.wandb_log_frequency
    kept: tuple[weakref.ref[TrainStepOutput], dict[str, Any]] | None = None

    def is_logging_step() -> bool:
        return is_logged and (trainer.n_training_steps + 1) % every == 0

    @wraps(take_step)
    def step(batch: Tensor) -> TrainStepOutput:
        _check_share(trainer, batch)
        trainer.n_training_samples += len(batch) * (n_ranks() - 1)
        return take_step(batch)

    @wraps(train_step)
    def train_step_of_global_batch(sae: Any, sae_in: Tensor) -> TrainStepOutput:
        nonlocal kept
        counts = trainer.act_freq_scores
        trainer.act_freq_scores = torch.zeros_like(counts)
        try:
            with _global_gradient(sae):
                output = train_step(sae=sae, sae_in=sae_in)
            fired = all_sum(trainer.act_freq_scores)
        finally:
            trainer.act_freq_scores = counts
        counts += fired
        trainer.n_forward_passes_since_fired.masked_fill_(fired > 0, 0)
        if not _computes_global_loss(sae):
            _average_buffers(sae)
        if is_logging_step():
            logged = log_dict(output=output, n_training_samples=trainer.n_training_samples)
            kept = weakref.ref(output), _of_global_batch(logged, output, sae)
        return output

    @wraps(log_dict)
    def log_dict_of_global_batch(
        output: TrainStepOutput, n_training_samples: int
    ) -> dict[str, Any]:
        if kept is not None and kept[0]() is output:
            return dict(kept[1])
        return log_dict(output=output, n_training_samples=n_training_samples)

    trainer.step = step
    trainer._train_step = train_step_of_global_batch
    trainer.build_train_step_log_dict = log_dict_of_global_batch
    # Some architectures compute a metric only where SAELens says that it will be logged.
    trainer._is_logging_step = is_logging_step


def _computes_global_loss(sae: Any) -> bool:
    return getattr(sae, "computes_global_loss", False)


def _check_alike(sae: Any) -> None:
    tensors = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    own = (type(sae).__name__, [(n, tuple(t.shape), str(t.dtype)) for n, t in tensors.items()])
    for r, other in enumerate(every := all_gather_objects(own)):
        if other != every[0]:
            raise ValueError(
                f"All processes must train the same autoencoder; rank 0 has a {every[0][0]} of "
                f"{every[0][1]}, rank {r} a {other[0]} of {other[1]}. Start all of them with one config."
            )


def _check_share(trainer: SAETrainer[Any, Any], batch: Tensor) -> None:
    # No collective is worth it every step: a rank with another number of rows stops here, and the others
    # with it.
    share = trainer.cfg.train_batch_size_samples // n_ranks()
    if len(batch) != share:
        raise ValueError(
            f"Each of {n_ranks()} processes must have {share} of the {share * n_ranks()} rows of a training "
            f"batch (train_batch_size_tokens); this one got {len(batch)}."
        )


@contextmanager
def _global_gradient(sae: Any) -> Iterator[None]:
    """While inside, the backward pass of a training step ends with the gradients of all ranks, summed."""
    forward, overridden = sae.training_forward_pass, vars(sae).get("training_forward_pass")

    def sum_at_the_end(gradient: Tensor) -> None:  # noqa: ARG001
        # Torch's own parallel modules do so: there is no other way in between backward and clipping.
        torch.autograd.Variable._execution_engine.queue_callback(
            lambda: sum_gradients(sae.parameters())
        )

    def forward_on_ranks(*args: Any, **kwargs: Any) -> TrainStepOutput:
        output = forward(*args, **kwargs)
        if not _computes_global_loss(sae):
            output.loss = all_mean(output.loss)
        output.loss.register_hook(sum_at_the_end)
        return output

    sae.training_forward_pass = forward_on_ranks
    try:
        yield
    finally:
        if overridden is None:
            del sae.training_forward_pass
        else:  # compiled, or somebody else's
            sae.training_forward_pass = overridden


@torch.no_grad()
def _average_buffers(sae: Any) -> None:
    """What an architecture that knows nothing of ranks keeps of its batches (BatchTopK's threshold)."""
    for buffer in sae.buffers():
        if buffer.is_floating_point():
            buffer.copy_(all_mean(buffer))


@torch.no_grad()
def _of_global_batch(logged: dict[str, Any], output: TrainStepOutput, sae: Any) -> dict[str, Any]:
    """SAELens' figures of a step, of the rows of all ranks instead of one's own."""
    x, out = (widened(t).flatten(0, -2) for t in (output.sae_in, output.sae_out))
    squared_error = (out - x).square().sum(-1)
    variance = (x - all_mean(x.mean(0))).square().sum(-1)
    acts = output.feature_acts
    l0 = acts.bool().float().sum(-1).to_dense().flatten().to(x.dtype)
    rows = all_gather_rows(torch.stack([squared_error, variance, l0], 1))
    squared_error, variance, l0 = rows.unbind(1)
    per_token = 1 - squared_error / variance
    figures = {
        "metrics/explained_variance": 1 - squared_error.mean() / variance.mean(),
        "metrics/explained_variance_legacy": per_token.mean(),
        "metrics/explained_variance_legacy_std": per_token.std(),
        "metrics/l0": l0.mean(),
    }
    logged = logged | {name: figure.item() for name, figure in figures.items()}
    if not _computes_global_loss(sae):
        own = [n for n in logged if n.startswith(("losses/", "metrics/")) and n not in figures]
        values = torch.tensor([logged[n] for n in own], dtype=torch.float64, device=x.device)
        logged |= dict(zip(own, all_mean(values).tolist(), strict=True))
    return logged
