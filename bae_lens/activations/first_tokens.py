"""The first tokens of what is read batch by batch, and what is said where there are fewer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from tqdm.auto import tqdm
from typing_extensions import Self

logger = logging.getLogger(__name__)


class Rows(Protocol):
    """Rows that can be counted and cut, such as a tensor's."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Self: ...


_Rows = TypeVar("_Rows", bound=Rows)


def first_tokens(
    batches: Iterable[_Rows],
    n_tokens: int | None,
    what: str,
    *,
    verbose: bool = True,
    leave_bar: bool = False,
) -> Iterator[_Rows]:
    """The first rows of batches, those without any left out; no batch is read once there are enough.

    Args:
        batches: one row per token that counts.
        n_tokens: how many; None for all.
        what: label of the progress bar.
        verbose: show the progress bar.
        leave_bar: leave it when it is full.
    """
    if n_tokens == 0:
        return
    n_read = 0
    with tqdm(total=n_tokens, desc=what, unit="tok", leave=leave_bar, disable=not verbose) as bar:
        for batch in batches:
            kept = batch if n_tokens is None else batch[: n_tokens - n_read]
            n_read += len(kept)
            bar.update(len(kept))
            if len(kept) > 0:
                yield kept
            if n_read == n_tokens:
                return


def warn_if_text_ended(n_read: int, n_tokens: int | None) -> None:
    """Log a warning where a text has fewer tokens than were asked for."""
    if n_tokens is not None and n_read < n_tokens:
        logger.warning("The text ended after %d of %d tokens.", n_read, n_tokens)
