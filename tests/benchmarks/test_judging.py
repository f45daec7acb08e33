"""Tests of ``benchmarks/judging.py``: the control, and what it says of a judge."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import judging  # pyright: ignore[reportMissingImports]

from bae_lens.scoring import RankingSettings, rank_dictionaries
from tests.examples.planted import RuleJudge, planted_records
from tests.scoring.test_ranking import fair

# A server that is up at once, and goes on; what has it says its process.
SERVER = """#!{python}
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

open("pid", "w").write(str(os.getpid()))
HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
SERVED = """
import importlib.util, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
import judging
importlib.util.find_spec = lambda name: name
sys.executable = sys.argv[2]
with judging.served(Path(sys.argv[3])):
    print("up", flush=True)
    time.sleep(600)
"""


def texts(records: Any) -> list[Any]:
    return sorted(repr(example) for latent in records.latents for example in latent.random)


def test_dealing_out_keeps_every_example_and_each_latents_number_of_them() -> None:
    records = planted_records()

    dealt = judging.dealt_out(records, 0)

    assert texts(dealt) == texts(records)
    assert [len(own.random) for own in dealt.latents] == [
        len(own.random) for own in records.latents
    ]
    assert [own.random for own in dealt.latents] != [own.random for own in records.latents]
    assert judging.dealt_out(records, 0).latents == dealt.latents


def verdict(rule: Any) -> str:
    records = planted_records()
    own = {"planted": records, judging.CONTROL: judging.dealt_out(records, 0)}
    ranking = rank_dictionaries(own, RuleJudge(rule), RankingSettings(n_pairs=40))
    return judging.verdict(ranking, ranking.judges[0])


def test_a_judge_who_cannot_tell_the_control_is_said_to_say_nothing() -> None:
    assert "says nothing" in verdict(lambda question: "A")
    assert "gave no usable answer" in verdict(lambda question: None)


def test_a_judge_who_sees_what_examples_share_prefers_the_dictionary() -> None:
    assert "prefers every dictionary" in verdict(fair)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--base_url", "http://127.0.0.1:1/v1"],
        ["--serve", "--base_url", "http://127.0.0.1:1/v1"],
    ],
)
def test_who_judges_has_to_be_said(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        judging.parse(argv)
    assert error.value.code == 2


def test_the_control_needs_the_codes_whose_examples_it_deals_out() -> None:
    args = judging.parse(["--serve", "--methods", "TopK SAE"])

    assert args.methods == ["TopK SAE", judging.DEALT_FROM]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_ends_with_who_started_it(tmp_path: Path) -> None:
    script = tmp_path / "transformers"
    script.write_text(SERVER.format(python=sys.executable))
    script.chmod(0o755)
    folder = Path(__file__).parents[2] / "benchmarks"
    own = [str(folder), str(tmp_path / "python"), str(tmp_path / "model")]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVED, *own],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder.parent)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        pid = int((tmp_path / "pid").read_text())
        assert is_running(pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(pid)
