"""What counts as a text, wherever texts come in: strings that a file can hold, and which are missing."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

_SHOWN = 60


def is_missing(value: Any) -> bool:
    """Whether there is nothing: None, an empty field, or pandas' NaN, NaT or NA."""
    if value is None or (isinstance(value, str) and value == ""):
        return True
    # Of no other scalar is it unsure whether it is itself.
    kind = type(value).__name__
    return kind in ("NAType", "NaTType") or (kind.startswith("float") and value != value)


def check_text(value: Any, what: str) -> str:
    """The value, if it is a string that UTF-8 can hold, as every file that is written later has to.

    Args:
        value: anything.
        what: it is, with where it stands, as the beginning of a sentence.

    Raises:
        ValueError: if it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{what} has to be a string; got {_shown(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        around = value[max(0, error.start - _SHOWN // 2) :][:_SHOWN]
        raise ValueError(
            f"{what} has {value[error.start]!a} as character {error.start + 1}, half of a "
            f"surrogate pair, which UTF-8 cannot hold: {around!a}. Repair or drop it."
        ) from error
    return value


class MissingTexts:
    """Counts rows that have no text, which readers pass over, and says so: once, and how many at the end.

    Args:
        column: that the texts are in, for messages; None for a list of texts.
    """

    def __init__(self, column: str | None = None) -> None:
        self._where = "" if column is None else f" in the column {column!r}"
        self.n = 0

    def pass_over(self, row: int) -> None:
        """Count a row, by its number from 1."""
        if self.n == 0:
            logger.warning("Row %d has no text%s; such rows are passed over.", row, self._where)
        self.n += 1

    def at_end(self, n_rows: int) -> None:
        """Say how many there were of all rows."""
        if self.n > 0:
            logger.warning(
                "%d of %d rows have no text%s and were passed over.", self.n, n_rows, self._where
            )


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
