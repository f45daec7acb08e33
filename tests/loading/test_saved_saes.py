"""Folders of saved SAEs that are damaged, foreign or none: one sentence that names the file."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from safetensors.torch import load, save_file

from bae_lens.cli import main
from bae_lens.loading.devices import check_device
from bae_lens.loading.saved_saes import load_sae, load_scaler
from tests.helpers import CONTEXT_SIZE, HOOK, make_bae, make_clvq, make_training_bae

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
KNOWN = {"model_name": "tiny", "hook_name": HOOK, "context_size": CONTEXT_SIZE, "prepend_bos": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sae = make_bae()
    for name, value in KNOWN.items():
        sae.cfg.metadata[name] = value
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def change(folder: Path, **fields: Any) -> None:
    cfg = json.loads((folder / CFG).read_text()) | fields
    (folder / CFG).write_text(json.dumps({k: v for k, v in cfg.items() if v is not ...}))


def change_metadata(folder: Path, **fields: Any) -> None:
    metadata = json.loads((folder / CFG).read_text())["metadata"]
    change(folder, metadata=metadata | fields)


def change_weights(folder: Path, **tensors: Any) -> None:
    own = load((folder / WEIGHTS).read_bytes()) | tensors
    save_file({k: v for k, v in own.items() if v is not ...}, folder / WEIGHTS)


def cut(folder: Path, name: str, n: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:n])


class _Foreign:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (lambda f: cut(f, WEIGHTS, -100), f"{WEIGHTS} is cut short"),
    "half a header": (lambda f: cut(f, WEIGHTS, 20), f"{WEIGHTS} is cut short"),
    "weights empty": (lambda f: cut(f, WEIGHTS, 0), f"{WEIGHTS} is empty"),
    "weights pickled": (
        lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(_Foreign())),
        f"{WEIGHTS} is cut short or no safetensors file",
    ),
    "weights of torch": (
        lambda f: torch.save(load((f / WEIGHTS).read_bytes()), f / WEIGHTS),
        f"{WEIGHTS} is cut short or no safetensors file",
    ),
    "a header of a claim": (
        lambda f: (f / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        f"{WEIGHTS} is cut short",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"there is no {WEIGHTS}"),
    "a folder of weights": (
        lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
        WEIGHTS,
    ),
    "a tensor missing": (lambda f: change_weights(f, b_enc=...), "Missing.*b_enc"),
    "a tensor too many": (lambda f: change_weights(f, own=torch.zeros(2)), "Unexpected.*own"),
    "a tensor misshapen": (lambda f: change_weights(f, b_enc=torch.zeros(3)), "mismatch.*b_enc"),
    "no tensors": (lambda f: save_file({}, f / WEIGHTS), "Missing"),
    "NaN": (
        lambda f: change_weights(f, b_enc=torch.full((40,), float("nan"))),
        "b_enc.*NaN or infinite",
    ),
    "infinity": (
        lambda f: change_weights(f, b_dec=torch.tensor([float("inf")] + [0.0] * 15)),
        "b_dec.*NaN or infinite",
    ),
    "another's weights": (
        lambda f: save_file(make_clvq().state_dict(), f / WEIGHTS),
        f"{WEIGHTS} does not hold the tensors",
    ),
    "config empty": (lambda f: cut(f, CFG, 0), CFG),
    "config cut short": (lambda f: cut(f, CFG, 100), CFG),
    "config deep": (lambda f: (f / CFG).write_bytes(b"[" * 100_000), "nested too deep"),
    "config garbage": (lambda f: (f / CFG).write_bytes(os.urandom(300)), CFG),
    "config a list": (lambda f: (f / CFG).write_text("[]"), CFG),
    "config in latin-1": (
        lambda f: (f / CFG).write_bytes('{"name": "café"}'.encode("latin-1")),
        "not UTF-8",
    ),
    "config in UTF-16": (
        lambda f: (f / CFG).write_bytes((f / CFG).read_text().encode("utf-16")),
        "not UTF-8",
    ),
    "a name twice": (
        lambda f: (f / CFG).write_text('{"d_in": 1, ' + (f / CFG).read_text()[1:]),
        "'d_in' stands twice",
    ),
    "no d_sae": (lambda f: change(f, d_sae=...), "d_sae"),
    "d_in a string": (lambda f: change(f, d_in="16"), "d_in must be a whole number.*'16'"),
    "d_in negative": (lambda f: change(f, d_in=-16), "d_in must be a whole number"),
    "d_sae huge": (lambda f: change(f, d_sae=10**15), "d_sae|mismatch"),
    "an unknown architecture": (
        lambda f: change(f, architecture="bea"),
        "architecture must be.*'bea'. Did you mean bae",
    ),
    "an architecture of numbers": (lambda f: change(f, architecture=[1]), "architecture must be"),
    "another architecture": (lambda f: change(f, architecture="topk"), f"{CFG}|tensors"),
    "dtype none": (lambda f: change(f, dtype="float99"), "float99"),
    "dtype a number": (lambda f: change(f, dtype=32), "32"),
    "normalization unknown": (lambda f: change(f, normalize_activations="evil"), "evil"),
    "metadata null": (lambda f: change(f, metadata=None), "metadata must be"),
    "metadata a list": (lambda f: change(f, metadata=[1]), "metadata must be"),
    "a version that is none": (lambda f: change_metadata(f, sae_lens_version="x"), "x"),
    "hook a number": (lambda f: change_metadata(f, hook_name=5), "metadata.hook_name must be"),
    "model a list": (lambda f: change_metadata(f, model_name=["a"]), "metadata.model_name must be"),
    "context a string": (lambda f: change_metadata(f, context_size="16"), "context_size must be"),
    "context negative": (lambda f: change_metadata(f, context_size=-1), "context_size must be"),
    "excluded a string": (
        lambda f: change_metadata(f, exclude_special_tokens="all"),
        "exclude_special_tokens must be",
    ),
    "positions a number": (lambda f: change_metadata(f, seqpos_slice=3), "seqpos_slice must be"),
    "a unit that is none": (lambda f: change_metadata(f, text_unit="word"), "text_unit must be"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_one_sentence_says_what_is_wrong_and_where(
    name: str, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, words = DAMAGED[name]
    damage(folder)

    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        load_sae(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 800
    assert not (tmp_path / "executed").exists()


def test_what_is_no_folder_of_an_sae(folder: Path, tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "nowhere", "there is no cfg.json"),
        (tmp_path, "there is no cfg.json"),
        (folder / CFG, "it is a file"),
        (tmp_path / ("x" * 5000), "there is no cfg.json"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            load_sae(path)


def test_layers_are_no_more_than_tensors(tmp_path: Path) -> None:
    make_clvq(decoder="transformer").save_model(tmp_path)
    change(tmp_path, decoder_layers=10**9)

    with pytest.raises(ValueError, match=r"decoder_layers = 1000000000, and .* only \d+ tensors"):
        load_sae(tmp_path)


def test_an_sae_that_is_well(folder: Path, tmp_path: Path) -> None:
    own, expected = load_sae(folder), SAE.load_from_disk(folder)
    assert own.cfg == expected.cfg
    assert all(torch.equal(own.state_dict()[k], v) for k, v in expected.state_dict().items())
    # As it is trained, and one of SAELens.
    make_training_bae().save_model(tmp_path / "training")
    assert load_sae(tmp_path / "training", training=True).cfg.temperature is not None
    StandardTrainingSAE(StandardTrainingSAEConfig(d_in=4, d_sae=8)).save_inference_model(
        tmp_path / "standard"
    )
    assert load_sae(tmp_path / "standard").cfg.d_sae == 8


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "", "cpu:x", 5, None])
def test_devices_that_are_none(device: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="device must be"):
        load_sae(folder, device)
    assert check_device("device", "cpu") == "cpu"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no JSON"),
        ("{}", "scaling_factor"),
        ('{"scaling_factor": "2"}', "scaling_factor must be a positive number"),
        ('{"scaling_factor": -1}', "scaling_factor must be a positive number"),
        ('{"scaling_factor": NaN}', "not finite"),
    ],
)
def test_a_scale_that_is_none(content: str, words: str, folder: Path) -> None:
    (folder / ACTIVATION_SCALER_CFG_FILENAME).write_text(content)

    with pytest.raises(ValueError, match=words) as caught:
        load_scaler(folder)
    assert ACTIVATION_SCALER_CFG_FILENAME in str(caught.value)


@pytest.mark.parametrize("damage", ["weights cut short", "metadata null", "NaN"])
@pytest.mark.parametrize("command", ["eval", "report", "ablate", "quiz"])
def test_every_command_says_so(
    command: str, damage: str, folder: Path, tmp_path: Path, capsys
) -> None:
    DAMAGED[damage][0](folder)
    data = tmp_path / "texts.csv"
    data.write_text("text,label\nword1,0\nword2,1\n")
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
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("bae-lens: error: ")
    assert str(folder) in message
