"""SAELens' training runner, with what a run needs that has neither a hub nor W&B in reach."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, TrainingSAE
from sae_lens.config import HfDataset
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import override

from bae_lens import offline as demo
from bae_lens.activations.held_out import open_text
from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.outlier_tokens import multiple_of
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.text_store import TextStore, check_text_settings
from bae_lens.checks.finite import check_finite_weights, check_trainable
from bae_lens.files.json_file import write_json
from bae_lens.files.whole import whole_folder
from bae_lens.loading.devices import check_device
from bae_lens.loading.language_models import is_folder, load_model
from bae_lens.training.checkpoints import (
    RANDOM_STATE_FILENAME,
    check_given,
    check_replayed,
    check_run,
    go_on,
    random_state,
    restore_random_state,
    write_record,
)
from bae_lens.training.checkpoints import check_whole as _check_checkpoint
from bae_lens.training.finite_steps import skip_steps_not_finite
from bae_lens.training.interruption import StoppedBetweenSteps, stop_between_steps
from bae_lens.training.metric_log import MetricLog
from bae_lens.training.outliers import drop_outliers, keep_reference_norms
from bae_lens.training.outputs import (
    METRICS_FILENAME,
    UNFINISHED_METRICS_FILENAME,
    WRITING_ERRORS,
    check_outputs,
    held_folders,
    holds_sae,
    save_or_keep,
)
from bae_lens.training.pretrained import sae_to_train, unfold_scale
from bae_lens.training.run_checks import (
    check_batch,
    check_config,
    check_replay_path,
    check_width,
    describe_rows,
)
from bae_lens.training.run_identity import describe_model, describe_text
from bae_lens.training.runner_fields import check_runner
from bae_lens.training.sparsity import OF_ONE_SAE, as_saved

logger = logging.getLogger(__name__)


class TrainingRunner(LanguageModelSAETrainingRunner):
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
            are to be in float16, or a learning rate is not finite.
        FileNotFoundError: if ``cfg.resume_from_checkpoint`` is not a whole checkpoint.
        ImportError: if a ``bae-lens/`` name is given and its package is missing.
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
        self._outlier_multiple = multiple_of(exclude_outlier_tokens)
        # What decides a run and is in no config of SAELens.
        self._arguments = {
            "replay_tokens": replay_tokens,
            "exclude_outlier_tokens": self._outlier_multiple,
        }
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
        resumed_record: dict[str, Any] = {}
        if self._resumed is not None:
            resumed_record = _check_checkpoint(self._resumed)
            check_run(self._resumed, resumed_record, cfg, self._arguments)
        check_outputs(cfg)
        torch.manual_seed(cfg.seed)
        override_sae, self._is_folded = sae_to_train(cfg, override_sae)
        self.cfg = cfg
        self.replay_tokens = replay_tokens
        self.replay_path = replay_path
        self.trust_remote_code = trust_remote_code
        dataset = None
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
        with _no_override_warning([kind for kind, is_named in by_name.items() if is_named]):
            self._build(override_dataset if dataset is None else dataset, model, override_sae)
        # What is trained, which the config need not say of an override_sae; a copy, since folding
        # the scale in at the end changes it.
        self._sae_section = {**self.sae.cfg.to_dict(), "metadata": cfg.sae.to_dict()["metadata"]}
        # A name stands for its weights; a folder may hold others by the time a run is resumed.
        is_named = override_model is None and not is_folder(cfg.model_name)
        self._given_model = None if is_named or demo.is_demo_model(cfg.model_name) else model
        self._log: MetricLog | None = None
        if resumed_record and self._resumed is not None:
            check_given(self._resumed, resumed_record, **self._given)

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
        self.activations_store = TextStore.of(self.activations_store)
        self.evaluator.activations_store = self.activations_store

    def _before_training(self) -> None:
        """Called when the activations can be read and training has not begun."""

    @property
    def metrics_path(self) -> Path | None:
        """The file that has this run's metrics in the end; None where the config names no folder."""
        folder = self.cfg.output_path or self.cfg.checkpoint_path
        return None if folder is None else Path(folder) / METRICS_FILENAME

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, save, and return the SAE."""
        with ExitStack() as self._until_saved:
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
            self.sae.cfg.metadata.replay_tokens = len(replay.activations)
        keep_reference_norms(self)
        self._before_training()
        if self._resumed is not None:
            check_replayed(self._resumed, self.activations_store)
        return super().run()

    @override
    def run_trainer_with_interruption_handling(
        self, trainer: SAETrainer[Any, Any]
    ) -> TrainingSAE[Any]:
        self._write_whole_checkpoints(trainer)
        if self._resumed is not None:
            go_on(trainer)
            restore_random_state(self._resumed)
        skip_steps_not_finite(trainer)
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

    def _attach_log(self, trainer: SAETrainer[Any, Any]) -> None:
        if (path := self.metrics_path) is None:
            return
        earlier = None
        if holds_sae(path.parent):
            # Of other weights, and with its own metrics until it is replaced.
            unfinished = path.with_name(UNFINISHED_METRICS_FILENAME)
            if self._resumed is not None and not unfinished.exists():
                earlier = path
            path = unfinished
        if self._resumed is not None and (self._resumed / METRICS_FILENAME).is_file():
            earlier = self._resumed / METRICS_FILENAME
        self._log = MetricLog(path, self.cfg.logger.wandb_log_frequency)
        self._log.attach(trainer, earlier)

    # Checkpoints

    def _write_whole_checkpoints(self, trainer: SAETrainer[Any, Any]) -> None:
        """Let the trainer write each of its checkpoints as a whole, and go on where it cannot."""
        save = trainer.save_checkpoint

        def save_whole(
            checkpoint_name: str,
            base_path: Path | str | None = None,
            wandb_aliases: list[str] | None = None,
        ) -> None:
            base = base_path or self.cfg.checkpoint_path
            if base is None:  # For W&B alone.
                save(checkpoint_name, wandb_aliases=wandb_aliases)
                return
            path = Path(base) / checkpoint_name
            try:
                with whole_folder(path, last=SAE_WEIGHTS_FILENAME) as folder:
                    save(folder.name, folder.parent, wandb_aliases)
                    self._write_record(folder, trainer)
            except (*WRITING_ERRORS, ValueError) as error:
                # It is there for the case that the run breaks off: no reason to break it off.
                logger.error("The checkpoint %s could not be written: %s", path, error)

        def save_into(folder: Path) -> None:
            save(folder.name, folder.parent)
            self._write_record(folder, trainer)

        self._save_checkpoint_into = save_into
        trainer.save_checkpoint = save_whole

    def _save_progress(self, trainer: SAETrainer[Any, Any]) -> None:
        if self.cfg.checkpoint_path is None:
            logger.warning("Interrupted; nothing is saved, since checkpoint_path is None.")
            return
        path = Path(self.cfg.checkpoint_path) / str(trainer.n_training_samples)
        output = self.cfg.output_path
        beside = None if output is None else Path(output).absolute().parent
        save_or_keep(path, self._save_checkpoint_into, [beside])
        logger.warning("Interrupted; go on with resume_from_checkpoint=%s", path)

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        """What SAELens' trainer does not save: the state of the store and of random numbers, and the config."""
        if checkpoint_path is None:
            return
        check_finite_weights(self.sae)
        self.activations_store.save_to_checkpoint(checkpoint_path)
        write_json(checkpoint_path / RUNNER_CFG_FILENAME, self._runner_cfg())
        save_file(random_state(), checkpoint_path / RANDOM_STATE_FILENAME)
        self._copy_log(checkpoint_path)

    def _write_record(self, folder: Path, trainer: SAETrainer[Any, Any]) -> None:
        record = {
            **self._arguments,
            "n_tokens": trainer.n_training_samples,
            **self._given,
        }
        write_record(folder, record)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What the run was given beside its config, which names it at most, and what is in a folder."""
        store: Any = self.activations_store
        while store is not None and vars(store).get("dataset") is None:
            store = vars(store).get("store")
        model = self._given_model
        return {
            "text": None if store is None else describe_text(store.dataset),
            "model": None if model is None else describe_model(model),
        }

    def _runner_cfg(self) -> dict[str, Any]:
        return self.cfg.to_dict() | {"sae": self._sae_section}

    def _copy_log(self, folder: Path) -> None:
        if self._log is not None and self._log.path.is_file():
            shutil.copyfile(self._log.path, folder / METRICS_FILENAME)

    # The end

    @override
    def save_final_sae(
        self,
        sae: TrainingSAE[Any],
        output_path: str,
        log_feature_sparsity: Tensor | None = None,
    ) -> None:
        """Save the autoencoder in place of what was in the folder, at one stroke.

        Raises:
            NotSavedError: if it cannot be written there; it is then in another folder.
            ValueError: if a weight is NaN or infinite.
        """
        check_finite_weights(sae)
        sparsity = as_saved(sae, log_feature_sparsity)
        path = Path(output_path)

        def save(folder: Path) -> None:
            sae.save_inference_model(folder)
            if sparsity is not None:
                save_file({"sparsity": sparsity}, folder / SPARSITY_FILENAME)
            write_json(folder / RUNNER_CFG_FILENAME, self._runner_cfg(), indent=None)
            self._copy_log(folder)

        others = [self.cfg.checkpoint_path, path.absolute().parent]
        save_or_keep(
            path, save, [None if o is None else Path(o) for o in others], without=OF_ONE_SAE
        )
        if self.cfg.logger.log_to_wandb:
            self.cfg.logger.log(
                self,
                path / SAE_WEIGHTS_FILENAME,
                path / SAE_CFG_FILENAME,
                None if sparsity is None else path / SPARSITY_FILENAME,
                ["final_model"],
            )


def load_runner_model(
    cfg: LanguageModelSAERunnerConfig[Any], hook_names: list[str], trust_remote_code: bool
) -> HookedRootModule:
    """The language model that a config names, from PyPI or through SAELens."""
    return load_model(
        cfg.model_name,
        cfg.model_class_name,
        device=cfg.llm_device,
        options=cfg.model_from_pretrained_kwargs,
        hook_names=hook_names,
        trust_remote_code=trust_remote_code,
    )


@contextmanager
def _no_override_warning(kinds: list[str]) -> Iterator[None]:
    """Mute SAELens' warning that a run cannot be repeated from its config, where it can.

    It is given for every model or dataset that is handed over, also one that the config names.
    """

    def is_kept(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(f"passed in a {kind} which will override" in message for kind in kinds)

    sae_lens_logger = logging.getLogger("sae_lens")
    sae_lens_logger.addFilter(is_kept)
    try:
        yield
    finally:
        sae_lens_logger.removeFilter(is_kept)
