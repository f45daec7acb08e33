"""Inverting bits without changing what the autoencoder computes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.nn.levels import heights_of, inverse_softplus, thresholds_of
from bae_lens.nn.precision import widened


def flip_bits(
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    scale: Float[Tensor, " d_sae"],
    flipped: Bool[Tensor, " d_sae"],
    apply_b_dec_to_input: bool,
    threshold_gaps: Float[Tensor, "d_sae L-1"] | None = None,
    level_heights: Float[Tensor, "d_sae L-1"] | None = None,
) -> dict[str, Tensor]:
    """Weights whose ``flipped`` latents are inverted and whose reconstruction is the same.

    A bit that is almost always 1 says something when it is 0. With 1 − bit in its place, encoder
    column, threshold and decoder row change sign, and what the bit added when on moves into
    ``b_dec``; where that is subtracted from the input, ``b_enc`` takes it back. Entropies and |C_ij|
    do not change.

    A latent of L levels is counted from the top: level l becomes L − l, its thresholds
    t′_l = −t_(L+1−l), its heights h′_l = h_(L+1−l), and what moves into ``b_dec`` is the row times the
    sum of its heights. That its first threshold is 0 and its first height 1 is kept: ``b_enc`` takes t_L
    up, and ``scale`` takes h_L. What feedback adds to a pre-activation changes its sign with the encoder's
    column, so gains stay.

    Args:
        W_enc, b_enc, W_dec, b_dec, scale: the autoencoder
            ``1[(x − b_dec)·W_enc + b_enc > 0]·scale·W_dec + b_dec``.
        flipped: which latents to invert.
        apply_b_dec_to_input: whether ``b_dec`` is subtracted from the input.
        threshold_gaps, level_heights: of a code of levels, as ``thresholds_of`` and ``heights_of`` take
            them.

    Returns:
        New tensors under the names of the arguments, ``scale`` among them where there are levels; the
        given ones are left as they are.

    Examples:
        >>> weights = {"W_enc": torch.ones(1, 1), "b_enc": torch.tensor([0.5]),
        ...            "W_dec": torch.tensor([[2.0]]), "b_dec": torch.zeros(1)}
        >>> turned = flip_bits(**weights, scale=torch.ones(1), flipped=torch.tensor([True]),
        ...                    apply_b_dec_to_input=False)
        >>> {name: value.item() for name, value in turned.items()}
        {'W_enc': -1.0, 'b_enc': -0.5, 'W_dec': -2.0, 'b_dec': 2.0}
    """
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "scale": scale}
    dtypes = {name: weight.dtype for name, weight in weights.items()}
    # Of many bits, in bfloat16 what they add up to would be rounded before it is added.
    W_enc, b_enc, W_dec, b_dec, scale = map(widened, weights.values())
    sign = torch.where(flipped, -1, 1).to(W_enc.dtype)
    levels: dict[str, Tensor] = {}
    most, last = torch.ones_like(scale), torch.zeros_like(b_enc)
    if threshold_gaps is not None and level_heights is not None:
        # The most that a latent is worth, and its last threshold.
        most = heights_of(widened(level_heights)).sum(1)
        last = thresholds_of(widened(threshold_gaps))[:, -1]
        levels = _counted_from_the_top(threshold_gaps, level_heights, scale, flipped)
    # act = most − (most − act), so act·row = most·row + (most − act)·(−row): what is constant goes
    # into b_dec,
    shift = (flipped * scale * most) @ W_dec
    # and most − act is the activation of the negated pre-activation, counted from the last threshold:
    # of a bit, 1 − bit = 1[−pre ≥ 0].
    W_enc, b_enc = W_enc * sign, b_enc * sign + flipped * last
    if apply_b_dec_to_input:
        # (x − b_dec − shift)·W_enc is lower by shift·W_enc than it was.
        b_enc = b_enc + shift @ W_enc
    turned = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": W_dec * sign.unsqueeze(1),
        "b_dec": b_dec + shift,
    } | levels
    return {name: value.to(dtypes.get(name, value.dtype)) for name, value in turned.items()}


def _counted_from_the_top(
    threshold_gaps: Tensor, level_heights: Tensor, scale: Tensor, flipped: Tensor
) -> dict[str, Tensor]:
    """Gaps and heights, those of flipped latents reversed, and the scale that makes the first height 1."""
    heights = heights_of(widened(level_heights))
    # One that is less than the rounding of their sum may be 0 by now. Counted from the top it may be the
    # first, by which the others are divided and which cannot be worth nothing.
    heights = heights.clamp(min=torch.finfo(heights.dtype).eps)
    last, flip = heights[:, -1], flipped[:, None]
    reversed_heights = inverse_softplus((heights.flip(1) / last[:, None])[:, 1:])
    return {
        "threshold_gaps": torch.where(flip, threshold_gaps.flip(1), threshold_gaps),
        "level_heights": torch.where(flip, reversed_heights.to(level_heights.dtype), level_heights),
        "scale": torch.where(flipped, scale * last, scale),
    }
