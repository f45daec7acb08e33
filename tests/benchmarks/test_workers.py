"""Processes of benchmarks: what fails, and what there is no time for."""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
module: Any = importlib.import_module("workers")

# Started by itself; its workers, which say so once they are at work, would be so for ten minutes.
SLEEPERS = """
import sys, time
sys.path.append(sys.argv[1])
from workers import Workers

def sleep():
    print("begun", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.run({"1": (sleep, ()), "2": (sleep, ())}))
"""

JOBS = {str(x): (math.sqrt, (x,)) for x in (4, -1, 9, 16)}


def test_what_fails_is_told_and_the_others_go_on(capsys):
    failed: dict[str, BaseException] = {}
    with module.Workers(1) as workers:
        assert dict(workers.run(JOBS, failed)) == {"4": 2.0, "9": 3.0, "16": 4.0}
        # The same processes go on.
        assert dict(workers.run({"again": (math.sqrt, (25,))})) == {"again": 5.0}
    assert list(failed) == ["-1"]
    assert isinstance(failed["-1"], ValueError)
    out = capsys.readouterr().out
    assert "[2/4, 0 min, about 0 to go] -1 FAILED: ValueError" in out
    assert workers.n_left_out == 0


def test_by_default_the_first_that_fails_ends_them():
    found = {}
    with pytest.raises(ValueError, match="math domain"), module.Workers(1) as workers:
        found.update(workers.run(JOBS))
    assert "16" not in found


def test_nothing_is_begun_when_time_is_out(capsys):
    with module.Workers(1, minutes=0) as workers:
        assert dict(workers.run(JOBS)) == {}
    assert workers.n_left_out == 4
    assert "4 of 4 are left out" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_who_started_them(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS)
    command = [sys.executable, str(script), str(Path(module.__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        process.send_signal(number)
        # At its end once nobody can write to it any more, workers among them.
        assert process.communicate(timeout=30) == ("", None)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -number
