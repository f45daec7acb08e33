"""A folder that one process at a time may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bae_lens.files.folder_lock import FolderInUseError, locked_folder


def test_that_the_second_user_is_told_of_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with (
        locked_folder(folder),
        pytest.raises(FolderInUseError, match=f"{folder} is in use by process {os.getpid()} on"),
        locked_folder(folder),
    ):
        pass
    assert not list(folder.iterdir())
    with locked_folder(folder):
        pass


def test_that_an_error_inside_lets_go(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"), locked_folder(tmp_path):
        raise OSError("full")
    with locked_folder(tmp_path):
        pass


def test_that_a_killed_process_blocks_nobody(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with locked_folder(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with locked_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_that_a_file_of_somebody_else_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"), locked_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
