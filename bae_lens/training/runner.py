"""SAELens' training runner, with what a run needs that has neither a hub nor W&B in reach."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE
from sae_lens.config import HfDataset
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import override

from bae_lens import offline as demo
from bae_lens.activations.held_out import open_text
from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.outlier_tokens import multiple_of
from bae_lens.activations.rank_share import own_text
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.text_store import TextStore, check_text_settings
from bae_lens.checks.finite import check_trainable
from bae_lens.distributed import (
    check_same,
    failures_named,
    n_ranks,
    on_every_rank,
    rank,
    start_process_group,
)
from bae_lens.loading.devices import check_device
from bae_lens.loading.language_models import is_folder
from bae_lens.training.checkpoints import (
    check_given,
    check_replayed,
    check_run,
    go_on,
)
from bae_lens.training.checkpoints import check_whole as _check_checkpoint
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.interruption import StoppedBetweenSteps, stop_between_steps
from bae_lens.training.metric_log import MetricLog
from bae_lens.training.outliers import drop_outliers, keep_reference_norms
from bae_lens.training.outputs import (
    check_outputs,
    held_folders,
)
from bae_lens.training.pretrained import sae_to_train, unfold_scale
from bae_lens.training.rank_states import (
    load_store,
    restore_random_state,
    say_what_differs,
)
from bae_lens.training.ranks import train_on_ranks
from bae_lens.training.run_checks import (
    check_batch,
    check_config,
    check_replay_path,
    check_width,
    describe_rows,
)
from bae_lens.training.runner_fields import check_runner
from bae_lens.training.runner_model import load_runner_model, no_override_warning
from bae_lens.training.same_run import check_same_given, own_batch_size, own_config
from bae_lens.training.saving_runner import SavingRunner

logger = logging.getLogger(__name__)


class TrainingRunner(SavingRunner):
    """``LanguageModelSAETrainingRunner`` for any architecture, with these additions.

    * The names ``bae-lens/smollm2-135m`` and ``bae-lens/movie-reviews`` are resolved.
    * Hook, ``d_in``, batch and checkpoint are checked before the language model reads any text.
    * ``replay_tokens``: the language model runs once over so many tokens, and training makes
      epochs over them. Recorded in the SAE's metadata. With ``replay_path`` they are kept on disk,
      and later runs (another seed, another autoencoder) read them there.
    * A step whose loss or gradient is NaN or infinite is skipped and counted
      (``details/n_skipped_steps``), and after too many of them the run stops: see
      ``skip_steps_not_finite``.
    * Metrics are written to ``metrics.jsonl`` in ``cfg.output_path`` (or ``cfg.checkpoint_path``
      where there is none), every ``cfg.logger.wandb_log_frequency`` steps, W&B on or off.
    * ``cfg.seed`` seeds torch, so that a run can be repeated. SAELens does not use it.
    * SIGINT, SIGTERM and SIGHUP write a whole checkpoint. SAELens leaves the weights out of it, and fails
      if the folder is not there.
    * A run resumed from a checkpoint goes on where it was: SAELens writes the checkpoints that are
      already behind it once more, repeats one step number, and draws other random numbers. With
      ``replay_tokens`` it ends with the very weights of a run that was never interrupted.
    * Under torchrun all processes train one autoencoder: see the guide "Many processes". Every rank is given the same
      arguments and returns the same autoencoder; ``cfg.train_batch_size_tokens`` is the batch of all of them,
      ``cuda`` each one's own GPU, and rank 0 writes and evaluates. A run goes on from a checkpoint of any number of
      ranks.
    * The sparsity file of a BAE matches its bits as saved, of which some were inverted, and that of
      a CLVQ-VAE is per valid token.

    Args:
        cfg: as for SAELens.
        override_dataset: as for SAELens.
        override_model: as for SAELens.
        override_sae: as for SAELens.
        replay_tokens: tokens to collect and replay, special tokens not counted; None to run the
            language model throughout, as SAELens does.
        replay_path: a folder for what ``replay_tokens`` collects, written by the first run and
            memory-mapped by every run; None to keep it in memory. A run that asks for other
            activations than are there is refused. What the config says of model, text and hook is
            compared, and no more: under the same names, the same ``override_model`` and
            ``override_dataset`` have to be given. Devices and compilation, which only change
            rounding, are left out.
        trust_remote_code: take ``cfg.model_from_pretrained_kwargs`` as they stand, and let code of the
            model's folder or repository run: see ``bae_lens.loading.language_models``.
        exclude_outlier_tokens: drop attention sinks other than BOS, told by their norm at either hook
            point (see ``bae_lens.activations.outlier_tokens``), as special tokens are: True, or the multiple of
            the reference norm. Off by default: they do a training no harm that was seen. The
            reference norms are kept in the SAE's metadata either way, for evals and reports.

    Raises:
        ValueError: if ``cfg`` is another runner's, or what ``load_config`` returns, which has a
            ``run()`` of its own; the model has no such hook, ``cfg.sae.d_in`` is not the hook's width, a
            training batch is larger than the buffer (or than ``replay_tokens``), or
            ``replay_path`` holds other activations or is given without ``replay_tokens``; weights
            are to be in float16, or a learning rate is not finite. On every rank, if on any; and if ranks
            were given different things, or cannot have as many rows of a batch each.
        FileNotFoundError: if ``cfg.resume_from_checkpoint`` is not a whole checkpoint.
        ImportError: if a ``bae-lens/`` name is given and its package is missing.
        RankFailedError: at any time, if another rank has failed or died.
    """

    _has_second_hook = False

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_dataset: HfDataset | None = None,
        override_model: HookedRootModule | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        *,
        replay_tokens: int | None = None,
        replay_path: str | Path | None = None,
        trust_remote_code: bool = False,
        exclude_outlier_tokens: bool | float = False,
    ) -> None:
        start_process_group()
        with failures_named():
            with on_every_rank():
                self._outlier_multiple = multiple_of(exclude_outlier_tokens)
                # What decides a run and is in no config of SAELens.
                self._arguments = {
                    "replay_tokens": replay_tokens,
                    "exclude_outlier_tokens": self._outlier_multiple,
                }
                record = self._check(cfg, replay_path)
            folder = None if replay_path is None else str(replay_path)
            check_same({**self._arguments, "replay_path": folder})
            # Whether anybody reads it; rank 0 writes it.
            self._is_logged = cfg.logger.log_to_wandb or bool(
                cfg.output_path or cfg.checkpoint_path
            )
            self.cfg = own_config(cfg)
            self.replay_tokens = replay_tokens
            self.replay_path = replay_path
            self.trust_remote_code = trust_remote_code
            with on_every_rank():
                self._set_up(override_dataset, override_model, override_sae)
                if record and self._resumed is not None:
                    check_given(self._resumed, record, **self._given)
            if n_ranks() > 1:
                check_same_given(self._given)

    def _check(
        self, cfg: LanguageModelSAERunnerConfig[Any], replay_path: str | Path | None
    ) -> dict[str, Any]:
        """That a run can be what it is to be, before anything is loaded; the record of what it goes on from."""
        replay_tokens = self._arguments["replay_tokens"]
        check_config(cfg, LanguageModelSAERunnerConfig, self._has_second_hook)
        check_runner(cfg, replay_tokens=replay_tokens, replay_path=replay_path)
        for name in ("device", "llm_device", "act_store_device"):
            check_device(name, getattr(cfg, name))
        check_trainable(cfg.sae.dtype, cfg.lr, cfg.lr_end)
        check_batch(cfg, replay_tokens)
        if replay_path is not None:
            check_replay_path(cfg, replay_tokens, replay_path, self._outlier_multiple)
        self._resumed = (
            None if cfg.resume_from_checkpoint is None else Path(cfg.resume_from_checkpoint)
        )
        record: dict[str, Any] = {}
        if self._resumed is not None:
            record = _check_checkpoint(self._resumed)
            check_run(self._resumed, record, cfg, self._arguments)
        # Ranks that have written the checkpoint: one, for versions that knew of no more.
        self._n_then: int = record.get("n_ranks") or 1
        if rank() == 0:
            check_outputs(cfg)
        return record

    def _set_up(
        self,
        override_dataset: HfDataset | None,
        override_model: HookedRootModule | None,
        override_sae: TrainingSAE[Any] | None,
    ) -> None:
        """Load what is trained on, and make the autoencoder."""
        cfg = self.cfg
        torch.manual_seed(cfg.seed)
        override_sae, self._is_folded = sae_to_train(cfg, override_sae)
        dataset = override_dataset
        if override_dataset is None:
            dataset = open_text(cfg.dataset_path, streaming=cfg.streaming)
        model = override_model if override_model is not None else self._load_model()
        # Cached activations carry their shape, which SAELens checks, and need no model.
        if not cfg.use_cached_activations:
            self._check_hooks(model)
        by_name = {
            "model": override_model is None or demo.is_demo_model(cfg.model_name),
            "dataset": override_dataset is None or demo.is_demo_dataset(cfg.dataset_path),
        }
        with no_override_warning([kind for kind, is_named in by_name.items() if is_named]):
            self._text = dataset
            self._build(own_text(dataset), model, override_sae)
        # What is trained, which the config need not say of an override_sae; a copy, since folding
        # the scale in at the end changes it.
        self._sae_section = {**self.sae.cfg.to_dict(), "metadata": cfg.sae.to_dict()["metadata"]}
        # A name stands for its weights; a folder may hold others by the time a run is resumed.
        is_named = override_model is None and not is_folder(cfg.model_name)
        self._given_model = None if is_named or demo.is_demo_model(cfg.model_name) else model
        self._log: MetricLog | None = None

    # What a runner of another kind of batch does in its own way

    def _load_model(self) -> HookedRootModule:
        return load_runner_model(self.cfg, [self.cfg.hook_name], self.trust_remote_code)

    def _check_hooks(self, model: HookedRootModule) -> None:
        cfg = self.cfg
        width = hook_width(model, cfg.hook_name, cfg.hook_head_index, **cfg.model_kwargs)
        check_width(cfg, "d_in", cfg.hook_name, width)

    def _build(
        self,
        dataset: HfDataset | None,
        model: HookedRootModule,
        sae: TrainingSAE[Any] | None,
    ) -> None:
        """Set ``model``, ``activations_store``, ``sae`` and ``evaluator``."""
        check_text_settings(self.cfg, model, dataset)
        super().__init__(self.cfg, override_dataset=dataset, override_model=model, override_sae=sae)
        store = self.activations_store = TextStore.of(self.activations_store)
        store.train_batch_size_tokens = own_batch_size(self.cfg)
        store.cached_activation_dataset = own_text(store.cached_activation_dataset)
        self.evaluator.activations_store = store

    def _before_training(self) -> None:
        """Called when the activations can be read and training has not begun."""

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, save, and return the SAE: on every rank, when rank 0 has saved it."""
        with failures_named(), ExitStack() as self._until_saved:
            with on_every_rank():
                if rank() == 0:
                    folders = (self.cfg.output_path, self.cfg.checkpoint_path)
                    self._until_saved.enter_context(held_folders(folders))
            return self._run()

    def _run(self) -> TrainingSAE[Any]:
        if self._outlier_multiple is not None:
            drop_outliers(self, self._outlier_multiple)
        if self.replay_tokens is not None:
            replay = ReplayedActivations.collect(
                self.activations_store,
                self.replay_tokens,
                self.cfg.seed,
                self.replay_path,
                describe_rows(self.cfg, self._outlier_multiple),
            )
            # The evaluator keeps the store itself, which goes on with text not collected.
            self.activations_store = replay  # pyright: ignore[reportAttributeAccessIssue]
            self.sae.cfg.metadata.replay_tokens = replay.n_collected
        with on_every_rank():
            keep_reference_norms(self)
        self._before_training()
        if self._resumed is not None:
            self._prepare_to_go_on(self._resumed)
        return super().run()

    def _prepare_to_go_on(self, checkpoint: Path) -> None:
        store: Any = self.activations_store
        is_replayed = self.replay_tokens is not None
        n_collected = self.sae.cfg.metadata.replay_tokens if is_replayed else None
        with on_every_rank():
            check_replayed(checkpoint, store, n_collected)
        say_what_differs(checkpoint, self._n_then, is_replayed)
        # SAELens is about to call it.
        store.load_from_checkpoint = partial(
            load_store, store.load_from_checkpoint, n_then=self._n_then
        )

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        self._write_whole_checkpoints(trainer)
        if self._resumed is not None:
            go_on(trainer)
            restore_random_state(self._resumed, self._n_then)
        skip_steps_not_finite(trainer)
        train_on_ranks(trainer, is_logged=self._is_logged)
        self._attach_log(trainer)
        # Until the autoencoder is saved, so that no signal comes in between.
        self._until_saved.enter_context(stop_between_steps(trainer))
        try:
            if self._is_folded and self._resumed is None:
                unfold_scale(trainer)
            return trainer.fit()
        except StoppedBetweenSteps:
            self._save_progress(trainer)
            raise
        except (KeyboardInterrupt, InterruptedException):
            logger.warning("Interrupted at once; only checkpoints of before are there.")
            raise
