"""``bae-lens check`` on a folder: what it prints, writes and returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bae_lens.cli import main
from tests.helpers import make_bridge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_bridge(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_is_tried_and_the_result_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "check.json"

    status = main(["check", str(folder), "blocks.0.hook_out", "--output", str(output)])

    out = capsys.readouterr().out
    said = json.loads(output.read_text())
    assert status == (0 if said["holds"] else 1)
    assert said["hook_name"] == "blocks.0.hook_out"
    assert "the hook point fires" in out
    assert f"{folder} (SAETransformerBridge) at blocks.0.hook_out" in out
    assert out.endswith(f"Written to {output}\n")


def test_what_is_no_model_or_hook_point(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(folder), "blocks.0.hook_outt"]) == 2
    assert "The model has no hook 'blocks.0.hook_outt'. Did you mean" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "bae-lens: error: The command line names the language model" in capsys.readouterr().err
    assert main(["check", str(folder), "--output", str(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err
