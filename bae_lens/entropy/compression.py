"""Lossless storage of a BAE's codes, close to their entropy.

As in the authors' release, a vector is kept as the indices of the bits in which it differs from a
*majority code*. Here the bits come back exactly, and ``CodeIndices.to_bytes`` is a real file format.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from bae_lens.architectures.bae import BAE, TrainingBAE
from bae_lens.checks.fields import check, shown, whole
from bae_lens.entropy.rice import (
    INCONSISTENT,
    rice_decode,
    rice_encode,
    rice_parameters,
    take,
    take_bits,
)
from bae_lens.files.json_file import finite_or_none
from bae_lens.nn import binary_entropy

# The last byte is the version of the format. A CRC-32 of everything after it follows.
_MAGIC = b"BAEC\x01"
# Number of leading dimensions, d_sae, number of indices.
_SIZES = struct.Struct("<BIQ")
# Vectors without a bit that differs take no space in a file, so that its size says little of how many
# there are. So many are believed in any case, and so many more for each byte.
_FEW_VECTORS, _VECTORS_A_BYTE = 2**22, 64


@dataclass(frozen=True, eq=False)
class CodeIndices:
    """Codes of n vectors as the bits that differ from a majority code, on the CPU.

    Attributes:
        shape: leading shape of the vectors; n is its product.
        majority: ``[d_sae]``, the code that all are compared with.
        lengths: ``[n]``, how many bits differ, int32.
        indices: which bits differ, int32: vector after vector, ascending in each.

    Raises:
        ValueError: if these do not fit together.
    """

    shape: tuple[int, ...]
    majority: Bool[Tensor, " d_sae"]
    lengths: Int32[Tensor, " n"]
    indices: Int32[Tensor, " n_indices"]

    def __post_init__(self) -> None:
        dtypes = (self.majority.dtype, self.lengths.dtype, self.indices.dtype)
        if dtypes != (torch.bool, torch.int32, torch.int32) or self.majority.ndim != 1:
            raise ValueError(
                "majority must be bools of one dimension, lengths and indices int32; got "
                f"{', '.join(map(str, dtypes))}, majority of shape {tuple(self.majority.shape)}."
            )
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

    def bits(self) -> Bool[Tensor, "*shape d_sae"]:
        """The codes themselves, exactly."""
        bits = self.majority.repeat(len(self.lengths), 1)
        bits[torch.repeat_interleave(self.lengths), self.indices] = ~self.majority[self.indices]
        return bits.reshape(*self.shape, len(self.majority))

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
        n, d_sae, latents = len(self.lengths), len(self.majority), self.indices.numpy()
        vectors = np.repeat(np.arange(n), self.lengths.numpy())[np.argsort(latents, kind="stable")]
        counts = np.bincount(latents, minlength=d_sae)
        previous = np.concatenate(([-1], vectors))[:-1]
        previous[(np.cumsum(counts) - counts)[counts > 0]] = -1
        payload = b"".join(
            (
                _SIZES.pack(len(self.shape), d_sae, len(latents)),
                struct.pack(f"<{len(self.shape)}Q", *self.shape),
                np.packbits(self.majority.numpy()).tobytes(),
                rice_encode(counts, rice_parameters(len(latents), d_sae)),
                rice_encode(vectors - previous - 1, rice_parameters(n - counts, counts)),
            )
        )
        return _MAGIC + struct.pack("<I", zlib.crc32(payload)) + payload

    @classmethod
    def from_bytes(cls, data: bytes, max_vectors: int | None = None) -> CodeIndices:
        """Read what ``to_bytes`` wrote. Memory is by the size of the data, whatever they claim.

        Args:
            data: of a file.
            max_vectors: that are read; None: about 4 million, or 64 a byte where that is more.

        Raises:
            ValueError: if the data are something else, cut short, damaged or followed by more, or say
                that they are of more vectors.
        """
        start = len(_MAGIC) + 4
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError(
                f"Not codes of a BAE, or not in this version of the format: {len(data)} bytes that "
                f"begin with {data[: len(_MAGIC)]!r}, not {_MAGIC!r}."
            )
        if data[len(_MAGIC) : start] != struct.pack("<I", zlib.crc32(data[start:])):
            raise ValueError("These codes are cut short or damaged: their checksum is wrong.")
        stream = io.BytesIO(data[start:])
        n_dims, d_sae, n_indices = _SIZES.unpack(take(stream, _SIZES.size))
        shape = struct.unpack(f"<{n_dims}Q", take(stream, 8 * n_dims))
        n = math.prod(shape)
        limit = _FEW_VECTORS + _VECTORS_A_BYTE * len(data) if max_vectors is None else max_vectors
        if n > limit or max(shape, default=0) >= 2**63:
            raise ValueError(
                f"These codes say that they are of shape {shown(shape)}, more than the {limit} vectors that "
                f"{len(data)} bytes are believed to hold. Give max_vectors if that is right."
            )
        majority = take_bits(stream, d_sae).astype(bool)
        # Every index has a bit at least.
        if n_indices > min(8 * len(data), n * d_sae):
            raise ValueError(INCONSISTENT)
        counts = rice_decode(stream, rice_parameters(n_indices, d_sae))
        if counts.max(initial=0) > n or counts.sum() != n_indices:
            raise ValueError(INCONSISTENT)
        steps = 1 + rice_decode(stream, rice_parameters(n - counts, counts))
        if steps.max(initial=0) > n or stream.read(1):
            raise ValueError(INCONSISTENT)
        passed = np.cumsum(np.concatenate(([0], steps)))
        vectors = passed[1:] - np.repeat(passed[np.cumsum(counts) - counts], counts) - 1
        if vectors.max(initial=-1) >= n:
            raise ValueError(INCONSISTENT)
        latents = np.repeat(np.arange(d_sae, dtype=np.int32), counts)
        return cls(
            shape,
            torch.from_numpy(majority),
            torch.from_numpy(np.bincount(vectors, minlength=n).astype(np.int32)),
            torch.from_numpy(latents[np.argsort(vectors, kind="stable")]),
        )


@torch.no_grad()
def encode_to_indices(
    sae: BAE | TrainingBAE,
    x: Float[Tensor, "*shape d_in"],
    majority: Bool[Tensor, " d_sae"] | None = None,
    batch_size: int = 4096,
) -> CodeIndices:
    """Encode vectors, and keep the bits that differ from a majority code.

    A bit is on where ``sae.encode(x) != 0``. Where a pre-activation is 0 but for rounding, that may
    depend on ``batch_size``. All bits are in memory at once, a byte each; so they are in decoding.

    Args:
        sae: of one bit a latent.
        x: vectors scaled as the SAE takes them, dense or sparse, of any dtype.
        majority: the code to compare with; None for the bits that are on in more than half of these
            very vectors. What comes back is the same for any, but not how much there is to store.
        batch_size: vectors at a time.

    Raises:
        TypeError: if the SAE is not a BAE or TrainingBAE.
        ValueError: if x has not the SAE's width or, in its dtype, values that are not finite; if
            ``majority`` is not d_sae bools; if the SAE normalizes each input by itself or reshapes
            heads.
    """
    d_sae, rows = sae.cfg.d_sae, _checked_rows(sae, x)
    if majority is not None and (majority.dtype != torch.bool or majority.shape != (d_sae,)):
        raise ValueError(
            f"majority must be {d_sae} bools; got {majority.dtype} of shape {tuple(majority.shape)}."
        )
    batches = rows.split(check("batch_size", batch_size, whole(1)))
    bits = torch.cat([(sae.encode(batch.to(sae.device)) != 0).cpu() for batch in batches])
    majority = 2 * bits.sum(0) > len(bits) if majority is None else majority.cpu().clone()
    differs = bits != majority
    return CodeIndices(
        tuple(x.shape[:-1]),
        majority,
        differs.sum(1, dtype=torch.int32),
        differs.nonzero()[:, 1].int(),
    )


@torch.no_grad()
def decode_from_indices(
    sae: BAE | TrainingBAE, codes: CodeIndices, batch_size: int = 4096
) -> Float[Tensor, "*shape d_in"]:
    """``sae.decode(sae.encode(x))`` from stored codes, but for the rounding of other batch sizes.

    Raises:
        TypeError, ValueError: if the SAE is none that ``encode_to_indices`` takes, or the codes are
            of another width.
    """
    _check_sae(sae)
    batch_size = check("batch_size", batch_size, whole(1))
    if len(codes.majority) != sae.cfg.d_sae:
        raise ValueError(
            f"These codes have {len(codes.majority)} bits each, but the SAE has {sae.cfg.d_sae}."
        )
    batches = codes.bits().reshape(-1, sae.cfg.d_sae).split(batch_size)
    x_hat = [sae.decode(bits.to(sae.device, sae.dtype) * sae.scale) for bits in batches]
    return torch.cat(x_hat).reshape(*codes.shape, sae.cfg.d_in)


@dataclass(frozen=True)
class CompressionReport:
    """What a code takes to store and what it loses. Bits are bits per vector.

    The bits of the code are kept exactly; the vectors are not. float16 keeps them nearly as they are,
    so read ``ratio_to_float16`` with the two unexplained variances beside it.

    Attributes:
        n_vectors: vectors stored.
        bits: as really stored, with these vectors' share of header and majority code.
        float16_bits: 16·d_in, of the vectors themselves.
        fixed_width_bits: ceil(log₂ d_sae) for each index, and nothing for lengths and majority code:
            the least that the authors' release needs.
        marginal_entropy: Σ_j H₂(p_j) over these vectors.
        ratio_to_float16: ``float16_bits / bits``.
        float16_unexplained_variance: Σ‖x − float16(x)‖² / Σ‖x − mean‖². Infinite where a value is
            beyond float16; not defined for vectors that do not vary.
        code_unexplained_variance: the same for the reconstruction from the code.
    """

    n_vectors: int
    bits: float
    float16_bits: int
    fixed_width_bits: float
    marginal_entropy: float
    ratio_to_float16: float
    float16_unexplained_variance: float
    code_unexplained_variance: float

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, with None for what is infinite or not defined."""
        return {name: finite_or_none(value) for name, value in vars(self).items()}


@torch.no_grad()
def compression_report(
    sae: BAE | TrainingBAE, x: Float[Tensor, "*shape d_in"]
) -> CompressionReport:
    """Encode vectors, store and decode their codes, and say what that took.

    Raises:
        TypeError, ValueError: as ``encode_to_indices``; also if there is no vector.
    """
    codes = encode_to_indices(sae, x)
    n, d_sae, bits = len(codes.lengths), sae.cfg.d_sae, codes.bits_per_vector
    rows = (x if x.layout == torch.strided else x.to_dense()).reshape(n, -1).cpu()
    x_hat = decode_from_indices(sae, codes).reshape(n, -1).cpu()
    variance = (rows.double() - rows.mean(0, dtype=torch.float64)).square().sum()

    def unexplained(approximation: Tensor) -> float:
        return ((rows.double() - approximation.double()).square().sum() / variance).item()

    # H₂(p) = H₂(1 − p): how often a bit differs tells as much as how often it is on.
    rate = torch.bincount(codes.indices, minlength=d_sae).double() / n
    return CompressionReport(
        n_vectors=n,
        bits=bits,
        float16_bits=16 * sae.cfg.d_in,
        fixed_width_bits=len(codes.indices) / n * (d_sae - 1).bit_length(),
        marginal_entropy=binary_entropy(rate).sum().item(),
        ratio_to_float16=16 * sae.cfg.d_in / bits,
        float16_unexplained_variance=unexplained(rows.half()),
        code_unexplained_variance=unexplained(x_hat),
    )


def _check_sae(sae: BAE | TrainingBAE) -> None:
    if not isinstance(sae, (BAE, TrainingBAE)):
        raise TypeError(f"Only a BAE's code is bits and nothing else; got a {type(sae).__name__}.")
    if sae.cfg.normalize_activations in ("constant_norm_rescale", "layer_norm"):
        raise ValueError(
            f"With normalize_activations={sae.cfg.normalize_activations!r} the output needs the norm "
            "of each input, which the bits do not hold."
        )
    if sae.hook_z_reshaping_mode:
        raise ValueError(
            "This SAE reshapes heads: call sae.turn_off_forward_pass_hook_z_reshaping() and give it "
            "vectors with heads flattened."
        )


def _checked_rows(sae: BAE | TrainingBAE, x: Tensor) -> Tensor:
    """``[n, d_in]`` in the SAE's dtype."""
    _check_sae(sae)
    if x.ndim == 0 or x.shape[-1] != sae.cfg.d_in:
        raise ValueError(f"x must have shape [..., {sae.cfg.d_in}]; got {tuple(x.shape)}.")
    rows = (x if x.layout == torch.strided else x.to_dense()).reshape(-1, sae.cfg.d_in)
    rows = rows.to(sae.dtype)
    if not rows.isfinite().all():
        raise ValueError(
            f"x has values that are NaN or infinite in the SAE's {sae.dtype}; whether a bit is on is "
            "not defined for them."
        )
    return rows
