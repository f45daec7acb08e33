"""What a person, or a model, reads to say what a latent or code stands for.

The data's way: ``reading`` (a corpus → blocks of tokens) with ``coder`` (activations → what fires) →
``reservoir`` (examples), ``token_counts`` and ``pair_counts``, filled by ``collect`` → ``evidence``.
"""

from bae_lens.interp.collect import collect_evidence
from bae_lens.interp.evidence import (
    Count,
    Evidence,
    EvidenceSettings,
    Example,
    LatentEvidence,
    Neighbour,
)

__all__ = [
    "Count",
    "Evidence",
    "EvidenceSettings",
    "Example",
    "LatentEvidence",
    "Neighbour",
    "collect_evidence",
]
