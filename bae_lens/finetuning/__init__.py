"""Fine-tune an encoder of transformers to a classifier, which can then be studied."""

from typing import TYPE_CHECKING

from bae_lens.checks.lazy_names import lazy_names

if TYPE_CHECKING:
    from bae_lens.finetuning.result import FinetuningResult
    from bae_lens.finetuning.run import finetune_classifier
    from bae_lens.finetuning.settings import FinetuningSettings

__all__ = ["FinetuningResult", "FinetuningSettings", "finetune_classifier"]

lazy_names(
    __name__,
    {
        "bae_lens.finetuning.result": ("FinetuningResult",),
        "bae_lens.finetuning.run": ("finetune_classifier",),
        "bae_lens.finetuning.settings": ("FinetuningSettings",),
    },
)
