"""Rice codes of arrays of integers, coded and decoded without a loop over values.

A Rice code of v is v >> k in unary, that many zeros and a one, and the k lowest bits of v. Both parts
lie in streams of their own here. By them positions are stored, and with those the ranks of what is at
the positions, in groups that each have frequencies of their own.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

INCONSISTENT = "These codes contradict themselves although their checksum is right."


def rice_parameters(total: Any, n_values: Any) -> NDArray[np.int64]:
    """Best k for so many geometric values of this sum, for each value (elementwise for arrays).

    For a mean of m it is the bit length of ⌊(m + ½)/2.08⌋, computed in integers so that writer and
    reader agree on any machine.
    """
    divisor = 104 * np.maximum(n_values, 1)
    k = np.frexp(25 * (2 * total + n_values) // divisor)[1].astype(np.int64)
    return np.repeat(k, n_values)


def rice_encode(values: NDArray[np.int64], k: NDArray[np.int64]) -> bytes:
    """Values ≥ 0, each with its own parameter."""
    ends = np.cumsum((values >> k) + 1)
    unary = np.zeros(ends.max(initial=0), dtype=bool)
    unary[ends - 1] = True
    low = [values[k > b] >> b & 1 for b in range(k.max(initial=0))]
    packed = np.packbits(unary).tobytes()
    packed_low = np.packbits(np.concatenate([np.zeros(0, dtype=np.int64), *low]) > 0).tobytes()
    return struct.pack("<Q", len(packed)) + packed + packed_low


def rice_decode(stream: io.BytesIO, k: NDArray[np.int64]) -> NDArray[np.int64]:
    """What ``rice_encode`` wrote with these parameters.

    Raises:
        ValueError: if the stream cannot be that.
    """
    (n_bytes,) = struct.unpack("<Q", take(stream, 8))
    ends = np.flatnonzero(take_bits(stream, 8 * n_bytes))
    if len(ends) != len(k):
        raise ValueError(INCONSISTENT)
    values = (np.diff(ends, prepend=-1) - 1) << k
    low = take_bits(stream, int(k.sum())).astype(np.int64)
    for b in range(k.max(initial=0)):
        here, low = np.split(low, [np.count_nonzero(k > b)])
        values[k > b] |= here << b
    return values


def encode_positions(
    positions: NDArray[np.int64], counts: NDArray[np.int64], n: NDArray[np.int64] | int
) -> bytes:
    """Positions in groups, by the gaps between them; of few or many, it takes about their entropy.

    Args:
        positions: group after group, ascending in each.
        counts: how many each group has, which the reader has to know.
        n: of how many positions each group is, or all are.
    """
    previous = np.concatenate(([-1], positions))[:-1]
    previous[(np.cumsum(counts) - counts)[counts > 0]] = -1
    return rice_encode(positions - previous - 1, rice_parameters(n - counts, counts))


def decode_positions(
    stream: io.BytesIO, counts: NDArray[np.int64], n: NDArray[np.int64] | int
) -> NDArray[np.int64]:
    """What ``encode_positions`` wrote of groups of these numbers.

    Raises:
        ValueError: if the stream cannot be that.
    """
    steps = 1 + rice_decode(stream, rice_parameters(n - counts, counts))
    of_each = np.broadcast_to(n, counts.shape)
    # First each, so that their sum is within an integer.
    if steps.max(initial=0) > of_each.max(initial=0):
        raise ValueError(INCONSISTENT)
    passed = np.cumsum(np.concatenate(([0], steps)))
    positions = passed[1:] - np.repeat(passed[np.cumsum(counts) - counts], counts) - 1
    if (positions >= np.repeat(of_each, counts)).any():
        raise ValueError(INCONSISTENT)
    return positions


def encode_ranks(ranks: NDArray[np.int64], counts: NDArray[np.int64], n_ranks: int) -> bytes:
    """Ranks from 0 to ``n_ranks − 1`` in groups; it takes about the entropy of each group's frequencies.

    For one rank after the other: how many of those that have reached the rank below reach it, and the
    positions among them of those that do, or do not, whichever are fewer.

    Args:
        ranks: group after group.
        counts: how many each group has, which the reader has to know.
        n_ranks: how many there are.
    """
    parts, group = [], np.repeat(np.arange(len(counts)), counts)
    for rank in range(1, n_ranks):
        reaches = ranks >= rank
        reached = np.bincount(group[reaches], minlength=len(counts))
        is_any = counts > 0
        parts.append(rice_encode(reached[is_any], _up_to(counts[is_any])))
        are_fewer, n_fewer = _fewer(reached, counts)
        stored = reaches == are_fewer[group]
        positions = np.arange(len(group)) - (np.cumsum(counts) - counts)[group]
        parts.append(encode_positions(positions[stored], n_fewer, counts))
        ranks, group, counts = ranks[reaches], group[reaches], reached
    return b"".join(parts)


def decode_ranks(stream: io.BytesIO, counts: NDArray[np.int64], n_ranks: int) -> NDArray[np.int64]:
    """What ``encode_ranks`` wrote of groups of these numbers.

    Raises:
        ValueError: if the stream cannot be that.
    """
    ranks = np.zeros(counts.sum(), dtype=np.int64)
    entries, group = np.arange(len(ranks)), np.repeat(np.arange(len(counts)), counts)
    for rank in range(1, n_ranks):
        is_any, reached = counts > 0, np.zeros_like(counts)
        reached[is_any] = rice_decode(stream, _up_to(counts[is_any]))
        if ((reached < 0) | (reached > counts)).any():
            raise ValueError(INCONSISTENT)
        are_fewer, n_fewer = _fewer(reached, counts)
        positions = decode_positions(stream, n_fewer, counts)
        stored = np.zeros(len(group), dtype=bool)
        stored[positions + np.repeat(np.cumsum(counts) - counts, n_fewer)] = True
        reaches = stored == are_fewer[group]
        entries, group, counts = entries[reaches], group[reaches], reached
        ranks[entries] = rank
    return ranks


def _up_to(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parameters for numbers from 0 to these, of which nothing else is known."""
    return rice_parameters(counts // 2, np.ones_like(counts))


def _fewer(
    reached: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether those that reach a rank are fewer than those that do not, and how many the fewer are."""
    are_fewer = 2 * reached <= counts
    return are_fewer, np.where(are_fewer, reached, counts - reached)


def take_bits(stream: io.BytesIO, n: int) -> NDArray[np.uint8]:
    """The next n bits of a stream, which fill whole bytes."""
    return np.unpackbits(np.frombuffer(take(stream, (n + 7) // 8), np.uint8), count=n)


def take(stream: io.BytesIO, n_bytes: int) -> bytes:
    """The next bytes of a stream.

    Raises:
        ValueError: if there are fewer.
    """
    if n_bytes > len(stream.getbuffer()) - stream.tell():
        raise ValueError(INCONSISTENT)
    return stream.read(n_bytes)
