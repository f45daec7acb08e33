"""Commands on SAEs of SAELens' own that are not like most: that scale each token, or cannot be read token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sae_lens import StandardSAE, StandardSAEConfig

from bae_lens.cli import main
from tests.cli.helpers import resolve_to_tiny
from tests.export.seen import at_hook
from tests.helpers import D_IN, D_SAE, make_temporal, write_labeled

COMMANDS = ["eval", "report", "serve", "export csv", "export neuronpedia", "export delphi"]
COMMANDS += ["export saebench", "probe --data FILE", "ablate --data FILE"]
COMMANDS += ["quiz --data FILE --reference FILE --output quiz.html"]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


def save(folder: Path, sae: Any) -> Path:
    at_hook(sae).save_model(folder)
    return folder


@pytest.mark.parametrize("scale", ["layer_norm", "constant_norm_rescale"])
def test_an_sae_that_scales_each_token_is_evaluated_and_reported(tmp_path, scale):
    config = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations=scale)
    folder = save(tmp_path / "sae", StandardSAE(config))
    small = ("--n_eval_batches", "1", "--batch_size_prompts", "4", "--n_code_tokens", "100")

    assert main(["eval", str(folder), *small]) == 0

    code = json.loads((folder / "eval_metrics.json").read_text())["code"]
    assert code["n_tokens"] == 100
    own = code["explained_variance"]
    assert code["quantized_explained_variance"] == pytest.approx(own, rel=0.05)
    small = ("--n_tokens", "300", "--n_code_tokens", "200", "--n_sentences", "3")
    assert main(["report", str(folder), *small, "--judge", "none"]) == 0
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_one_that_cannot_be_read_token_by_token_is_refused_at_once(
    tmp_path, monkeypatch, capsys, asked, command
):
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "sae", make_temporal())
    data = write_labeled(tmp_path / "data.jsonl")
    argv = [str(data) if word == "FILE" else word for word in command.split()]
    n_words = 2 if argv[0] == "export" else 1

    assert main([*argv[:n_words], str(folder), *argv[n_words:]]) == 2

    assert "What a temporal SAE fires at a token" in capsys.readouterr().err
    assert asked == []
