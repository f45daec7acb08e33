"""What is seen of each latent or code of a dictionary in one pass over a corpus.

The data's way: ``corpus`` (texts → blocks of tokens) with ``coder`` (activations → what fires) → ``reservoir`` (the
strongest examples, and random ones), ``non_activating``, ``token_counts`` and ``pair_counts``, filled by ``collect`` →
``records``.
"""

from bae_lens.examples.collect import collect_evidence
from bae_lens.examples.records import (
    BackgroundToken,
    Count,
    Evidence,
    EvidenceSettings,
    Example,
    LatentEvidence,
    Neighbour,
)

__all__ = [
    "BackgroundToken",
    "Count",
    "Evidence",
    "EvidenceSettings",
    "Example",
    "LatentEvidence",
    "Neighbour",
    "collect_evidence",
]
