"""Binary Autoencoders and Cross-Layer VQ-VAEs for SAELens and TransformerLens.

The import registers the architectures ``bae``, ``clvq_vae`` and ``topk_transcoder`` with SAELens. The names below are
imported when they are first used. Where what is:

| name | what it is | room |
|---|---|---|
| ``BAE``, ``CLVQVAE``, ``TopKTranscoder`` | architectures; ``Training…`` of each trains, ``…Config`` of each sets it | ``architectures`` |
| ``load_config``, ``TrainingRunner`` | train from a file, or with SAELens' runner and additions | ``training`` |
| ``CrossLayerTrainingRunner`` | the same between two hook points | ``training`` |
| ``ReplayedActivations`` | one pass of the language model, kept | ``activations`` |
| ``finetune_classifier`` | an encoder becomes a classifier, to be studied | ``finetuning`` |
| ``attached`` | a dictionary within a running model | ``attach`` |
| ``steer``, ``ablate_latents``, ``logit_effects`` | act on a model with latents | ``steering`` |
| ``task_vector``, ``add_direction`` | a task as latents, beside its controls | ``steering`` |
| ``run_evals``, ``CodeStatistics`` | metrics of any SAE | ``evals`` |
| ``entropy_profile`` | entropy by layer and position | ``entropy`` |
| ``concept_ablation`` | remove concepts and measure what is lost, beside controls | ``concept_ablation`` |
| ``collect_examples`` | what is seen of each latent in one pass over a corpus | ``examples`` |
| ``intruder_test``, ``comsem_test``, judges | scores of what latents mean | ``scoring`` |
| ``write_report``, ``write_quiz`` | HTML pages for people | ``report``, ``quiz`` |
| entropies, covariance penalty, quantizers | tensor maths alone | ``nn`` |
| ``load_model``, ``load_dataset`` | models and text that install from PyPI | ``offline`` |

ARCHITECTURE.md in the repository has the whole map.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names
from bae_lens.moved import keep_old_names
from bae_lens.registration import register_with_sae_lens

if TYPE_CHECKING:
    from bae_lens.architectures import (
        BAE,
        CLVQVAE,
        BAEConfig,
        CLVQVAEConfig,
        TopKTranscoder,
        TopKTranscoderConfig,
        TrainingBAE,
        TrainingBAEConfig,
        TrainingCLVQVAE,
        TrainingCLVQVAEConfig,
        TrainingTopKTranscoder,
        TrainingTopKTranscoderConfig,
    )
    from bae_lens.attach import attached
    from bae_lens.concept_ablation import concept_ablation
    from bae_lens.entropy import entropy_profile
    from bae_lens.evals import CodeStatistics, run_evals
    from bae_lens.finetuning import finetune_classifier
    from bae_lens.steering import (
        ablate_latents,
        add_direction,
        logit_effects,
        steer,
        task_vector,
        usual_strengths,
    )
    from bae_lens.training import (
        CrossLayerRunnerConfig,
        CrossLayerTrainingRunner,
        ReplayedActivations,
        TrainingRunner,
        load_config,
    )

__all__ = [
    "BAE",
    "CLVQVAE",
    "BAEConfig",
    "CLVQVAEConfig",
    "CodeStatistics",
    "CrossLayerRunnerConfig",
    "CrossLayerTrainingRunner",
    "ReplayedActivations",
    "TopKTranscoder",
    "TopKTranscoderConfig",
    "TrainingBAE",
    "TrainingBAEConfig",
    "TrainingCLVQVAE",
    "TrainingCLVQVAEConfig",
    "TrainingRunner",
    "TrainingTopKTranscoder",
    "TrainingTopKTranscoderConfig",
    "__version__",
    "ablate_latents",
    "add_direction",
    "attached",
    "concept_ablation",
    "entropy_profile",
    "finetune_classifier",
    "load_config",
    "logit_effects",
    "run_evals",
    "steer",
    "task_vector",
    "usual_strengths",
]

try:
    __version__ = version("bae-lens")
except PackageNotFoundError:  # A copy of the source that was never installed.
    __version__ = "unknown"

# torch, SAELens and TransformerLens take seconds to import: what needs them waits until it is asked for.
lazy_names(
    __name__,
    {
        "bae_lens.architectures": (
            *("BAE", "BAEConfig", "TrainingBAE", "TrainingBAEConfig"),
            *("CLVQVAE", "CLVQVAEConfig", "TrainingCLVQVAE", "TrainingCLVQVAEConfig"),
            *("TopKTranscoder", "TopKTranscoderConfig"),
            *("TrainingTopKTranscoder", "TrainingTopKTranscoderConfig"),
        ),
        "bae_lens.attach": ("attached",),
        "bae_lens.concept_ablation": ("concept_ablation",),
        "bae_lens.entropy": ("entropy_profile",),
        "bae_lens.evals": ("CodeStatistics", "run_evals"),
        "bae_lens.finetuning": ("finetune_classifier",),
        "bae_lens.steering": (
            *("ablate_latents", "add_direction", "logit_effects", "steer", "task_vector"),
            "usual_strengths",
        ),
        "bae_lens.training": (
            *("CrossLayerRunnerConfig", "CrossLayerTrainingRunner", "ReplayedActivations"),
            *("TrainingRunner", "load_config"),
        ),
    },
)
register_with_sae_lens()
keep_old_names()
