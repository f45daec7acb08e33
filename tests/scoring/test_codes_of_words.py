"""Codes of words, of texts whose words are single tokens, and of one whose words are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bae_lens.concept_ablation import AblationSettings, AblationTask, Clusters
from bae_lens.concept_ablation.concepts import describe
from bae_lens.scoring import prediction_nmi, word_codes
from tests.concept_ablation.helpers import LOWER_HOOK, N_CTX, UPPER_HOOK, make_model, make_rows

HOOKS, ROWS = (LOWER_HOOK, UPPER_HOOK), make_rows(40)


@pytest.fixture(scope="module")
def task() -> AblationTask:
    settings = AblationSettings(context_size=N_CTX, n_folds=2, readout="mean", causal=False)
    return AblationTask.prepare(make_model(), HOOKS, ROWS, settings, verbose=False)


@pytest.fixture(scope="module")
def clusters(task: AblationTask) -> Clusters:
    return Clusters.fit(task.sample.lower, 12, LOWER_HOOK)


def test_that_each_word_has_the_code_of_its_token(task: AblationTask, clusters: Clusters) -> None:
    found = word_codes(task, clusters)
    model: Any = task.reader.model
    concepts = describe(clusters, task.sample)
    for i in (0, 7):
        _, cache = model.run_with_cache(ROWS[i]["text"])
        expected = concepts.active(cache[LOWER_HOOK][0, 1:], 1)[:, 0]
        assert found.codes[found.texts == i].tolist() == expected.tolist()
    assert len(found.codes) == sum(len(row["text"].split()) for row in ROWS)
    assert np.array_equal(found.predictions, task.predicted.numpy()[found.texts])
    # A word or two of each text decide, whose codes the prediction goes with.
    assert prediction_nmi(*found, n_resamples=200).corrected.low > 0.02


def test_that_a_word_of_several_tokens_counts_once(task: AblationTask, clusters: Clusters) -> None:
    """Every word and the one after it as one word, as a tokenizer of pieces would have it."""
    texts = task.reader.texts
    pieces = texts._replace(word_of=torch.where(texts.word_of < 0, -1, texts.word_of // 2))
    joined = replace(task, reader=replace(task.reader, texts=pieces))
    whole, found = word_codes(task, clusters), word_codes(joined, clusters)
    for i in range(len(ROWS)):
        own = whole.codes[whole.texts == i]
        # The last of each two, and the last of all.
        last = own[1::2] if len(own) % 2 == 0 else np.append(own[1::2], own[-1])
        assert found.codes[found.texts == i].tolist() == last.tolist()


def test_that_texts_without_words_are_refused(task: AblationTask, clusters: Clusters) -> None:
    texts = task.reader.texts
    none = texts._replace(word_of=torch.full_like(texts.word_of, -1))
    wordless = replace(task, reader=replace(task.reader, texts=none))
    with pytest.raises(ValueError, match="None of the 40 texts has a word"):
        word_codes(wordless, clusters)
