"""One bad input, and what came of it."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from bae_lens.cli import main

Outcome = Literal["clear", "silent", "unclear", "hang", "accepted"]

_SECONDS = 30
_LONGEST = 1_500


@dataclass(frozen=True)
class Trial:
    """A bad input, given to what reads it.

    Attributes:
        name: what is wrong with it.
        call: gives it.
        names: of which the message has to hold one: the file, or the field.
        is_told: whether it can be told from a good one. If not, it may be accepted.
        value: what the message has to hold too, of a value.
    """

    name: str
    call: Callable[[], Any]
    names: tuple[str, ...]
    is_told: bool = True
    value: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a trial, and the message or the traceback."""

    outcome: Outcome
    message: str


class _Late(BaseException):
    pass


def run(trial: Trial) -> Result:
    """Give the input, for so long at most, and read the answer."""
    try:
        with _deadline():
            trial.call()
    except _Late:
        return Result("hang", f"nothing after {_SECONDS} s")
    except (ValueError, FileNotFoundError) as error:
        if not _is_ours(error):
            return Result("unclear", traceback.format_exc(limit=-3))
        is_clear = _is_clear(str(error), trial)
        return Result("clear" if is_clear else "unclear", str(error))
    except BaseException:
        return Result("unclear", traceback.format_exc(limit=-3))
    return Result("silent" if trial.is_told else "accepted", "")


def command(*argv: str) -> Callable[[], None]:
    """A call of ``bae-lens``, which raises what it says on stderr.

    Raises:
        ValueError: with the message, where it ends as it should: status 2, and one line.
    """

    def call() -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(list(argv))
            except SystemExit as error:  # argparse
                status = error.code
        if status == 0:
            return
        lines = [line for line in err.getvalue().splitlines() if ": error: " in line]
        if status != 2 or len(lines) != 1 or "Traceback" in err.getvalue():
            raise AssertionError(f"status {status}: {err.getvalue()[-2000:]}")
        raise CommandError(lines[0])

    return call


class CommandError(ValueError):
    """What a command said."""


def _is_ours(error: Exception) -> bool:
    """Raised by this package or SAELens, and not by a library below."""
    if isinstance(error, CommandError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    origin = frames[-1].f_globals.get("__name__", "").partition(".")[0]
    return origin in ("bae_lens", "sae_lens")


def _is_clear(message: str, trial: Trial) -> bool:
    return (
        len(message.splitlines()) == 1
        and len(message) <= _LONGEST
        and any(name in message for name in trial.names)
        and trial.value in message
    )


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise _Late

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
