"""What is seen of each latent or code of a dictionary in one pass over a corpus.

The data's way: ``corpus`` (texts → blocks of tokens) with ``coder`` (activations → what fires) → ``reservoir`` (the
strongest examples, and random ones), ``corpus_tokens``, ``token_counts`` and ``pair_counts``, filled by ``collect`` →
``records``.
"""

from bae_lens.examples.collect import collect_examples
from bae_lens.examples.records import (
    CorpusToken,
    Count,
    Example,
    ExampleSettings,
    LatentRecord,
    LatentRecords,
    Neighbor,
)

__all__ = [
    "CorpusToken",
    "Count",
    "Example",
    "ExampleSettings",
    "LatentRecord",
    "LatentRecords",
    "Neighbor",
    "collect_examples",
]
