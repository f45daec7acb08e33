"""Numbers of a runner that cannot be: one form of words, from a file as in Python, before any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.synthetic import SyntheticSAERunnerConfig

from bae_lens import CrossLayerRunnerConfig, TrainingRunner, load_config
from bae_lens.training.config_file import build_config
from bae_lens.training.runner_fields import RUNNER_RULES, check_runner
from bae_lens.training.synthetic_runner import SyntheticTrainingRunner
from tests.helpers import BATCH, cross_layer_cfg, runner_cfg

NAN, INF = float("nan"), float("inf")
BAD: list[tuple[str, Any]] = [
    *((name, value) for name in ("training_tokens", "context_size") for value in (-5, 0)),
    *(("train_batch_size_tokens", value) for value in (-1, 0)),
    *(("store_batch_size_prompts", value) for value in (-1, 0)),
    *(("n_batches_in_buffer", value) for value in (-1, 0)),
    ("n_batches_for_norm_estimate", 0),
    ("feature_sampling_window", 0),
    ("dead_feature_window", -1),
    ("n_restart_cycles", 0),
    *((name, value) for name in ("lr", "lr_end") for value in (NAN, INF, -1.0)),
    *(("adam_beta1", value) for value in (1.0, -0.1, NAN)),
    ("adam_beta2", 1.5),
    ("dead_feature_threshold", NAN),
    ("activations_mixing_fraction", 1.5),
    ("lr_warm_up_steps", -1),
    ("lr_decay_steps", -1),
    ("n_checkpoints", -1),
    ("n_eval_batches", -1),
    ("eval_batch_size_prompts", 0),
    ("seed", 10**30),
    ("device", "gpu"),
    ("device", ""),
    ("llm_device", "graphics"),
    ("act_store_device", "there"),
    ("dtype", "float99"),
    ("lr_scheduler_name", "sometimes"),
    ("model_name", ""),
    ("hook_name", ""),
    ("hook_head_index", -1),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_value_that_cannot_be(name: str, value: Any, tmp_path: Path) -> None:
    cfg: Any = runner_cfg(tmp_path)
    setattr(cfg, name, value)

    with pytest.raises(ValueError, match=rf"^{name} must be .*; got .*\.$"):
        TrainingRunner(cfg)
    content = {"sae": {"architecture": "bae", "d_in": 4, "d_sae": 8}, name: value}
    with pytest.raises(ValueError, match=rf"{name} must be .*; got"):
        build_config(content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["5", [5], None, 2.5, True])
def test_other_types_in_python(value: Any, tmp_path: Path) -> None:
    cfg: Any = runner_cfg(tmp_path)
    cfg.train_batch_size_tokens = value

    with pytest.raises(ValueError, match=r"train_batch_size_tokens must be a whole number .*; got"):
        TrainingRunner(cfg)


@pytest.mark.parametrize(("name", "value"), [("replay_tokens", -5), ("replay_tokens", 2.5)])
def test_arguments_of_the_runner(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainingRunner(runner_cfg(tmp_path), **{name: value})


def test_the_loggers_numbers(tmp_path: Path) -> None:
    cfg: Any = runner_cfg(tmp_path)
    cfg.logger.wandb_log_frequency = 0
    with pytest.raises(ValueError, match=r"logger\.wandb_log_frequency must be"):
        TrainingRunner(cfg)
    content = {"sae": {"architecture": "bae", "d_in": 4, "d_sae": 8}}
    with pytest.raises(ValueError, match=r"logger\.wandb_log_frequency must be"):
        build_config(content | {"logger": {"wandb_log_frequency": 0}})


def test_a_device_that_this_machine_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be a device that this machine has; got"):
        TrainingRunner(runner_cfg(tmp_path, device="cuda:77"))


def test_a_decay_from_nothing(tmp_path: Path) -> None:
    cfg = runner_cfg(tmp_path, lr=0.0, lr_decay_steps=2)
    with pytest.raises(ValueError, match="lr and lr_end must be positive"):
        check_runner(cfg)


def test_a_run_has_a_step(tmp_path: Path) -> None:
    said = f"training_tokens is {BATCH - 1}, less than one step takes .train_batch_size_tokens = {BATCH}"
    with pytest.raises(ValueError, match=said):
        TrainingRunner(runner_cfg(tmp_path, training_tokens=BATCH - 1))
    with pytest.raises(ValueError, match=said):
        cross_layer_cfg(tmp_path, training_tokens=BATCH - 1)
    check_runner(runner_cfg(tmp_path, training_tokens=BATCH))
    synthetic: Any = load_config("synthetic-bae", {"training_samples": 10}).runner
    with pytest.raises(
        ValueError, match=r"training_samples is 10, less than one step takes .batch_size"
    ):
        SyntheticTrainingRunner(synthetic)


def test_what_numpy_counts_is_a_number(tmp_path: Path) -> None:
    cfg: Any = runner_cfg(tmp_path)
    cfg.training_tokens = np.int64(640)
    check_runner(cfg)
    assert type(cfg.training_tokens) is int


def test_every_number_of_the_configs_has_a_rule() -> None:
    for config_class in (
        LanguageModelSAERunnerConfig,
        CrossLayerRunnerConfig,
        SyntheticSAERunnerConfig,
    ):
        hints = {name: str(kind) for name, kind in config_class.__annotations__.items()}
        numbers = {
            name
            for name, kind in hints.items()
            if ("int" in kind or "float" in kind) and "tuple" not in kind and "Synth" not in kind
        }
        assert numbers <= set(RUNNER_RULES), numbers - set(RUNNER_RULES)
