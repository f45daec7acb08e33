"""What is told of a tiny model's predictions, which hang on one word of each text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bae_lens import BAE, BAEConfig
from bae_lens.concept_ablation import AblationSettings, Clusters
from bae_lens.concept_ablation.concepts import describe
from bae_lens.scoring.recoverability import RecoverabilityTask
from bae_lens.scoring.recoverability_result import GIVEN, OF_CONCEPT, Recoverability
from tests.concept_ablation.helpers import (
    BAD,
    GOOD,
    LOWER_HOOK,
    N_CTX,
    UPPER_HOOK,
    make_classifier,
    make_model,
    make_rows,
)

HOOKS = (LOWER_HOOK, UPPER_HOOK)
ROWS, OTHERS = make_rows(40), [row["text"] for row in make_rows(80, seed=1)]
READ = AblationSettings(
    context_size=N_CTX, n_folds=2, n_steps=4, readout="mean", causal=False, n_ordinary=0
)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def task(model: Any) -> RecoverabilityTask:
    return RecoverabilityTask.prepare(model, HOOKS, ROWS, OTHERS, ablation=READ, verbose=False)


@pytest.fixture(scope="module")
def by_word(task: RecoverabilityTask) -> Clusters:
    """Clusters with a centroid of its own for "good" and "bad", and for the rest."""
    model: Any = task.texts.reader.model
    tokenizer = model.tokenizer
    texts = [row["text"] for row in ROWS]
    sums: dict[str, list[torch.Tensor]] = {}
    for text in texts:
        _, cache = model.run_with_cache(text, names_filter=[LOWER_HOOK])
        for token, acts in zip(model.to_tokens(text)[0], cache[LOWER_HOOK][0], strict=True):
            sums.setdefault(tokenizer.decode([int(token)]).strip(), []).append(acts)
    del sums[tokenizer.bos_token]
    return Clusters(torch.stack([torch.stack(own).mean(0) for own in sums.values()]), LOWER_HOOK)


def test_that_concepts_of_the_deciding_word_tell_the_prediction(
    task: RecoverabilityTask, by_word: Clusters
) -> None:
    recoverability = task.recover(by_word)
    words = task.texts.reader.texts.words
    salient = [words[i][w] for i, w in enumerate(task.texts.salient.word.tolist())]
    assert set(salient) <= {GOOD, BAD}
    for given in GIVEN:
        assert recoverability.score(given).mean == pytest.approx(1), given
    assert recoverability.n_concepts == 2


def test_that_one_concept_for_all_tells_nothing(
    task: RecoverabilityTask, by_word: Clusters
) -> None:
    recoverability = task.recover(Clusters(by_word.centroids.mean(0, keepdim=True), LOWER_HOOK))
    assert recoverability.n_concepts == 1
    for given in OF_CONCEPT:
        assert recoverability.score(given).mean == pytest.approx(0.5), given
    # The reader could have told it from the text.
    assert recoverability.score("text").mean == pytest.approx(1)


def test_that_concepts_are_those_that_ablation_removes(
    task: RecoverabilityTask, by_word: Clusters
) -> None:
    concepts = describe(by_word, task.texts.sample).active(task.texts.salient.lower, 1)[:, 0]
    assert task.recover(by_word).concepts == tuple(concepts.tolist())


def test_that_predictions_are_recovered_and_not_labels(task: RecoverabilityTask) -> None:
    labels = 1 - task.texts.data.labels
    turned = replace(task.texts, data=replace(task.texts.data, labels=labels))
    turned.__dict__["salient"] = task.texts.salient
    expected = tuple(task.texts.predicted.tolist())
    assert torch.equal(
        task.texts.predicted, task.texts.predictions(task.texts.vectors[1], task.texts.probes[1])
    )
    one = Clusters(torch.zeros(1, 24), LOWER_HOOK)
    assert replace(task, texts=turned).recover(one).predictions == expected


def test_that_texts_that_are_asked_about_are_not_shown(model: Any) -> None:
    texts = [row["text"] for row in ROWS]
    references = [*OTHERS, *texts, *OTHERS]
    task = RecoverabilityTask.prepare(model, HOOKS, ROWS, references, ablation=READ, verbose=False)
    assert not set(task.shown_texts) & set(texts)
    others = set(OTHERS) - set(texts)
    # Each once, to learn from or to be shown.
    assert set(task.shown_texts) <= others
    assert len(set(task.shown_texts)) == len(task.shown_texts) == len(others) // 2
    assert task.n_learned == len(others) - len(task.shown_texts)
    with pytest.raises(ValueError, match="reference texts that are not asked about"):
        RecoverabilityTask.of(task.texts, texts)


def test_that_the_reader_reads_as_far_as_the_model(model: Any) -> None:
    settings = replace(READ, context_size=4)
    task = RecoverabilityTask.prepare(model, HOOKS, ROWS, OTHERS, ablation=settings, verbose=False)
    as_read = task.texts.reader.texts.as_read(task.texts.data.texts)
    # One of the four tokens is BOS.
    assert as_read == [" ".join(text.split()[:3]) for text in task.texts.data.texts]
    one = Clusters(torch.zeros(1, 24), LOWER_HOOK)
    assert task.recover(one).said["text"] == task.reader.read(as_read)


def test_that_texts_without_a_token_are_not_shown(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a mean over no token nothing is predicted; one such text is not to end it all."""
    settings = replace(READ, readout="mean")

    def prepared(references: list[str]) -> RecoverabilityTask:
        return RecoverabilityTask.prepare(
            model, HOOKS, ROWS, references, ablation=settings, verbose=False
        )

    task = prepared([*OTHERS, "<eos>"])
    assert "1 of" in caplog.text
    assert "texts are left out: no token of them" in caplog.text
    assert "<eos>" not in task.shown_texts
    others = len(set(OTHERS) - {row["text"] for row in ROWS})
    assert (task.n_learned, len(task.shown_texts)) == ((others + 1) // 2, others // 2)
    # Each with its own prediction still.
    predicted, _ = task.texts.predict(task.shown_texts)
    assert tuple(predicted.tolist()) == task.shown_predictions


def test_that_there_is_something_to_tell(task: RecoverabilityTask) -> None:
    one = replace(task.texts.data, labels=torch.zeros_like(task.texts.data.labels))
    vectors = (task.texts.vectors[0], torch.zeros_like(task.texts.vectors[1]))
    with pytest.raises(ValueError, match=r"predicts '.*' of each of the 40 texts"):
        RecoverabilityTask.of(replace(task.texts, data=one, vectors=vectors), OTHERS)


def test_that_a_bit_that_is_mostly_on_is_no_concept(task: RecoverabilityTask) -> None:
    """Its examples are tokens at which it is off."""
    lower = task.texts.sample.lower
    cfg = BAEConfig(d_in=lower.shape[1], d_sae=2)
    cfg.metadata.hook_name = LOWER_HOOK
    bae = BAE(cfg).eval()
    with torch.no_grad():
        bae.W_enc.normal_(generator=torch.Generator().manual_seed(0))
        shares = torch.tensor([0.2, 0.8])
        bae.b_enc.copy_(-((lower - bae.b_dec) @ bae.W_enc).quantile(1 - shares, dim=0).diag())
        bae.scale.fill_(1.0)
    records = task.collect(bae)
    assert [own.when_off for own in records.latents] == [False, True]
    is_on = bae.encode(task.texts.salient.lower)[:, 0] > 0
    assert task.recover(bae, records).concepts == tuple(-1 + is_on.int().numpy())


def test_that_evidence_must_be_of_the_dictionary(
    task: RecoverabilityTask, by_word: Clusters
) -> None:
    records = task.collect(by_word)
    with pytest.raises(ValueError, match="What was collected is of"):
        task.recover(Clusters(by_word.centroids[:2], LOWER_HOOK), records)
    with pytest.raises(ValueError, match="examples are of the classes x, y"):
        task.recover(by_word, replace(records, class_names=("x", "y")))


def test_that_a_class_without_tokens_is_never_the_commonest(
    task: RecoverabilityTask, by_word: Clusters
) -> None:
    records = task.collect(by_word)
    latents = tuple(replace(own, class_shares=(0.0, 1.0)) for own in records.latents)
    records = replace(records, class_shares=(0.0, 1.0), latents=latents)
    assert set(task.recover(by_word, records).said["class shares"]) == {1}


# The model's own prediction


HEAD_HOOKS = ("blocks.0.hook_in", "blocks.1.hook_out")


@pytest.fixture(scope="module")
def own() -> RecoverabilityTask:
    """Of a classifier that was trained on labels that are wrong: it says "good" of "bad"."""
    turned = [
        {**row, "label": {GOOD: BAD, BAD: GOOD}[row["label"]]} for row in make_rows(128, seed=2)
    ]
    model = make_classifier(turned)
    return RecoverabilityTask.prepare(
        model,
        HEAD_HOOKS,
        ROWS,
        OTHERS,
        ablation=replace(READ, readout=None),
        class_names=["negative", "positive"],
        verbose=False,
    )


def test_that_the_heads_prediction_is_recovered(own: RecoverabilityTask) -> None:
    clusters = Clusters.fit(own.texts.sample.lower, 14, HEAD_HOOKS[0])
    found = own.recover(clusters)
    assert found.predicted_by == "head"
    assert found.class_names == ("negative", "positive")
    # The labels are "bad", which the data have first, and "good".
    assert found.predictions == tuple((1 - own.texts.data.labels).tolist())
    words = {BAD: 1, GOOD: 0}
    assert own.shown_predictions == tuple(
        next(words[w] for w in text.split() if w in words) for text in own.shown_texts
    )
    assert found.score("text").mean > 0.95
    assert (
        "What the classifier's head predicts of 40 texts: 20 negative, 20 positive" in found.table()
    )
    assert found.nmi is not None
    assert found.nmi.corrected.low > 0
    assert f"NMI of words' codes with the prediction: {found.nmi}." in found.table()


def test_that_it_is_saved_with_who_predicted(own: RecoverabilityTask, tmp_path: Path) -> None:
    found = own.recover(Clusters.fit(own.texts.sample.lower, 4, HEAD_HOOKS[0]))
    found.save(tmp_path / "found.json")
    assert Recoverability.load(tmp_path / "found.json") == found
    # What an older version wrote says neither.
    values = {k: v for k, v in found.to_dict().items() if k not in ("predicted_by", "nmi")}
    older = Recoverability.from_dict(values)
    assert (older.predicted_by, older.nmi) == ("probe", None)
    assert "What the probe predicts" in older.table()
    with pytest.raises(ValueError, match="predicted_by must be one of probe, head, label_words"):
        replace(found, predicted_by="reader").check()


def test_that_a_head_that_says_one_thing_is_told_of() -> None:
    model = make_classifier(ROWS, n_steps=0)
    with torch.no_grad():
        model.original_model.classifier.bias.copy_(torch.tensor([50.0, 0.0]))
    with pytest.raises(ValueError, match="The classifier's head predicts 'good' of each of the 40"):
        RecoverabilityTask.prepare(
            *(model, HEAD_HOOKS, ROWS, OTHERS), ablation=replace(READ, readout=None), verbose=False
        )
