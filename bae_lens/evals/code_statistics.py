"""Counters of how often latents fire, alone and in pairs, over batches of a code."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bae_lens.checks.fields import Flag, check, whole
from bae_lens.evals.code_summary import CodeSummary, spread_of_l0
from bae_lens.evals.magnitudes import LevelCounter, MagnitudeQuantizer, magnitude_entropy
from bae_lens.nn import (
    binary_entropy,
    chance_co_firing,
    chow_liu_tree,
    miller_madow_correction,
    plug_in_entropy,
)
from bae_lens.nn.joint_entropy import EXACT_ROWS

__all__ = ["TOKENS_PER_LATENT", "CodeStatistics", "CodeSummary"]

logger = logging.getLogger(__name__)

# From here on a latent counts as always on: a bias.
_ALWAYS = 0.99
_DENSE = 0.1
_ANTIPODAL = -0.9
# Below so many tokens per latent, the noise in a Chow–Liu bound is worth a warning.
TOKENS_PER_LATENT = 20
_TILE = 2048
# Counts are int32, and numpy draws from hypergeometric distributions up to here.
_MAX_PAIRED_TOKENS = 999_999_999


class CodeStatistics:
    """Streaming statistics of any SAE's activations: ``update(acts)`` … ``compute()``.

    Memory is a few numbers per latent, and with ``pair_counts`` 4 bytes per pair of latents (1 GB at
    16,384) and about a hundred per distinct code.

    Args:
        d_sae: number of latents.
        pair_counts: count pairs of latents and distinct codes as well, for the joint entropy.
        flipped: ``[d_sae]``, latents whose polarity was inverted after training (the buffer of a
            saved ``BAE``), so that the raw densities are those of training.
        minibatch_size: tokens per minibatch, for the entropy of one. Rows are cut into minibatches in
            the order given, across updates; an unfinished one does not count.
        quantizer: gives the magnitudes of a real-valued code a length in bits.
        level_values: ``[d_sae, L]``, the values that each latent of a code of levels can have where it
            fires, in ascending order (``sae.level_values``): each level is counted then.

    Raises:
        ValueError: if a number is none or outside its range, ``flipped``, ``quantizer`` or
            ``level_values`` does not fit, or both of these are given.
    """

    def __init__(
        self,
        d_sae: int,
        pair_counts: bool = False,
        flipped: Tensor | None = None,
        minibatch_size: int = 1024,
        quantizer: MagnitudeQuantizer | None = None,
        level_values: Tensor | None = None,
    ) -> None:
        d_sae = check("d_sae", d_sae, whole(1))
        pair_counts = check("pair_counts", pair_counts, Flag())
        minibatch_size = check("minibatch_size", minibatch_size, whole(1))
        self.flipped = torch.zeros(d_sae, dtype=torch.bool) if flipped is None else flipped.cpu()
        if self.flipped.shape != (d_sae,) or self.flipped.dtype != torch.bool:
            raise ValueError(
                f"flipped must be bools of shape ({d_sae},), one per latent; got "
                f"{self.flipped.dtype} of shape {tuple(self.flipped.shape)}."
            )
        if quantizer is not None and level_values is not None:
            raise ValueError(
                "A code of levels is counted exactly, at no resolution: give level_values or quantizer, "
                "not both."
            )
        self.minibatch_size = minibatch_size
        self.quantizer = quantizer
        self.levels = None if level_values is None else LevelCounter(level_values)
        for name, cells in (("quantizer is", quantizer), ("level_values are", self.levels)):
            if cells is not None and cells.d_sae != d_sae:
                raise ValueError(
                    f"These statistics are of {d_sae} latents; the {name} of {cells.d_sae} latents."
                )
        self.n_tokens = 0
        self.n_fired = torch.zeros(d_sae, dtype=torch.int64)
        self.l0_counts = torch.zeros(d_sae + 1, dtype=torch.int64)
        # Of the values at which each latent fires.
        self.smallest = torch.full((d_sae,), torch.inf, dtype=torch.float64)
        self.largest = torch.full((d_sae,), -torch.inf, dtype=torch.float64)
        cells = self._cells
        self.cell_counts = (
            None if cells is None else torch.zeros(d_sae, cells.n_cells, dtype=torch.int64)
        )
        self.co_fired = torch.zeros(d_sae, d_sae, dtype=torch.int32) if pair_counts else None
        self.distinct: Counter[bytes] = Counter()
        self.minibatch_entropies = torch.zeros(2, dtype=torch.float64)  # plain, Miller–Madow
        self.n_minibatches = 0
        self._open_fired = torch.zeros_like(self.n_fired)
        self._n_open = 0

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.n_fired)

    @property
    def _cells(self) -> MagnitudeQuantizer | LevelCounter | None:
        """What magnitudes are counted by."""
        return self.quantizer if self.levels is None else self.levels

    @torch.no_grad()
    def update(self, acts: Tensor) -> None:
        """Count a batch of activations ``[..., d_sae]`` (dense or sparse; sign does not matter).

        Raises:
            ValueError: if the last dimension is not d_sae, or a value is NaN or infinite. Nothing is
                counted then.
        """
        acts = self._checked(acts)
        fired = acts != 0
        for rows in self._minibatches(fired):
            self._count_minibatch(rows)
        self.n_tokens += len(fired)
        self.n_fired += fired.sum(0).cpu()
        self.l0_counts += torch.bincount(fired.sum(1), minlength=self.d_sae + 1).cpu()
        if len(fired) > 0:
            self._note_extremes(acts, fired)
        if self._cells is not None and self.cell_counts is not None:
            self.cell_counts += self._cells.count(acts).cpu()
        if self.co_fired is not None:
            self._count_pairs(fired, self.co_fired)
            packed = np.packbits(fired.cpu().numpy(), axis=1)
            self.distinct.update(
                hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in packed
            )

    def merge(self, other: CodeStatistics) -> None:
        """Add what another instance has counted.

        Everything is then as if this instance had seen all tokens, but for the entropy of a
        minibatch: those that either has not finished do not join up.

        Raises:
            ValueError: if the two are not of the same code, do not count the same things, or have counted
                pairs over more tokens together than can be. Nothing is added then.
        """
        if not torch.equal(self.flipped, other.flipped):
            raise ValueError("Only statistics of the same code (d_sae, flipped) can be merged.")
        same = {
            "pair_counts": self.pair_counts == other.pair_counts,
            "minibatch_size": self.minibatch_size == other.minibatch_size,
            "quantizer": _are_same(self.quantizer, other.quantizer),
            "level_values": _are_same(self.levels, other.levels),
        }
        for name, is_same in same.items():
            if not is_same:
                raise ValueError(
                    f"Only statistics with the same settings can be merged, and {name} differs."
                )
        self._check_paired(other.n_tokens)
        self.n_tokens += other.n_tokens
        self.n_fired += other.n_fired
        self.l0_counts += other.l0_counts
        self.smallest = torch.minimum(self.smallest, other.smallest)
        self.largest = torch.maximum(self.largest, other.largest)
        if self.cell_counts is not None and other.cell_counts is not None:
            self.cell_counts += other.cell_counts
        if self.co_fired is not None and other.co_fired is not None:
            self.co_fired += other.co_fired
        self.distinct.update(other.distinct)
        self.minibatch_entropies += other.minibatch_entropies
        self.n_minibatches += other.n_minibatches

    @property
    def pair_counts(self) -> bool:
        """Whether pairs of latents and distinct codes are counted."""
        return self.co_fired is not None

    def compute(self, W_dec: Tensor | None = None) -> CodeSummary:
        """Statistics of everything seen so far.

        Args:
            W_dec: ``[d_sae, d_in]``, the decoder, for antipodal pairs.

        Raises:
            ValueError: if nothing was seen.
        """
        if self.n_tokens == 0:
            raise ValueError("No token was counted: call update() with at least one row first.")
        rates = self.n_fired.double() / self.n_tokens
        at_top = self._at_top(rates)
        raw = torch.where(self.flipped, 1 - at_top, rates)
        folded = torch.minimum(rates, 1 - at_top)
        dense = (raw > _DENSE).nonzero().squeeze(1)
        marginal = binary_entropy(rates).sum().item()
        joint = self._joint_entropies()
        is_one_bit = bool((self.smallest >= self.largest).all())
        if self.levels is not None:
            is_one_bit = self.levels.n_cells == 1
        magnitudes = self._magnitude_entropy(is_one_bit)
        support = marginal
        if self.pair_counts:
            support -= max(joint["total_correlation"] - joint["chance_total_correlation"], 0.0)
        minibatch: list[float | None] = [None, None]
        if self.n_minibatches > 0:
            minibatch = (self.minibatch_entropies / self.n_minibatches).tolist()

        def share(p: Tensor, above: float) -> float:
            return (p > above).double().mean().item()

        return CodeSummary(
            n_tokens=self.n_tokens,
            l0=rates.sum().item(),
            l0_raw=raw.sum().item(),
            l0_folded=folded.sum().item(),
            **spread_of_l0(self.l0_counts),
            dense_share_10=share(raw, _DENSE),
            dense_share_10_folded=share(folded, _DENSE),
            dense_share_1=share(raw, 0.01),
            dense_share_1_folded=share(folded, 0.01),
            max_density=raw.max().item(),
            always_on_share=share(raw, _ALWAYS),
            dead_share=(self.n_fired == 0).double().mean().item(),
            antipodal_dense_pairs=None if W_dec is None else self._antipodal_pairs(dense, W_dec),
            exclusive_dense_pairs=self._exclusive_pairs(dense),
            marginal_entropy=marginal,
            minibatch_entropy=minibatch[0],
            minibatch_entropy_miller_madow=minibatch[1],
            minibatch_size=self.minibatch_size,
            n_minibatches=self.n_minibatches,
            **joint,
            is_one_bit=is_one_bit,
            magnitude_entropy=magnitudes,
            magnitude_bits=None if self.quantizer is None else self.quantizer.bits,
            support_entropy=support,
            description_length=None if magnitudes is None else support + magnitudes,
            firing_rates=rates.float(),
            l0_counts=self.l0_counts.clone(),
        )

    def _checked(self, acts: Tensor) -> Tensor:
        if acts.ndim == 0 or acts.shape[-1] != self.d_sae:
            raise ValueError(
                f"These statistics are of {self.d_sae} latents; got activations of shape "
                f"{tuple(acts.shape)}."
            )
        if acts.layout != torch.strided:
            acts = acts.to_dense()
        acts = acts.reshape(-1, self.d_sae)
        if not acts.isfinite().all():
            raise ValueError(
                "Activations have NaN or infinite values; whether a latent fires is not defined for them."
            )
        self._check_paired(len(acts))
        return acts

    def _check_paired(self, n_more: int) -> None:
        if self.pair_counts and self.n_tokens + n_more > _MAX_PAIRED_TOKENS:
            raise ValueError(
                f"Pairs are counted over {_MAX_PAIRED_TOKENS:,} tokens at most; start another "
                "CodeStatistics, or leave pair_counts out."
            )

    def _minibatches(self, fired: Tensor) -> Iterator[Tensor]:
        """Cut rows so that none passes the end of a minibatch."""
        start = 0
        while start < len(fired):
            rows = fired[start : start + self.minibatch_size - self._n_open]
            start += len(rows)
            yield rows

    def _count_minibatch(self, rows: Tensor) -> None:
        self._open_fired += rows.sum(0).cpu()
        self._n_open += len(rows)
        if self._n_open < self.minibatch_size:
            return
        entropy = binary_entropy(self._open_fired.double() / self._n_open).sum()
        correction = miller_madow_correction(self._open_fired, self._n_open)
        self.minibatch_entropies += torch.stack([entropy, entropy + correction])
        self.n_minibatches += 1
        self._open_fired.zero_()
        self._n_open = 0

    def _note_extremes(self, acts: Tensor, fired: Tensor) -> None:
        # Of the dtype itself: a cast to a wider one would copy the whole batch.
        values = acts if acts.is_floating_point() else acts.float()
        lowest = torch.where(fired, values, torch.inf).amin(0)
        highest = torch.where(fired, values, -torch.inf).amax(0)
        self.smallest = torch.minimum(self.smallest, lowest.cpu().double())
        self.largest = torch.maximum(self.largest, highest.cpu().double())

    def _count_pairs(self, fired: Tensor, co_fired: Tensor) -> None:
        # Tiles on and above the diagonal only; ``_co_fired_with`` reads the rest from there.
        for some in fired.split(EXACT_ROWS):
            bits = some.float()
            for a in range(0, self.d_sae, _TILE):
                rows = bits[:, a : a + _TILE].T
                for b in range(a, self.d_sae, _TILE):
                    co_fired[a : a + _TILE, b : b + _TILE] += (
                        (rows @ bits[:, b : b + _TILE]).int().cpu()
                    )

    def _co_fired_with(self, latent: int) -> Tensor:
        """Tokens on which a latent fires together with each other, ``[d_sae]``."""
        assert self.co_fired is not None
        diagonal = latent // _TILE * _TILE
        above, right = self.co_fired[:diagonal, latent], self.co_fired[latent, diagonal:]
        return torch.cat([above, right]).long()

    def _joint_entropies(self) -> dict[str, Any]:
        names = (
            "chow_liu_entropy",
            "total_correlation",
            "chance_total_correlation",
            "plug_in_entropy",
            "plug_in_ceiling",
            "n_distinct_codes",
        )
        if not self.pair_counts:
            return dict.fromkeys(names)
        if self.n_tokens < TOKENS_PER_LATENT * self.d_sae:
            logger.warning(
                "The Chow-Liu bound of %d latents rests on %d tokens; below %d (%d per latent) the "
                "dependences it finds may be noise. Compare total_correlation with "
                "chance_total_correlation.",
                *(self.d_sae, self.n_tokens, TOKENS_PER_LATENT * self.d_sae, TOKENS_PER_LATENT),
            )
        tree = chow_liu_tree(self.n_fired, self._co_fired_with, self.n_tokens)
        by_chance = chow_liu_tree(
            self.n_fired, chance_co_firing(self.n_fired, self.n_tokens), self.n_tokens
        )
        values = (
            tree.entropy,
            tree.information.sum().item(),
            by_chance.information.sum().item(),
            plug_in_entropy(torch.tensor(list(self.distinct.values()))),
            math.log2(self.n_tokens),
            len(self.distinct),
        )
        return dict(zip(names, values, strict=True))

    def _at_top(self, rates: Tensor) -> Tensor:
        """Share of tokens at which each latent has the highest of its values.

        Where polarity is inverted, that is where it did not fire before. Of any other code than one of
        levels it is taken for the rate at which it fires.
        """
        if self.levels is None or self.cell_counts is None:
            return rates
        return self.cell_counts[:, -1].double() / self.n_tokens

    def _magnitude_entropy(self, is_one_bit: bool) -> float | None:
        # Few tokens can make any code look like one of bits, so cells have the first word.
        if self.cell_counts is not None:
            return magnitude_entropy(self.cell_counts, self.n_tokens)
        return 0.0 if is_one_bit else None

    def _antipodal_pairs(self, dense: Tensor, W_dec: Tensor) -> int:
        """Pairs among ``dense`` that write opposite directions, in the polarity of training."""
        unit = torch.nn.functional.normalize(W_dec.detach()[dense.to(W_dec.device)].float(), dim=1)
        # Inverting a bit turned its row.
        sign = torch.where(self.flipped[dense], -1.0, 1.0).to(unit.device)
        unit = unit * sign.unsqueeze(1)
        return sum(int((unit[i + 1 :] @ row < _ANTIPODAL).sum()) for i, row in enumerate(unit))

    def _exclusive_pairs(self, dense: Tensor) -> int | None:
        """Pairs among ``dense`` that never fire together, in the polarity of training.

        None where a latent of several levels was inverted: who fires together with its highest level is
        not counted.
        """
        fired, flipped = self.n_fired[dense], self.flipped[dense]
        has_levels = self.levels is not None and self.levels.n_cells > 1
        if not self.pair_counts or (has_levels and flipped.any()):
            return None
        n_pairs = 0
        for i, latent in enumerate(dense.tolist()):
            both = self._co_fired_with(latent)[dense]
            # How often the two fire together if one of them, or both, is inverted.
            both = torch.where(flipped, fired[i] - both, both)
            if flipped[i]:
                both = torch.where(flipped, self.n_tokens - fired, fired) - both
            n_pairs += int((both[i + 1 :] == 0).sum())
        return n_pairs


def _are_same(one: Any, other: Any) -> bool:
    """Whether two parts count into the same cells, or there is neither."""
    if one is None or other is None:
        return one is other
    return one.is_same(other)
