"""Delphi's cache, read back with known numbers, and by delphi itself where that is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from bae_lens.export import DelphiSettings, write_delphi
from tests.export.seen import TEXTS, at_hook, make_standard, true_code
from tests.helpers import CONTEXT_SIZE, D_SAE, HOOK, between, make_bae, make_model, make_text

MODEL = make_model()
SETTINGS = DelphiSettings(n_tokens=300, n_splits=3, batch_size=4)
DICTIONARIES = {
    "bits": lambda: at_hook(make_bae()),
    "real-valued": make_standard,
    "across layers": lambda: at_hook(between(make_bae(), HOOK)),
}


def dense(module: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a cache, and its activations ``[batch, pos, d_sae]``."""
    files = sorted(module.glob("*.safetensors"), key=lambda file: int(file.stem.split("_")[0]))
    assert [file.stem for file in files] == ["0_12", "13_25", "26_39"]
    parts = [load_file(file) for file in files]
    tokens = parts[0]["tokens"]
    code = np.zeros((*tokens.shape, D_SAE), dtype=np.float32)
    for file, part in zip(files, parts, strict=True):
        assert (part["tokens"] == tokens).all()
        assert part["locations"].dtype == np.uint16
        assert part["activations"].dtype == np.float16
        at = part["locations"].astype(np.int64)
        # In the order of the text, each once.
        assert sorted(map(tuple, at.tolist())) == list(map(tuple, at.tolist()))
        first = int(file.stem.split("_")[0])
        code[at[:, 0], at[:, 1], first + at[:, 2]] = part["activations"]
    return torch.from_numpy(tokens), torch.from_numpy(code)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_activation_that_is_not_0_is_there(name: str, tmp_path: Path) -> None:
    sae: Any = DICTIONARIES[name]()
    n = write_delphi(tmp_path, MODEL, sae, make_text(), SETTINGS, exclude_outlier_tokens=False)
    module = tmp_path / "latents" / HOOK
    tokens, code = dense(module)
    true = true_code(MODEL, sae, tokens)
    assert int((true != 0).sum()) == n
    assert ((code != 0) == (true != 0)).all()
    torch.testing.assert_close(code, true, rtol=1e-3, atol=1e-6)
    # Whole sequences, 4 at a time, until 300 tokens have been read that count.
    n_counted = (tokens > 3).sum(1).cumsum(0)
    assert tokens.shape == (len(n_counted) // 4 * 4, CONTEXT_SIZE)
    assert n_counted[-5] < 300 <= n_counted[-1]
    config = json.loads((module / "config.json").read_text())
    assert (config["model_name"], config["cache_ctx_len"]) == ("bae-lens/tiny", CONTEXT_SIZE)
    assert (config["n_tokens"], config["n_splits"]) == (tokens.numel(), 3)
    # What LatentDataset lists as modules.
    assert [path.name for path in (tmp_path / "latents").iterdir()] == [HOOK]


def test_texts_of_their_own_are_padded_to_one_length(tmp_path: Path) -> None:
    sae, texts = at_hook(make_bae()), ["word1 word2", "word3 word4 word5 word6", *TEXTS[:1]]
    write_delphi(tmp_path, MODEL, sae, texts, SETTINGS, exclude_outlier_tokens=False)
    tokens, code = dense(tmp_path / "latents" / HOOK)
    assert tokens.shape == (3, CONTEXT_SIZE)
    assert (code[tokens == 2] == 0).all()
    for row, own in zip(tokens, code, strict=True):
        n = int((row != 2).sum())
        torch.testing.assert_close(
            own[:n], true_code(MODEL, sae, row[None, :n])[0], rtol=1e-3, atol=1e-6
        )


def test_activations_beyond_half_precision_are_kept(tmp_path: Path) -> None:
    sae = at_hook(make_bae())
    with torch.no_grad():
        sae.scale[0] = 1e6
    write_delphi(tmp_path, MODEL, sae, make_text(), SETTINGS, exclude_outlier_tokens=False)
    module = tmp_path / "latents" / HOOK
    assert load_file(module / "0_12.safetensors")["activations"].max() == 1e6
    assert load_file(module / "13_25.safetensors")["activations"].dtype == np.float16


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    def refuse(message: str, sae: Any, source: Any = None, **changes: Any) -> None:
        settings = DelphiSettings(**{"n_tokens": 300, "n_splits": 3, **changes})
        with pytest.raises(ValueError, match=message):
            write_delphi(tmp_path, MODEL, sae, source or make_text(), settings)
        assert list(tmp_path.iterdir()) == []

    refuse("there are only 40 latents", at_hook(make_bae()), n_splits=41)
    refuse("names a folder", at_hook(make_bae(), hook_name="../blocks.0.hook_resid_post"))
    refuse("There is no token that counts", at_hook(make_bae()), [""])
    with pytest.raises(ValueError, match="n_tokens"):
        DelphiSettings(n_tokens=0)


def test_activations_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.W_E[10] = torch.nan
    with pytest.raises(ValueError, match=f"Activations at '{HOOK}' are NaN or infinite at"):
        write_delphi(tmp_path, model, at_hook(make_bae()), make_text(), SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_files_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    monkeypatch.setattr("bae_lens.export.delphi.read_hooks", None)
    with pytest.raises(ValueError, match="has files in it that are of no export"):
        write_delphi(tmp_path, MODEL, at_hook(make_bae()), make_text(), SETTINGS)


@pytest.mark.skipif(importlib.util.find_spec("delphi") is None, reason="its own environment")
def test_delphi_reads_the_same(tmp_path: Path) -> None:
    from delphi.config import ConstructorConfig, SamplerConfig  # pyright: ignore
    from delphi.latents import LatentDataset  # pyright: ignore

    sae = at_hook(make_bae())
    write_delphi(tmp_path, MODEL, sae, make_text(), SETTINGS, exclude_outlier_tokens=False)
    dataset = LatentDataset(
        f"{tmp_path}/latents",
        SamplerConfig(n_examples_train=2, n_examples_test=2, n_quantiles=2),
        ConstructorConfig(example_ctx_len=8, min_examples=4, n_non_activating=2),
        tokenizer=MODEL.tokenizer,
        modules=[HOOK],
    )
    true = true_code(MODEL, sae, dataset.tokens)
    assert len(dataset) == 3
    found = set()
    for buffer in dataset.buffers:
        for own in buffer:
            j = own.latent.latent_index
            at, values = own.activation_data.locations, own.activation_data.activations
            assert (at[:, 2] == j).all()
            assert at[:, :2].tolist() == true[..., j].nonzero().tolist()
            torch.testing.assert_close(
                values.float(), true[..., j][true[..., j] != 0], rtol=1e-3, atol=1e-6
            )
            found.add(j)
    assert found == set(true.flatten(0, 1).any(0).nonzero().flatten().tolist())
    # Through its constructor and sampler, to examples.
    records = [record for record in dataset if record is not None]
    assert records
    for record in records:
        assert all(example.activations.max() > 0 for example in record.train)
