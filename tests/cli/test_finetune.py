"""``bae-lens finetune``, and the commands of the guide from the first to the last."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertModel

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.cli import main
from bae_lens.finetuning import FinetuningResult
from tests.helpers import D_IN, save_bert, write_labeled

GUIDE = Path(__file__).parents[2] / "tutorials" / "guides" / "classifier.md"
SMALL = ("--context_size", "16", "--learning_rate", "0.01", "--batch_size", "8")


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    data = write_labeled(tmp_path / "data.jsonl")
    encoder = save_bert(tmp_path / "encoder", BertModel)
    return ["finetune", str(data), "--model", str(encoder), *SMALL]


def test_the_summary_is_printed_and_the_folder_written(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"

    assert main([*given, "--output", str(output), "--held_out", "0.25"]) == 0

    out, err = capsys.readouterr()
    result = FinetuningResult.load(output / "finetuning.json")
    mean, low, high = result.accuracy
    assert result.data == given[1]
    assert f"accuracy, held out           {mean:.3f} [{low:.3f}, {high:.3f}]" in out
    assert "held out                     10 texts: 5 of 'bad', 5 of 'good'" in out
    assert out.endswith(f"\nWritten to {output}\n")
    assert "Fine-tuning: 100%" in err


def test_the_held_out_texts_are_written_to_be_studied(given: list[str], tmp_path: Path) -> None:
    data, file = LabeledTexts.read(given[1]), tmp_path / "held_out.jsonl"
    options = ("--output", str(tmp_path / "out"), "--epochs", "1", "--held_out_output", str(file))

    assert main([*given, *options]) == 0

    numbers = FinetuningResult.load(tmp_path / "out" / "finetuning.json").held_out
    written = LabeledTexts.read(file)
    assert written.texts == [data.texts[i] for i in numbers]
    assert torch.equal(written.labels, data.labels[numbers])
    assert written.label_names == data.label_names


def test_the_data_are_not_written_over(given: list[str], tmp_path: Path, capsys: Any) -> None:
    options = ("--output", str(tmp_path / "out"), "--held_out_output", given[1])

    assert main([*given, *options]) == 2
    assert "is a file that is read, and would be lost" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--head", "mean"], "Take the head cls"),
        (["--held_out", "1"], "held_out must be a number above 0 and below 1"),
        (["--epochs", "0"], "epochs must be a whole number of at least 1"),
        (["--device", "gpu"], "device must be"),
        (["--label_column", "stars"], "stars"),
        (["--max_texts", "2", "--held_out", "0.9"], "Every class needs a text to train on"),
    ],
)
def test_what_is_refused(
    argv: list[str],
    words: str,
    given: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*given, "--output", str(tmp_path / "out"), *argv]) == 2

    out, err = capsys.readouterr()
    assert not out
    assert "bae-lens: error: " in err
    assert words in err
    assert not (tmp_path / "out").exists()


def test_the_commands_of_the_guide(
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("concept_erasure")
    monkeypatch.chdir(tmp_path)
    block = re.search(
        r"^```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block is not None
    data, encoder = given[1], given[3]
    layers = ("--hook_name", "blocks.0.hook_out", "--hook_name_out", "blocks.1.hook_out")
    # What the same commands are on this encoder and these texts, and how much of it.
    options = {
        "finetune": ("--model", encoder, *SMALL),
        "train": (
            *("--dataset_path", data, "--context_size", "16", *layers, "--replay_tokens", "512"),
            *("--training_tokens", "512", "--initialization_tokens", "128"),
            *("--train_batch_size_tokens", "64", "--n_batches_in_buffer", "16"),
            *("--d_in", str(D_IN), "--d_out", str(D_IN), "--d_sae", "10"),
            *("--decoder_layers", "1", "--decoder_width", "16"),
        ),
        "eval": ("--n_eval_batches", "1", "--batch_size_prompts", "4", "--n_code_tokens", "64"),
        "ablate": (
            "--context_size",
            "16",
            "--n_folds",
            "2",
            "--n_steps",
            "2",
            "--n_reference",
            "0",
        ),
        "report": (
            *("--n_tokens", "128", "--n_code_tokens", "64", "--judge", "none"),
            *("--n_sentences", "2", "--dataset", data),
        ),
    }

    for line in block[1].splitlines():
        program, command, *argv = shlex.split(line)
        argv = [data if word == "bae-lens/movie-reviews" else word for word in argv]
        assert program == "bae-lens"
        assert main([command, *argv, *options[command]]) == 0, capsys.readouterr().err

    # The metadata alone does not open the folder.
    assert main(["eval", "output/codes", *options["eval"]]) == 2
    assert "not opened unasked" in capsys.readouterr().err
