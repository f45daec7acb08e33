"""Modules that have moved, importable under their old names for one release, with a warning.

Saved files name no module, so nothing of theirs depends on this; it goes with the next release.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old name → where its names are now; of several, the first that has the name.
MOVED: dict[str, tuple[str, ...]] = {
    "bae": ("architectures.bae",),
    "clvq_vae": ("architectures.clvq_vae",),
    "codebook_init": ("architectures.codebook_init",),
    "compression": ("entropy.compression",),
    "demo": ("offline",),
    "evals.concept_ablation": ("concept_ablation",),
    "evals.concept_ablation.concepts": ("concept_ablation.concepts",),
    "evals.concept_ablation.labelled_texts": ("activations.labeled_texts",),
    "evals.concept_ablation.probes": ("concept_ablation.probes", "stats"),
    "evals.held_out": ("activations.held_out",),
    "evals.summarise": ("evals.summarize", "dictionaries"),
    "evals.text_batch": ("activations.text_batch",),
    "hook_points": ("activations.hook_points", "dictionaries"),
    "interp": ("examples", "scoring"),
    "interp.comsem": ("scoring.comsem",),
    "interp.endpoint": ("scoring.judges.endpoint",),
    "interp.evidence": ("examples.records",),
    "interp.intruder": ("scoring.intruder", "scoring.intruder_result"),
    "interp.judges": ("scoring.judges.judge",),
    "interp.ranking": ("scoring.ranking",),
    "interp.recoverability": ("scoring.recoverability",),
    "interp.recovery": ("scoring.recoverability_result",),
    "plots": ("charts", "evals.plot", "training.plot", "training.metric_log"),
    "pruning": ("entropy.pruning",),
    "special_tokens": ("activations.special_tokens",),
    "topk_transcoder": ("architectures.topk_transcoder",),
    "training.paired_activations": ("activations.paired_activations",),
    "training.replay": ("activations.replay",),
    "training.sentences": ("activations.sentence_store",),
}
# Names that were called otherwise, or are a method now.
RENAMED: dict[str, str] = {
    "plots.COLOURS": "charts.COLORS",
    "plots.plot_comsem": "scoring.comsem_result.ComSemResult.plot",
    "plots.plot_concept_ablation": "concept_ablation.result.ConceptAblationResult.plot",
    "plots.plot_entropy_profile": "entropy.result.EntropyProfile.plot",
    "plots.plot_intruder": "scoring.intruder_result.IntruderResult.plot",
    "plots.plot_ranking": "scoring.ranking.Ranking.plot",
    "plots.plot_recovery": "scoring.recoverability_result.Recoverability.plot",
}
# Of any module.
RENAMED_EVERYWHERE: dict[str, str] = {
    "BackgroundToken": "CorpusToken",
    "Evidence": "LatentRecords",
    "EvidenceSettings": "ExampleSettings",
    "LabelledTexts": "LabeledTexts",
    "LatentEvidence": "LatentRecord",
    "Neighbour": "Neighbor",
    "Recovery": "Recoverability",
    "RecoverySettings": "RecoverabilitySettings",
    "RecoveryTask": "RecoverabilityTask",
    "View": "WordsAndContexts",
    "collect_evidence": "collect_examples",
    "summarise_code": "summarize_code",
    "view_of": "words_and_contexts_of",
}
_PACKAGE = "bae_lens."


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old name where none of that name is left."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For the import system."""
        del path, target
        old = fullname.removeprefix(_PACKAGE)
        if old == fullname or old not in MOVED:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def exec_module(self, module: ModuleType) -> None:
        """Let the module answer with names of those that took its place."""
        old = module.__name__
        new = [_PACKAGE + name for name in MOVED[old.removeprefix(_PACKAGE)]]
        # Above this frame stands the import system alone, whose frames Python passes over.
        warnings.warn(
            f"{old} is now {' and '.join(new)}; the old name goes with the next release.",
            FutureWarning,
            stacklevel=2,
        )
        modules = [importlib.import_module(name) for name in new]

        def __getattr__(name: str) -> Any:
            renamed = RENAMED.get(f"{old.removeprefix(_PACKAGE)}.{name}")
            if renamed is not None:
                return pkgutil.resolve_name(_PACKAGE + renamed)
            for there in modules:
                for known in (name, RENAMED_EVERYWHERE.get(name, name)):
                    if hasattr(there, known):
                        return getattr(there, known)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = __getattr__


def keep_old_names() -> None:
    """Make the old names importable, once in a process, after everything that has a name still."""
    if not any(type(finder).__name__ == MovedModules.__name__ for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
