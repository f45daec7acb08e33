"""Ranks that do not agree end alike: with an error on every one of them, before one waits for another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bae_lens.distributed.collectives import all_gather_objects
from bae_lens.distributed.ranks import n_ranks


class RankError(ValueError):
    """Another rank has refused what it was given; the message says which rank, and why."""


@contextmanager
def on_every_rank() -> Iterator[None]:
    """Let a block in which no rank waits for another end on all ranks as it ends on each.

    Raises:
        RankError: at the end of the block, if it raised on another rank and not on this one.
    """
    if n_ranks() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    every = all_gather_objects(None if error is None else told(error))
    if error is not None:
        raise error
    for number, words in enumerate(every):
        if words is not None:
            raise RankError(f"Rank {number}: {words}")


def check_same(own: Mapping[str, Any]) -> None:
    """Refuse a run whose ranks were not started alike.

    Args:
        own: what this rank was started with, by name.

    Raises:
        RankError: on every rank, if another has something else; says what, there and here.
    """
    every = all_gather_objects(dict(own))
    for r, other in enumerate(every):
        differing = [
            f"{name} is {every[0].get(name)!r} on rank 0 and {other.get(name)!r} on rank {r}"
            for name in dict.fromkeys((*every[0], *other))
            if every[0].get(name) != other.get(name)
        ]
        if differing:
            raise RankError(
                f"The processes are not of one run: {'; '.join(differing[:8])}. Start all of them with the same "
                "config and the same packages."
            )


def told(error: BaseException) -> str:
    """An error in words."""
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{kind}{error}"
