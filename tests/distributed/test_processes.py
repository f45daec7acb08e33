"""The process group that torchrun's environment asks for, failures that are named, and counts that are merged."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from bae_lens.distributed import (
    RankError,
    RankFailedError,
    any_soon,
    barrier,
    failures_named,
    from_first,
    gather_merge,
    health,
    n_launched,
    n_ranks,
    on_every_rank,
    own_device,
    processes,
    rank,
    start_process_group,
)
from tests.distributed.ranks import on_ranks, results_of

LAUNCHED = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


class Seen:
    """Which ranks' counts came together, in which order."""

    def __init__(self, number: int) -> None:
        self.numbers = [number]

    def merge(self, other: Seen) -> None:
        self.numbers += other.numbers


def start_and_agree() -> dict[str, Any]:
    start_process_group()
    start_process_group()  # Once more changes nothing.
    found: dict[str, Any] = {
        "rank": (rank(), n_ranks(), n_launched()),
        "backend": dist.get_backend(),
        "merged": gather_merge(Seen(rank())).numbers,
        "first": from_first({"of": rank()}),
        "soon": [any_soon(rank() == 1)(), any_soon(False)()],
        "bar is hidden": tqdm(range(2), disable=False).disable,
        "device": own_device("cpu"),
    }
    for name, error in (("refused", ValueError("no such thing")), ("failed", OSError("no disk"))):
        try:
            with on_every_rank():
                if rank() == 1:
                    raise error
        except Exception as raised:
            found[name] = raised
    return found


def test_ranks_start_from_torchruns_environment_and_agree():
    every = results_of(on_ranks(3, start_and_agree, group=False))
    for r, found in enumerate(every):
        assert found["rank"] == (r, 3, 3)
        assert found["merged"] == [0, 1, 2]
        assert found["first"] == {"of": 0}
        assert found["soon"] == [True, False]
        assert found["bar is hidden"] == (r > 0)
        assert found["device"] == "cpu"
        for name, kind, said in (
            ("refused", ValueError, "no such thing"),
            ("failed", OSError, "OSError: no disk"),
        ):
            error = found[name]
            assert isinstance(error, kind if r == 1 else RankError)
            assert str(error) == (str(error) if r == 1 else f"Rank 1: {said}")


def wait_for_one_that(ends: str) -> str:
    start_process_group()
    if ends == "stops":
        health._SILENCE, health._GRACE = 5.0, 1.0
    with failures_named():
        if rank() == 1:
            if ends == "raises":
                raise KeyError("of its own")
            # Let it be known to be alive.
            time.sleep(3)
            os.kill(os.getpid(), signal.SIGSTOP if ends == "stops" else signal.SIGKILL)
        barrier()
    return "waited"


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("raises", "Rank 1 has failed: KeyError: 'of its own'"),
        ("is killed", "Rank 1 gives no sign"),
    ],
)
def test_the_rank_that_failed_is_named(ends: str, said: str):
    first, second, third = on_ranks(3, wait_for_one_that, ends, group=False)
    for outcome in (first, third):
        assert isinstance(outcome.error, RankFailedError)
        assert str(outcome.error).startswith(said)
    assert isinstance(second.error, KeyError if ends == "raises" else RuntimeError)


@pytest.mark.slow
def test_a_rank_that_is_stopped_ends_the_others():
    # No connection is closed: nothing else would notice.
    first, second = on_ranks(2, wait_for_one_that, "stops", group=False, seconds=20)
    assert "ended with exit code 1" in str(first.error)
    assert isinstance(second.error, TimeoutError)


def test_a_process_by_itself_starts_none(monkeypatch: pytest.MonkeyPatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for size in (None, "1"):
        if size is not None:
            monkeypatch.setenv("WORLD_SIZE", size)
        start_process_group()
        assert not dist.is_initialized()
        assert n_launched() == 1
    seen = Seen(0)
    assert gather_merge(seen) is seen
    assert from_first(seen) is seen
    assert any_soon(True)()
    assert own_device("cuda") == "cuda"
    with failures_named(), on_every_rank():
        pass
    with pytest.raises(KeyError), failures_named(), on_every_rank():
        raise KeyError


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number of at least 1; got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1; got '0'"),
        ({"WORLD_SIZE": None}, "WORLD_SIZE must be a whole number of at least 1; got ''"),
        ({"RANK": "-1"}, "RANK must be a whole number of at least 0; got '-1'"),
        ({"RANK": "2"}, "RANK is 2, but there are 2 processes"),
        ({"LOCAL_RANK": ""}, "the environment lacks LOCAL_RANK. torchrun sets all"),
        (
            {"MASTER_ADDR": None, "MASTER_PORT": None},
            "lacks MASTER_ADDR, MASTER_PORT",
        ),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be a whole number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000', which is no port"),
    ],
)
def test_an_environment_that_is_broken_is_refused(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], said: str
):
    for name, value in {**LAUNCHED, **changed}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        start_process_group()
    assert not dist.is_initialized()


def on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch, count: int = 4) -> None:
    """Let torch say what it says there, to the third of four processes."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    monkeypatch.setenv("LOCAL_RANK", "2")


def test_cuda_is_a_processs_own_gpu(monkeypatch: pytest.MonkeyPatch):
    on_a_machine_with_gpus(monkeypatch)
    assert own_device("cuda") == own_device("cuda:2") == "cuda:2"
    assert own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"'cuda:0', and this process has GPU 2\. Say 'cuda'"):
        own_device("cuda:0")
    assert processes._own_cuda_index() == 2
    on_a_machine_with_gpus(monkeypatch, 1)
    assert processes._own_cuda_index() == 0, "the only one that SLURM shows it"
    on_a_machine_with_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match=r"process 2 of its machine, .* has 2 GPUs"):
        processes._own_cuda_index()


def test_two_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch):
    on_a_machine_with_gpus(monkeypatch)

    class Properties:
        uuid = "GPU-0"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(processes, "all_gather_objects", lambda own: ["GPU-1", own, "GPU-2", own])
    monkeypatch.setattr(processes, "rank", lambda: 1)
    with pytest.raises(ValueError, match="Process 1 has the same GPU as 3"):
        processes._check_own_gpus(True)
    processes._check_own_gpus(False)


class _Gone:
    """A store whose process ends once it has been asked so often."""

    def __init__(self, n: int) -> None:
        self.n = n

    def _ask(self) -> None:
        self.n -= 1
        if self.n < 0:
            raise ConnectionResetError

    def compare_set(self, *_: str) -> bytes:
        self._ask()
        return b""

    def add(self, *_: Any) -> int:
        self._ask()
        return 1


def test_a_silent_rank_is_named_where_the_store_is_gone_by_then(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(health, "_INTERVAL", 0.0)
    # A word and a sign of each of two ranks, four times.
    assert str(health._Watch(_Gone(12), 1, 2).who_failed()).startswith("Rank 0 gives no sign")
    assert health._Watch(_Gone(11), 1, 2).who_failed() == health._NO_STORE


@pytest.mark.parametrize(
    ("number", "has_failed", "n_waits"), [(0, True, 1), (1, True, 0), (0, False, 0)]
)
def test_who_keeps_the_store_leaves_last_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, number: int, has_failed: bool, n_waits: int
):
    """Or the others could not read any more which rank it was, as happened under load."""
    waits: list[float] = []
    monkeypatch.setattr(health.time, "sleep", waits.append)
    watch = health._Watch(None, number, 3)
    watch.has_failed = has_failed
    watch.end()
    assert len(waits) == n_waits
