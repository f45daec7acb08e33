"""An export is whole, and never takes the place of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bae_lens.export.folder import NOTE_FILENAME, check_export_folder, export_folder


def fill(path: Path, *names: str, kind: str = "csv", sha256: str = "a") -> None:
    with export_folder(path, kind, sha256, {"n": 3}) as folder:
        for name in names:
            (folder / name).write_text(name)


def test_the_note_says_what_it_is_of(tmp_path: Path) -> None:
    fill(tmp_path / "out", "b", "a")
    assert json.loads((tmp_path / "out" / NOTE_FILENAME).read_text()) == {
        "export": "csv",
        "weights_sha256": "a",
        "n": 3,
        "files": ["a", "b"],
    }


def test_files_of_the_same_export_go_and_those_of_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "batch-0", "batch-1")
    (out / "mine").write_text("mine")
    fill(out, "batch-0")
    assert {path.name for path in out.iterdir()} == {"batch-0", "mine", NOTE_FILENAME}


def test_a_failed_export_leaves_the_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "a")
    with pytest.raises(FileNotFoundError):
        fill(out, "b", "no such folder/c")
    assert {path.name for path in out.iterdir()} == {"a", NOTE_FILENAME}
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_in_the_way_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "a")
    with pytest.raises(ValueError, match="holds an export for 'csv', and this one is for 'delphi'"):
        check_export_folder(out, "delphi", "a")
    with pytest.raises(ValueError, match="of other weights"):
        check_export_folder(out, "csv", "b")
    for files in ("x", [3], ["../x"], [".."], ["a/b"]):
        note = {"export": "csv", "weights_sha256": "a", "files": files}
        (out / NOTE_FILENAME).write_text(json.dumps(note))
        with pytest.raises(ValueError, match="no note of an export"):
            check_export_folder(out, "csv", "a")
    (out / NOTE_FILENAME).unlink()
    with pytest.raises(ValueError, match="files in it that are of no export"):
        check_export_folder(out, "csv", "a")
    with pytest.raises(ValueError, match="cannot be written as a folder"):
        check_export_folder(out / "a", "csv", "a")
    check_export_folder(tmp_path / "new", "csv", "a")
    assert not (tmp_path / "new").exists()
