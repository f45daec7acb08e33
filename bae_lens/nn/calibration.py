"""Where a code of bits or levels starts: thresholds and scales from a first batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.levels import heights_of, inverse_softplus, quantize_levels, thresholds_of

# Between thresholds at the start, in standard deviations of a pre-activation.
_LEVEL_GAP = 0.75


def calibrated_weights(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    firing_rate: float,
    apply_b_dec_to_input: bool,
    n_levels: int = 1,
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
        n_levels: thresholds a latent. The higher ones start three quarters of a standard deviation apart,
            and the heights in proportion to the pre-activations of each level. On-latents grow away from
            the rest as the training goes on: thresholds at the first batch's quantiles, every level as
            frequent, are soon all passed at once, and the code becomes one of bits again.

    Returns:
        New ``W_enc``, ``b_enc``, ``W_dec`` and ``b_dec``, and with several levels ``threshold_gaps`` and
        ``level_heights``, computed in float32 or more, of the dtype of ``W_enc``.

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
    levels: dict[str, Tensor] = {}
    code = (pre > threshold).to(W_dec.dtype)
    if n_levels > 1:
        levels = _initial_levels(threshold, n_levels)
        thresholds, heights = (
            thresholds_of(levels["threshold_gaps"]),
            heights_of(levels["level_heights"]),
        )
        code = quantize_levels(pre - threshold, thresholds, heights).acts.to(W_dec.dtype)
    # Least squares over one scale s of min ‖s·R − X‖², both centered: s = ⟨R, X⟩ / ‖R‖².
    recons = code @ W_dec
    recons = recons - recons.mean(0)
    scale = (recons * centered).sum() / recons.square().sum().clamp(min=1e-8)
    W_dec = W_dec * scale.clamp(min=1e-3)
    weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": mean} | levels
    weights = {name: value.to(dtype) for name, value in weights.items()}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(
                f"The first batch has activations of up to {x.abs().max().item():.3g}, from which {name} "
                "would be set to NaN or infinity. Check the hook point."
            )
    return weights


def _initial_levels(threshold: Float[Tensor, " d_sae"], n_levels: int) -> dict[str, Tensor]:
    """Gaps and heights, the same for all latents.

    Args:
        threshold: the first, in standard deviations above the mean.
        n_levels: thresholds a latent.
    """
    gap = torch.full((len(threshold), n_levels - 1), _LEVEL_GAP, device=threshold.device)
    # Levels stand for the middles between thresholds, counted from the mean.
    height = _LEVEL_GAP / (threshold.mean().clamp(min=0) + _LEVEL_GAP / 2)
    return {
        "threshold_gaps": inverse_softplus(gap),
        "level_heights": inverse_softplus(height.expand_as(gap)).contiguous(),
    }
