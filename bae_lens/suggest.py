"""What somebody may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 60


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A sentence with the valid names nearest to this one, or with all where none is near."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=3)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    more = " …" if len(valid) > _MOST else ""
    return f"There are: {', '.join(valid[:_MOST])}{more}."
