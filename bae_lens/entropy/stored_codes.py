"""A BAE's codes as what differs from a majority code, and the files of them.

A file is a magic word whose last byte is the version of its format, a CRC-32 of everything after it, and
the code: version 1 has bits, version 2 levels.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int32, UInt8
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self, override

from bae_lens.checks.fields import check, shown, whole
from bae_lens.entropy.rice import (
    INCONSISTENT,
    decode_positions,
    decode_ranks,
    encode_positions,
    encode_ranks,
    rice_decode,
    rice_encode,
    rice_parameters,
    take,
    take_bits,
)

_MAGIC = b"BAEC"
# Number of leading dimensions, d_sae, number of indices.
_SIZES = struct.Struct("<BIQ")
# Vectors without a latent that differs take no space in a file, so that its size says little of how many
# there are. So many are believed in any case, and so many more for each byte.
_FEW_VECTORS, _VECTORS_A_BYTE = 2**22, 64
# Levels are kept as bytes.
MAX_LEVELS = 255


@dataclass(frozen=True, eq=False)
class _StoredCode(ABC):
    """Codes of n vectors as the latents that differ from a majority code, on the CPU."""

    shape: tuple[int, ...]
    majority: Tensor
    lengths: Int32[Tensor, " n"]
    indices: Int32[Tensor, " n_indices"]

    _version: ClassVar[int]
    _holds: ClassVar[str]

    def __post_init__(self) -> None:
        n, d_sae = math.prod(self.shape), len(self.majority)
        if (
            self.lengths.shape != (n,)
            or (self.lengths < 0).any()
            or self.indices.shape != (int(self.lengths.sum()),)
        ):
            raise ValueError(
                f"For {n} vectors lengths must be {n} counts that add up to the number of indices; got "
                f"{tuple(self.lengths.shape)} that add up to {int(self.lengths.sum())}, and indices "
                f"of shape {tuple(self.indices.shape)}."
            )
        places = torch.repeat_interleave(self.lengths).long() * d_sae + self.indices
        out_of_range = (self.indices < 0) | (self.indices >= d_sae)
        if out_of_range.any() or (places.diff() <= 0).any():
            raise ValueError(
                f"indices must ascend within each vector, none twice, from 0 to {d_sae - 1}."
            )

    @abstractmethod
    def bits(self) -> Bool[Tensor, "*shape d_sae"]:
        """Which latents fire, exactly."""

    @abstractmethod
    def _payload(self) -> bytes: ...

    @classmethod
    @abstractmethod
    def _read(cls, stream: io.BytesIO, n_bytes: int, max_vectors: int | None) -> Self: ...

    @property
    def bits_per_vector(self) -> float:
        """8·len(to_bytes())/n: as really stored, header and majority code included.

        Raises:
            ValueError: if there is no vector.
        """
        if len(self.lengths) == 0:
            raise ValueError("Bits per vector are not defined where there is no vector.")
        return 8 * len(self.to_bytes()) / len(self.lengths)

    def to_bytes(self) -> bytes:
        """The codes as a file, which ``from_bytes`` reads back exactly.

        Stored latent by latent: on how many vectors it differs, and the gaps between these, in Rice
        codes whose parameter follows from that number. (Gaps between the indices of one vector would
        mix latents of all rates, and take more.) That comes within a few per cent of the marginal
        entropy; that latents depend on each other is not made use of.
        """
        payload = self._payload()
        return _magic(self._version) + struct.pack("<I", zlib.crc32(payload)) + payload

    @classmethod
    def from_bytes(cls, data: bytes, max_vectors: int | None = None) -> Self:
        """Read what ``to_bytes`` wrote. Memory is by the size of the data, whatever they claim.

        Args:
            data: of a file.
            max_vectors: that are read; None: about 4 million, or 64 a byte where that is more.

        Raises:
            ValueError: if the data are something else, cut short, damaged or followed by more, or say
                that they are of more vectors.
        """
        magic, start = _magic(cls._version), len(_MAGIC) + 5
        if data[: len(magic)] != magic:
            raise ValueError(
                f"Not codes of a BAE, or not {cls._holds}: {len(data)} bytes that "
                f"begin with {data[: len(magic)]!r}, not {magic!r}. read_codes takes both bits and levels."
            )
        if data[len(magic) : start] != struct.pack("<I", zlib.crc32(data[start:])):
            raise ValueError("These codes are cut short or damaged: their checksum is wrong.")
        stream = io.BytesIO(data[start:])
        codes = cls._read(stream, len(data), max_vectors)
        if stream.read(1):
            raise ValueError(INCONSISTENT)
        return codes

    def _sizes(self) -> bytes:
        sizes = _SIZES.pack(len(self.shape), len(self.majority), len(self.indices))
        return sizes + struct.pack(f"<{len(self.shape)}Q", *self.shape)

    def _by_latent(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """How often each latent differs, on which vectors, and which of the indices those are."""
        latents = self.indices.numpy()
        order = np.argsort(latents, kind="stable")
        vectors = np.repeat(np.arange(len(self.lengths)), self.lengths.numpy())[order]
        return np.bincount(latents, minlength=len(self.majority)), vectors, order


@dataclass(frozen=True, eq=False)
class CodeIndices(_StoredCode):
    """Codes of n vectors as the bits that differ from a majority code, on the CPU.

    Attributes:
        shape: leading shape of the vectors; n is its product.
        majority: ``[d_sae]``, the code that all are compared with.
        lengths: ``[n]``, how many bits differ, int32.
        indices: which bits differ, int32: vector after vector, ascending in each.

    Raises:
        ValueError: if these do not fit together.
    """

    majority: Bool[Tensor, " d_sae"]

    _version, _holds = 1, "bits"

    @override
    def __post_init__(self) -> None:
        dtypes = (self.majority.dtype, self.lengths.dtype, self.indices.dtype)
        if dtypes != (torch.bool, torch.int32, torch.int32) or self.majority.ndim != 1:
            raise ValueError(
                "majority must be bools of one dimension, lengths and indices int32; got "
                f"{', '.join(map(str, dtypes))}, majority of shape {tuple(self.majority.shape)}."
            )
        super().__post_init__()

    @override
    def bits(self) -> Bool[Tensor, "*shape d_sae"]:
        """The codes themselves, exactly."""
        bits = self.majority.repeat(len(self.lengths), 1)
        bits[torch.repeat_interleave(self.lengths), self.indices] = ~self.majority[self.indices]
        return bits.reshape(*self.shape, len(self.majority))

    @override
    def _payload(self) -> bytes:
        counts, vectors, _ = self._by_latent()
        majority = np.packbits(self.majority.numpy()).tobytes()
        return self._sizes() + majority + _encode_places(counts, vectors, len(self.lengths))

    @override
    @classmethod
    def _read(cls, stream: io.BytesIO, n_bytes: int, max_vectors: int | None) -> Self:
        shape, d_sae, n_indices = _read_sizes(stream, n_bytes, max_vectors)
        majority = take_bits(stream, d_sae).astype(bool)
        counts, vectors = _decode_places(stream, d_sae, n_indices, math.prod(shape), n_bytes)
        lengths, indices, _ = _by_vector(counts, vectors, math.prod(shape))
        return cls(shape, torch.from_numpy(majority), lengths, indices)


@dataclass(frozen=True, eq=False)
class CodeLevels(_StoredCode):
    """Codes of n vectors as the levels that differ from a majority code, on the CPU.

    Attributes:
        shape: leading shape of the vectors; n is its product.
        majority: ``[d_sae]``, the level of each latent that all are compared with, uint8.
        lengths: ``[n]``, how many latents differ, int32.
        indices: which latents differ, int32: vector after vector, ascending in each.
        levels: at which level each of those is, uint8; 0 is off.
        n_levels: levels that a latent can have where it fires, from 1 to 255.

    Raises:
        ValueError: if these do not fit together.
    """

    majority: UInt8[Tensor, " d_sae"]
    levels: UInt8[Tensor, " n_indices"]
    n_levels: int

    _version, _holds = 2, "levels"

    @override
    def __post_init__(self) -> None:
        check("n_levels", self.n_levels, whole(1, MAX_LEVELS))
        dtypes = tuple(x.dtype for x in (self.majority, self.levels, self.lengths, self.indices))
        uint8, int32 = torch.uint8, torch.int32
        if dtypes != (uint8, uint8, int32, int32) or self.majority.ndim != 1:
            raise ValueError(
                "majority must be uint8 of one dimension, levels uint8, lengths and indices int32; got "
                f"{', '.join(map(str, dtypes))}, majority of shape {tuple(self.majority.shape)}."
            )
        super().__post_init__()
        if (self.majority > self.n_levels).any() or (self.levels > self.n_levels).any():
            raise ValueError(f"There are levels from 0 to {self.n_levels}; got a higher one.")
        if self.levels.shape != self.indices.shape:
            raise ValueError(
                f"There must be a level for each of {len(self.indices)} indices; got "
                f"{tuple(self.levels.shape)}."
            )
        if (self.levels == self.majority[self.indices]).any():
            raise ValueError("levels must differ from the majority's where an index says so.")

    def dense(self) -> UInt8[Tensor, "*shape d_sae"]:
        """The levels of all latents, exactly."""
        levels = self.majority.repeat(len(self.lengths), 1)
        levels[torch.repeat_interleave(self.lengths), self.indices] = self.levels
        return levels.reshape(*self.shape, len(self.majority))

    @override
    def bits(self) -> Bool[Tensor, "*shape d_sae"]:
        return self.dense() > 0

    @override
    def to_bytes(self) -> bytes:
        """The codes as a file, which ``from_bytes`` reads back exactly.

        Where latents differ is stored as of a code of bits, see ``CodeIndices.to_bytes``; and then, latent
        by latent, at which of the other levels it is there, threshold by threshold. Both come within a few
        per cent of their entropy, marginal and given that the latent differs.
        """
        return super().to_bytes()

    @override
    def _payload(self) -> bytes:
        counts, vectors, order = self._by_latent()
        majority = self.majority.numpy().astype(np.int64)
        levels = self.levels.numpy()[order].astype(np.int64)
        # Of the levels that are left without the majority's.
        ranks = levels - (levels > np.repeat(majority, counts))
        return b"".join(
            (
                bytes([self.n_levels]),
                self._sizes(),
                rice_encode(majority, np.zeros_like(majority)),
                _encode_places(counts, vectors, len(self.lengths)),
                encode_ranks(ranks, counts, self.n_levels),
            )
        )

    @override
    @classmethod
    def _read(cls, stream: io.BytesIO, n_bytes: int, max_vectors: int | None) -> Self:
        (n_levels,) = take(stream, 1)
        shape, d_sae, n_indices = _read_sizes(stream, n_bytes, max_vectors)
        # Every latent has a bit at least.
        if d_sae > 8 * n_bytes or n_levels == 0:
            raise ValueError(INCONSISTENT)
        majority = rice_decode(stream, np.zeros(d_sae, dtype=np.int64))
        if majority.max(initial=0) > n_levels:
            raise ValueError(INCONSISTENT)
        counts, vectors = _decode_places(stream, d_sae, n_indices, math.prod(shape), n_bytes)
        ranks = decode_ranks(stream, counts, n_levels)
        levels = (ranks + (ranks >= np.repeat(majority, counts))).astype(np.uint8)
        lengths, indices, order = _by_vector(counts, vectors, math.prod(shape))
        majority = torch.from_numpy(majority.astype(np.uint8))
        return cls(shape, majority, lengths, indices, torch.from_numpy(levels[order]), n_levels)


def read_codes(data: bytes, max_vectors: int | None = None) -> CodeIndices | CodeLevels:
    """Read codes of bits or levels, whichever the data are of.

    Args:
        data: what ``to_bytes`` of either wrote.
        max_vectors: see ``from_bytes``.

    Raises:
        ValueError: see ``from_bytes``.
    """
    kind = CodeLevels if data.startswith(_magic(CodeLevels._version)) else CodeIndices
    return kind.from_bytes(data, max_vectors)


def _magic(version: int) -> bytes:
    return _MAGIC + bytes([version])


def _read_sizes(
    stream: io.BytesIO, n_bytes: int, max_vectors: int | None
) -> tuple[tuple[int, ...], int, int]:
    """Shape, d_sae and number of indices that data of so many bytes say they have."""
    n_dims, d_sae, n_indices = _SIZES.unpack(take(stream, _SIZES.size))
    shape = struct.unpack(f"<{n_dims}Q", take(stream, 8 * n_dims))
    limit = _FEW_VECTORS + _VECTORS_A_BYTE * n_bytes if max_vectors is None else max_vectors
    if math.prod(shape) > limit or max(shape, default=0) >= 2**63:
        raise ValueError(
            f"These codes say that they are of shape {shown(shape)}, more than the {limit} vectors that "
            f"{n_bytes} bytes are believed to hold. Give max_vectors if that is right."
        )
    return shape, d_sae, n_indices


def _encode_places(counts: NDArray[np.int64], vectors: NDArray[np.int64], n: int) -> bytes:
    numbers = rice_encode(counts, rice_parameters(len(vectors), len(counts)))
    return numbers + encode_positions(vectors, counts, n)


def _decode_places(
    stream: io.BytesIO, d_sae: int, n_indices: int, n: int, n_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How often each latent differs, and on which of n vectors."""
    # Every index has a bit at least.
    if n_indices > min(8 * n_bytes, n * d_sae):
        raise ValueError(INCONSISTENT)
    counts = rice_decode(stream, rice_parameters(n_indices, d_sae))
    if counts.max(initial=0) > n or counts.sum() != n_indices:
        raise ValueError(INCONSISTENT)
    return counts, decode_positions(stream, counts, n)


def _by_vector(
    counts: NDArray[np.int64], vectors: NDArray[np.int64], n: int
) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Lengths and indices of what lies latent by latent, and where each of them was there."""
    latents = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    order = np.argsort(vectors, kind="stable")
    lengths = np.bincount(vectors, minlength=n).astype(np.int32)
    return torch.from_numpy(lengths), torch.from_numpy(latents[order]), order
