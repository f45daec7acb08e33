"""Processes that measure the cells of a benchmark, within a budget of time."""

from __future__ import annotations

import math
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from typing_extensions import Self

# What a worker is to call, and with which arguments.
Job = tuple[Callable[..., Any], tuple[Any, ...]]


def pool_of(n: int) -> ProcessPoolExecutor:
    """Processes that begin anew, and end with the one that has them, whatever ends it."""
    return ProcessPoolExecutor(
        n, multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )


def _end_with_parent() -> None:
    """A process that is ended by a signal tells its workers nothing, which would go on for hours."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """Processes of one thread each, which keep what they have loaded from one set of jobs to the next.

    Args:
        n: how many there are at most.
        minutes: from now on; then no other job is begun, and those that run are waited for.

    Attributes:
        n_left_out: jobs that were not begun in time.
    """

    def __init__(self, n: int, minutes: float = math.inf) -> None:
        os.environ["TQDM_DISABLE"] = "1"
        os.environ["OMP_NUM_THREADS"] = "1"
        self.n, self.begin = n, time.monotonic()
        self.end = self.begin + 60 * minutes
        self.n_left_out = 0
        self._pool = pool_of(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=exception == (None, None, None), cancel_futures=True)

    @property
    def is_time_out(self) -> bool:
        """Whether no other job is begun."""
        return time.monotonic() >= self.end

    def run(
        self,
        jobs: Mapping[str, Job],
        failed: dict[str, BaseException] | None = None,
        n_after: int = 0,
    ) -> Iterator[tuple[str, Any]]:
        """Names and what they gave, as they end; begun in the order given.

        Args:
            jobs: by name.
            failed: where a job that raises is put, by its name, while the others go on; None: the
                first one that raises ends them all, as the death of a process does in any case.
            n_after: jobs that are to come after these, for the estimate of how long all will take.
        """
        waiting, running = list(jobs), dict[Future[Any], str]()
        n_done, first = 0, time.monotonic()

        def begin() -> None:
            # No more than there are processes: what was handed over could not be taken back.
            while waiting and len(running) < self.n and not self.is_time_out:
                name = waiting.pop(0)
                function, arguments = jobs[name]
                running[self._pool.submit(function, *arguments)] = name

        begin()
        while running:
            ended = [(f, running.pop(f)) for f in wait(running, None, FIRST_COMPLETED).done]
            # Before anybody looks at what these gave, which may take a while.
            begin()
            for future, name in ended:
                n_done += 1
                now = time.monotonic()
                left = (now - first) / n_done * (len(jobs) - n_done + n_after)
                said = (
                    f"[{n_done}/{len(jobs)}, {(now - self.begin) / 60:.0f} min, about {left / 60:.0f} "
                    f"to go] {name}"
                )
                error = future.exception()
                if error is None:
                    print(said, flush=True)
                    yield name, future.result()
                elif failed is None or isinstance(error, BrokenProcessPool):
                    raise error
                else:
                    failed[name] = error
                    print(f"{said} FAILED: {type(error).__name__}: {error}", flush=True)
        if waiting:
            self.n_left_out += len(waiting)
            print(f"Out of time: {len(waiting)} of {len(jobs)} are left out.", flush=True)
