"""Runs that are killed or stopped at any file event end as if they had not been.

A run is forked from this process, which is warm, with an audit hook that counts what it does to files
of its folders, and sends it a signal at one of these events. Whatever is left then has to be whole, and
a run that goes on from it has to end with the very weights of one that nobody disturbed.

``BAE_LENS_KILLS`` is the number of kills of each kind of run in the slow test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sae_lens import SAE, LoggingConfig
from sae_lens.training._interruption import InterruptedException
from safetensors.torch import load_file
from torch import Tensor

from bae_lens import CrossLayerTrainingRunner, TrainingRunner
from bae_lens.files import folder_swap
from tests.helpers import BATCH, cross_layer_cfg, make_model, make_text, runner_cfg

if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

N_STEPS, REPLAY, SEED = 8, 4 * BATCH, 3
FEW, MANY = 2, int(os.environ.get("BAE_LENS_KILLS", "60"))
_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate")
_STOPPED, _FAILED = 3, 7
# Signals, and how many events lie between two of them.
_PLANS = [
    [signal.SIGKILL],
    [signal.SIGKILL],
    [signal.SIGTERM],
    [signal.SIGINT],
    [signal.SIGTERM, signal.SIGTERM],
    [signal.SIGINT, signal.SIGINT],
    [signal.SIGINT, signal.SIGKILL],
    [signal.SIGINT, signal.SIGTERM, signal.SIGINT],
]


class Given(NamedTuple):
    """What every run of a test is given."""

    kind: str
    is_kept: bool
    model: Any
    text: Any


def train(given: Given, folder: Path, seed: int = SEED, resume: Path | None = None) -> None:
    kept = folder / "kept" if given.is_kept else None
    # The same folder of checkpoints for each run, as W&B's id gives it.
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2, wandb_id="run")
    make_cfg: Any = cross_layer_cfg if given.kind == "clvq" else runner_cfg
    path = None if resume is None else str(resume)
    fields = {"seed": seed, "n_checkpoints": 2, "logger": logger, "resume_from_checkpoint": path}
    cfg = make_cfg(folder, N_STEPS, **fields)
    runner: Any = CrossLayerTrainingRunner if given.kind == "clvq" else TrainingRunner
    runner(cfg, given.text, given.model, replay_tokens=REPLAY, replay_path=kept).run()


def in_child(
    run: Callable[[], None], log: Path, at: int = -1, signals: Any = (), gap: int = 0
) -> int:
    """Wait status of a fork that runs it, and how many events it counted, in the log's first line."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = _FAILED
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        counter = _Events(log.parent, at, list(signals), gap)
        run()
        (log.parent.parent / "events").write_text(str(counter.n))
        status = 0
    except (InterruptedException, KeyboardInterrupt):
        status = _STOPPED
    except BaseException:
        traceback.print_exc()
    os._exit(status)


class _Events:
    """Counts what is done to the files of a folder, and sends signals at given ones."""

    def __init__(self, folder: Path, at: int, signals: list[int], gap: int) -> None:
        self.n, self.folder, self.at, self.signals, self.gap = 0, str(folder), at, signals, gap
        exchange = folder_swap._exchange

        def counted_exchange(a: Path, b: Path) -> None:
            self.count()
            exchange(a, b)
            self.count()

        folder_swap._exchange = counted_exchange
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS and str(args[0]).startswith(self.folder):
            self.count()

    def count(self) -> None:
        self.n += 1
        if self.signals and self.n >= self.at:
            self.at = self.n + self.gap
            os.kill(os.getpid(), self.signals.pop(0))


def contents(output: Path) -> dict[str, Any]:
    """A saved autoencoder, all of it; what no two runs share is left out."""
    SAE.load_from_disk(output)
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").open()]
    return {
        "weights": load_file(output / "sae_weights.safetensors"),
        "sparsity": load_file(output / "sparsity.safetensors"),
        "cfg": json.loads((output / "cfg.json").read_text()),
        "seed": json.loads((output / "runner_cfg.json").read_text())["seed"],
        "metrics": [{k: v for k, v in m.items() if "performance/" not in k} for m in metrics],
    }


def is_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_equal(a[k], b[k]) for k in a)
    return a == b


def whole_checkpoints(folder: Path) -> list[Path]:
    found = (folder / "checkpoints" / "run").glob("[0-9]*")
    return sorted(found, key=lambda path: int(path.name))


def kill_and_go_on(given: Given, folder: Path, old: Path, rng: random.Random, n_events: int) -> str:
    """One run that is disturbed, and one that goes on; returns how the first one ended."""
    log = folder / "log"
    signals, gap = rng.choice(_PLANS), rng.choice([0, 1, 2, 5, 40])
    at = rng.randrange(1, n_events + 20)
    where = f"{given.kind}, {signals} at event {at} of {n_events}, then every {gap}; see {log}"
    status = in_child(lambda: train(given, folder), log, at, signals, gap)
    ended = os.waitstatus_to_exitcode(status)
    assert ended != _FAILED, f"{where}\n{log.read_text()}"
    found, reference = (
        contents(folder / "output"),
        contents(old.parents[1] / "reference" / "output"),
    )
    is_new = is_equal(found, reference)
    assert is_new or is_equal(found, contents(old)), f"neither the old nor the new one: {where}"
    assert is_new or ended != 0, where
    if not is_new:
        resume = whole_checkpoints(folder)[-1:]
        status = in_child(lambda: train(given, folder, resume=resume[0] if resume else None), log)
        assert status == 0, f"{where}, going on from {resume}\n{log.read_text()}"
        assert is_equal(contents(folder / "output"), reference), f"{where}, going on from {resume}"
        # A killed process may leave the empty file by which it tried whether a folder takes any.
        left = [p for p in folder.rglob(".*") if p.is_dir() or p.stat().st_size]
        assert left == [], where
    assert (folder / "output" / "notes.txt").read_text() == "mine", where
    return "new" if is_new else "old"


def disturb(given: Given, folder: Path, count: int) -> None:
    """So many kills of runs of one kind."""
    old, reference = folder / "old" / "output", folder / "reference"
    for path, seed in ((old.parent, SEED + 1), (reference, SEED)):
        path.mkdir()
        status = in_child(lambda path=path, seed=seed: train(given, path, seed), path / "log")
        assert status == 0, (path / "log").read_text()
    n_events = int((folder / "events").read_text())
    assert n_events > 40
    rng = random.Random(f"{given.kind} {given.is_kept}")
    for i in range(count):
        run = folder / str(i)
        (run / "output").mkdir(parents=True)
        for file in old.iterdir():
            (run / "output" / file.name).write_bytes(file.read_bytes())
        (run / "output" / "notes.txt").write_text("mine")
        kill_and_go_on(given, run, old, rng, n_events)


@pytest.fixture(params=["bae", "bae, kept", "clvq", "clvq, kept"])
def given(request: pytest.FixtureRequest) -> Given:
    kind, _, kept = request.param.partition(", ")
    return Given(kind, bool(kept), make_model(), make_text())


def test_a_few_kills(given: Given, tmp_path: Path) -> None:
    disturb(given, tmp_path, FEW)


@pytest.mark.slow
def test_many_kills(given: Given, tmp_path: Path) -> None:
    disturb(given, tmp_path, MANY)
