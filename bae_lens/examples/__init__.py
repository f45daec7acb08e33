"""What is seen of each latent or code of a dictionary in one pass over a corpus.

The data's way: ``collect`` opens the ``corpus`` (texts → blocks of tokens) with a ``coder`` (activations → what fires)
→ ``collector`` fills the ``reservoir`` (the strongest examples, and random ones, each with ``window_values``),
``corpus_tokens``, ``token_counts`` (of the bins of a ``histogram`` too) and ``pair_counts`` → ``records``.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.examples.collect import collect_examples
    from bae_lens.examples.histogram import Histogram, LevelCounts
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
    "Histogram",
    "LatentRecord",
    "LatentRecords",
    "LevelCounts",
    "Neighbor",
    "collect_examples",
]

lazy_names(
    __name__,
    {
        "bae_lens.examples.collect": ("collect_examples",),
        "bae_lens.examples.histogram": ("Histogram", "LevelCounts"),
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
