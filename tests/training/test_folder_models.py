"""Runs on a model that is given as a folder: trained, evaluated, and resumed only on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file, save_file

from bae_lens import CrossLayerTrainingRunner
from bae_lens.activations.held_out import held_out_store, load_model_of
from bae_lens.evals import run_evals
from bae_lens.loading.classifiers import class_names
from bae_lens.loading.saved_saes import load_sae
from tests.helpers import cross_layer_cfg, save_bert


def classifier_cfg(folder: Path, model: Path, n_steps: int = 6, **overrides: Any) -> Any:
    names = {"hook_name": "blocks.0.hook_out", "model_name": str(model)}
    fields = {**names, "model_class_name": "TransformerBridge", "exclude_special_tokens": True}
    return replace(
        cross_layer_cfg(folder, n_steps, **{**fields, **overrides}),
        hook_name_out="blocks.1.hook_out",
        text_unit="sentence",
    )


def double_weights(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({k: 2 * v for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"})


def test_a_classifier_in_a_folder_is_trained_on_and_evaluated(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "classifier")
    texts = [" ".join(f"word{(i * j) % 40}" for j in range(3 + i % 9)) for i in range(40)]

    CrossLayerTrainingRunner(
        classifier_cfg(tmp_path, model), override_dataset=Dataset.from_dict({"text": texts})
    ).run()
    sae = load_sae(tmp_path / "output")

    assert sae.cfg.metadata.model_name == str(model)
    with pytest.raises(ValueError, match="not opened unasked"):
        load_model_of(sae)
    bridge = load_model_of(sae, model_name=str(model))
    assert class_names(bridge) == ("bad", "good")
    store = held_out_store(sae, bridge, Dataset.from_dict({"text": texts}))
    metrics, _ = run_evals(sae, store, bridge, n_code_tokens=64)
    assert metrics["code"]["explained_variance"] <= 1


def test_a_run_is_not_resumed_once_the_folder_has_other_weights(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "classifier")
    texts = Dataset.from_dict({"text": [f"word{i} word{i + 1}" for i in range(39)]})
    cfg = classifier_cfg(tmp_path, model, n_checkpoints=1)
    CrossLayerTrainingRunner(cfg, override_dataset=texts).run()
    checkpoint = next(p.parent for p in (tmp_path / "checkpoints").rglob("trainer_state.pt"))
    resumed = classifier_cfg(tmp_path, model, resume_from_checkpoint=str(checkpoint))

    CrossLayerTrainingRunner(resumed, override_dataset=texts)
    double_weights(model)
    with pytest.raises(ValueError, match="the language model has other weights there than here"):
        CrossLayerTrainingRunner(resumed, override_dataset=texts)


def test_kept_activations_are_of_the_weights_that_the_folder_had(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "classifier")
    texts = Dataset.from_dict({"text": [f"word{i} word{i + 1}" for i in range(39)] * 3})
    given: Any = {"override_dataset": texts, "replay_tokens": 192, "replay_path": tmp_path / "kept"}
    cfg = classifier_cfg(tmp_path, model)
    CrossLayerTrainingRunner(cfg, **given).run()

    CrossLayerTrainingRunner(cfg, **given)
    double_weights(model)
    with pytest.raises(ValueError, match=r"model_sha256 is .* there and .* here"):
        CrossLayerTrainingRunner(cfg, **given)
