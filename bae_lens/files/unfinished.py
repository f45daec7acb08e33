"""Folders of work in progress, which are gone when the work stops, however it stops."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has none: there nothing is swept.
    fcntl = None

logger = logging.getLogger(__name__)

_PREFIX = ".collecting-"
_LOCK = "lock"
# A folder of a version that locked nothing belongs to nobody once it was left alone for so long.
_SECONDS = 3600
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def unfinished_folder(parent: str | Path) -> Iterator[Path]:
    """A temporary folder in ``parent`` (made if it is not there), removed at the end of the block.

    Also where SIGTERM or SIGHUP would end the process, which then end it once the folder is gone;
    and ``sweep`` removes what a process that was killed has left: the operating system lets go of
    the lock in the folder when its process ends.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    with _stoppable():
        # Under the lock of the parent, so that nobody sweeps it before it has its own.
        with _locked(parent):
            folder = Path(mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
            _try_lock(lock)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def sweep(parent: str | Path) -> None:
    """Remove the unfinished folders of processes that are no more; those of living ones stay."""
    if fcntl is None or not (folders := list(Path(parent).glob(f"{_PREFIX}*"))):
        return
    # Somebody else's folder, or a file system without locks: then it stays.
    with suppress(OSError), _locked(Path(parent)):
        for folder in folders:
            if folder.is_dir() and not folder.is_symlink() and _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)
                logger.info("%s, which a run that was killed had left, was removed.", folder)


def _is_left(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
        return len(times) == 1 or time.time() - max(times) > _SECONDS
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """Whether nobody else holds the lock, which is then ours until the descriptor is closed."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While inside, no other process is; a folder itself can be locked, and needs no file for it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # A network file system may not lock folders.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class _Stopped(BaseException):
    """A signal that would have ended the process."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """While inside, unwind before a signal ends the process that nobody else has a handler for."""
    stopped_by: int | None = None

    def on_signal(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal stopped_by
        stopped_by = number
        # A second one would stop the cleaning up.
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped

    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():
        taken = [each for each in _SIGNALS if signal.getsignal(each) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, on_signal)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)
        if stopped_by is not None:
            os.kill(os.getpid(), stopped_by)
