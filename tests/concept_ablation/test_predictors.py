"""The model's own prediction: of a classifier's head, or of a decoder's label words."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from bae_lens.concept_ablation import (
    AblationSettings,
    AblationTask,
    Clusters,
    ConceptAblationResult,
    ablate,
)
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.predictors import head_columns, own_logits
from bae_lens.concept_ablation.probes import Probe
from bae_lens.concept_ablation.texts import encode_texts
from tests.concept_ablation.helpers import (
    BAD,
    FILLERS,
    GOOD,
    LOWER_HOOK,
    N_CTX,
    ODD,
    UPPER_HOOK,
    make_classifier,
    make_model,
    make_rows,
)

# At the embeddings no token has seen another one.
HOOKS = ("blocks.0.hook_in", "blocks.1.hook_out")
ROWS = make_rows(64)
# With texts of no class, lest a model tells one class by the other's word not being there.
TRAINED = [
    *make_rows(128, seed=2),
    *({**row, "label": (GOOD, BAD)[i % 2]} for i, row in enumerate(make_rows(8, FILLERS[:1]))),
]
LABEL_WORDS = ("no", "yes")


def settings(**overrides: Any) -> AblationSettings:
    small = {"context_size": N_CTX, "n_folds": 2, "n_steps": 8, "n_ordinary": 4}
    return AblationSettings(**{**small, **overrides})


def prepare(model: Any, rows: Any = ROWS, hooks: Any = HOOKS, **overrides: Any) -> AblationTask:
    return AblationTask.prepare(model, hooks, rows, settings(**overrides), verbose=False)


@pytest.fixture(scope="module")
def classifier() -> Any:
    """Its classes are in another order than the data's, which are sorted."""
    return make_classifier(TRAINED, (GOOD, BAD))


@pytest.fixture(scope="module")
def task(classifier: Any) -> AblationTask:
    return prepare(classifier)


@pytest.fixture(scope="module")
def result(task: AblationTask) -> ConceptAblationResult:
    return ablate(task, Clusters.fit(task.sample.lower, 12, HOOKS[0]))


# The head


def test_that_a_classifiers_head_predicts(classifier: Any, task: AblationTask) -> None:
    said = [int(classifier(classifier.to_tokens(row["text"]))[0].argmax()) for row in ROWS]
    by_name = [(GOOD, BAD)[i] for i in said]
    assert task.predicted_by == "head"
    assert [task.data.label_names[i] for i in task.predicted.tolist()] == by_name
    assert by_name == [row["label"] for row in ROWS]


def test_that_the_heads_logit_is_what_is_attributed(classifier: Any, task: AblationTask) -> None:
    words = [task.reader.texts.words[i][w] for i, w in enumerate(task.salient.word.tolist())]
    hits = sum(word == row["label"] for word, row in zip(words, ROWS, strict=True))
    assert hits >= 0.9 * len(ROWS)
    missing = [own.salient.missing for own in (task, prepare(classifier, n_steps=64))]
    assert missing[1] is not None
    assert missing[1].median() < 1e-3
    assert missing[0] is not None
    assert missing[0].median() > missing[1].median()


def test_that_the_attribution_is_the_heads_gradient(classifier: Any) -> None:
    """Gradient times activation, against autograd on the whole model."""
    task = prepare(classifier, salient="gradient_x_activation", exclude_outlier_tokens=False)
    for i in range(4):
        tokens = classifier.to_tokens(ROWS[i]["text"])
        kept: list[Any] = []

        def keep(acts: Any, hook: Any, kept: list[Any] = kept) -> Any:
            kept.append(acts.detach().requires_grad_())
            return kept[0]

        logits = classifier.run_with_hooks(tokens, fwd_hooks=[(HOOKS[0], keep)])
        logits[0].max().backward()
        scores = (kept[0].grad * (kept[0] - task.sample.lower_mean)).sum(-1)[0]
        # The first token is the one that is read.
        assert int(scores[1:].argmax()) + 1 == int(task.salient.position[i])


def test_that_a_probe_that_is_led_astray_changes_no_attribution(task: AblationTask) -> None:
    probe = task.probes[1][0]
    turned = [Probe(probe.mean, probe.std, torch.nn.Identity())] * 2
    astray = replace(task, probes=(turned, turned))
    assert torch.equal(astray.salient.position, task.salient.position)


@pytest.mark.parametrize("place", names.CAUSAL)
def test_that_the_head_is_read_after_an_ablation(
    result: ConceptAblationResult, task: AblationTask, place: str
) -> None:
    untouched = result.row(place, "none", read_by=names.HEAD)
    assert untouched.accuracy == 1.0
    concept = result.row(place, read_by=names.HEAD)
    assert result.excess_over(concept, names.RANDOM).low > 0.1
    assert result.excess_over(concept, names.RANDOM_EQUAL).low > 0.1
    equal = result.row(place, names.RANDOM_EQUAL, read_by=names.HEAD)
    assert equal.removed_norm == pytest.approx(concept.removed_norm, rel=1e-4)
    assert equal.rank == concept.rank


def test_that_stored_vectors_are_read_by_a_probe_alone(result: ConceptAblationResult) -> None:
    by_head = {row.place for row in result.rows if row.read_by == names.HEAD}
    assert by_head == {*names.CAUSAL}


def test_that_the_head_is_asked_beside_a_probe(classifier: Any, task: AblationTask) -> None:
    by_probe = prepare(classifier, predicted_by="probe")
    assert by_probe.predicted_by == "probe"
    own = by_probe.predictions(by_probe.vectors[1], by_probe.probes[1])
    assert torch.equal(by_probe.predicted, own)
    result = ablate(by_probe, Clusters.fit(by_probe.sample.lower, 6, HOOKS[0]))
    assert result.predicted_by == names.PROBE
    assert result.row(names.SALIENT, "none", read_by=names.HEAD).accuracy == 1.0
    assert by_probe.own_logits is not None
    assert task.own_logits is not None
    assert torch.equal(by_probe.own_logits, task.own_logits)


def test_that_other_texts_are_predicted_by_the_head(task: AblationTask) -> None:
    others = make_rows(20, seed=5)
    predicted, _ = task.predict([row["text"] for row in others])
    assert [task.data.label_names[i] for i in predicted] == [row["label"] for row in others]


def test_that_a_result_says_who_predicts(result: ConceptAblationResult, tmp_path: Any) -> None:
    result.save(tmp_path / "result.json")
    loaded = ConceptAblationResult.load(tmp_path / "result.json")
    assert loaded == result
    assert loaded.settings["predicted_by"] == "head"
    assert loaded.predicted_by == names.HEAD
    assert loaded.has_signal
    assert "What the model's head predicts is attributed: its accuracy less" in loaded.table()
    lines = [line for line in loaded.excess_table().splitlines() if "| head |" in line]
    assert len(lines) == len(names.CAUSAL)


def test_that_a_head_that_knows_nothing_has_no_signal() -> None:
    task = prepare(make_classifier(ROWS, n_steps=0), causal=False)
    result = ablate(task, Clusters.fit(task.sample.lower, 6, HOOKS[0]))
    assert result.signal is not None
    assert result.signal.low <= 0
    assert result.has_signal is False
    assert "**Without signal**: the model's head is not shown to predict better" in result.table()


# Label words


@pytest.fixture(scope="module")
def decoder() -> Any:
    """It was trained to say "yes" after a text with "good", and "no" after one with "bad"."""
    model: Any = make_model(24)
    rows = TRAINED
    texts = encode_texts(model, [row["text"] for row in rows], context_size=N_CTX, readout="last")
    ids = model.tokenizer.convert_tokens_to_ids(list(LABEL_WORDS))
    targets = torch.tensor([(BAD, GOOD).index(row["label"]) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        logits = model(texts.tokens)[torch.arange(len(rows)), texts.readout][:, ids]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
    return model.eval()


WORDS_HOOKS = (LOWER_HOOK, UPPER_HOOK)


def test_that_label_words_predict_where_they_are_given(decoder: Any) -> None:
    task = prepare(decoder, hooks=WORDS_HOOKS, label_words=LABEL_WORDS)
    ids = decoder.tokenizer.convert_tokens_to_ids(list(LABEL_WORDS))
    said = [int(decoder(row["text"])[0, -1, ids].argmax()) for row in ROWS]
    assert task.predicted_by == "label_words"
    assert task.predicted.tolist() == said
    assert (task.predicted == task.data.labels).float().mean() > 0.9
    assert task.label_logits is task.own_logits
    words = [task.reader.texts.words[i][w] for i, w in enumerate(task.salient.word.tolist())]
    assert sum(word in (GOOD, BAD) for word in words) >= 0.9 * len(ROWS)
    by_probe = prepare(
        decoder, hooks=WORDS_HOOKS, label_words=LABEL_WORDS, predicted_by="probe", salient="readout"
    )
    assert by_probe.predicted_by == "probe"
    assert by_probe.own_logits is not None
    assert task.own_logits is not None
    assert torch.equal(by_probe.own_logits, task.own_logits)


def test_that_swapped_label_words_swap_the_prediction_and_leave_no_signal(decoder: Any) -> None:
    task = prepare(decoder, hooks=WORDS_HOOKS, label_words=LABEL_WORDS[::-1], causal=False)
    result = ablate(task, Clusters.fit(task.sample.lower, 6, LOWER_HOOK))
    assert (task.predicted == task.data.labels).float().mean() < 0.1
    assert result.has_signal is False
    assert result.signal is not None
    assert result.signal.high < 0


def test_that_the_own_logits_attribution_is_its_gradient(decoder: Any) -> None:
    """Gradient times activation, against autograd on the whole model."""
    task = prepare(
        decoder,
        hooks=WORDS_HOOKS,
        label_words=LABEL_WORDS,
        salient="gradient_x_activation",
        exclude_outlier_tokens=False,
    )
    tokens = decoder.to_tokens(ROWS[0]["text"])
    ids = decoder.tokenizer.convert_tokens_to_ids(list(LABEL_WORDS))
    kept: list[Any] = []

    def keep(acts: Any, hook: Any) -> Any:
        kept.append(acts.detach().requires_grad_())
        return kept[0]

    logits = decoder.run_with_hooks(tokens, fwd_hooks=[(LOWER_HOOK, keep)])
    logits[0, -1, ids[int(task.predicted[0])]].backward()
    center = task.sample.lower_mean.expand_as(kept[0]).clone()
    center[0, -1] = task.vectors[0].mean(0)
    scores = (kept[0].grad * (kept[0] - center)).sum(-1)[0]
    # Neither BOS nor the token that is read.
    assert int(scores[1:-1].argmax()) + 1 == int(task.salient.position[0])


# Which class is which


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (("World", "Sports"), ("Sports", "World"), [1, 0]),
        (("World", "Sports"), ("sports", "WORLD "), [1, 0]),
        (("World", "Sports"), ("0", "1"), [0, 1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), [0, 1, 2]),
        (("World", "Sports"), ("LABEL_1", "LABEL_0"), [1, 0]),
        # Stars, from one on: names, not places.
        (("1", "2", "3"), ("1", "2", "3"), [0, 1, 2]),
    ],
)
def test_that_labels_are_matched_by_name_or_else_by_place(
    classes: Any, labels: Any, expected: list[int]
) -> None:
    assert head_columns(classes, labels) == expected


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        (("a", "b"), ("a", "c"), "labels that it does not know: 'c'"),
        (("a", "b"), ("0", "1", "2"), "does not know: '2'"),
        (("a", "b"), ("a", "b", "c"), "does not know: 'c'"),
        (("1", "2"), ("0", "1"), "does not know: '0'"),
        (("LABEL_0", "LABEL_1"), ("neg", "pos"), "id2label of the model's config.json"),
        (("a", "b", "c"), ("a", "c"), "there is no text of 'b'"),
        (("a", "b", "c"), ("0", "1"), "there is no text of 'c'"),
    ],
)
def test_that_other_classes_are_refused(classes: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_columns(classes, labels)


# Bad input


def test_that_a_head_is_asked_for_where_there_is_one() -> None:
    with pytest.raises(ValueError, match="HookedSAETransformer is no classifier"):
        prepare(make_model(), hooks=WORDS_HOOKS, predicted_by="head")


def test_that_label_words_are_no_classifiers(classifier: Any) -> None:
    with pytest.raises(ValueError, match="whose head has the classes 'good', 'bad'"):
        prepare(classifier, label_words=LABEL_WORDS)


def test_that_labels_must_be_the_heads(classifier: Any, caplog: Any) -> None:
    odd = make_rows(64, (GOOD, ODD))
    with pytest.raises(ValueError, match="labels that it does not know: 'odd'"):
        prepare(classifier, odd)
    with pytest.raises(ValueError, match="there is no text of 'odd'"):
        prepare(make_classifier(ROWS, (GOOD, BAD, ODD), 0))
    with caplog.at_level(logging.INFO, "bae_lens"):
        assert own_logits(classifier, (GOOD, ODD), "probe") is None
    assert "The head is not asked beside the probe" in caplog.text


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"predicted_by": "label_words"}, "and there are none: give label_words"),
        ({"predicted_by": "head", "label_words": LABEL_WORDS}, "leave one of the two out"),
        ({"predicted_by": "model"}, "predicted_by"),
    ],
)
def test_that_settings_fit_together(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**chosen)


def test_that_fillers_alone_are_not_told(classifier: Any) -> None:
    rows = [{"text": " ".join(FILLERS), "label": label} for label in (GOOD, BAD) * 8]
    task = prepare(classifier, rows, causal=False)
    result = ablate(task, Clusters.fit(task.sample.lower, 3, HOOKS[0]))
    assert result.has_signal is False
