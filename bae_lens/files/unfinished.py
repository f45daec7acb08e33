"""Folders of work in progress, which are gone when the work stops, however it stops."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from bae_lens.files.flock import CAN_LOCK, alone_in, try_lock
from bae_lens.files.stopping import stoppable

logger = logging.getLogger(__name__)

_PREFIX = ".collecting-"
_LOCK = "lock"
# A folder of a version that locked nothing belongs to nobody once it was left alone for so long.
_SECONDS = 3600


@contextmanager
def unfinished_folder(parent: str | Path) -> Iterator[Path]:
    """A temporary folder in ``parent`` (made if it is not there), removed at the end of the block.

    Also where SIGTERM or SIGHUP would end the process, which then end it once the folder is gone;
    and ``sweep`` removes what a process that was killed has left: the operating system lets go of
    the lock in the folder when its process ends.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    with stoppable():
        # Under the lock of the parent, so that nobody sweeps it before it has its own.
        with alone_in(parent):
            folder = Path(mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
            try_lock(lock)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def sweep(parent: str | Path) -> None:
    """Remove the unfinished folders of processes that are no more; those of living ones stay."""
    if not CAN_LOCK or not (folders := list(Path(parent).glob(f"{_PREFIX}*"))):
        return
    # Somebody else's folder, or a file system without locks: then it stays.
    with suppress(OSError), alone_in(Path(parent)):
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
        return try_lock(lock)
    finally:
        os.close(lock)
