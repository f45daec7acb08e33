"""What a run writes: its log, its checkpoints and the autoencoder; of several ranks rank 0 writes it."""

from __future__ import annotations

import logging
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAETrainingRunner, TrainingSAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.training.sae_trainer import SAETrainer
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from bae_lens.checks.finite import check_finite_weights
from bae_lens.distributed import RankError, n_ranks, on_every_rank, rank
from bae_lens.files.json_file import write_json
from bae_lens.files.whole import whole_folder
from bae_lens.training.checkpoints import write_record
from bae_lens.training.metric_log import MetricLog
from bae_lens.training.outputs import (
    METRICS_FILENAME,
    UNFINISHED_METRICS_FILENAME,
    WRITING_ERRORS,
    holds_sae,
    save_or_keep,
)
from bae_lens.training.rank_states import gather_states, write_state
from bae_lens.training.run_identity import describe_model, describe_text
from bae_lens.training.sparsity import OF_ONE_SAE, as_saved

logger = logging.getLogger(__name__)


class SavingRunner(LanguageModelSAETrainingRunner):
    """SAELens' runner, whose files are there as a whole or not at all.

    ``TrainingRunner`` sets what is declared here when it is made.
    """

    _resumed: Path | None
    """The checkpoint that the run goes on from."""
    _arguments: dict[str, Any]
    """What decides a run and is in no config of SAELens."""
    _text: Any
    """The dataset, all of it."""
    _given_model: Any
    """The language model, where the config does not name its weights."""
    _sae_section: dict[str, Any]
    """The autoencoder's config as training began with it."""
    _log: MetricLog | None

    @property
    def metrics_path(self) -> Path | None:
        """The file that has this run's metrics in the end; None where the config names no folder."""
        folder = self.cfg.output_path or self.cfg.checkpoint_path
        return None if folder is None else Path(folder) / METRICS_FILENAME

    def _attach_log(self, trainer: SAETrainer[Any, Any]) -> None:
        if (path := self.metrics_path) is None or rank() > 0:
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
            try:
                self._other_states = gather_states(self.activations_store)
            except (OSError, SafetensorError, RankError) as error:  # On every rank.
                logger.error("A checkpoint could not be written: %s", error)
                return
            if rank() > 0:
                return
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
        self._other_states = gather_states(self.activations_store)
        path = Path(self.cfg.checkpoint_path) / str(trainer.n_training_samples)
        output = self.cfg.output_path
        beside = None if output is None else Path(output).absolute().parent
        # None of the others ends before it is written.
        with on_every_rank():
            if rank() == 0:
                save_or_keep(path, self._save_checkpoint_into, [beside])
        logger.warning("Interrupted; go on with resume_from_checkpoint=%s", path)

    @override
    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        """What SAELens' trainer does not save: the state of the store and of random numbers, and the config."""
        if checkpoint_path is None:
            return
        check_finite_weights(self.sae)
        write_state(checkpoint_path, self.activations_store)
        for name, content in self._other_states.items():
            (checkpoint_path / name).write_bytes(content)
        write_json(checkpoint_path / RUNNER_CFG_FILENAME, self._runner_cfg())
        self._copy_log(checkpoint_path)

    def _write_record(self, folder: Path, trainer: SAETrainer[Any, Any]) -> None:
        record = {
            **self._arguments,
            "n_tokens": trainer.n_training_samples,
            "n_ranks": n_ranks(),
            **self._given,
        }
        write_record(folder, record)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What the run was given beside its config, which names it at most, and what is in a folder."""
        model = self._given_model
        return {
            "text": None if self._text is None else describe_text(self._text),
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
        with on_every_rank():
            if rank() == 0:
                self._save(sae, Path(output_path), as_saved(sae, log_feature_sparsity))

    def _save(self, sae: TrainingSAE[Any], path: Path, sparsity: Tensor | None) -> None:

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
