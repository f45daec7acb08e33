"""How the salient words and their concepts compare with the reasons that a person marked."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from bae_lens.concept_ablation.concepts import Concepts
from bae_lens.concept_ablation.salient_tokens import SalientTokens
from bae_lens.concept_ablation.task import AblationTask
from bae_lens.concept_ablation.texts import rationale_words


def salient_tokens(task: AblationTask) -> SalientTokens:
    """The tokens that the attributions of a task point to."""
    salient, texts = task.salient, task.reader.texts
    picked = salient.word.tolist()
    words = (own[w] if w >= 0 else "" for own, w in zip(texts.words, picked, strict=True))
    in_rationale, chance = share_in_rationale(task, [{w} - {-1} for w in picked])
    return SalientTokens(
        words=tuple(words),
        readout_share=None
        if salient.readout_wins is None
        else salient.readout_wins.float().mean().item(),
        in_rationale=in_rationale,
        rationale_words=chance,
        missing=None if salient.missing is None else salient.missing.median().item(),
    )


def concepts_in_rationale(task: AblationTask, concepts: Concepts, ids: Tensor) -> float | None:
    """How often the words that have an example's concept, in its own text, lie in its rationale."""
    if all(e is None for e in task.data.rationales):
        return None
    words: list[set[int]] = [set() for _ in task.data.texts]
    for batch in task.reader.batches("Concepts in rationales"):
        lower = task.reader.lower(batch).float().cpu()
        for row, i in enumerate(batch.examples.tolist()):
            word_of = task.reader.texts.word_of[i, : lower.shape[1]]
            there = (word_of >= 0) & batch.at[row]
            if there.any():
                first = concepts.active(lower[row][there], 1)[:, 0]
                has = (first == ids[i, 0]) & (first >= 0)
                words[i] = set(word_of[there][has].tolist())
    return share_in_rationale(task, words)[0]


def share_in_rationale(
    task: AblationTask, words: Iterable[set[int]]
) -> tuple[float | None, float | None]:
    """How often one of the given words of each text lies in a person's rationale.

    Returns:
        Mean over texts with a span of the share of the words that lie in it, and the same of all of
        the text's words, which is chance; None where no text has a span.
    """
    rationales = rationale_words(task.reader.texts, task.data.texts, task.data.rationales)
    shares, chance = [], []
    for picked_words, marked, every in zip(words, rationales, task.reader.texts.words, strict=True):
        if marked and picked_words:
            shares.append(len(picked_words & marked) / len(picked_words))
            chance.append(len(marked) / len(every))
    if not shares:
        return None, None
    return sum(shares) / len(shares), sum(chance) / len(chance)
