"""``bae-lens probe PATH --data FILE`` on a tiny model, resolved from the saved metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
from sae_lens.training.activation_scaler import ActivationScaler

from bae_lens import scoring
from bae_lens.cli import main
from bae_lens.fingerprint import weights_sha256
from bae_lens.loading.saved_saes import load_sae
from bae_lens.scoring import SparseProbingResult, SparseProbingSettings
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import CONTEXT_SIZE, HOOK, make_bae, make_training_bae

KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
}
SMALL = ("--context_size", str(CONTEXT_SIZE), "--k", "1", "3", "--n_draws", "2")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return resolve_to_tiny(monkeypatch)


def save(folder: Path, sae: Any = None) -> Path:
    sae = make_bae() if sae is None else sae
    for name, value in KNOWN.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "sae")


def write(path: Path, n: int = 60, seed: int = 0, **names: str) -> str:
    """Texts in which a word is their label."""
    rng = np.random.default_rng(seed)
    text, label = names.get("text", "text"), names.get("label", "label")
    rows = []
    for i in range(n):
        words = [f"word{w}" for w in rng.integers(2, 40, size=8)]
        words[rng.integers(8)] = f"word{i % 2}"
        rows.append({text: " ".join(words), label: "ab"[i % 2]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "reviews.jsonl")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What reaches the measurement, which is not done."""
    seen: dict[str, Any] = {}

    def stop(model: Any, dictionary: Any, dataset: Any, settings: Any, **options: Any) -> None:
        seen.update(options, dictionary=dictionary, dataset=dataset, settings=settings)
        raise ValueError("stop")

    monkeypatch.setattr(scoring, "sparse_probing", stop)
    return seen


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The message of a command that fails by what it was given."""
    assert main(["probe", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    return err


def test_the_tables_are_printed_and_the_result_written(folder, data, asked, capsys):
    assert main(["probe", str(folder), "--data", data, *SMALL]) == 0

    result = SparseProbingResult.load(folder / "sparse_probing.json")
    assert asked == [("bae-lens/tiny", "HookedTransformer")]
    assert (result.dictionary, result.hook_name) == ("bae", HOOK)
    assert result.label_names == ("a", "b")
    assert result.data == "reviews.jsonl"
    assert result.settings.k == (1, 3)
    assert result.weights_sha256 == weights_sha256(load_sae(folder))
    out = capsys.readouterr().out
    assert result.table() in out
    assert out.endswith(f"\nWritten to {folder / 'sparse_probing.json'}\n")
    summary = dict(line.split("  ", 1) for line in out.split("\n\n")[0].splitlines())
    assert summary["training and held-out texts"].strip() == "22 and 8 of 'a', 22 and 8 of 'b'"


def test_the_defaults_are_those_of_the_settings(folder, data, seen):
    with pytest.raises(ValueError, match="stop"):
        main(["probe", str(folder), "--data", data])

    # The multiple by its number.
    assert seen["settings"] == SparseProbingSettings(exclude_outlier_tokens=10.0)
    assert seen["test_dataset"] is None
    assert seen["dataset"].label_names == ["a", "b"]


def test_options_arrive_in_the_settings(folder, data, seen):
    options = {
        "k": (4, 9),
        "chosen_by": "standardized",
        "max_examples": 50,
        "test_share": 0.5,
        "context_size": 12,
        "n_draws": 3,
        "batch_size": 6,
        "seed": 8,
    }
    argv = ["probe", str(folder), "--data", data, "--outlier_multiple", "0"]
    for name, value in options.items():
        argv += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]

    with pytest.raises(ValueError, match="stop"):
        main(argv)

    expected: dict[str, Any] = {**options, "exclude_outlier_tokens": False}
    assert seen["settings"] == SparseProbingSettings(**expected)


def test_held_out_texts_have_the_same_columns(folder, tmp_path, seen):
    files = [write(tmp_path / f"{seed}.jsonl", 20, seed, text="body", label="y") for seed in (1, 2)]
    columns = ("--text_column", "body", "--label_column", "y", "--max_examples", "all")
    with pytest.raises(ValueError, match="stop"):
        main(["probe", str(folder), "--data", files[0], "--test_data", files[1], *columns])

    assert len(seen["dataset"]) == len(seen["test_dataset"]) == 20
    assert seen["dataset"].texts != seen["test_dataset"].texts
    assert seen["settings"].max_examples is None


def test_the_scale_of_a_checkpoint_is_folded_in(tmp_path, data, seen):
    sae = make_training_bae(normalize_activations="expected_average_only_in")
    folder = save(tmp_path / "checkpoint", sae)
    ActivationScaler(0.5).save(str(folder / ACTIVATION_SCALER_CFG_FILENAME))
    sae.fold_activation_norm_scaling_factor(0.5)

    with pytest.raises(ValueError, match="stop"):
        main(["probe", str(folder), "--data", data])

    assert torch.equal(seen["dictionary"].W_enc, sae.W_enc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "gone.jsonl"), "There is no file gone.jsonl"),
        (("--test_data", "gone.jsonl"), "There is no file gone.jsonl"),
        (("--test_data", "{data}"), "60 of 60 held-out texts are training texts too"),
        (("--label_column", "class"), "There is no column 'class'"),
        (("--k", "0"), "k must be a list of 1 or more different values"),
        (("--k", "41"), "k is 41, and there are 16 dimensions"),
        (("--test_share", "1"), "test_share must be a number above 0 and below 1; got 1"),
        (("--n_draws", "10"), "n_draws must be a whole number from 1 to 9; got 10"),
        (("--max_examples", "8"), "Each class needs 4 or more training texts"),
        (("--context_size", "99"), "more than the model's 32"),
        (("--outlier_multiple", "-1"), "--outlier_multiple must be a number of at least 0"),
        (("--output", "{data}"), "is a file that is read, and would be lost"),
    ],
)
def test_what_is_wrong_is_a_message_and_no_traceback(folder, data, capsys, options, message):
    options = [option.format(data=data) for option in options]
    assert message in refused(capsys, str(folder), "--data", data, *SMALL, *options)
    assert not list(folder.glob("sparse_probing*"))


def test_a_folder_without_an_sae_is_refused(tmp_path, data, capsys, asked):
    assert "there is no cfg.json in it" in refused(capsys, str(tmp_path), "--data", data)
    assert asked == []
