"""Run a function on several ranks: processes of one thread each, with gloo between them.

    outcomes = on_ranks(2, function, argument)     # one Outcome a rank
    values = results_of(on_ranks(2, function))     # or an error that has all their tracebacks

``function`` and what it is given and returns are pickled: it is defined at the top of a module.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Processes are forked from one that has imported this and done nothing else: what costs seconds is paid
# once, by the first call.
_IMPORTED = ["bae_lens", "sae_lens.training.sae_trainer"]


@dataclass
class Outcome:
    """What became of the function on one rank."""

    value: Any = None
    error: BaseException | None = None
    """What it raised; TimeoutError if it was stopped, RuntimeError if its process ended by itself."""
    trace: str = ""


def on_ranks(
    n: int, function: Callable[..., Any], *args: Any, seconds: float = 60.0, group: bool = True
) -> list[Outcome]:
    """Call ``function(*args)`` on each of ``n`` ranks, within an initialized process group.

    Args:
        n: ranks.
        function: at the top of a module.
        args: the same for every rank.
        seconds: after which those that still run are killed.
        group: whether to initialize a process group; else the environment is what torchrun would make of it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        port = None if group else free_port()
        processes = [
            context.Process(
                target=_run, args=(function, args, r, n, folder, seconds, port), daemon=True
            )
            for r in range(n)
        ]
        for process in processes:
            process.start()
        end = time.monotonic() + seconds
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        outcomes = [_outcome(process, Path(folder, str(r))) for r, process in enumerate(processes)]
    for process in processes:
        process.kill()
        process.join()
    return outcomes


def results_of(outcomes: list[Outcome]) -> list[Any]:
    """What each rank returned.

    Raises:
        AssertionError: if any did not return.
    """
    failures = [
        f"rank {r}: {outcome.error!r}\n{outcome.trace}"
        for r, outcome in enumerate(outcomes)
        if outcome.error is not None
    ]
    if failures:
        raise AssertionError("\n".join(failures))
    return [outcome.value for outcome in outcomes]


def free_port() -> int:
    """A port that nobody listens at, for now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _outcome(process: Any, path: Path) -> Outcome:
    if path.exists():
        return pickle.loads(path.read_bytes())
    if process.is_alive():
        return Outcome(error=TimeoutError("It was still running when its time was over."))
    return Outcome(error=RuntimeError(f"Its process ended with exit code {process.exitcode}."))


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    n: int,
    folder: str,
    seconds: float,
    port: int | None,
) -> None:
    torch.set_num_threads(1)
    group = port is None
    if not group:
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
    outcome = Outcome()
    try:
        if group:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=n,
                timeout=timedelta(seconds=seconds),
            )
        outcome.value = function(*args)
    except BaseException as error:
        outcome = Outcome(error=error, trace=traceback.format_exc())
    written = Path(folder, f"{rank}.unfinished")
    try:
        data = pickle.dumps(outcome)
        pickle.loads(data)
    except Exception:
        unpicklable = repr(outcome.error or outcome.value)
        data = pickle.dumps(Outcome(error=RuntimeError(unpicklable), trace=outcome.trace))
    written.write_bytes(data)
    written.rename(Path(folder, str(rank)))
    if group and dist.is_initialized() and outcome.error is None:
        dist.destroy_process_group()
