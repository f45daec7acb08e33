"""Names that exist, and what somebody may have meant who wrote another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A question with the valid names that are nearest to this one, at least one of them."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=3) or difflib.get_close_matches(
        name, valid, n=1, cutoff=0.0
    )
    return f"Did you mean {' or '.join(near)}?"


def index_of(names: Sequence[str], name: str, kind: str) -> int:
    """Which of the names it is.

    Raises:
        ValueError: if it is none of them.
    """
    if name not in names:
        raise ValueError(f"There is no {kind} {name!r}; there are {', '.join(names)}.")
    return names.index(name)
