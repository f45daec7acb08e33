"""A codebook whose codes are running means of the vectors assigned to them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bae_lens.checks.fields import Number, check, positive, whole
from bae_lens.distributed import all_gather_rows, all_sums, n_ranks, own_rows
from bae_lens.nn.precision import Float32Buffers
from bae_lens.nn.quantize import check_sampling, sample_codes, squared_distances

# Batches without a vector near it after which a code counts as not in use.
_UNUSED_AFTER = 100
# Keeps a share of nothing from dividing.
_TINY = 1e-30


class Quantized(NamedTuple):
    """What became of a batch of vectors; every part is of the codebook as it was then.

    Attributes:
        codes: rows of the codebook, ``[*batch, d]``, float32, copied.
        indices: which rows, ``[*batch]``.
        nearest: the nearest codes, ``[*batch]``; differs from ``indices`` where a draw did.
        distance: squared distance to the nearest code, ``[*batch]``, float32.
        distances: squared distances to all codes, ``[*batch, K]``, float32.
    """

    codes: Float[Tensor, "*batch d"]
    indices: Int[Tensor, "*batch"]
    nearest: Int[Tensor, "*batch"]
    distance: Float[Tensor, "*batch"]
    distances: Float[Tensor, "*batch K"]


class EMACodebook(Float32Buffers):
    """A codebook whose codes are running means of the vectors assigned to them.

    A training step calls ``quantize`` and then ``update`` with what it returned. Nothing but
    ``update`` and ``set_codebook`` changes the codebook, in train mode or eval mode, and nothing
    here has a gradient. No step waits for the device. On several ranks both are given this rank's vectors,
    as many on each, and the codebook follows those of all.

    Buffers, float32 whatever the module's dtype: ``codebook`` [K, d]; ``ema_count`` [K], running
    mean of the vectors a batch brings to each code; ``ema_sum`` [K, d], of their sum, always
    ``ema_count · codebook``; ``nearest_count`` [K], of the vectors of a batch that are nearest to
    each code, drawn or not; ``nearest_distance``, of the squared distance to the nearest code.
    Whole numbers: ``steps_unused`` [K], batches that a code has waited for revival; ``last_used``
    [K], the batch in which it was last nearest to anything;
    ``n_updates``, batches behind the running means; ``n_revived``, codes moved so far.

    Args:
        n_codes: K.
        d: width of a code.
        decay: γ, the share of the running means that a batch leaves.
        epsilon: vectors that Laplace smoothing adds to each code's count.
        revive_after: batches after which a code that none has used is moved; ``None``: never.
        max_revived: how many codes one step moves at most.

    Raises:
        ValueError: if one of the numbers is outside its range.
    """

    float32_buffers = ("codebook", "ema_count", "ema_sum", "nearest_count", "nearest_distance")

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    nearest_count: Tensor
    nearest_distance: Tensor
    steps_unused: Tensor
    last_used: Tensor
    n_updates: Tensor
    n_revived: Tensor

    def __init__(
        self,
        n_codes: int,
        d: int,
        *,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        revive_after: int | None = 100,
        max_revived: int = 5,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        n_codes, d = check("n_codes", n_codes, whole(1)), check("d", d, whole(1))
        self.decay = check("decay", decay, Number(least=0, below=1))
        self.epsilon = check("epsilon", epsilon, positive())
        self.revive_after = check("revive_after", revive_after, whole(1, or_none=True))
        self.max_revived = check("max_revived", max_revived, whole(0))
        # Where nothing has set it yet. Counts and sums agree with it: the release starts its sums
        # apart from its codes, and one step throws an unused code far out.
        codebook = torch.randn(n_codes, d, device=device, dtype=torch.float32)
        self.register_buffer("codebook", codebook)
        self.register_buffer("ema_count", torch.ones_like(codebook[:, 0]))
        self.register_buffer("ema_sum", codebook.clone())
        self.register_buffer("nearest_count", torch.zeros_like(codebook[:, 0]))
        self.register_buffer("nearest_distance", torch.zeros_like(codebook[0, 0]))
        self.register_buffer("steps_unused", torch.zeros(n_codes, dtype=torch.int64, device=device))
        never = torch.full((n_codes,), -_UNUSED_AFTER, dtype=torch.int64, device=device)
        self.register_buffer("last_used", never)
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("n_revived", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def n_codes(self) -> int:
        return self.codebook.shape[0]

    @property
    def d(self) -> int:
        return self.codebook.shape[1]

    def extra_repr(self) -> str:
        return f"n_codes={self.n_codes}, d={self.d}, decay={self.decay}"

    def perplexity(self) -> Float[Tensor, ""]:
        """exp of the entropy of the nearest codes, pooled over the batches of the running mean."""
        share = self.nearest_count / self.nearest_count.sum().clamp(min=_TINY)
        return (-torch.xlogy(share, share).sum()).exp()

    def codes_in_use(self) -> Int[Tensor, ""]:
        """Codes that were nearest to something in the last 100 batches.

        ``steps_unused`` would not do: it begins anew when a code is revived, used or not.
        """
        return (self.n_updates - self.last_used < _UNUSED_AFTER).sum()

    @torch.no_grad()
    def quantize(
        self,
        z: Float[Tensor, "*batch d"],
        mask: Bool[Tensor, "*batch"] | None = None,
        top_k: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        distances: Float[Tensor, "*batch K"] | None = None,
    ) -> Quantized:
        """A code for every vector, and what ``update`` wants to know: of one snapshot.

        Distances are divided by the running mean of the nearest one, or by this batch's where no
        batch has been seen. Pass ``codes`` through ``straight_through`` for a gradient.

        Args:
            z: vectors, any leading shape.
            mask: which of them count. The others get a code too, and change nobody else's.
            top_k: 1, the nearest code; above, one of so many, drawn as in ``sample_codes``.
            temperature: temperature of the draw.
            generator: draws the code; default: torch's own.
            distances: what to choose by instead of the squared distances.

        Raises:
            ValueError: if the width is not the codebook's, the mask is not boolean or has another
                shape, or ``sample_codes`` would refuse the numbers.
        """
        self._check(z, mask)
        check_sampling(top_k, temperature)
        if distances is None:
            distances = squared_distances(z, self.codebook)
        distance, nearest = distances.min(-1)
        indices = nearest
        if top_k > 1:
            first = _global_mean(distance, mask)
            scale = torch.where(self.nearest_distance > 0, self.nearest_distance, first)
            indices = sample_codes(distances, top_k, temperature, scale, generator)
        # Not by subscript, which for a single index gives a view that update would move.
        codes = F.embedding(indices, self.codebook)
        return Quantized(codes, indices, nearest, distance, distances)

    @torch.no_grad()
    def update(
        self,
        z: Float[Tensor, "*batch d"],
        indices: Int[Tensor, "*batch"],
        mask: Bool[Tensor, "*batch"] | None = None,
        distance: Float[Tensor, "*batch"] | None = None,
        nearest: Int[Tensor, "*batch"] | None = None,
        generator: torch.Generator | None = None,
        values: Float[Tensor, "*batch d"] | None = None,
    ) -> None:
        """Move the codes towards the vectors assigned to them; then revive some that wait for it.

        With n_k and s_k the number and the sum of the vectors (or ``values``) of code k in this batch:
        N ← γN + (1−γ)n, m ← γm + (1−γ)s, and Laplace smoothing, which conserves ΣN:
        N_k ← (N_k + ε)·r, m_k ← (m_k + ε·e_k)·r, r = ΣN/(ΣN + Kε); then e = m/N. The release
        smooths N alone, so that codes without vectors shrink towards zero; here they stay.

        A code that has been nearest to nothing for ``revive_after`` batches in a row, and so is dead
        in evaluation even if it is drawn now and then, is put onto a vector of this batch, drawn at
        random, with the count it would have had it got its first vector now (1−γ).
        A batch without a single valid vector changes nothing.

        Args:
            z: vectors, any leading shape.
            indices: their codes.
            mask: which of them count; what the others hold is not read, whatever it is.
            distance: as ``quantize`` returned it; ``None``: computed again.
            nearest: as ``quantize`` returned it; ``None``: ``indices``, nothing having been drawn.
            generator: draws the vectors for revival; on the device of ``z``.
            values: what codes are running means of, where that is not ``z``, by which they are chosen:
                for predictions, what was predicted. Codes are revived among ``z`` all the same.

        Raises:
            ValueError: if shapes do not fit together or the mask is not boolean.
        """
        self._check(z, mask)
        if values is not None and values.shape != z.shape:
            raise ValueError(f"values must be {tuple(z.shape)}; got {tuple(values.shape)}.")
        for name, value in (("indices", indices), ("distance", distance), ("nearest", nearest)):
            if value is not None and value.shape != z.shape[:-1]:
                raise ValueError(
                    f"{name} must have one entry per vector, {tuple(z.shape[:-1])}; "
                    f"got {tuple(value.shape)}."
                )
        if distance is None:
            distance = squared_distances(z, self.codebook).amin(-1)
        valid = torch.ones_like(indices, dtype=torch.bool) if mask is None else mask
        valid, indices = valid.reshape(-1), indices.reshape(-1)
        rows = _valid_rows(z, valid)
        summed = rows if values is None else _valid_rows(values, valid)
        n = torch.zeros_like(self.ema_count).index_add_(0, indices, valid.float())
        n_nearest = n
        if nearest is not None:
            n_nearest = torch.zeros_like(n).index_add_(0, nearest.reshape(-1), valid.float())
        s = torch.zeros_like(self.ema_sum).index_add_(0, indices, summed)
        far = torch.where(valid, distance.reshape(-1), 0).sum()
        n, n_nearest, s, far = all_sums(n, n_nearest, s, far)
        n_valid = n.sum()
        has_any = n_valid > 0
        count = self.decay * self.ema_count + (1 - self.decay) * n + self.epsilon
        sums = self.decay * self.ema_sum + (1 - self.decay) * s + self.epsilon * self.codebook
        total = count.sum()
        shrink = (total - self.n_codes * self.epsilon) / total
        count, sums = count * shrink, sums * shrink
        self._keep_unless(has_any, "ema_count", count)
        self._keep_unless(has_any, "ema_sum", sums)
        self._keep_unless(has_any, "codebook", sums / count[:, None])

        # A plain mean at first, so that the start needs no correction.
        weight = (1 / (self.n_updates + 1)).clamp(min=1 - self.decay)
        mean = far / n_valid.clamp(min=1)
        # Zero is no distance seen yet, as after a codebook was set without one.
        weight_of_distance = torch.where(self.nearest_distance > 0, weight, 1.0)
        moved = torch.lerp(self.nearest_distance, mean, weight_of_distance)
        self._keep_unless(has_any, "nearest_distance", moved)
        moved = torch.lerp(self.nearest_count, n_nearest, weight)
        self._keep_unless(has_any, "nearest_count", moved)
        self.n_updates.add_(has_any)
        self.last_used.copy_(torch.where(n_nearest > 0, self.n_updates, self.last_used))

        waited = torch.where(n_nearest > 0, 0, self.steps_unused + 1)
        self._keep_unless(has_any, "steps_unused", waited)
        if self.revive_after is not None:
            self._revive(rows, valid, self.revive_after, generator)

    @torch.no_grad()
    def set_codebook(
        self,
        codebook: Float[Tensor, "K d"],
        counts: Float[Tensor, " K"],
        distance: Float[Tensor, ""] | None = None,
    ) -> None:
        """Start from these codes, all statistics with them.

        Args:
            codebook: the codes.
            counts: how many vectors *of a batch* each code gets, at least 0. Clusters found in more
                vectors than a batch holds need their sizes scaled down; else the codes only start
                to move when the larger counts have decayed.
            distance: mean squared distance of vectors to their nearest code, if known; the running
                means then start from it and from ``counts``, as after one batch.

        Raises:
            ValueError: if a shape differs from this codebook's, a value is NaN or infinite, a count
                is negative, or all are zero.
        """
        if codebook.shape != self.codebook.shape or counts.shape != self.ema_count.shape:
            raise ValueError(
                f"This codebook takes codes {tuple(self.codebook.shape)} and counts "
                f"{tuple(self.ema_count.shape)}; got {tuple(codebook.shape)} and "
                f"{tuple(counts.shape)}."
            )
        if not (codebook.isfinite().all() and counts.isfinite().all()):
            raise ValueError("Codes and counts must be finite; some are NaN or infinite.")
        if (counts < 0).any() or not counts.any():
            raise ValueError("Counts must not be negative, nor all zero.")
        self.codebook.copy_(codebook)
        self.ema_count.copy_(counts)
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])
        for name in (
            "nearest_count",
            "nearest_distance",
            "steps_unused",
            "n_updates",
            "n_revived",
        ):
            getattr(self, name).zero_()
        self.last_used.fill_(-_UNUSED_AFTER)
        if distance is not None:
            self.nearest_distance.copy_(distance)
            self.nearest_count.copy_(counts)
            self.n_updates.fill_(1)
            self.last_used.masked_fill_(counts > 0, 1)

    def _revive(
        self, z: Tensor, valid: Tensor, revive_after: int, generator: torch.Generator | None
    ) -> None:
        n = z.shape[0] * n_ranks()
        at_most = min(self.max_revived, self.n_codes, n)
        if at_most == 0:
            return
        # Distinct vectors and distinct codes, those that may be taken first; what cannot be paired
        # is written back as it was, so that nothing has to ask the device how many there are.
        draw = own_rows(torch.rand(n, device=z.device, generator=generator))
        draw, rows = torch.where(valid, draw, -1).topk(min(at_most, z.shape[0]))
        z = z[rows]
        if n_ranks() > 1:
            # The best of each rank's, on all of them.
            drawn = all_gather_rows(torch.cat([draw[:, None], z], 1))
            draw, rows = drawn[:, 0].topk(at_most)
            z = drawn[rows, 1:]
        waited, codes = self.steps_unused.topk(at_most)
        moves = (waited >= revive_after) & (draw >= 0)
        count = torch.where(moves, 1 - self.decay, self.ema_count[codes])
        code = torch.where(moves[:, None], z, self.codebook[codes])
        sums = torch.where(moves[:, None], code * count[:, None], self.ema_sum[codes])
        self.codebook.index_copy_(0, codes, code)
        self.ema_count.index_copy_(0, codes, count)
        self.ema_sum.index_copy_(0, codes, sums)
        self.steps_unused.index_copy_(0, codes, torch.where(moves, 0, waited))
        self.n_revived.add_(moves.sum())

    def _keep_unless(self, condition: Tensor, name: str, value: Tensor) -> None:
        buffer = getattr(self, name)
        buffer.copy_(torch.where(condition, value, buffer))

    def _check(self, z: Tensor, mask: Tensor | None) -> None:
        if z.ndim == 0 or z.shape[-1] != self.d:
            raise ValueError(
                f"This codebook quantizes vectors [..., {self.d}]; got shape {tuple(z.shape)}."
            )
        if mask is not None and (mask.shape != z.shape[:-1] or mask.dtype != torch.bool):
            raise ValueError(
                f"The mask must be boolean with one entry per vector, {tuple(z.shape[:-1])}; got "
                f"{mask.dtype} of shape {tuple(mask.shape)}."
            )


def _valid_rows(x: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid[:, None], rearrange(x, "... d -> (...) d").float(), 0)


def _global_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over what the mask leaves of all ranks' values, 0 if that is nothing."""
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    total, n = all_sums(torch.where(mask, values, 0).sum(), mask.sum())
    return total / n.clamp(min=1)
