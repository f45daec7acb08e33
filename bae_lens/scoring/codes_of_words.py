"""The codes of all words of labeled texts, beside what is predicted of the texts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sae_lens import SAE

from bae_lens.concept_ablation import AblationTask, Clusters
from bae_lens.concept_ablation.concepts import describe


class WordCodes(NamedTuple):
    """Words of texts with their codes.

    Attributes:
        codes: code, or strongest latent, of each word; −1 where none is active.
        predictions: class that the model predicts of the word's text.
        texts: which text the word is in.
    """

    codes: np.ndarray
    predictions: np.ndarray
    texts: np.ndarray


def word_codes(task: AblationTask, dictionary: SAE[Any] | Clusters) -> WordCodes:
    """The code of each word of a task's texts at the lower hook point, with the model's prediction.

    A word has the code of its last token, which in a decoder is the first that has seen all of it.
    Special tokens, the template and outliers are no words. Of an SAE the code is the strongest latent,
    the one that ``ablate`` would remove.

    Args:
        task: the texts; the predictions are ``task.predicted``.
        dictionary: as for ``ablate``.

    Raises:
        ValueError: if the dictionary reads activations of another width, or there is no word in any text.
    """
    concepts = describe(dictionary, task.sample, task.settings.vectors)
    parts = []
    for batch in task.reader.batches("Codes of words"):
        lower = task.reader.lower(batch).float().cpu()
        word_of = task.reader.texts.word_of[batch.examples, : lower.shape[1]]
        is_word = (word_of >= 0) & batch.text.valid
        following = np.pad(word_of[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
        is_last = is_word.numpy() & (word_of.numpy() != following)
        rows, _ = np.nonzero(is_last)
        if len(rows):
            codes = concepts.active(lower[is_last], 1)[:, 0].numpy()
            parts.append((codes, batch.examples.numpy()[rows]))
    if not parts:
        raise ValueError(
            f"None of the {len(task.data)} texts has a word that is no special token, so there is no code to tell of. Give "
            "texts of which the model reads words."
        )
    codes, texts = (np.concatenate(part) for part in zip(*parts, strict=True))
    return WordCodes(codes, task.predicted.numpy()[texts], texts)
