"""Ranks that fail or die end the run on all ranks, with an error that says which one it was.

A collective waits for every rank. Where one raises or is killed, gloo notices a closed connection and raises
something about a socket; NCCL may wait until its timeout, as everything does for a process that is stopped or a
machine that is cut off. So each process that was started by ``start_process_group`` tells that it is alive, every
two seconds, in the store by which they have found each other, and follows the next rank there; a rank that raises
leaves word of it.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from bae_lens.distributed.agreement import told

logger = logging.getLogger(__name__)

_INTERVAL = 2.0
# Seconds without a sign of life after which a rank is dead. One that computes gives one.
_SILENCE = 40.0
# Seconds in which a process whose peer has failed can end by itself.
_GRACE = 10.0
_WORD = "failed"
_watch: _Watch | None = None


class RankFailedError(RuntimeError):
    """Another rank has failed or died while this one was waiting for it."""


@contextmanager
def failures_named() -> Iterator[None]:
    """Where the block ends because another rank has failed, raise an error that says which.

    And where it ends with an error of its own, leave word of that for the others.

    Raises:
        RankFailedError: in place of what a collective raises whose peer is gone.
    """
    if _watch is None:
        yield
        return
    _watch.begin()
    try:
        yield
    except Exception as error:
        found = _watch.who_failed() if _is_of_a_collective(error) else None
        _watch.leave_word(told(error))
        if found is None:
            raise
        raise RankFailedError(found) from error
    finally:
        _watch.n_blocks -= 1


def watch_over_ranks(host: str, port: int, number: int, size: int) -> None:
    """Begin to tell that this process is alive, and to see whether others are."""
    # A torch that was built without them has to be able to import this.
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    global _watch
    client = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_SILENCE))
    _watch = _Watch(PrefixStore("bae_lens", client), number, size)
    threading.Thread(target=_watch.run, name="ranks", daemon=True).start()


def end_watching() -> bool:
    """Tell that this process ends and is not to be waited for; returns whether it ends well."""
    if _watch is None:
        return True
    _watch.end()
    return not _watch.has_failed


class _Watch:
    """One process's signs of life, and its eye on the others'."""

    def __init__(self, store: Any, number: int, size: int) -> None:
        self.store, self.number, self.size = store, number, size
        # Blocks that are open, in which other ranks are waited for.
        self.n_blocks = 0
        self.has_failed = False
        self.is_over = threading.Event()

    def begin(self) -> None:
        """Open a block, and take back a word of something that the program has come through."""
        self.n_blocks += 1
        if self.has_failed:
            self.has_failed = False
            with suppress(Exception):
                self.store.set(_WORD, "")

    def leave_word(self, what: str) -> None:
        """That this rank has failed; the first word stays."""
        self.has_failed = True
        with suppress(Exception):
            self.store.compare_set(_WORD, "", f"Rank {self.number} has failed: {what}")

    def word(self) -> str:
        # It sets nothing but an empty word where there is none.
        return self.store.compare_set(_WORD, "", "").decode()

    def who_failed(self) -> str | None:
        """Which rank has failed or is silent, in words; None if all of them seem to be well."""
        before: list[int] = []
        signs: list[int] = []
        # Signs come every two seconds; a word may take a moment.
        for _ in range(4):
            try:
                if word := self.word():
                    return word
                signs = [self._sign(r) for r in range(self.size)]
            except Exception:
                return _NO_STORE
            before = before or signs
            time.sleep(_INTERVAL)
        for number, (then, now) in enumerate(zip(before, signs, strict=True)):
            if then == now and number != self.number:
                return f"Rank {number} {_GONE if self._has_ended(number) else _DEAD}"
        return None

    def _has_ended(self, number: int) -> bool:
        try:
            return self.store.add(f"ended/{number}", 0) > 0
        except Exception:
            # Rank 0, which keeps the store, has found out as well and is gone by now.
            return False

    def end(self) -> None:
        """Say so, unless it was by a failure: then the others are to notice."""
        self.is_over.set()
        if not self.has_failed:
            with suppress(Exception):
                self.store.add(f"ended/{self.number}", 1)
        elif self.number == 0:
            # Without torchrun it keeps the store, from which others have yet to read who failed.
            time.sleep(2 * _INTERVAL)

    def run(self) -> None:
        """Give signs until the process ends, or end it where the next rank gives none."""
        followed = (self.number + 1) % self.size
        last, since = 0, time.monotonic()
        while not self.is_over.wait(_INTERVAL):
            try:
                self.store.add(f"alive/{self.number}", 1)
                sign, is_ended = self._sign(followed), self.store.add(f"ended/{followed}", 0) > 0
                word = self.word()
            except Exception:
                # Rank 0 may have ended before this one, where nothing is done together any more.
                if self.n_blocks > 0:
                    self._give_up(_NO_STORE)
                return
            if sign != last or is_ended or self.n_blocks == 0:
                last, since = sign, time.monotonic()
            elif time.monotonic() - since > _SILENCE:
                self._give_up(word or f"Rank {followed} {_DEAD}")
                return

    def _sign(self, number: int) -> int:
        return self.store.add(f"alive/{number}", 0)

    def _give_up(self, why: str) -> None:
        """End the process, unless it soon does so by itself."""
        self.has_failed = True
        if self.is_over.wait(_GRACE):
            return
        logger.error("%s This process may wait for it for ever, and ends.", why)
        sys.stderr.flush()
        os._exit(1)


_DEAD = (
    "gives no sign of life: it was killed, or its machine is stopped or cut off. Go on from the last "
    "checkpoint."
)
_GONE = (
    "has come to its end, where this one was waiting for it: they were not given the same to do."
)
_NO_STORE = (
    "The process that keeps the ranks together, rank 0 or the torchrun of its machine, is gone. Go on from the "
    "last checkpoint."
)


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether it is what a collective raises whose peer is gone."""
    if isinstance(error, dist.DistError):
        return True
    # Gloo's are plain ones, and by way of a backward pass they lose where they come from.
    words = ("gloo", "nccl", "connection closed", "connection reset", "c10d")
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in words)
