"""What a signal leaves behind: nothing, and of a process that was killed nothing for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bae_lens.files import folder_swap
from bae_lens.files.flock import CAN_LOCK
from bae_lens.files.whole import whole_folder

pytestmark = pytest.mark.skipif(not CAN_LOCK, reason="Windows has no such signals and locks.")

WRITER = """
import os, signal, sys, time
from bae_lens.files.whole import whole_file, whole_folder
what, path, number = sys.argv[1:]
with {"file": whole_file, "folder": whole_folder}[what](path) as partial:
    target = partial if what == "file" else partial / "x"
    target.write_text("half")
    if number == "wait":
        print("writing", flush=True)
        sys.stdin.read()
    else:
        os.kill(os.getpid(), int(number))
        time.sleep(60)
"""


def start(*args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_told_to_end_leaves_what_was_there(
    tmp_path: Path, what: str, number: signal.Signals
) -> None:
    target = tmp_path / "target"
    before = target if what == "file" else target / "x"
    if what == "folder":
        target.mkdir()
    before.write_text("old")
    # As the signal itself would have ended it.
    assert start(what, target, int(number)).wait(60) == -number
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert before.read_text() == "old"


def test_what_a_killed_process_leaves_goes_with_the_next_and_what_a_living_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    assert start("folder", target, int(signal.SIGKILL)).wait(60) == -signal.SIGKILL
    [left] = tmp_path.iterdir()

    def write() -> None:
        with whole_folder(target) as folder:
            (folder / "x").write_text("whole")

    # One that has just been made may not be locked yet.
    write()
    assert left.exists()
    monkeypatch.setattr(folder_swap, "_SECONDS_UNTIL_LOCKED", -1)
    living = start("folder", target, "wait")
    assert living.stdout is not None
    assert living.stdout.readline() == "writing\n"
    write()
    assert not left.exists()
    [its] = [path for path in tmp_path.iterdir() if path != target]
    assert (its / "x").read_text() == "half"
    living.communicate("")
    assert living.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "x").read_text() == "half"


def test_a_child_that_is_ended_leaves_what_its_parent_writes(tmp_path: Path) -> None:
    # In a process of its own, in which nobody else has a handler.
    with_child = """
import os, signal, sys
from bae_lens.files.whole import whole_folder
with whole_folder(sys.argv[1]) as folder:
    (folder / "x").write_text("x")
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
"""
    subprocess.run([sys.executable, "-c", with_child, tmp_path / "target"], check=True, timeout=60)
    assert (tmp_path / "target" / "x").read_text() == "x"


def test_a_folder_within_one_that_is_being_written_waits_for_nobody(tmp_path: Path) -> None:
    began = time.monotonic()
    with whole_folder(tmp_path / "outer") as outer, whole_folder(outer / "inner") as inner:
        (inner / "x").write_text("x")
    assert (tmp_path / "outer" / "inner" / "x").read_text() == "x"
    assert time.monotonic() - began < 30
    assert os.listdir(tmp_path) == ["outer"]
