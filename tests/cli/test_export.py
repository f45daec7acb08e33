"""``bae-lens export FORMAT PATH`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sae_lens import SAE

from bae_lens.cli import main
from bae_lens.examples import LatentRecords
from bae_lens.export.folder import NOTE_FILENAME
from bae_lens.fingerprint import weights_sha256
from tests.cli.helpers import resolve_to_tiny
from tests.export.seen import at_hook
from tests.helpers import HOOK, between, make_bae
from tests.report.helpers import make_intruder


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


def save(folder: Path, sae: Any = None, with_examples: bool = True) -> Path:
    sae = at_hook(make_bae() if sae is None else sae)
    sae.save_model(folder)
    small = ("--n_tokens", "300", "--n_code_tokens", "0", "--n_sentences", "0", "--judge", "none")
    if with_examples:
        assert main(["report", str(folder), *small, "--save_examples"]) == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    capsys.readouterr()
    assert main(["export", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    return err


def test_a_table_has_effects_and_the_scores_beside_the_sae(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = LatentRecords.load(folder / "examples.json")
    intruder = make_intruder(records, 5, weights_sha256=records.weights_sha256)
    intruder.save(folder / "intruder.json")
    capsys.readouterr()
    assert main(["export", "csv", str(folder), "--n_effects", "2"]) == 0
    assert capsys.readouterr().out == f"Written to {folder / 'csv'}\n"
    table = pd.read_parquet(folder / "csv" / "latents.parquet")
    assert {len(tokens) for tokens in table["raised_tokens"]} == {2}
    assert int(table["intruder_score"].notna().sum()) == 5
    assert list(table["rate"]) == [latent.rate for latent in records.latents]

    # Of other weights, and so of no latent here.
    make_intruder(records, 5, weights_sha256="0" * 64).save(folder / "intruder.json")
    assert main(["export", "csv", str(folder), "--n_effects", "0"]) == 0
    assert "is of other weights, and left out" in capsys.readouterr().err
    table = pd.read_csv(folder / "csv" / "latents.csv")
    assert not {"intruder_score", "raised_tokens"} & set(table.columns)


def test_without_effects_no_model_is_loaded(folder: Path, asked: list[tuple[str, str]]) -> None:
    asked.clear()
    argv = ["--n_effects", "0", "--set_name", "mine"]
    assert main(["export", "neuronpedia", str(folder), *argv]) == 0
    assert asked == []
    request = json.loads((folder / "neuronpedia" / "batch-0.json").read_text())
    assert request["source"] == "0-mine"


def test_neuronpedia_with_effects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = folder / "examples.json"
    elsewhere = folder.parent / "elsewhere.json"
    examples.rename(elsewhere)
    capsys.readouterr()
    output = folder.parent / "out"
    argv = ["--examples", str(elsewhere), "--model_id", "tiny", "--output", str(output)]
    assert main(["export", "neuronpedia", str(folder), *argv]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == [f"Written to {output}"]
    assert out[0].endswith("features of tiny/0-res-bae-40. Nothing was sent.")
    request = json.loads((output / "batch-0.json").read_text())
    assert {len(of["topLogits"]) for of in request["features"]} == {10}


def test_older_examples_are_refused_before_a_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, str]]
) -> None:
    records = json.loads((folder / "examples.json").read_text())
    for latent in records["latents"]:
        for example in latent["strongest"] + latent["random"]:
            example["activations"] = None
    (folder / "older.json").write_text(json.dumps(records))
    asked.clear()
    err = refused(capsys, "neuronpedia", str(folder), "--examples", str(folder / "older.json"))
    assert "Collect them anew: bae-lens report PATH --save_examples" in err
    assert asked == []


def test_delphi_reads_the_text_of_the_metadata(
    folder: Path, capsys: pytest.CaptureFixture[str], asked: list[tuple[str, str]]
) -> None:
    asked.clear()
    capsys.readouterr()
    argv = ["--n_tokens", "100", "--n_splits", "2", "--outlier_multiple", "0"]
    assert main(["export", "delphi", str(folder), *argv]) == 0
    assert "nonzero activations" in capsys.readouterr().out
    module = folder / "delphi" / "latents" / HOOK
    assert sorted(path.name for path in module.iterdir()) == [
        "0_19.safetensors",
        "20_39.safetensors",
        "config.json",
    ]
    assert ("bae-lens/tiny-text", "test") in asked


def test_saebench_is_folded_and_its_note_is_of_the_weights_as_they_were(folder: Path) -> None:
    assert main(["export", "saebench", str(folder)]) == 0
    out = folder / "saebench"
    note = json.loads((out / NOTE_FILENAME).read_text())
    assert note["weights_sha256"] == weights_sha256(SAE.load_from_disk(folder))
    norms = SAE.load_from_disk(out).W_dec.norm(dim=1)
    assert norms.tolist() == pytest.approx([1.0] * 40, abs=1e-5)
    # Once more, over its own.
    assert main(["export", "saebench", str(folder)]) == 0


def test_what_cannot_be_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = save(tmp_path / "bare", make_bae(seed=1), with_examples=False)
    told = f"bae-lens report {bare} --save_examples"
    assert told in refused(capsys, "csv", str(bare))
    assert told in refused(capsys, "neuronpedia", str(bare))
    examples = str(folder / "examples.json")
    assert "other weights" in refused(capsys, "csv", str(bare), "--examples", examples)
    across = tmp_path / "across"
    between(at_hook(make_bae()), HOOK).save_model(across)
    for name in ("neuronpedia", "saebench"):
        assert "one hook point" in refused(capsys, name, str(across))
    err = refused(capsys, "csv", str(folder), "--set_name", "x")
    assert "--set_name is of neuronpedia, and not of csv" in err
    assert "--examples is of csv or neuronpedia" in refused(
        capsys, "saebench", str(folder), "--examples", examples
    )
    assert "n_splits" in refused(capsys, "delphi", str(folder), "--n_splits", "0")
    assert "source set" in refused(capsys, "neuronpedia", str(folder), "--set_name", "a/b")
    err = refused(capsys, "csv", str(folder), "--output", str(folder))
    assert "--output" in err
    assert "of no export" in err
    assert main(["export", "saebench", str(folder)]) == 0
    err = refused(capsys, "csv", str(folder), "--output", str(folder / "saebench"))
    assert "holds an export for 'saebench'" in err
    for own in (bare, across):
        assert {path.name for path in own.iterdir()} == {"cfg.json", "sae_weights.safetensors"}
