"""What somebody may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A question with the valid names that are nearest to this one, at least one of them."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=3) or difflib.get_close_matches(
        name, valid, n=1, cutoff=0.0
    )
    return f"Did you mean {' or '.join(near)}?"
