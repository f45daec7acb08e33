"""Check that the parts of what was read from a file fit together: its counts and numbers are claims."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from bae_lens.checks.fields import shown


def check_indices(name: str, values: Iterable[int], n: int, least: int = 0) -> None:
    """Check that numbers count among n things.

    Args:
        name: of the values, for the message.
        values: numbers.
        n: of things.
        least: −1 where that stands for none of them.

    Raises:
        ValueError: for the first that is not from ``least`` to n − 1.
    """
    for value in values:
        if not least <= value < n:
            raise ValueError(f"{name} must be from {least} to {n - 1}; got {value}")


def check_counts(**counts: int) -> None:
    """
    Raises:
        ValueError: for the first that is below 0.
    """
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} must be 0 at least; got {value}")


def check_lengths(n: int, of: str, **values: Sized | None) -> None:
    """Check that there is one of each for each thing; None stands for a part that is missing.

    Args:
        n: of things.
        of: what they are, for the message.
        **values: by name.

    Raises:
        ValueError: for the first that has more or fewer.
    """
    for name, own in values.items():
        if own is not None and len(own) != n:
            raise ValueError(f"{name} must have one entry for each of {n} {of}; got {len(own)}")


def check_that(holds: bool, expected: str, got: object) -> None:
    """
    Raises:
        ValueError: if it does not hold.
    """
    if not holds:
        raise ValueError(f"{expected}; got {shown(got)}")
