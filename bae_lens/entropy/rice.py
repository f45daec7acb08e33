"""Rice codes of arrays of integers, coded and decoded without a loop over values.

A Rice code of v is v >> k in unary, that many zeros and a one, and the k lowest bits of v. Both parts
lie in streams of their own here.
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
