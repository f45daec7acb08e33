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
from sae_lens.synthetic import (
    SyntheticDataEvalResult,
    SyntheticModel,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    synthetic_sae_runner,
)
from sae_lens.synthetic.synthetic_sae_runner import SyntheticSAERunnerResult
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name, str_to_dtype
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import override

from bae_lens import demo
from bae_lens.bae import TrainingBAE
from bae_lens.clvq_vae import TrainingCLVQVAE
from bae_lens.devices import check_device
from bae_lens.evals.held_out import open_text
from bae_lens.files import whole_folder
from bae_lens.finite import check_finite_weights, check_trainable
from bae_lens.json_file import write_json
from bae_lens.model_loading import load_model
from bae_lens.outlier_tokens import multiple_of
from bae_lens.suggest import did_you_mean
from bae_lens.text_store import TextStore, check_positions, check_text_settings
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
from bae_lens.training.collection import check_collection
from bae_lens.training.finite_steps import skip_steps_not_finite, trainers_that_skip
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
from bae_lens.training.pretrained import check_given_sae, load_pretrained, unfold_scale
from bae_lens.training.replay import ReplayedActivations
from bae_lens.training.run_identity import describe_model, describe_text
from bae_lens.training.runner_fields import check_runner

logger = logging.getLogger(__name__)

# What a folder holds of one autoencoder beside its weights and config.
_OF_ONE_SAE = (METRICS_FILENAME, UNFINISHED_METRICS_FILENAME, SPARSITY_FILENAME)
# Of SAELens' config and of CrossLayerRunnerConfig.
_ROW_FIELDS = (
    *("model_name", "model_class_name", "model_from_pretrained_kwargs", "model_kwargs"),
    *("autocast_lm", "hook_name", "hook_name_out", "hook_head_index"),
    *("dataset_path", "text_unit", "use_chat_formatting"),
    *("use_cached_activations", "cached_activations_path"),
    *("context_size", "sequence_length", "seqpos_slice", "store_batch_size_prompts"),
    *("prepend_bos", "exclude_special_tokens", "sequence_separator_token"),
    "disable_concat_sequences",
)


PATH_FIELDS = (
    *("output_path", "checkpoint_path", "resume_from_checkpoint", "from_pretrained_path"),
    "cached_activations_path",
)


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
    * SIGINT and SIGTERM write a whole checkpoint. SAELens leaves the weights out of it, and fails
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
            model's folder or repository run: see ``bae_lens.model_loading``.
        exclude_outlier_tokens: drop attention sinks other than BOS, told by their norm at either hook
            point (see ``bae_lens.outlier_tokens``), as special tokens are: True, or the multiple of
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
        check_config(cfg, LanguageModelSAERunnerConfig, self._has_second_hook)
        check_runner(cfg, replay_tokens=replay_tokens, replay_path=replay_path)
        for name in ("device", "llm_device", "act_store_device"):
            check_device(name, getattr(cfg, name))
        check_trainable(cfg.sae.dtype, cfg.lr, cfg.lr_end)
        _check_batch(cfg, replay_tokens)
        if replay_path is not None:
            _check_replay_path(cfg, replay_tokens, replay_path, self._outlier_multiple)
        self._resumed = (
            None if cfg.resume_from_checkpoint is None else Path(cfg.resume_from_checkpoint)
        )
        resumed_record: dict[str, Any] = {}
        if self._resumed is not None:
            resumed_record = _check_checkpoint(self._resumed)
            check_run(self._resumed, resumed_record, cfg, replay_tokens)
        check_outputs(cfg)
        torch.manual_seed(cfg.seed)
        override_sae, self._is_folded = _sae_to_train(cfg, override_sae)
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
        self._given_model = override_model if not demo.is_demo_model(cfg.model_name) else None
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
        """Where this run's metrics are in the end; None where the config names no folder."""
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
                _describe_rows(self.cfg, self._outlier_multiple),
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
            "replay_tokens": self.replay_tokens,
            "n_tokens": trainer.n_training_samples,
            **self._given,
        }
        write_record(folder, record)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What the run was given beside its config, which names it at most."""
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
        sparsity = _as_saved(sae, log_feature_sparsity)
        path = Path(output_path)

        def save(folder: Path) -> None:
            sae.save_inference_model(folder)
            if sparsity is not None:
                save_file({"sparsity": sparsity}, folder / SPARSITY_FILENAME)
            write_json(folder / RUNNER_CFG_FILENAME, self._runner_cfg(), indent=None)
            self._copy_log(folder)

        others = [self.cfg.checkpoint_path, path.absolute().parent]
        save_or_keep(
            path, save, [None if o is None else Path(o) for o in others], without=_OF_ONE_SAE
        )
        if self.cfg.logger.log_to_wandb:
            self.cfg.logger.log(
                self,
                path / SAE_WEIGHTS_FILENAME,
                path / SAE_CFG_FILENAME,
                None if sparsity is None else path / SPARSITY_FILENAME,
                ["final_model"],
            )


class SyntheticTrainingRunner(SyntheticSAERunner[Any]):
    """``SyntheticSAERunner``, with a sparsity file that matches a BAE's bits as saved.

    What it writes is there as a whole or not at all, and its folders are its own while it runs.
    Steps that are not finite are skipped and counted as ``TrainingRunner`` does.

    Raises:
        ValueError: if ``cfg`` is another runner's, a field of it cannot be what it is, or weights are
            to be in float16.
    """

    def __init__(
        self,
        cfg: SyntheticSAERunnerConfig[Any],
        override_synthetic_model: SyntheticModel | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        check_config(cfg, SyntheticSAERunnerConfig)
        check_runner(cfg)
        check_device("device", cfg.device)
        check_trainable(cfg.sae.dtype, cfg.lr, cfg.lr_end)
        check_outputs(cfg)
        super().__init__(cfg, override_synthetic_model, override_sae)

    @override
    def run(self) -> SyntheticSAERunnerResult:
        """Train, evaluate and save."""
        folders = held_folders((self.cfg.output_path, self.cfg.checkpoint_path))
        with folders, trainers_that_skip(synthetic_sae_runner):
            return super().run()

    @override
    def _save_outputs(
        self,
        output_path: Path,
        sae: TrainingSAE[Any],
        log_feature_sparsity: Tensor | None,
        eval_stats: SyntheticDataEvalResult | None,
    ) -> None:
        check_finite_weights(sae)
        sparsity = _as_saved(sae, log_feature_sparsity)

        def save(folder: Path) -> None:
            super(SyntheticTrainingRunner, self)._save_outputs(folder, sae, sparsity, eval_stats)

        save_or_keep(
            output_path,
            save,
            [output_path.absolute().parent],
            without=(*_OF_ONE_SAE, "synthetic_model", "eval_stats.json"),
        )


def check_config(cfg: Any, config_class: type, has_second_hook: bool = False) -> None:
    """
    Raises:
        ValueError: if a runner is given anything else than the config of its kind, or a path in it
            is empty.
    """
    if isinstance(cfg, config_class) and hasattr(cfg, "hook_name_out") == has_second_hook:
        for name in PATH_FIELDS:
            # The working directory, to whoever opens it.
            if getattr(cfg, name, None) == "":
                raise ValueError(f"{name} must be a path or None; got ''.")
        return
    if isinstance(cfg, config_class):
        expected = "a CrossLayerRunnerConfig" if has_second_hook else "a config of one hook point"
        hint = "CrossLayerTrainingRunner takes those of two, TrainingRunner those of one."
    else:
        expected = f"a {config_class.__name__}"
        hint = (
            "What load_config returns is trained by its own run(), with what it says of replay."
            if hasattr(cfg, "replay_tokens") and hasattr(cfg, "runner")
            else "Read a file with load_config, and call run() of what it returns."
        )
    raise ValueError(f"cfg must be {expected}; got a {type(cfg).__name__}. {hint}")


def hook_shape(model: HookedRootModule, hook_name: str, **model_kwargs: Any) -> torch.Size:
    """Shape of one token's activation at a hook point: ``[d]``, or ``[heads, d_head]``.

    Args:
        model: any model that SAELens' store takes; it is run on a single token.
        hook_name: of the hook point.
        **model_kwargs: for ``model.run_with_cache``.

    Raises:
        ValueError: if the model has no such hook, or it does not fire.
    """
    if hook_name not in model.hook_dict:
        raise ValueError(
            f"The model has no hook {hook_name!r}. {did_you_mean(hook_name, model.hook_dict)}"
        )
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        _, cache = model.run_with_cache(
            token,
            names_filter=[hook_name],
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(hook_name),
            prepend_bos=False,
            **model_kwargs,
        )
    if hook_name not in cache:
        raise ValueError(
            f"The model has the hook {hook_name!r}, but it does not fire in a forward pass. Some "
            "hooks are off unless the model's config switches them on (use_attn_result, "
            "use_split_qkv_input, use_hook_mlp_in)."
        )
    return cache[hook_name].shape[2:]


def hook_width(
    model: HookedRootModule,
    hook_name: str,
    hook_head_index: int | None = None,
    **model_kwargs: Any,
) -> int:
    """Width of the activations that SAELens' store takes from a hook point.

    Args:
        model: any model that SAELens' store takes; it is run on a single token.
        hook_name: of the hook point.
        hook_head_index: one head of it; without it, heads are flattened.
        **model_kwargs: for ``model.run_with_cache``.

    Raises:
        ValueError: if the model has no such hook, it does not fire, or it has no such head.
    """
    shape = hook_shape(model, hook_name, **model_kwargs)
    if hook_head_index is None:
        return shape.numel()
    n_heads = shape[0] if len(shape) > 1 else 0
    if hook_head_index >= n_heads:
        raise ValueError(
            f"hook_head_index is {hook_head_index}, but {hook_name!r} has {n_heads or 'no'} heads."
        )
    return shape[1:].numel()


def _sae_to_train(
    cfg: LanguageModelSAERunnerConfig[Any], given: TrainingSAE[Any] | None
) -> tuple[TrainingSAE[Any] | None, bool]:
    """What is handed over or saved, and whether the scale of its inputs is folded into it."""
    if given is not None:
        if differing := check_given_sae(given, cfg):
            logger.warning(
                "override_sae is trained by its own settings, and runner_cfg.json will say so: %s.",
                "; ".join(differing).replace(" there", " of it").replace(" here", " in the config"),
            )
        return given, False
    return (None, False) if cfg.from_pretrained_path is None else load_pretrained(cfg)


def _as_saved(sae: TrainingSAE[Any], log_sparsity: Tensor | None) -> Tensor | None:
    """SAELens' sparsity ``[d_sae]`` of the autoencoder that it saves for inference."""
    if log_sparsity is None or not isinstance(sae, (TrainingBAE, TrainingCLVQVAE)):
        return log_sparsity
    return sae.fold_log_sparsity(log_sparsity)


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


def _check_batch(cfg: LanguageModelSAERunnerConfig[Any], replay_tokens: int | None) -> None:
    batch = cfg.train_batch_size_tokens
    check_positions(cfg.context_size, cfg.seqpos_slice, cfg.prepend_bos, cfg.exclude_special_tokens)
    if replay_tokens is not None:
        if replay_tokens < batch:
            raise ValueError(
                f"replay_tokens is {replay_tokens}, less than one batch "
                f"(train_batch_size_tokens = {batch}). Raise the one or lower the other."
            )
        if cfg.prefetch_llm_batches:
            raise ValueError(
                "prefetch_llm_batches has nothing to run ahead of when activations are replayed; "
                "set it to false, or replay_tokens to null."
            )
        return
    positions = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    buffer = cfg.n_batches_in_buffer * positions
    if batch > buffer:
        raise ValueError(
            f"train_batch_size_tokens is {batch}, but the buffer holds only {buffer} tokens "
            f"(n_batches_in_buffer = {cfg.n_batches_in_buffer} × {positions} positions). Set "
            f"n_batches_in_buffer to at least {-(-batch // positions)}, or lower the batch size."
        )


def _check_replay_path(
    cfg: LanguageModelSAERunnerConfig[Any],
    replay_tokens: int | None,
    path: str | Path,
    outlier_multiple: float | None = None,
) -> None:
    if replay_tokens is None:
        raise ValueError(
            f"replay_path is {str(path)!r}, but nothing is replayed: replay_tokens is null. Say how "
            "many tokens to collect, or set replay_path to null."
        )
    if str(path) == "":
        raise ValueError(
            "replay_path must be a folder, or null to keep activations in memory; got ''."
        )
    check_collection(path, _describe_rows(cfg, outlier_multiple) | {"replay_tokens": replay_tokens})


def _describe_rows(
    cfg: LanguageModelSAERunnerConfig[Any], outlier_multiple: float | None = None
) -> dict[str, Any]:
    """Everything in a config that changes what is collected; fields that it does not have are None."""
    widths = {name: getattr(cfg.sae, name, None) for name in ("d_in", "d_out")}
    # Collections of before there was such a thing lack it, which is the same as None.
    others = {"dtype": str(str_to_dtype(cfg.dtype)), "exclude_outlier_tokens": outlier_multiple}
    return {name: getattr(cfg, name, None) for name in _ROW_FIELDS} | widths | others


def check_width(
    cfg: LanguageModelSAERunnerConfig[Any], field: str, hook_name: str, width: int
) -> None:
    """Raises ``ValueError`` if a width in the config of the autoencoder is not that of its hook."""
    if width != getattr(cfg.sae, field):
        raise ValueError(
            f"sae.{field} is {getattr(cfg.sae, field)}, but the activations at {hook_name!r} have "
            f"width {width}. Set sae.{field} to {width}."
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
