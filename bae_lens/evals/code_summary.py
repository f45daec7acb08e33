"""How a code is used, in numbers: how often its latents fire, and how many bits that is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CodeSummary:
    """Statistics of a code over ``n_tokens`` tokens. A latent fires where it is not zero.

    *Raw* is the code with the polarity it was trained with; *folded* counts a latent that is on for
    more than half of the tokens by how often it is off, min(p, 1 − p), since that is when it says
    something. Folding hides always-on latents, so both are given. A latent of several levels is off, seen
    from the other end, at its highest one: with q_L the share of tokens there, raw is 1 − q_L where
    it was inverted, and folded min(p, 1 − q_L).

    What was not asked for, or cannot be known, is None.

    Attributes:
        n_tokens: tokens seen.
        l0: latents on per token, as the SAE is: mean over tokens.
        l0_raw, l0_folded: the same, raw and folded.
        l0_std, l0_5th, l0_median, l0_95th: its standard deviation and percentiles over tokens.
        dense_share_10, dense_share_1: share of latents on for more than 10 % and 1 % of tokens, raw.
        dense_share_10_folded, dense_share_1_folded: the same, folded.
        max_density: the densest latent's firing rate, raw.
        always_on_share: share of latents on for more than 99 % of tokens, raw.
        dead_share: share of latents that never fired (which for an inverted bit of a BAE means:
            was never off).
        antipodal_dense_pairs: pairs of latents denser than 10 % whose decoder directions have a
            cosine below −0.9, raw. Needs the decoder.
        exclusive_dense_pairs: pairs of such latents that never fire together, raw. Needs pair counts;
            not known where one of them has several levels and was inverted.
        marginal_entropy: Σ_j H₂(p_j) over all tokens, in bits per token: an upper bound of the
            entropy of which latents fire, reached only by independent latents.
        minibatch_entropy: the same of one minibatch, as in training, averaged over minibatches: what
            arXiv 2509.20997 reports. Low by about m/(2·n·ln 2) bits, for m latents that vary among n
            tokens, and lower still where a minibatch is not a fair sample (consecutive tokens). What
            the training of a code of levels logs has their entropy in it.
        minibatch_entropy_miller_madow: with that much added.
        minibatch_size, n_minibatches: tokens per minibatch, and whole minibatches seen.
        chow_liu_entropy: the marginal entropy less what a tree of pairwise dependences explains: a
            tighter upper bound, which duplicated latents cannot raise. As an estimate it is low by
            about ``chance_total_correlation``.
        total_correlation: what the tree explains, in bits per token.
        chance_total_correlation: what a tree of the same kind finds in *independent* latents with
            these rates and so many tokens: the part of ``total_correlation`` that is noise.
        plug_in_entropy: entropy of the distinct codes seen, in bits per token; codes differ here, and in
            all entropies above, in which latents fire, and not in how strongly.
        plug_in_ceiling: log₂ of the number of tokens, which ``plug_in_entropy`` cannot pass; near
            it, it only says how many tokens there were.
        n_distinct_codes: distinct codes seen.
        is_one_bit: whether every latent had one value only where it fired; of a code of levels,
            whether it can only have one.
        magnitude_entropy: bits per token of how strongly latents fire, given which do. Of a code of
            levels, of the level: Σ_j p_j·H(level | j fires), exact but for the sample. Of other codes, of the
            quantized magnitudes; 0 for a one-bit code, None without a quantizer. Of the frequencies
            on these very tokens, and so a little low where cells are many: by about
            (L − 1)/(2·n·ln 2) bits for each latent that has L of them among n tokens.
        magnitude_bits: resolution of quantized magnitudes, see ``MagnitudeQuantizer``; None of levels,
            for which none is chosen.
        support_entropy: bits per token of which latents fire: the marginal entropy less the total
            correlation, of which what chance alone would show is not counted; without pair counts,
            the marginal entropy, which does not compare with it.
        description_length: bits per token that the code needs: ``support_entropy`` and
            ``magnitude_entropy`` together.
        firing_rates: ``[d_sae]``, as the SAE is.
        l0_counts: ``[d_sae + 1]``, tokens by number of latents on.
    """

    n_tokens: int
    l0: float
    l0_raw: float
    l0_folded: float
    l0_std: float
    l0_5th: int
    l0_median: int
    l0_95th: int
    dense_share_10: float
    dense_share_10_folded: float
    dense_share_1: float
    dense_share_1_folded: float
    max_density: float
    always_on_share: float
    dead_share: float
    antipodal_dense_pairs: int | None
    exclusive_dense_pairs: int | None
    marginal_entropy: float
    minibatch_entropy: float | None
    minibatch_entropy_miller_madow: float | None
    minibatch_size: int
    n_minibatches: int
    chow_liu_entropy: float | None
    total_correlation: float | None
    chance_total_correlation: float | None
    plug_in_entropy: float | None
    plug_in_ceiling: float | None
    n_distinct_codes: int | None
    is_one_bit: bool
    magnitude_entropy: float | None
    magnitude_bits: float | None
    support_entropy: float
    description_length: float | None
    firing_rates: Tensor
    l0_counts: Tensor

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """The scalars, for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, Tensor)}


def spread_of_l0(l0_counts: Tensor) -> dict[str, Any]:
    """Standard deviation and percentiles of L0 from its histogram."""
    share = l0_counts.double() / l0_counts.sum()
    l0 = torch.arange(len(share), dtype=torch.float64)
    mean = (share * l0).sum()
    # A hair below, for sums of shares that should be equal to a percentile.
    reached = share.cumsum(0) + 1e-12
    percentiles = (int((reached >= q).int().argmax()) for q in (0.05, 0.5, 0.95))
    return {
        "l0_std": (share * (l0 - mean).square()).sum().sqrt().item(),
        **dict(zip(("l0_5th", "l0_median", "l0_95th"), percentiles, strict=True)),
    }
