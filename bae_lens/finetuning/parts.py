"""Which labeled texts a classifier is trained on, and on which it is measured."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.finetuning.settings import FinetuningSettings


class Parts(NamedTuple):
    """Numbers of texts, from 0 on.

    Attributes:
        train: to be trained on.
        held_out: to be measured on.
        n_duplicates: texts that are in neither, since the same text is held out.
    """

    train: Int[Tensor, " n_train"]
    held_out: Int[Tensor, " n_held_out"]
    n_duplicates: int


def split(data: LabeledTexts, settings: FinetuningSettings) -> Parts:
    """Two stratified parts of the texts, decided by the seed, that have no text in common.

    Texts are the same if they differ in case and space only.

    Raises:
        ValueError: if a class has no text in one of them, with the number of texts of each.
    """
    numbers = torch.arange(len(data))
    if settings.max_texts is not None and settings.max_texts < len(data):
        numbers = data.draw(settings.max_texts, settings.seed).sort().values
    used = data.take(numbers)
    n_held_out = max(round(settings.held_out * len(used)), 1)
    chosen = used.draw(n_held_out, settings.seed)
    is_held_out = torch.zeros(len(used), dtype=torch.bool)
    is_held_out[chosen] = True
    texts = [_normal(text) for text in used.texts]
    there = {texts[i] for i in chosen.tolist()}
    is_double = ~is_held_out & torch.tensor([text in there for text in texts])
    parts = Parts(numbers[~is_held_out & ~is_double], numbers[is_held_out], int(is_double.sum()))
    for numbers, what in ((parts.train, "to train on"), (parts.held_out, "held out")):
        counts = torch.bincount(data.labels[numbers], minlength=len(data.label_names)).tolist()
        if 0 in counts:
            listed = ", ".join(
                f"{n} of {name!r}" for n, name in zip(counts, data.label_names, strict=True)
            )
            raise ValueError(
                f"Every class needs a text {what}; got {listed[:400]}. Use more texts (max_texts), another "
                "share (held_out), or leave the rare classes out."
            )
    return parts


def texts_sha256(data: LabeledTexts) -> str:
    """A hash of texts and labels in their order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text, label in zip(data.texts, data.labels.tolist(), strict=True):
        digest.update(json.dumps([text, data.label_names[label]]).encode() + b"\n")
    return digest.hexdigest()


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
