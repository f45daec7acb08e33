"""Whose code an error is from."""

from __future__ import annotations

import opcode
import traceback


def origin_of(error: BaseException) -> str:
    """The package whose code has raised it, as ``"torch"``; empty where that is not known."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""


def is_in_words(error: BaseException) -> bool:
    """Whether a ``raise`` has raised it, with what its author had to say, and not Python itself, as over a tuple
    that cannot be unpacked."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == opcode.opmap["RAISE_VARARGS"]
