"""What can be chosen in fine-tuning a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from bae_lens.checks.fields import Number, OneOf, Rule, check_fields, positive, whole
from bae_lens.loading.pooling import Pooling

_FIELDS: Mapping[str, Rule] = {
    "epochs": whole(1),
    "learning_rate": positive(),
    "batch_size": whole(1),
    "context_size": whole(3),
    "head": OneOf(get_args(Pooling)),
    "held_out": Number(above=0, below=1),
    "max_texts": whole(2, or_none=True),
    # Of numpy's generator, which transformers seeds too.
    "seed": whole(0, 2**32 - 1),
}


@dataclass(frozen=True)
class FinetuningSettings:
    """Settings of ``finetune_classifier``.

    Args:
        epochs (int): Passes over the training texts.
        learning_rate (float): Of AdamW, after a warm-up over a tenth of the steps and before a linear
            decay to 0.
        batch_size (int): Texts a step.
        context_size (int): Tokens of a text at most, special ones among them; the rest is cut off.
        head (str): What the head reads: the first token (``"cls"``) as transformers' own class pools
            it, or the ``"mean"`` over tokens, of architectures that offer it (not BERT).
        held_out (float): Share of the texts on which accuracy is measured, of each class the same.
        max_texts (int | None): Texts that are used, held-out ones among them: a stratified sample
            where there are more; None: all.
        seed (int): Of the sample, the split, the new head, dropout and the order of texts.

    Raises:
        ValueError: if a value is outside its range.
    """

    epochs: int = 2
    learning_rate: float = 1e-4
    batch_size: int = 32
    context_size: int = 128
    head: Pooling = "cls"
    held_out: float = 0.2
    max_texts: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, _FIELDS)
