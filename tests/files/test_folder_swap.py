"""A folder that takes the place of another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bae_lens.files import folder_swap
from bae_lens.files.folder_lock import FolderInUseError, locked_folder
from bae_lens.files.folder_swap import finish_replacing, folder_beside, sweep
from bae_lens.files.whole import whole_folder

WEIGHTS = "weights"


def _write(folder: Path, content: str) -> None:
    with whole_folder(folder, last=WEIGHTS, without=["unfinished"]) as partial:
        for name in ("cfg", WEIGHTS):
            (partial / name).write_text(content)


def _contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if not p.is_dir()}


def _cannot(*args: object, **kwargs: object) -> None:
    raise OSError("not here")


@pytest.fixture(params=["exchange", "file by file", "no links", "too many files", "inside"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, on systems that can do more or less of what is wanted."""
    path = tmp_path / "folder"
    path.mkdir()
    if request.param == "file by file":
        monkeypatch.setattr(folder_swap, "_exchange", _cannot)
    if request.param == "no links":
        monkeypatch.setattr(os, "link", _cannot)
    if request.param == "too many files":
        monkeypatch.setattr(folder_swap, "_MOST_CARRIED", 2)
    if request.param == "inside":
        monkeypatch.chdir(path)
    return path


def test_that_nobody_elses_files_are_lost(folder: Path) -> None:
    (folder / "checkpoints" / "12").mkdir(parents=True)
    theirs = {"notes.txt": "mine", "checkpoints/12/x": "x", "eval_metrics.json": "{}"}
    for name, content in (theirs | {"unfinished": "gone"}).items():
        (folder / name).write_text(content)
    (folder / "link").symlink_to("notes.txt")
    (folder / "notes.txt").chmod(0o600)
    folder.chmod(0o750)
    for content in ("old", "new"):
        _write(folder, content)
        assert _contents(folder) == {**theirs, "link": "mine", "cfg": content, WEIGHTS: content}
    assert (folder / "link").is_symlink()
    assert (folder / "notes.txt").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o750
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
    assert Path.cwd().exists()


def test_that_who_has_a_file_open_goes_on_writing_to_it(folder: Path) -> None:
    _write(folder, "old")
    with (folder / "log").open("a") as log:
        log.write("a")
        log.flush()
        _write(folder, "new")
        log.write("b")
    assert (folder / "log").read_text() == "ab"


def test_that_a_lock_survives_the_swap(folder: Path) -> None:
    with locked_folder(folder):
        _write(folder, "new")
        with pytest.raises(FolderInUseError), locked_folder(folder):
            pass
    assert sorted(_contents(folder)) == ["cfg", WEIGHTS]
    with locked_folder(folder):
        pass


def test_that_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    _write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    _write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert _contents(tmp_path / "real") == {"cfg": "new", WEIGHTS: "new"}


@pytest.mark.parametrize("n_events", range(12))
def test_that_a_kill_never_mixes_two_wholes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_events: int
) -> None:
    """File by file: each prefix of what is done leaves the old, the new or none, and can be ended."""
    monkeypatch.setattr(folder_swap, "_exchange", _cannot)
    folder = tmp_path / "folder"
    _write(folder, "old")
    (folder / "notes").write_text("mine")
    counted = 0

    def killed_at(method: str) -> None:
        original = getattr(Path, method)

        def call(*args: object, **kwargs: object) -> object:
            nonlocal counted
            counted += 1
            if counted > n_events:
                os._exit(9)
            return original(*args, **kwargs)

        monkeypatch.setattr(Path, method, call)

    pid = os.fork()
    if pid == 0:
        for method in ("rename", "replace", "unlink", "rmdir"):
            killed_at(method)
        _write(folder, "new")
        os._exit(0)
    os.waitpid(pid, 0)
    found = _contents(folder)
    wholes = [{"cfg": content, WEIGHTS: content} for content in ("old", "new")]
    there = {name: found[name] for name in ("cfg", WEIGHTS) if name in found}
    assert there in wholes or WEIGHTS not in there
    assert found["notes"] == "mine"
    finish_replacing(folder, WEIGHTS)
    sweep(folder)
    found = _contents(folder)
    assert found.pop("notes") == "mine"
    assert found in wholes
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_that_what_killed_processes_leave_is_swept(tmp_path: Path) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    unfinished = folder_beside(folder)
    (unfinished / "x").write_text("half")
    folder_beside(unfinished)
    theirs = folder_beside(other)
    folder.mkdir()
    (folder_beside(folder / "12") / "x").write_text("half")
    sweep(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([theirs.name, "folder"])
    assert not list(folder.iterdir())
