"""What a signal stops is cleaned up before the process ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class _Stopped(BaseException):
    """A signal that would have ended the process."""


@contextmanager
def stoppable() -> Iterator[None]:
    """While inside, unwind before a signal ends the process that nobody else has a handler for.

    Python has signals handled in the main thread only: in another one a signal ends the process at once, as it does a
    child that was forked inside, whose parent goes on with what is to be cleaned up.
    """
    stopped_by: int | None = None
    own = os.getpid()

    def on_signal(number: int, frame: Any) -> None:  # noqa: ARG001
        nonlocal stopped_by
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
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
