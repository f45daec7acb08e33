"""Files and folders that appear as a whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from bae_lens.files.whole import (
    check_output_file,
    check_output_folder,
    whole_file,
    whole_folder,
    write_bytes,
    write_text,
)


def _interrupt(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def _fill_the_disk(path: Path) -> None:
    with whole_folder(path) as partial:
        (partial / "x").write_text("half")
        raise OSError("full")


def test_that_a_failed_block_leaves_what_was_there(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "x", "old")
    with pytest.raises(KeyboardInterrupt):
        _interrupt(tmp_path / "new" / "x")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]
    assert (tmp_path / "new" / "x").read_text() == "old"


def test_that_a_link_stays_one_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_that_a_link_to_nothing_yet_makes_its_target(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("name", ["x.part", ".x.part", "x.tmp"])
def test_that_nothing_is_written_through_a_planted_link(tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to("precious")
    write_text(tmp_path / "x", "new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_that_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_text(path, "old")
    usual = stat.S_IMODE(path.stat().st_mode)
    (tmp_path / "plain").write_text("")
    assert usual == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path.chmod(0o600)
    write_text(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_that_a_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    write_text("/dev/null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    check_output_file("/dev/null")
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_that_a_folder_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("folder", "is a folder"), ("pipe", "is no regular file")):
        with pytest.raises(ValueError, match=f"{name} {what}; a file is to be written there"):
            write_text(tmp_path / name, "")
        with pytest.raises(ValueError, match=f"{name} {what}"):
            check_output_file(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def _write_often(arguments: tuple[Path, int]) -> None:
    path, i = arguments
    for _ in range(100):
        write_bytes(path, bytes([i]) * 1000)


def test_that_two_writers_of_one_file_do_not_break_each_other(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(_write_often, [(tmp_path / "x", 1), (tmp_path / "x", 2)])
    assert (tmp_path / "x").read_bytes() in (bytes([1]) * 1000, bytes([2]) * 1000)
    assert len(list(tmp_path.iterdir())) == 1


def test_that_text_that_utf8_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        write_text(tmp_path / "x", "\ud800")
    assert (tmp_path / "x").read_text() == "old"


def test_that_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    for content in ("old", "new"):
        with whole_folder(target) as partial:
            (partial / "sub").mkdir()
            (partial / "sub" / "x").write_text(content)
            assert content == "new" or not target.exists()
            assert content == "old" or (target / "sub" / "x").read_text() == "old"
        assert (target / "sub" / "x").read_text() == content
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


def test_that_a_folder_that_could_not_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "folder") as partial:
        (partial / "x").write_text("old")
    with pytest.raises(OSError, match="full"):
        _fill_the_disk(tmp_path / "folder")
    assert (tmp_path / "folder" / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_that_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("precious")
    with pytest.raises(ValueError, match="is a file"), whole_folder(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "precious"


@pytest.mark.parametrize("name", ["file/x", "n" * 300, f"{'n' * 300}/x", "a/b/file"])
def test_that_an_output_that_cannot_be_is_told_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").mkdir()
    with pytest.raises(ValueError, match=r"(cannot be written|is a folder)"):
        check_output_file(tmp_path / name)


@pytest.mark.parametrize("name", ["file", "file/x", "n" * 300])
def test_that_a_folder_that_cannot_be_is_told_beforehand(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written as a folder"):
        check_output_folder(tmp_path / name)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_that_a_folder_that_takes_no_files_is_told_beforehand() -> None:
    with pytest.raises(ValueError, match="/proc/x cannot be written as a file"):
        check_output_file("/proc/x")
    with pytest.raises(ValueError, match="/proc/x/y cannot be written as a folder"):
        check_output_folder("/proc/x/y")


def test_that_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output_file(tmp_path / "a" / "b" / "x")
    check_output_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSPC, "No space left on device", ".1234.part"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_that_a_full_disk_is_told_with_the_name_that_was_asked_for(
    tmp_path: Path, whole: Any, error: Exception
) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError, match="No space left on device") as told, whole(target):
        raise error
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(target))
    assert not list(tmp_path.iterdir())


def test_that_other_errors_are_as_they_were(tmp_path: Path) -> None:
    for error in (OSError("something"), RuntimeError("(os error 2)"), ValueError("os error 28")):
        with pytest.raises(type(error)) as told, whole_file(tmp_path / "target"):
            raise error
        assert told.value is error
