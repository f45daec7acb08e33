"""Small runs of two hook points, for the tests of their runner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import LoggingConfig, TrainingSAE
from safetensors.torch import load_file
from torch import Tensor

from bae_lens import (
    CrossLayerRunnerConfig,
    CrossLayerTrainingRunner,
    TrainingTopKTranscoderConfig,
)
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK_OUT,
    clvq_cfg,
    make_model,
    make_text,
    runner_cfg,
)

N_STEPS = 8
REPLAY = 6 * BATCH
KINDS = ["token", "transformer", "topk"]
MODELS = ["hooked", "bridge", "encoder"]
MLP = "blocks.1.mlp.hook_post"
OURS = ("hook_name_out", "text_unit", "initialization_tokens")
UNITS = ("input_mean", "input_scale", "target_mean", "target_scale")
LOGGED = {
    *("losses/overall_loss", "losses/mse_loss"),
    *("metrics/relative_squared_error", "metrics/explained_variance", "metrics/l0"),
}
LOGGED_OF_CODES = {
    *("losses/commitment_loss", "metrics/perplexity", "metrics/codes_in_use"),
    *("metrics/drawn_off_nearest", "metrics/revived_codes"),
}


def sae_cfg(kind: str, **overrides: Any) -> Any:
    """A CLVQ-VAE by its decoder, with sampling, or a TopK transcoder; widths as the residual's."""
    if kind == "topk":
        widths = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_IN}
        return TrainingTopKTranscoderConfig(**{**widths, "k": 3, **overrides})
    return clvq_cfg(
        **{"d_out": D_IN, "decoder": kind, "top_k": 5, "sequence_length": None, **overrides}
    )


def new_sae(kind: str, length: int = CONTEXT_SIZE) -> Any:
    """A training SAE that is not initialized; for sequences of this length."""
    sequences = {"sequence_length": length} if kind == "transformer" else {}
    return TrainingSAE.from_dict(sae_cfg(kind, **sequences).to_dict())


def make_cfg(folder: Path, kind: str = "token", **overrides: Any) -> Any:
    """A run of ``N_STEPS`` steps that logs every other one."""
    ours = {name: overrides.pop(name) for name in OURS if name in overrides}
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2)
    defaults = {"n_steps": N_STEPS, "sae": sae_cfg(kind), "logger": logger}
    base = runner_cfg(folder, **(defaults | overrides)).to_dict()
    ours = {"hook_name_out": HOOK_OUT, "initialization_tokens": 256} | ours
    return CrossLayerRunnerConfig.from_dict(base | ours)


def make_runner(
    folder: Path,
    kind: str = "token",
    replay_tokens: int | None = None,
    override_sae: Any = None,
    make: Callable[..., Any] = CrossLayerTrainingRunner,
    replay_path: Path | None = None,
    **overrides: Any,
) -> Any:
    cfg = make_cfg(folder, kind, **overrides)
    replay = {"replay_tokens": replay_tokens, "replay_path": replay_path}
    return make(cfg, make_text(), make_model(), override_sae, **replay)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def but_for_speed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log without what no two runs share."""
    return [{k: v for k, v in line.items() if not k.startswith("performance/")} for line in log]


def checkpoints(runner: CrossLayerTrainingRunner) -> list[Path]:
    """Folders of the checkpoints written, earliest first."""
    assert runner.cfg.checkpoint_path is not None
    return sorted(Path(runner.cfg.checkpoint_path).iterdir(), key=lambda path: int(path.name))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "sae_weights.safetensors")


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in actual if not torch.equal(actual[name], expected[name])] == []


def some_contexts(seed: int = 5) -> Tensor:
    """Inputs ``[3, 16, d_in]`` like the activations of the tiny models."""
    return torch.randn(3, CONTEXT_SIZE, D_IN, generator=torch.Generator().manual_seed(seed))
