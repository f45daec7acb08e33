"""Language models by names of somebody else: shown, loaded as data, and nothing of theirs run."""

from __future__ import annotations

import json
import logging
import os
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.dynamic_module_utils as dynamic_modules
from transformers import GPT2Config, GPT2LMHeadModel

from bae_lens import load_config
from bae_lens import offline as demo
from bae_lens.activations.held_out import open_text
from bae_lens.cli import main
from bae_lens.loading import language_models as model_loading
from bae_lens.loading.language_models import checked_options, load_model
from bae_lens.training import TrainingRunner
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    make_bae,
    make_model,
    make_text,
    make_tokenizer,
    runner_cfg,
)

_CODE = """
open({marker!r}, "w").write("run")
from transformers import GPT2LMHeadModel, GPT2Config, PreTrainedTokenizerFast
class Config(GPT2Config):
    model_type = "foreign"
class Model(GPT2LMHeadModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def modules_of_hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with a GPT-2 and a tokenizer, and no code."""
    folder = tmp_path / "plain"
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_positions": 2 * CONTEXT_SIZE,
        "n_embd": D_IN,
        "n_layer": 2,
        "n_head": 2,
    }
    GPT2LMHeadModel(GPT2Config(vocab_size=44, **sizes)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What code of a folder leaves when it is run."""
    return tmp_path / "ran"


def with_code(folder: Path, ran: Path, *parts: str) -> Path:
    """The folder, with code of its own for its config, model or tokenizer."""
    (folder / "own.py").write_text(_CODE.format(marker=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    names = {
        "config": {"AutoConfig": "own.Config"},
        "model": {"AutoModelForCausalLM": "own.Model"},
    }
    auto = {k: v for part in parts if part in names for k, v in names[part].items()}
    if auto:
        config |= {"model_type": "foreign", "auto_map": auto}
        (folder / "config.json").write_text(json.dumps(config))
    if "tokenizer" in parts:
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer |= {
            "tokenizer_class": "Tokenizer",
            "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def load(folder: Path, **kwargs: Any) -> Any:
    hooks = ["transformer.h.0"]
    return load_model(str(folder), "AutoModelForCausalLM", hook_names=hooks, **kwargs)


@pytest.mark.parametrize("parts", [("config", "model"), ("config",), ("tokenizer",)])
def test_code_of_a_folder_is_run_for_nobody_who_did_not_ask(
    parts: tuple[str, ...], plain: Path, ran: Path
) -> None:
    folder = with_code(plain, ran, *parts)

    # The tokenizer has a class of transformers to fall back on.
    told = pytest.raises(ValueError, match=f"{folder}.*--trust_remote_code")
    with nullcontext() if parts == ("tokenizer",) else told:
        load(folder)
    assert not ran.exists()


def test_and_is_for_who_did(plain: Path, ran: Path) -> None:
    load(with_code(plain, ran, "config", "model"), trust_remote_code=True)

    assert ran.exists()


def test_nor_where_a_library_asks_for_it_by_itself(plain: Path, ran: Path, monkeypatch) -> None:
    """As TransformerLens does for some names and architectures."""
    folder = with_code(plain, ran, "tokenizer")
    from transformers import AutoTokenizer

    def by_itself(*args: Any, **kwargs: Any) -> Any:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    monkeypatch.setattr(model_loading, "sae_lens_load_model", by_itself)

    with pytest.raises(ValueError, match="running code from its folder or repository"):
        load(folder)
    assert not ran.exists()
    # Only while a model is loaded.
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert ran.exists()


def test_pickled_weights_are_not_run(plain: Path, ran: Path) -> None:
    class Foreign:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {ran}",)

    (plain / "model.safetensors").unlink()
    (plain / "pytorch_model.bin").write_bytes(pickle.dumps(Foreign()))

    with pytest.raises(ValueError, match="which cannot be loaded"):
        load(plain)
    assert not ran.exists()


def test_nor_where_a_library_would(plain: Path, ran: Path, monkeypatch, tmp_path) -> None:
    class Foreign:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {ran}",)

    file = tmp_path / "final.pth"
    torch.save(Foreign(), file)
    monkeypatch.setattr(
        model_loading,
        "sae_lens_load_model",
        lambda *args, **kwargs: torch.load(file, weights_only=False),
    )
    before = dict(os.environ)

    with pytest.raises(ValueError, match="cannot be loaded"):
        load(plain)
    assert not ran.exists()
    assert dict(os.environ) == before


def test_a_folder_without_code_is_loaded_and_named_first(plain: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "bae_lens.loading.language_models")

    assert "transformer.h.0" in load(plain, options={"dtype": "float32"}).hook_dict
    assert f"Loading the language model '{plain}' (AutoModelForCausalLM)" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", True),
        ("trust_remote_code", 1),
        ("cache_dir", "/etc"),
        ("token", "x"),
        ("proxies", {"https": "http://evil"}),
        ("quantization_config", {}),
        ("weights_only", False),
        ("use_kernels", True),
        ("code_revision", "main"),
        ("tokenizer", "nobody/other"),
        ("hf_model", None),
        ("pretrained_model_name_or_path", "nobody/other"),
    ],
)
def test_options_that_are_not_taken_from_a_file(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=f"F asks for model_from_pretrained_kwargs.{name} = .*trust"
    ):
        checked_options({name: value}, "F")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attn_implementation", "nobody/kernels"),
        ("dtype", "os.system"),
        ("revision", 5),
        ("n_ctx", 10**30),
        ("fold_ln", "no"),
        ("device_map", {"": "disk"}),
    ],
)
def test_values_that_an_option_cannot_have(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"F: model_from_pretrained_kwargs.{name} must be .*; got"):
        checked_options({name: value}, "F")


def test_options_that_are_taken() -> None:
    given = {"center_writing_weights": False, "dtype": "torch.bfloat16", "revision": "main"}
    tokenizer = make_tokenizer()

    assert checked_options(given, "F") == given | {"dtype": "bfloat16"}
    # Nobody can write an object into a file.
    assert checked_options({"tokenizer": tokenizer}, "F") == {"tokenizer": tokenizer}
    assert checked_options({"trust_remote_code": False}, "F") == {}
    assert checked_options(None, "F") == {}
    with pytest.raises(ValueError, match=r"must be options by name; got \[1\]"):
        checked_options([1], "F")


@pytest.mark.parametrize(
    ("name", "class_name", "words"),
    [
        ("gpt2", "HookedTransformer", "HF_HUB_OFFLINE is set.*--model.*bae-lens/smollm2-135m"),
        ("gpt2", "AutoModelForCausalLM", "HF_HUB_OFFLINE is set"),
        ("gpt22", "HookedTransformer", "no name that TransformerLens knows. Did you mean gpt2"),
        ("x" * 5000, "HookedTransformer", "no name that TransformerLens knows"),
        ("x" * 5000, "AutoModelForCausalLM", "no name that the hub could have"),
        ("gpt2", "Mamba", "model_class_name must be one of HookedTransformer"),
        ("", "HookedTransformer", "model_name must be a string that is not empty"),
        (["gpt2"], "HookedTransformer", "model_name must be a string"),
        ("bae-lens/smollm", "HookedTransformer", "did you mean 'bae-lens/smollm2-135m'"),
    ],
)
def test_names_that_nobody_has(name: Any, class_name: str, words: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)

    with pytest.raises(ValueError, match=words) as caught:
        load_model(name, class_name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_folder_of_a_hooked_transformer(plain: Path) -> None:
    with pytest.raises(ValueError, match="load it as AutoModelForCausalLM"):
        load_model(str(plain))


# Where names come from


def _saved(folder: Path, **metadata: Any) -> Path:
    sae = make_bae()
    known = {"hook_name": HOOK, "context_size": CONTEXT_SIZE, "prepend_bos": True}
    known |= {"model_name": "tiny", "dataset_path": "tiny-text", "exclude_special_tokens": True}
    for name, value in (known | metadata).items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.mark.parametrize("command", ["eval", "report", "ablate", "quiz"])
@pytest.mark.parametrize("is_asked", [True, False])
def test_no_command_runs_code_that_a_saved_sae_asks_for(
    command: str, is_asked: bool, plain: Path, ran: Path, tmp_path: Path, capsys
) -> None:
    with_code(plain, ran, "config", "model")
    kwargs = {"trust_remote_code": True} if is_asked else {}
    names: dict[str, Any] = {"model_name": str(plain), "model_class_name": "AutoModelForCausalLM"}
    folder = _saved(tmp_path / "sae", **names, model_from_pretrained_kwargs=kwargs)
    data = tmp_path / "texts.csv"
    data.write_text("text,label\n" + "word1 word2,0\nword3 word4,1\n" * 20)
    given = {
        "eval": (),
        "report": ("--judge", "none"),
        "ablate": ("--data", str(data)),
        "quiz": (
            "--data",
            str(data),
            "--reference",
            str(data),
            "--output",
            str(tmp_path / "q.html"),
        ),
    }

    assert main([command, str(folder), *given[command]]) == 2
    message = capsys.readouterr().err
    assert "--trust_remote_code" in message
    assert str(folder / "cfg.json") in message
    assert not ran.exists()


def test_nor_does_a_training_config(plain: Path, ran: Path, tmp_path: Path, capsys) -> None:
    with_code(plain, ran, "config", "model")
    names: dict[str, Any] = {"model_name": str(plain), "model_class_name": "AutoModelForCausalLM"}
    content = runner_cfg(tmp_path, **names).to_dict() | {"dataset_path": demo.DATASET_NAME}
    content |= {"model_from_pretrained_kwargs": {"trust_remote_code": True}, "seqpos_slice": [None]}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="trust_remote_code = True") as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert main(["train", str(file)]) == 2
    assert "--trust_remote_code" in capsys.readouterr().err
    trusted = load_config(file, trust_remote_code=True).runner
    with pytest.raises(ValueError, match="trust_remote_code = True"):
        TrainingRunner(trusted, make_text())  # pyright: ignore[reportArgumentType]
    assert not ran.exists()


def test_the_model_of_the_command_line_takes_the_metadatas_place(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    asked = resolve_to_tiny(monkeypatch)
    folder = _saved(tmp_path / "sae")
    small = ("--n_eval_batches", "1", "--batch_size_prompts", "2", "--n_code_tokens", "64")

    options = ("--model", "other", "--model_class_name", "TransformerBridge")
    assert main(["eval", str(folder), *small, *options]) == 0
    assert ("other", "TransformerBridge") in asked
    assert "bae-lens: Loading the language model 'other' (TransformerBridge)" in (
        capsys.readouterr().err
    )


def test_a_dataset_of_a_folder_with_a_script_runs_none(tmp_path: Path, ran: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "text.py").write_text(f"open({str(ran)!r}, 'w').write('run')")
    (folder / "dataset_infos.json").write_text("{}")

    with pytest.raises(ValueError, match=r"cannot be (read|had)"):
        open_text(str(folder))
    assert not ran.exists()


def test_the_state_of_a_checkpoint_is_not_unpickled(tmp_path: Path, ran: Path) -> None:
    class Foreign:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {ran}",)

    cfg = runner_cfg(tmp_path, save_final_checkpoint=True)
    TrainingRunner(cfg, make_text(), make_model()).run()
    [state] = tmp_path.rglob("trainer_state.pt")
    state.write_bytes(pickle.dumps({"optimizer": Foreign()}))
    again = runner_cfg(tmp_path, resume_from_checkpoint=str(state.parent))

    with pytest.raises(Exception, match=r"trainer_state|[Ww]eights.only|unpickl|checkpoint"):
        TrainingRunner(again, make_text(), make_model()).run()
    assert not ran.exists()
