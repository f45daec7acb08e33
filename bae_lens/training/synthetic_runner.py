"""SAELens' runner on synthetic data, whose outputs are whole and whose steps are finite."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE
from sae_lens.synthetic import (
    SyntheticDataEvalResult,
    SyntheticModel,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    synthetic_sae_runner,
)
from sae_lens.synthetic.synthetic_sae_runner import SyntheticSAERunnerResult
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from typing_extensions import override

from bae_lens.activations.rank_share import OwnNumbers
from bae_lens.checks.finite import check_finite_weights, check_trainable
from bae_lens.distributed import (
    barrier,
    broadcast_object,
    failures_named,
    n_ranks,
    on_every_rank,
    rank,
    start_process_group,
)
from bae_lens.loading.devices import check_device
from bae_lens.training.finite_steps import trainers_that_skip
from bae_lens.training.outputs import check_outputs, held_folders, save_or_keep
from bae_lens.training.ranks import train_on_ranks
from bae_lens.training.run_checks import check_config
from bae_lens.training.runner_fields import check_runner
from bae_lens.training.same_run import own_config
from bae_lens.training.sparsity import OF_ONE_SAE, as_saved


class SyntheticTrainingRunner(SyntheticSAERunner[Any]):
    """``SyntheticSAERunner``, with a sparsity file that matches a BAE's bits as saved.

    What it writes is there as a whole or not at all, and its folders are its own while it runs.
    Steps that are not finite are skipped and counted as ``TrainingRunner`` does. Under torchrun the processes
    train one autoencoder, each on its share of every batch, drawn for itself.

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
        start_process_group()
        with failures_named():
            with on_every_rank():
                check_config(cfg, SyntheticSAERunnerConfig)
                check_runner(cfg)
                check_device("device", cfg.device)
                check_trainable(cfg.sae.dtype, cfg.lr, cfg.lr_end)
                if rank() == 0:
                    check_outputs(cfg)
            # Whether anybody reads a log; rank 0 does.
            self._is_logged = cfg.logger.log_to_wandb
            cfg = own_config(cfg)
            if n_ranks() > 1:
                # The config has no seed: all ranks make the same model of rank 0's.
                torch.manual_seed(broadcast_object(torch.initial_seed()))
            if rank() > 0:
                cfg.output_path = cfg.checkpoint_path = None
                cfg.run_final_eval = False
            with on_every_rank():
                super().__init__(cfg, override_synthetic_model, override_sae)

    @override
    def run(self) -> SyntheticSAERunnerResult:
        """Train, evaluate and save. On several ranks rank 0 evaluates and saves, and the others wait for it."""
        with failures_named(), ExitStack() as stack:
            with on_every_rank():
                folders = held_folders((self.cfg.output_path, self.cfg.checkpoint_path))
                stack.enter_context(folders)
            stack.enter_context(trainers_that_skip(synthetic_sae_runner, self._prepare))
            result = super().run()
            barrier()
            return result

    def _prepare(self, trainer: SAETrainer[Any, Any]) -> None:
        if n_ranks() == 1:
            return
        data: Any = trainer.data_provider
        data.batch_size //= n_ranks()
        trainer.data_provider = OwnNumbers(
            data, on_cuda=torch.device(self.cfg.device).type == "cuda"
        )
        train_on_ranks(trainer, is_logged=self._is_logged)

    @override
    def _create_evaluator(self) -> Any:
        evaluate = super()._create_evaluator()

        def evaluate_apart(*args: Any) -> dict[str, Any]:
            # On rank 0 alone, whose random numbers are to stay those of the others.
            cuda = torch.device(self.cfg.device).type == "cuda"
            with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
                return evaluate(*args)

        return evaluate if n_ranks() == 1 else evaluate_apart

    @override
    def _save_outputs(
        self,
        output_path: Path,
        sae: TrainingSAE[Any],
        log_feature_sparsity: Tensor | None,
        eval_stats: SyntheticDataEvalResult | None,
    ) -> None:
        check_finite_weights(sae)
        sparsity = as_saved(sae, log_feature_sparsity)

        def save(folder: Path) -> None:
            super(SyntheticTrainingRunner, self)._save_outputs(folder, sae, sparsity, eval_stats)

        save_or_keep(
            output_path,
            save,
            [output_path.absolute().parent],
            without=(*OF_ONE_SAE, "synthetic_model", "eval_stats.json"),
        )
