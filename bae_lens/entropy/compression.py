"""Lossless storage of a BAE's codes, close to their entropy.

As in the authors' release, a vector is kept as the indices of the bits in which it differs from a
*majority code*; of a BAE with several levels a latent, as the indices of the latents whose level differs,
and that level. Here the code comes back exactly, and ``to_bytes`` is a real file format.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from bae_lens.architectures.bae import BAE, TrainingBAE
from bae_lens.architectures.sae_fields import SCALES_BY_TOKEN
from bae_lens.checks.fields import check, whole
from bae_lens.entropy.stored_codes import MAX_LEVELS, CodeIndices, CodeLevels, read_codes
from bae_lens.evals.magnitudes import magnitude_entropy
from bae_lens.files.json_file import finite_or_none
from bae_lens.nn import binary_entropy, level_indices

__all__ = [
    "CodeIndices",
    "CodeLevels",
    "CompressionReport",
    "compression_report",
    "decode_from_indices",
    "encode_to_indices",
    "read_codes",
]


@torch.no_grad()
def encode_to_indices(
    sae: BAE | TrainingBAE,
    x: Float[Tensor, "*shape d_in"],
    majority: Bool[Tensor, " d_sae"] | UInt8[Tensor, " d_sae"] | None = None,
    batch_size: int = 4096,
) -> CodeIndices | CodeLevels:
    """Encode vectors, and keep the bits or levels that differ from a majority code.

    A bit is on where ``sae.encode(x) != 0``; levels are those of ``bae_lens.nn.level_indices``. Where a
    pre-activation is at a threshold but for rounding, they may depend on ``batch_size``. The whole code
    is in memory at once, a byte a latent; so it is in decoding.

    Args:
        sae: a BAE.
        x: vectors scaled as the SAE takes them, dense or sparse, of any dtype.
        majority: the code to compare with, bools of a BAE of bits, and of one of levels uint8; None for
            the bits that are on in more than half of these very vectors, or the most frequent levels.
            What comes back is the same for any, but not how much there is to store.
        batch_size: vectors at a time.

    Returns:
        ``CodeLevels`` of a BAE with several levels a latent, else ``CodeIndices``.

    Raises:
        TypeError: if the SAE is not a BAE or TrainingBAE.
        ValueError: if x has not the SAE's width or, in its dtype, values that are not finite; if
            ``majority`` is not d_sae bools or levels; if the SAE normalizes each input by itself, reshapes
            heads, or has more than 255 levels.
    """
    d_sae, rows = sae.cfg.d_sae, _checked_rows(sae, x)
    n_levels = sae.level_values.shape[1]
    kind, what = (torch.bool, "bools") if n_levels == 1 else (torch.uint8, "levels in uint8")
    if majority is not None and (majority.dtype != kind or majority.shape != (d_sae,)):
        raise ValueError(
            f"majority must be {d_sae} {what}; got {majority.dtype} of shape {tuple(majority.shape)}."
        )
    batches = rows.split(check("batch_size", batch_size, whole(1)))
    if n_levels == 1:
        code = torch.cat([(sae.encode(batch.to(sae.device)) != 0).cpu() for batch in batches])
        majority = 2 * code.sum(0) > len(code) if majority is None else majority.cpu().clone()
    else:
        code = torch.cat([_levels(sae, batch.to(sae.device)) for batch in batches])
        majority = _most_frequent(code, n_levels) if majority is None else majority.cpu().clone()
    differs = code != majority
    lengths, indices = differs.sum(1, dtype=torch.int32), differs.nonzero()[:, 1].int()
    shape = tuple(x.shape[:-1])
    if n_levels == 1:
        return CodeIndices(shape, majority, lengths, indices)
    return CodeLevels(shape, majority, lengths, indices, code[differs], n_levels)


@torch.no_grad()
def decode_from_indices(
    sae: BAE | TrainingBAE, codes: CodeIndices | CodeLevels, batch_size: int = 4096
) -> Float[Tensor, "*shape d_in"]:
    """``sae.decode(sae.encode(x))`` from stored codes, but for the rounding of other batch sizes.

    Raises:
        TypeError, ValueError: if the SAE is none that ``encode_to_indices`` takes, or the codes are
            of another width or other levels.
    """
    _check_sae(sae)
    batch_size = check("batch_size", batch_size, whole(1))
    if len(codes.majority) != sae.cfg.d_sae:
        raise ValueError(
            f"These codes have {len(codes.majority)} latents each, but the SAE has {sae.cfg.d_sae}."
        )
    values = sae.level_values
    n_levels = codes.n_levels if isinstance(codes, CodeLevels) else 1
    if n_levels != values.shape[1]:
        raise ValueError(
            f"These codes are of {n_levels} levels a latent, but the SAE has {values.shape[1]}."
        )
    code = codes.dense() if isinstance(codes, CodeLevels) else codes.bits()
    values = torch.cat([torch.zeros_like(values[:, :1]), values], 1)
    latents = torch.arange(len(values), device=values.device)
    x_hat = []
    for batch in code.reshape(-1, sae.cfg.d_sae).split(batch_size):
        batch = batch.to(sae.device)
        acts = batch.to(sae.dtype) * sae.scale if n_levels == 1 else values[latents, batch.long()]
        x_hat.append(sae.decode(acts))
    return torch.cat(x_hat).reshape(*codes.shape, sae.cfg.d_in)


@dataclass(frozen=True)
class CompressionReport:
    """What a code takes to store and what it loses. Bits are bits per vector.

    The code is kept exactly; the vectors are not. float16 keeps them nearly as they are,
    so read ``ratio_to_float16`` with the two unexplained variances beside it.

    Attributes:
        n_vectors: vectors stored.
        bits: as really stored, with these vectors' share of header and majority code.
        float16_bits: 16·d_in, of the vectors themselves.
        fixed_width_bits: ceil(log₂ d_sae) for each index (and of levels ceil(log₂ L) for which), and nothing for
            lengths and majority code: the least that the authors' release needs.
        marginal_entropy: Σ_j H₂(p_j) over these vectors, p_j the share on which latent j fires.
        ratio_to_float16: ``float16_bits / bits``.
        float16_unexplained_variance: Σ‖x − float16(x)‖² / Σ‖x − mean‖². Infinite where a value is
            beyond float16; not defined for vectors that do not vary.
        code_unexplained_variance: the same for the reconstruction from the code.
        level_entropy: Σ_j p_j·H(level | latent j fires) over these vectors, which with
            ``marginal_entropy`` is what a code of levels takes; 0 of bits.
    """

    n_vectors: int
    bits: float
    float16_bits: int
    fixed_width_bits: float
    marginal_entropy: float
    ratio_to_float16: float
    float16_unexplained_variance: float
    code_unexplained_variance: float
    level_entropy: float = 0.0

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

    fixed_width, level_entropy = (d_sae - 1).bit_length(), 0.0
    # H₂(p) = H₂(1 − p): how often a bit differs tells as much as how often it is on.
    rate = torch.bincount(codes.indices, minlength=d_sae).double() / n
    if isinstance(codes, CodeLevels):
        counts = _level_counts(codes.dense().reshape(n, -1), codes.n_levels)
        rate, level_entropy = 1 - counts[:, 0] / n, magnitude_entropy(counts[:, 1:], n)
        fixed_width += (codes.n_levels - 1).bit_length()
    return CompressionReport(
        n_vectors=n,
        bits=bits,
        float16_bits=16 * sae.cfg.d_in,
        fixed_width_bits=len(codes.indices) / n * fixed_width,
        marginal_entropy=binary_entropy(rate).sum().item(),
        ratio_to_float16=16 * sae.cfg.d_in / bits,
        float16_unexplained_variance=unexplained(rows.half()),
        code_unexplained_variance=unexplained(x_hat),
        level_entropy=level_entropy,
    )


def _levels(sae: BAE | TrainingBAE, x: Tensor) -> UInt8[Tensor, "n d_sae"]:
    return level_indices(sae.encode(x), sae.level_values).to(torch.uint8).cpu()


def _level_counts(levels: UInt8[Tensor, "n d_sae"], n_levels: int) -> Tensor:
    """``[d_sae, n_levels + 1]``, vectors at each level of each latent."""
    return torch.stack([(levels == level).sum(0) for level in range(n_levels + 1)], 1)


def _most_frequent(levels: UInt8[Tensor, "n d_sae"], n_levels: int) -> UInt8[Tensor, " d_sae"]:
    """Of those that are equally frequent, the lowest."""
    return _level_counts(levels, n_levels).argmax(1).to(torch.uint8)


def _check_sae(sae: BAE | TrainingBAE) -> None:
    if not isinstance(sae, (BAE, TrainingBAE)):
        raise TypeError(
            f"Only a BAE's code is bits or levels and nothing else; got a {type(sae).__name__}."
        )
    if sae.cfg.n_levels > MAX_LEVELS:
        raise ValueError(
            f"Codes are stored of {MAX_LEVELS} levels a latent at most; this SAE has {sae.cfg.n_levels}."
        )
    if sae.cfg.normalize_activations in SCALES_BY_TOKEN:
        raise ValueError(
            f"With normalize_activations={sae.cfg.normalize_activations!r} the output needs the norm "
            "of each input, which the code does not hold."
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
