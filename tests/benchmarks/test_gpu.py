"""Tests of ``benchmarks/gpu.py``: it takes the steps that it times, of the architectures that it names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
gpu: Any = importlib.import_module("gpu")


@pytest.mark.parametrize("name", gpu.peers(32, 64, 16))
def test_queued_steps_are_steps_of_the_peer(name: str) -> None:
    cfg = gpu.peers(32, 64, 16)[name]
    trainer = gpu.make_trainer(cfg, 256, "cpu", autocast=False)
    taken = trainer.n_training_samples

    gpu.queued_steps(trainer, 3)()

    assert trainer.sae.cfg.architecture() == cfg.architecture()
    assert trainer.n_training_samples == taken + 3 * 256


def test_models_have_the_shapes_that_they_are_named_after() -> None:
    model = gpu.language_model("GPT-2", "cpu", is_small=True)
    text = gpu.tokenised(4, model.cfg.d_vocab)["tokens"]

    assert model.tokenizer.bos_token_id == 0
    assert all(row[0] == 0 and len(row) == gpu.LENGTH for row in text)
    assert max(max(row) for row in text) < model.cfg.d_vocab


def test_a_run_is_timed_from_its_first_step() -> None:
    args = gpu.parse(["--quick", "--device", "cpu", "--run_tokens", "4096"])
    model = gpu.language_model("GPT-2", "cpu", is_small=True)
    text = gpu.tokenised(64, model.cfg.d_vocab)
    cfg = gpu.peers(32, 64, 16)["BAE"]
    cfg.normalize_activations = "none"

    found = gpu.run_once(args, model, text, cfg, (0, 1), replay=True, autocast_lm=False)

    assert found["tokens_per_second"] > 4096 / found["seconds_in_all"]
