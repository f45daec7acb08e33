"""What is made once and found again: as it was made, or not at all."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from bae_lens.files.folder_lock import locked_folder
from bae_lens.offline import cache
from bae_lens.offline.cache import VARIABLE, cache_folder, cached_folder

KEY = {"file": "weights.gguf", "sha256": "0" * 64}


class Maker:
    """Fills a folder, and counts how often."""

    def __init__(self, content: str = "content", error: Exception | None = None) -> None:
        self.content, self.error, self.n = content, error, 0

    def __call__(self, folder: Path) -> None:
        self.n += 1
        (folder / "weights").write_text(self.content)
        (folder / "weights").chmod(0o600)
        if self.error is not None:
            raise self.error


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(make: Maker, key: dict[str, Any] = KEY) -> Path:
    folder = cached_folder("tiny", key, make)
    assert folder is not None
    assert (folder / "weights").read_text() == make.content
    return folder


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob(".*")]


def test_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bae-lens"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "bae-lens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bae-lens"
    monkeypatch.setenv(VARIABLE, "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.setenv(VARIABLE, "off")
    assert cache_folder() is None
    assert cached_folder("tiny", KEY, Maker()) is None


def test_it_is_made_once_and_anew_for_another_key(root: Path) -> None:
    make, other = Maker(), Maker("other")
    folder = made(make)
    assert made(make) == folder
    assert folder.parent == root / "tiny"
    # As any file that this process makes.
    (root / "any").touch()
    assert (folder / "weights").stat().st_mode == (root / "any").stat().st_mode
    assert made(other, KEY | {"sha256": "1" * 64}) != folder
    assert made(make) == folder
    assert (make.n, other.n) == (1, 1)
    assert leftovers(root) == []


def damage_byte(folder: Path) -> None:
    (folder / "weights").write_text("contend")


def damage_by_cutting(folder: Path) -> None:
    (folder / "weights").write_text("cont")


def damage_by_removing(folder: Path) -> None:
    (folder / "weights").unlink()


def damage_by_adding(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def damage_seal(folder: Path) -> None:
    (folder / "cached.json").write_text("{")


def damage_by_a_folder(folder: Path) -> None:
    (folder / "more").mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        damage_by_cutting,
        damage_by_removing,
        damage_by_adding,
        damage_seal,
        damage_by_a_folder,
    ],
)
def test_a_damaged_one_is_made_anew(root: Path, caplog: pytest.LogCaptureFixture, damage) -> None:
    make = Maker()
    folder = made(make)
    damage(folder)
    assert made(make) == folder
    assert make.n == 2
    assert [r.getMessage() for r in caplog.records] == [f"{folder} is damaged, and is made anew."]
    made(make)
    assert make.n == 2
    assert sorted(path.name for path in folder.iterdir()) == ["cached.json", "weights"]
    assert leftovers(root) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("full")])
def test_a_full_disk_is_no_error(
    root: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    assert cached_folder("tiny", KEY, Maker(error=error)) is None
    assert f"or set it to {cache._OFF}" in caplog.text
    assert VARIABLE in caplog.text
    assert [path for path in root.rglob("*") if path.is_file()] == []
    made(Maker())


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    make = Maker()
    assert cached_folder("tiny", KEY, make) is None
    assert make.n == 0
    assert "tiny cannot be kept in" in caplog.text


def test_one_that_is_there_is_read_where_nothing_can_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = made(Maker())

    def refuse(*args: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    # Permissions do not bind the superuser, whom tests may be run by.
    monkeypatch.setattr(cache, "locked_folder", refuse)
    monkeypatch.setattr(cache, "whole_folder", refuse)
    assert made(Maker()) == folder
    assert caplog.text == ""


def test_who_waits_too_long_does_without(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0)
    with locked_folder(root / "tiny"):
        assert cached_folder("tiny", KEY, Maker()) is None
    assert "is in use by process" in caplog.text


def _make_in_a_process(n_made: Any, barrier: Any) -> None:
    logging.disable()

    def make(folder: Path) -> None:
        with n_made.get_lock():
            n_made.value += 1
        (folder / "weights").write_text("content")

    barrier.wait(60)
    folder = cached_folder("tiny", KEY, make)
    # No assertion: what fails here has to reach the test.
    os._exit(0 if folder is not None and (folder / "weights").read_text() == "content" else 1)


def test_of_processes_that_come_at_once_one_makes_it(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    n_made, barrier = context.Value("i", 0), context.Barrier(4)
    processes = [
        context.Process(target=_make_in_a_process, args=(n_made, barrier)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert n_made.value == 1
    assert leftovers(root) == []
