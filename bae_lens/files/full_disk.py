"""What is said where there is no space left."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT") if hasattr(errno, name)}


@contextmanager
def full_disk_told(path: str | Path) -> Iterator[None]:
    """A full disk in the words of the system, with the name that was asked for in place of a temporary one.

    Libraries say it with exceptions of their own (safetensors), or without a name (pyarrow).
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _errno_in(error)
        if number is None or number not in _FULL:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _errno_in(error: Exception) -> int | None:
    """The number that Rust writes into a text: "No space left on device (os error 28)"."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
