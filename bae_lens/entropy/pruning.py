"""A smaller BAE that explains as much as was asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from bae_lens.architectures.bae import BAE, BAEConfig, TrainingBAE, TrainingBAEConfig
from bae_lens.architectures.sae_fields import SCALES_BY_TOKEN
from bae_lens.checks.fields import Number, check
from bae_lens.nn import chow_liu_entropy, prune_bits, select_bits


def check_prunable(cfg: BAEConfig | TrainingBAEConfig) -> None:
    """Check that the code of a BAE is bits that do not depend on the decoder.

    Raises:
        ValueError: if it has several levels a latent, or feedback, or scales each token by itself.
    """
    if cfg.n_levels > 1 or cfg.feedback_steps > 0:
        raise ValueError(
            "Only a BAE of one bit a latent and without feedback is pruned: its bits are chosen among, and "
            "stay as they are with another decoder. This one has "
            f"n_levels={cfg.n_levels}, feedback_steps={cfg.feedback_steps}."
        )
    if cfg.normalize_activations in SCALES_BY_TOKEN:
        raise ValueError(
            "The decoder of a pruned BAE is fitted to the activations as they are, and one with "
            f"normalize_activations={cfg.normalize_activations!r} scales what it decodes by each token. Train with "
            "'none' or 'expected_average_only_in'."
        )


@torch.no_grad()
def prune(sae: BAE | TrainingBAE, activations: Tensor, max_unexplained: float) -> BAE:
    """Take away the bits that a refitted decoder can do without.

    Encoder columns of the bits that stay are as they were; the decoder is the least-squares one. Bits
    are taken away from all (``bae_lens.nn.prune_bits``) and, apart from that, added to none
    (``bae_lens.nn.select_bits``), and the result with the smaller Chow–Liu bound on these activations
    is kept. Both take d_sae³ operations: seconds for a thousand bits.

    Args:
        sae: a trained BAE of one bit a latent, its input scale folded in (as ``SAETrainer.fit`` leaves it).
        activations: ``[n, d_in]``, many more than there are bits.
        max_unexplained: share of their variance that may be left unexplained, see
            ``bae_lens.nn.prune_bits``. Where all bits leave more than that, what is redundant goes.

    Returns:
        A new ``BAE`` with the same metadata and fewer bits.

    Raises:
        ValueError: if there are not at least twice as many activations as bits that vary,
            ``max_unexplained`` is not between 0 and 1, a value is NaN or infinite, or no bit varies;
            or the BAE has several levels a latent, or feedback, or scales each token by itself.
    """
    check_prunable(sae.cfg)
    max_unexplained = check("max_unexplained", max_unexplained, Number(least=0, below=1))
    if not activations.isfinite().all():
        raise ValueError("The activations have NaN or infinite values; no decoder can be fitted.")
    bits = torch.cat([sae.encode(batch) != 0 for batch in activations.split(4096)])
    varying = (bits.any(0) & ~bits.all(0)).sum().item()
    if varying == 0:
        raise ValueError("No bit varies on these activations, so there is nothing to decode from.")
    if len(bits) < 2 * varying:
        raise ValueError(
            f"A decoder for {varying} bits cannot be fitted to {len(bits)} activations; give at least "
            f"{2 * varying}."
        )
    codes = bits.float()
    results = [search(codes, activations, max_unexplained) for search in (prune_bits, select_bits)]
    kept, W_dec, b_dec = min(results, key=lambda result: chow_liu_entropy(codes[:, result[0]]))
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
