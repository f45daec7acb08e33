"""SAELens' trainer on activations that are in memory already."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens.activations.replay import ReplayedActivations
from bae_lens.checks.fields import Number, check, positive, shown, whole
from bae_lens.checks.finite import check_finite_weights, check_trainable
from bae_lens.loading.devices import check_device
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.ranks import train_on_ranks


def trainer_config(
    steps: int,
    batch_size: int,
    lr: float,
    device: str = "cpu",
    warm_up: float = 0.0,
    decay: float = 0.2,
) -> SAETrainerConfig:
    """SAELens' trainer without checkpoints and W&B.

    Adam at a rate that rises over the first ``warm_up`` of the steps, is constant, and falls to a tenth over
    the last ``decay`` of them; both are shares of ``steps``.
    """
    return SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * batch_size,
        device=device,
        autocast=False,
        lr=lr,
        lr_end=lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=int(warm_up * steps),
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=int(decay * steps),
        n_restart_cycles=1,
        train_batch_size_samples=batch_size,
        dead_feature_window=64,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=8,
    )


def fit_activations(
    cfg: TrainingSAEConfig,
    activations: Tensor,
    steps: int,
    batch_size: int = 1024,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    warm_up: float = 0.0,
    decay: float = 0.2,
) -> TrainingSAE[Any]:
    """Train an autoencoder of any registered architecture, as SAELens' runner would.

    With the settings of ``trainer_config``. The scale of the inputs is folded in at the end. In a process group
    every rank gives the same arguments and takes its own rows of each batch; all return the same autoencoder.

    Args:
        cfg: what to train.
        activations: ``[n, d_in]``, replayed in shuffled epochs.
        steps: optimizer steps.
        batch_size: activations a step.
        lr: learning rate.
        seed: of the weights and the shuffles.
        device: where to train.
        warm_up: share of the steps over which the rate rises to ``lr``.
        decay: share of the steps, the last ones, over which it falls to a tenth.

    Raises:
        ValueError: if ``cfg`` is no config for training or asks for float16, a number is outside its range, or
            ``activations`` are not a finite tensor, 2-D, ``cfg.d_in`` wide and a batch or more; the
            number of ranks does not divide ``batch_size``; or too many steps were not finite, see ``skip_steps_not_finite``.
    """
    if not isinstance(cfg, TrainingSAEConfig):
        raise ValueError(
            f"cfg must be a config for training, such as TrainingBAEConfig; got {shown(cfg)}."
        )
    steps, batch_size = check("steps", steps, whole(1)), check("batch_size", batch_size, whole(1))
    lr, seed = check("lr", lr, positive()), check("seed", seed, whole(0))
    device = check_device("device", device)
    warm_up = check("warm_up", warm_up, Number(least=0, most=1))
    decay = check("decay", decay, Number(least=0, most=1))
    if warm_up + decay > 1:
        raise ValueError(
            f"warm_up and decay are shares of the same steps, and make up more than all: {warm_up} and {decay}."
        )
    check_trainable(cfg.dtype, lr)
    if not isinstance(activations, Tensor) or not activations.is_floating_point():
        raise ValueError(
            f"activations must be a tensor of floats [n, d_in]; got {shown(activations)}."
        )
    if activations.ndim == 0 or activations.shape[-1] != cfg.d_in:
        raise ValueError(
            f"cfg.d_in is {cfg.d_in}, but the activations have shape {tuple(activations.shape)}."
        )
    if not activations.isfinite().all():
        n = int((~activations.isfinite()).sum())
        raise ValueError(f"activations must be finite; {n} of their values are NaN or infinite.")
    replay = ReplayedActivations(activations, batch_size, seed=seed, is_common=True)
    trainer_cfg = trainer_config(steps, batch_size, lr, device, warm_up, decay)
    torch.manual_seed(seed)
    # Of its own, since folding the scale in changes the config too.
    sae = get_sae_training_class(cfg.architecture())[0](deepcopy(cfg)).to(device)
    trainer = SAETrainer(trainer_cfg, sae, replay)
    skip_steps_not_finite(trainer)
    train_on_ranks(trainer, is_logged=False)
    trainer.fit()
    check_finite_weights(sae)
    return sae
