"""Where a one-bit code starts: thresholds and scales from a first batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def calibrated_weights(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    firing_rate: float,
    apply_b_dec_to_input: bool,
) -> dict[str, Tensor]:
    """Weights with which every bit fires on ``firing_rate`` of this batch.

    ``b_dec`` becomes the mean, encoder columns are scaled to pre-activations of unit variance, each
    threshold is put half-way between the k-th largest pre-activation and the next (k tokens being
    ``firing_rate`` of the batch, at least one), and the decoder is scaled, as a whole, to explain
    most of the batch. Directions are left as they are.

    Args:
        x: activations, without a bias subtracted.
        W_enc, W_dec: what to start from.
        firing_rate: share of the batch on which a bit is to be on, between 0 and 1.
        apply_b_dec_to_input: whether the autoencoder subtracts ``b_dec`` from its input.

    Returns:
        New ``W_enc``, ``b_enc``, ``W_dec`` and ``b_dec``, computed in float32 or more, of the dtype of ``W_enc``.

    Raises:
        ValueError: if there are fewer than two rows, a value is NaN or infinite, or so large that a
            weight would be.
    """
    n = x.shape[0]
    if n < 2:
        raise ValueError(f"Calibration needs at least two tokens in the first batch; got {n}.")
    if not x.isfinite().all():
        raise ValueError(
            "The first batch has NaN or infinite activations, from which no threshold can be set. "
            "Check the model's dtype and the hook point."
        )
    dtype = W_enc.dtype
    x, W_enc, W_dec = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, W_enc, W_dec))
    # Pre-activations of the centered batch, one latent per column, scaled to unit variance.
    mean = x.mean(0)
    centered = x - mean
    pre = (centered @ W_enc).float()
    std = pre.std(0).clamp(min=1e-8)
    pre, W_enc = pre / std, W_enc / std.to(W_enc.dtype)
    # Half-way between the k-th largest and the next, so that exactly k tokens are above it.
    k = min(max(round(firing_rate * n), 1), n - 1)
    top = pre.topk(k + 1, dim=0).values
    threshold = (top[k - 1] + top[k]) / 2
    b_enc = -threshold.to(W_enc.dtype)
    # x·W_enc = (x − mean)·W_enc + mean·W_enc, where the autoencoder does not subtract the mean.
    if not apply_b_dec_to_input:
        b_enc = b_enc - mean @ W_enc
    # Least squares over one scale s of min ‖s·R − X‖², both centered: s = ⟨R, X⟩ / ‖R‖².
    recons = (pre > threshold).to(W_dec.dtype) @ W_dec
    recons = recons - recons.mean(0)
    scale = (recons * centered).sum() / recons.square().sum().clamp(min=1e-8)
    W_dec = W_dec * scale.clamp(min=1e-3)
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": mean}
    weights = {name: value.to(dtype) for name, value in weights.items()}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(
                f"The first batch has activations of up to {x.abs().max().item():.3g}, from which {name} "
                "would be set to NaN or infinity. Check the hook point."
            )
    return weights
