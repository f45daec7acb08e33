"""A smaller BAE that explains as much as was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from bae_lens.bae import BAE, BAEConfig, TrainingBAE
from bae_lens.nn import prune_bits


@torch.no_grad()
def prune(sae: BAE | TrainingBAE, activations: Tensor, max_unexplained: float) -> BAE:
    """Take away the bits that a refitted decoder can do without.

    Encoder columns of the bits that stay are as they were; the decoder is the least-squares one. It
    takes a matrix inverse and one update of it a bit, d_sae³ operations together: seconds for a few
    thousand bits.

    Args:
        sae: a trained BAE, its input scale folded in (as ``SAETrainer.fit`` leaves it).
        activations: ``[n, d_in]``, many more than there are bits.
        max_unexplained: share of their variance that may be left unexplained, see
            ``bae_lens.nn.prune_bits``.

    Returns:
        A new ``BAE`` with the same metadata and fewer bits.

    Raises:
        ValueError: if there are not at least twice as many activations as bits that vary,
            ``max_unexplained`` is not between 0 and 1, or no bit varies.
    """
    if not 0 <= max_unexplained < 1:
        raise ValueError(
            f"max_unexplained is a share of variance, from 0 to below 1; got {max_unexplained}."
        )
    bits = torch.cat([sae.encode(batch) != 0 for batch in activations.split(4096)])
    varying = (bits.any(0) & ~bits.all(0)).sum().item()
    if varying == 0:
        raise ValueError("No bit varies on these activations, so there is nothing to decode from.")
    if len(bits) < 2 * varying:
        raise ValueError(
            f"A decoder for {varying} bits cannot be fitted to {len(bits)} activations; give at least "
            f"{2 * varying}."
        )
    kept, W_dec, b_dec = prune_bits(bits.float(), activations, max_unexplained)
    cfg = BAEConfig.from_dict(
        sae.cfg.to_dict() if isinstance(sae, BAE) else sae.cfg.get_inference_sae_cfg_dict()
    )
    cfg.d_sae = len(kept)
    pruned = BAE(cfg)
    b_dec = b_dec.to(sae.b_dec)
    b_enc = sae.b_enc[kept]
    if cfg.apply_b_dec_to_input:
        b_enc = b_enc + (b_dec - sae.b_dec) @ sae.W_enc[:, kept]
    pruned.W_enc.copy_(sae.W_enc[:, kept])
    pruned.b_enc.copy_(b_enc)
    pruned.W_dec.copy_(W_dec.to(sae.W_dec))
    pruned.b_dec.copy_(b_dec)
    return pruned
