"""Texts by ``--data`` and ``--dataset``: files without labels, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bae_lens.cli import main
from tests.cli.helpers import resolve_to_tiny
from tests.helpers import CONTEXT_SIZE, HOOK, make_bae, make_text

_EVAL = ("--n_eval_batches", "1", "--batch_size_prompts", "2", "--n_code_tokens", "64")
_REPORT = ("--n_tokens", "64", "--n_code_tokens", "64", "--judge", "none", "--n_sentences", "2")
_SMALL = {"eval": _EVAL, "report": _REPORT}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    resolve_to_tiny(monkeypatch, lambda _: None)
    sae = make_bae()
    known = {"model_name": "tiny", "hook_name": HOOK, "context_size": CONTEXT_SIZE}
    known |= {"prepend_bos": True, "exclude_special_tokens": True}
    for name, value in known.items():
        sae.cfg.metadata[name] = value
    sae.save_model(tmp_path / "sae")
    return tmp_path / "sae"


def texts_in(folder: Path, suffix: str, column: str = "text") -> str:
    rows = make_text(40)["text"]
    content = {
        ".txt": "\n\n".join(rows),
        ".csv": "\n".join([column, *rows]),
        ".jsonl": "\n".join(json.dumps({column: row}) for row in rows),
    }
    path = folder / f"texts{suffix}"
    path.write_text(content[suffix])
    return str(path)


@pytest.mark.parametrize("option", ["--data", "--dataset"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_file_without_labels(
    command: str, suffix: str, option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = texts_in(folder, suffix)

    assert main([command, str(folder), option, file, *_SMALL[command]]) == 0, capsys.readouterr()
    assert "Written to" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["eval", "report"])
def test_a_column_of_another_name(command: str, folder: Path) -> None:
    file = texts_in(folder, ".csv", "body")
    options = ("--data", file, "--text_column", "body")

    assert main([command, str(folder), *options, *_SMALL[command]]) == 0
    assert main([command, str(folder), "--data", file, *_SMALL[command]]) == 2


@pytest.mark.parametrize("command", ["eval", "report"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "gone.csv"), "There is no file gone.csv"),
        (("--dataset", "gone.jsonl"), "There is no file gone.jsonl"),
        (("--dataset", "nobody/nothing"), "nobody/nothing"),
        (("--data", "x" * 5000), "xxx"),
        (("--dataset", "a.csv", "--data", "b.csv"), "Give --data or --dataset"),
        (("--device", "gpu", "--dataset", "FILE"), "device must be"),
        (("--device", "cuda:77", "--dataset", "FILE"), "device must be"),
    ],
)
def test_one_sentence_where_there_is_none(
    command: str,
    options: tuple[str, ...],
    words: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    options = tuple(texts_in(folder, ".txt") if part == "FILE" else part for part in options)

    assert main([command, str(folder), *options, *_SMALL[command]]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bae-lens: error: ")
    assert words in last


def test_labels_that_were_asked_for_are_not_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = texts_in(folder, ".csv")

    assert main(["report", str(folder), "--data", file, "--label_column", "y", *_REPORT]) == 2
    assert "'y'" in capsys.readouterr().err


def test_names_of_others_do_not_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tmp_path / "a\x1b[2J\0b")]) == 2
    message = capsys.readouterr().err
    assert "a\\x1b[2J\\x00b" in message
    assert "\x1b" not in message
