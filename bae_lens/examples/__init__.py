"""What is seen of each latent or code of a dictionary in one pass over a corpus.

The data's way: ``corpus`` (texts → blocks of tokens) with ``coder`` (activations → what fires) → ``reservoir`` (the
strongest examples, and random ones), ``corpus_tokens``, ``token_counts`` and ``pair_counts``, filled by ``collect`` →
``records``.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
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

lazy_names(
    __name__,
    {
        "bae_lens.examples.collect": ("collect_examples",),
        "bae_lens.examples.records": (
            "CorpusToken",
            "Count",
            "Example",
            "ExampleSettings",
            "LatentRecord",
            "LatentRecords",
            "Neighbor",
        ),
    },
)
