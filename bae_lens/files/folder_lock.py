"""A folder that one process at a time may use."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

LOCK_FILENAME = ".lock"


class FolderInUseError(ValueError):
    """Another process holds the folder."""


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Hold a folder, which is made if need be, for as long as the block runs.

    The operating system holds the lock (``flock`` of a file in the folder), and lets go of it
    whatever becomes of the process. The file says who uses the folder, and is removed at the end.
    Where the file system has no such locks, a warning is logged.

    Raises:
        FolderInUseError: if another process, or another block of this one, holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILENAME
    descriptor = _lock(path, folder)
    try:
        yield
    finally:
        # While it is held: nobody else's can be removed.
        if _is_open_at(descriptor, path):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, folder: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except FileNotFoundError:  # Its last user has just removed the empty folder.
            folder.mkdir(parents=True, exist_ok=True)
            continue
        try:
            if fcntl is None:
                raise NotImplementedError
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = _read_user(path)
            os.close(descriptor)
            raise FolderInUseError(
                f"{folder} is in use by {who}. Wait until that has ended, or name another folder."
            ) from None
        except (OSError, NotImplementedError):
            logger.warning("%s cannot be locked: see to it that no other run uses it.", folder)
        if _is_open_at(descriptor, path):
            break
        os.close(descriptor)  # Its last user has just removed it.
    with suppress(OSError):  # A full disk: the lock holds, and does not say whose it is.
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(_this_user()).encode())
    return descriptor


def _is_open_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _this_user() -> dict[str, str]:
    return {
        "process": str(os.getpid()),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": " ".join(sys.argv)[:200],
    }


def _read_user(path: Path) -> str:
    try:
        user = json.loads(path.read_bytes()[:4096])
        return (
            f"process {user['process']} on {user['host']} since {user['since']} ({user['command']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
