"""Fine-tune an encoder of transformers to a classifier, which can then be studied."""

from bae_lens.finetuning.result import FinetuningResult
from bae_lens.finetuning.run import finetune_classifier
from bae_lens.finetuning.settings import FinetuningSettings

__all__ = ["FinetuningResult", "FinetuningSettings", "finetune_classifier"]
