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

    Examples:
        >>> weights = {"W_enc": torch.ones(1, 1), "b_enc": torch.tensor([0.5]),
        ...            "W_dec": torch.tensor([[2.0]]), "b_dec": torch.zeros(1)}
        >>> turned = flip_bits(**weights, scale=torch.ones(1), flipped=torch.tensor([True]),
        ...                    apply_b_dec_to_input=False)
        >>> {name: value.item() for name, value in turned.items()}
        {'W_enc': -1.0, 'b_enc': -0.5, 'W_dec': -2.0, 'b_dec': 2.0}
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
    # bit = 1 − (1 − bit), so bit·row = row + (1 − bit)·(−row): what is constant goes into b_dec,
    shift = (flipped * scale) @ W_dec
    # and 1 − bit = 1[−pre ≥ 0] is the bit of the negated pre-activation.
    W_enc, b_enc = W_enc * sign, b_enc * sign
    if apply_b_dec_to_input:
        # (x − b_dec − shift)·W_enc is lower by shift·W_enc than it was.
        b_enc = b_enc + shift @ W_enc
    turned = {
        "W_enc": W_enc,
        "b_enc": b_enc,
        "W_dec": W_dec * sign.unsqueeze(1),
        "b_dec": b_dec + shift,
    }
    return {name: value.to(dtypes[name]) for name, value in turned.items()}
