"""Inverting bits without changing what the autoencoder computes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.nn.precision import widened


def flip_bits(
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    b_dec: Float[Tensor, " d_out"],
    scale: Float[Tensor, " d_sae"],
    flipped: Bool[Tensor, " d_sae"],
    apply_b_dec_to_input: bool,
) -> dict[str, Tensor]:
    """Weights whose ``flipped`` bits are inverted and whose reconstruction is the same.

    A bit that is almost always 1 says something when it is 0. With 1 − bit in its place, encoder
    column, threshold and decoder row change sign, and what the bit added when on moves into
    ``b_dec``; where that is subtracted from the input, ``b_enc`` takes it back. Entropies and |C_ij|
    do not change.

    Args:
        W_enc, b_enc, W_dec, b_dec, scale: the autoencoder
            ``1[(x − b_dec)·W_enc + b_enc > 0]·scale·W_dec + b_dec``.
        flipped: which bits to invert.
        apply_b_dec_to_input: whether ``b_dec`` is subtracted from the input.

    Returns:
        New tensors under the names of the arguments; the given ones are left as they are.
    """
    dtypes = {
        "W_enc": W_enc.dtype,
        "b_enc": b_enc.dtype,
        "W_dec": W_dec.dtype,
        "b_dec": b_dec.dtype,
    }
    # Of many bits, in bfloat16 what they add up to would be rounded before it is added.
    W_enc, b_enc, W_dec, b_dec, scale = map(widened, (W_enc, b_enc, W_dec, b_dec, scale))
    sign = torch.where(flipped, -1, 1).to(W_enc.dtype)
    shift = (flipped * scale) @ W_dec
    W_enc, b_enc = W_enc * sign, b_enc * sign
    if apply_b_dec_to_input:
        b_enc = b_enc + shift @ W_enc
    turned = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": W_dec * sign.unsqueeze(1),
        "b_dec": b_dec + shift,
    }
    return {name: value.to(dtypes[name]) for name, value in turned.items()}
