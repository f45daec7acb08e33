"""Cross-layer concept ablation: remove a concept, measure what is lost, beside its controls.

After arXiv 2506.20040 (§ faithfulness), whose released protocol takes a text's accuracy far below
chance: it projects a vector that all tokens share out along with the concept, which inverts what a
probe says and removes nothing. Here means are removed first, a drop below chance counts as chance,
and random directions, other concepts and LEACE are ablated in the same places.

The data's way: ``labeled_texts`` → ``texts`` → ``passes`` → ``predictors``, ``probes`` and ``attribution``
(``task``: all that does not depend on the dictionary) → ``concepts`` → ``removals`` →
``interventions`` → ``measure`` → ``result``.
"""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.activations.labeled_texts import LabeledTexts
    from bae_lens.concept_ablation.measure import ablate
    from bae_lens.concept_ablation.result import AblationRow, ConceptAblationResult
    from bae_lens.concept_ablation.run import concept_ablation
    from bae_lens.concept_ablation.salient_tokens import SalientTokens
    from bae_lens.concept_ablation.settings import AblationSettings
    from bae_lens.concept_ablation.task import AblationTask
    from bae_lens.concept_ablation.verdict import ablation_verdict
    from bae_lens.dictionaries import Clusters

__all__ = [
    "AblationRow",
    "AblationSettings",
    "AblationTask",
    "Clusters",
    "ConceptAblationResult",
    "LabeledTexts",
    "SalientTokens",
    "ablate",
    "ablation_verdict",
    "concept_ablation",
]

lazy_names(
    __name__,
    {
        "bae_lens.activations.labeled_texts": ("LabeledTexts",),
        "bae_lens.concept_ablation.measure": ("ablate",),
        "bae_lens.concept_ablation.result": ("AblationRow", "ConceptAblationResult"),
        "bae_lens.concept_ablation.run": ("concept_ablation",),
        "bae_lens.concept_ablation.salient_tokens": ("SalientTokens",),
        "bae_lens.concept_ablation.settings": ("AblationSettings",),
        "bae_lens.concept_ablation.task": ("AblationTask",),
        "bae_lens.concept_ablation.verdict": ("ablation_verdict",),
        "bae_lens.dictionaries": ("Clusters",),
    },
)
