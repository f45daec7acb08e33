"""A dictionary and what was seen of it, in the formats of other tools.

``write_table`` writes a row a latent for pandas, ``write_neuronpedia`` the requests of Neuronpedia's upload, ``write_delphi`` the
cache that delphi explains and scores latents from, ``write_saebench`` an SAE that SAEBench evaluates (``load_saebench``). Each fills a folder, as a
whole or not at all, that says what it is an export of (``bae_lens_export.json``).

Activations are what ``encode`` gives: of a one-bit code the latent's scale where the bit is on, of a code of levels the level's
value, of a one-hot code 1 where it is the token's (times its
scale, if one was folded in).
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.export.delphi import DelphiSettings, write_delphi
    from bae_lens.export.neuronpedia import NeuronpediaSource, write_neuronpedia
    from bae_lens.export.saebench import SAEBenchSAE, load_saebench, write_saebench
    from bae_lens.export.table import table_rows, write_table

__all__ = [
    "DelphiSettings",
    "NeuronpediaSource",
    "SAEBenchSAE",
    "load_saebench",
    "table_rows",
    "write_delphi",
    "write_neuronpedia",
    "write_saebench",
    "write_table",
]

lazy_names(
    __name__,
    {
        "bae_lens.export.delphi": ("DelphiSettings", "write_delphi"),
        "bae_lens.export.neuronpedia": ("NeuronpediaSource", "write_neuronpedia"),
        "bae_lens.export.saebench": ("SAEBenchSAE", "load_saebench", "write_saebench"),
        "bae_lens.export.table": ("table_rows", "write_table"),
    },
)
