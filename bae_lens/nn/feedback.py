"""Iterated encoding: what a code leaves of its input is encoded again and added to the pre-activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bae_lens.nn.precision import widened


def with_feedback(
    pre: Float[Tensor, "*batch d_sae"],
    centered: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    gain: Float[Tensor, " d_sae"],
    reconstruct: Callable[[Tensor], Tensor],
    steps: int,
    whitening: Float[Tensor, "d_in d_in"] | None = None,
) -> Float[Tensor, "*batch d_sae"]:
    """The best pre-activations of up to so many times ``pre ← pre + gain ⊙ (x − b_dec − x̂(pre))·W_enc``.

    A linear threshold lets latents that mean the same fire together; what is explained already, by
    whichever latent, is taken off the pre-activations here. It is a step of iterated shrinkage with a
    learned gain a latent, as in LISTA (Gregor and LeCun, 2010), and not in arXiv 2509.20997.

    Nothing makes such steps converge: where a latent's gain times its row times its column is large they
    swing, and a training whose learning rate is high can drive them there. So of the codes after 0, 1, …
    ``steps`` steps each token keeps the one that leaves the smallest residual, the last of equal ones:
    feedback never explains less of a token than the encoder does without it. Where a latent is inverted
    or a norm is folded, the residual's length stays what it is but for one factor, and so does the choice.

    The residual is a constant for the gradient: ``W_enc`` learns from what it does to residuals as from
    what it does to the input, ``gain`` learns how much of it to take, and nothing is learned through the
    codes of the steps before the one that is kept. With R the sum of the residuals up to there, what is
    added is gain ⊙ R·W_enc, so that the backward pass takes one matrix product however many steps there
    are.

    Args:
        pre: pre-activations.
        centered: the input less ``b_dec``.
        W_enc: the encoder.
        gain: how much of its residual each latent takes in.
        reconstruct: from pre-activations to what their code decodes to, without ``b_dec``.
        steps: how often; with 0, ``pre`` comes back as it is.
        whitening: what residuals are multiplied by before their lengths are compared; None: nothing.
    """
    if steps == 0:
        return pre
    device = pre.device.type
    # Autocast of torch before 2.11 keeps copies of weights that were made without gradient, and the decoder, which
    # is first used here, would learn nothing.
    uncached = torch.autocast(
        device,
        torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
    with torch.no_grad(), uncached:
        sums = (torch.zeros_like(centered), torch.zeros_like(pre))
        kept = sums
        residual = centered - reconstruct(pre)
        least = _squared_norm(residual, whitening)
        for _ in range(steps):
            sums = (sums[0] + residual, sums[1] + residual @ W_enc)
            residual = centered - reconstruct(pre + gain * sums[1])
            left = _squared_norm(residual, whitening)
            is_no_more = left <= least
            least = torch.where(is_no_more, left, least)
            kept = tuple(
                torch.where(is_no_more, new, old) for new, old in zip(sums, kept, strict=True)
            )
    residuals, encoded = kept
    return _AddEncoded.apply(pre, residuals, encoded, W_enc, gain)  # pyright: ignore[reportReturnType]


def _squared_norm(x: Tensor, whitening: Tensor | None) -> Float[Tensor, "*batch 1"]:
    x = x if whitening is None else x @ whitening
    return widened(x).square().sum(-1, keepdim=True)


class _AddEncoded(torch.autograd.Function):
    """``pre + gain ⊙ encoded`` with ``encoded = residuals @ W_enc``, which is known already."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, residuals: Tensor, encoded: Tensor, W_enc: Tensor, gain: Tensor
    ) -> Tensor:
        ctx.save_for_backward(residuals, encoded, gain)
        ctx.dtype = W_enc.dtype
        return (pre + gain * encoded).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        residuals, encoded, gain = ctx.saved_tensors
        d_in, d_sae = residuals.shape[-1], encoded.shape[-1]
        flat = grad.reshape(-1, d_sae)
        of_gain = (flat * encoded.reshape(-1, d_sae)).sum(0).to(gain.dtype)
        # gain stands for a column of W_enc as a whole.
        of_W_enc = residuals.reshape(-1, d_in).to(grad.dtype).T @ flat
        return grad, None, None, (of_W_enc * gain).to(ctx.dtype), of_gain
