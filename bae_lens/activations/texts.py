"""What counts as a text, wherever texts come in: strings that a file can hold, and which are missing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

# Logged with how many, and of how many, where a figure of a text is a mean over its tokens.
NO_TOKENS = "%d of %d texts are left out: no token of them is neither special nor an outlier."
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


def check_readable(dataset: Any) -> None:
    """That a dataset can be read more than once.

    Raises:
        ValueError: if it is an iterator or a generator, of which one pass would leave nothing.
    """
    if isinstance(dataset, Iterator):
        raise ValueError(
            f"The dataset is a {type(dataset).__name__}, which can be read once only. Make a list of it, "
            "or an IterableDataset: datasets.IterableDataset.from_generator."
        )


class MissingTexts:
    """Counts rows that have no text, which readers pass over, and says so: of the first, and at the end.

    Args:
        column: that the texts are in, for messages; None for a list of texts.
    """

    def __init__(self, column: str | None = None) -> None:
        self._where = "" if column is None else f" in the column {column!r}"
        self.n = 0
        self._is_told = False

    def pass_over(self, row: int) -> None:
        """Count a row, by its number from 1 in the order that rows are read in."""
        if self.n == 0:
            logger.warning(
                "The %d. row that was read has no text%s; such rows are passed over.",
                *(row, self._where),
            )
        self.n += 1

    def at_end(self, n_rows: int) -> None:
        """Say how many there were of all rows, at the end of the first pass."""
        if self.n > 0 and not self._is_told:
            logger.warning(
                "%d of %d rows have no text%s and were passed over.", self.n, n_rows, self._where
            )
        self._is_told = True


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
