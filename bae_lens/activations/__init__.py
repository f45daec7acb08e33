"""From text to activations: where they stand in a model, which tokens count, and what they are kept in.

* where: ``hook_points``, ``running_pass`` (the forward pass that is under way);
* which tokens: ``special_tokens``, ``outlier_tokens``, ``reference_norms`` (the norm that outliers are told by),
  ``first_tokens`` (as many as are asked for);
* of what: ``texts``, ``labeled_texts`` (with ``label_columns``), ``text_batch``;
* in what: ``text_store`` (SAELens' store), ``sentence_store`` (each text by itself), ``paired_activations`` (two hook
  points), ``collection`` and ``replay`` (one pass, kept), ``read_once`` (a model that
  reads no text twice), ``store_state`` (how far a store is, in a checkpoint),
  ``held_out`` (the model and text of a saved SAE).

The names below are public; the modules have more, which the rooms of this package share.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.activations.held_out import held_out_store, load_model_of
    from bae_lens.activations.hook_points import hook_names, hook_width
    from bae_lens.activations.labeled_texts import LabeledTexts
    from bae_lens.activations.outlier_tokens import OutlierTokens, reference_norm
    from bae_lens.activations.paired_activations import ContextStore, PairedActivations
    from bae_lens.activations.replay import ReplayedActivations
    from bae_lens.activations.sentence_store import SentenceStore
    from bae_lens.activations.special_tokens import special_token_ids
    from bae_lens.activations.text_store import TextStore

__all__ = [
    "ContextStore",
    "LabeledTexts",
    "OutlierTokens",
    "PairedActivations",
    "ReplayedActivations",
    "SentenceStore",
    "TextStore",
    "held_out_store",
    "hook_names",
    "hook_width",
    "load_model_of",
    "reference_norm",
    "special_token_ids",
]

lazy_names(
    __name__,
    {
        "bae_lens.activations.held_out": ("held_out_store", "load_model_of"),
        "bae_lens.activations.hook_points": ("hook_names", "hook_width"),
        "bae_lens.activations.labeled_texts": ("LabeledTexts",),
        "bae_lens.activations.outlier_tokens": ("OutlierTokens", "reference_norm"),
        "bae_lens.activations.paired_activations": ("ContextStore", "PairedActivations"),
        "bae_lens.activations.replay": ("ReplayedActivations",),
        "bae_lens.activations.sentence_store": ("SentenceStore",),
        "bae_lens.activations.special_tokens": ("special_token_ids",),
        "bae_lens.activations.text_store": ("TextStore",),
    },
)
