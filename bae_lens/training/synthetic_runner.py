"""SAELens' runner on synthetic data, whose outputs are whole and whose steps are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import TrainingSAE
from sae_lens.synthetic import (
    SyntheticDataEvalResult,
    SyntheticModel,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
    synthetic_sae_runner,
)
from sae_lens.synthetic.synthetic_sae_runner import SyntheticSAERunnerResult
from torch import Tensor
from typing_extensions import override

from bae_lens.checks.finite import check_finite_weights, check_trainable
from bae_lens.loading.devices import check_device
from bae_lens.training.finite_steps import trainers_that_skip
from bae_lens.training.outputs import check_outputs, held_folders, save_or_keep
from bae_lens.training.run_checks import check_config
from bae_lens.training.runner_fields import check_runner
from bae_lens.training.sparsity import OF_ONE_SAE, as_saved


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
        sparsity = as_saved(sae, log_feature_sparsity)

        def save(folder: Path) -> None:
            super(SyntheticTrainingRunner, self)._save_outputs(folder, sae, sparsity, eval_stats)

        save_or_keep(
            output_path,
            save,
            [output_path.absolute().parent],
            without=(*OF_ONE_SAE, "synthetic_model", "eval_stats.json"),
        )
