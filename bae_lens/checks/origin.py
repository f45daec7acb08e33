"""Whose code an error is from."""

from __future__ import annotations

import traceback


def origin_of(error: BaseException) -> str:
    """The package whose code has raised it, as ``"torch"``; empty where that is not known."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""
