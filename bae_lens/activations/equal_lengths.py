"""Sequences of tokens in batches of equal length, so that nothing is padded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized


def equal_lengths(sequences: Sequence[Sized], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences that are of one length, the shortest first, so many at a time at most.

    >>> list(equal_lengths(["ab", "a", "cd", "ef"], 2))
    [[1], [0, 2], [3]]
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, sequence in enumerate(sequences):
        by_length[len(sequence)].append(i)
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]
