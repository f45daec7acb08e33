"""Concept ablation from texts to result, of a tiny model whose texts' labels are single words."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from bae_lens import TopKTranscoder, TopKTranscoderConfig
from bae_lens.activations.text_batch import TextBatch
from bae_lens.concept_ablation import (
    AblationSettings,
    AblationTask,
    Clusters,
    ConceptAblationResult,
    LabeledTexts,
    ablate,
    concept_ablation,
)
from bae_lens.concept_ablation import result as names
from bae_lens.evals.reconstruction import next_token_loss
from tests.concept_ablation.helpers import (
    BAD,
    FILLERS,
    GOOD,
    LOWER_HOOK,
    N_CTX,
    ODD,
    UPPER_HOOK,
    VOCABULARY,
    make_model,
    make_rows,
    make_tokenizer,
)
from tests.helpers import (
    D_IN,
    between,
    fit_codes,
    make_bae,
    make_bridge,
    make_clvq,
    make_headless_encoder,
    make_transcoder,
)

D = 24
ROWS = make_rows(64)
LABEL_WORDS = ("no", "yes")
HOOKS = (LOWER_HOOK, UPPER_HOOK)
PROBED = names.CONCEPT + names.RETRAINED


def settings(**overrides: Any) -> AblationSettings:
    small = {"context_size": N_CTX, "n_folds": 2, "n_steps": 4, "n_ordinary": 4, "readout": "mean"}
    return AblationSettings(**{**small, **overrides})


def run(model: Any, dictionary: Any, rows: Any = ROWS, **overrides: Any) -> ConceptAblationResult:
    names = ("hook_name_out", "reference_texts", "text_column", "label_column", "split")
    options = {name: overrides.pop(name) for name in names if name in overrides}
    chosen = settings(**overrides)
    return concept_ablation(model, dictionary, rows, chosen, verbose=False, **options)


def on(sae: Any, hook_in: str = LOWER_HOOK, hook_out: str | None = None) -> Any:
    return between(sae, hook_in, hook_out)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(D)


@pytest.fixture(scope="module")
def task(model) -> AblationTask:
    return AblationTask.prepare(model, HOOKS, ROWS, settings(n_steps=16), verbose=False)


@pytest.fixture(scope="module")
def words(task) -> Clusters:
    """A cluster a word, or so."""
    return Clusters.fit(task.sample.lower, 10, LOWER_HOOK)


@pytest.fixture(scope="module")
def result(task, words) -> ConceptAblationResult:
    return ablate(task, words)


# What is found


def test_the_salient_word_is_the_one_that_decides(task, result):
    hits = sum(w == row["label"] for w, row in zip(result.salient.words, ROWS, strict=True))

    assert result.row(names.UPPER, "none").accuracy > 0.97
    assert hits >= 0.95 * len(ROWS)
    assert result.salient.missing < 1e-3
    assert result.salient.readout_share is None
    at = task.reader.texts.tokens[torch.arange(len(ROWS)), task.salient.position]
    said = task.reader.model.tokenizer.convert_ids_to_tokens(at.tolist())
    assert tuple(said) == result.salient.words


@pytest.mark.parametrize("place", names.CAUSAL)
def test_inside_the_pass_its_concept_costs_and_a_random_direction_does_not(result, place):
    concept = result.row(place)

    assert result.change(concept).low > 0.15
    for control in (names.RANDOM, names.RANDOM_EQUAL, names.MEAN):
        assert result.row(place, control).accuracy > 0.95
    assert result.excess_over(concept).low > 0.15
    assert result.row(place, PROBED).accuracy < 0.8
    assert concept.removed_norm == pytest.approx(
        result.row(place, names.RANDOM_EQUAL).removed_norm, rel=1e-4
    )


def test_a_concept_a_class_is_shared_by_its_texts(result):
    ids = torch.tensor(result.concept_ids)[:, 0]
    labels = torch.tensor(result.labels)

    counts = [ids[labels == c].bincount(minlength=10) for c in (0, 1)]
    assert all(own.max() > 0.9 * own.sum() for own in counts)
    assert counts[0].argmax() != counts[1].argmax()


def test_in_every_place_there_is_every_method(result):
    shared = {names.MEAN, names.LEACE, names.LEACE + names.RETRAINED, "none"}
    own = {names.CONCEPT, PROBED, *names.CONTROLS} - {names.MEAN}
    for place in (*names.STORED, *names.CAUSAL):
        here = [row for row in result.rows if row.place == place]
        assert {row.method for row in here if row.concept_of == ""} >= shared
        for concept_of in ("word", "readout") if place in names.STORED else ("word",):
            assert {row.method for row in here if row.concept_of == concept_of} == own
    for row in result.rows:
        assert len(row.correct) == len(ROWS)
        assert len(row.fold_accuracies) == 2
        assert math.isfinite(row.removed_norm)


def test_what_the_untouched_pass_says_is_what_the_stored_vectors_say(result):
    for place in names.CAUSAL:
        assert result.row(place, "none").correct == result.row(names.UPPER, "none").correct


def test_the_ordinary_texts_cross_entropy_is_the_models(model, result):
    losses = []
    for row in ROWS[:4]:
        tokens = model.to_tokens(row["text"])
        logits = model(tokens)
        losses.append(next_token_loss(logits, TextBatch.of(tokens, (0, 1, 2))).mean().item())

    assert result.ordinary_ce == pytest.approx(sum(losses) / 4, rel=1e-5)
    everywhere, elsewhere = result.row(names.EVERYWHERE), result.row(names.SALIENT)
    assert len(everywhere.ce_change) == 4
    assert any(abs(change) > 1e-4 for change in everywhere.ce_change)
    assert result.ce_change(everywhere) is not None
    assert elsewhere.ce_change == ()


def test_a_seed_gives_one_result(model, words):
    result = run(model, words)

    assert result == run(model, words)
    assert result.rows != run(model, words, seed=1).rows


def test_reference_texts_are_what_codes_and_cross_entropy_are_of(model, words):
    texts = [" ".join(FILLERS), " ".join(FILLERS[::-1])]

    own, other = run(model, words), run(model, words, reference_texts=texts)

    assert len(other.row(names.EVERYWHERE).ce_change) == 2
    assert own.ordinary_ce != other.ordinary_ce
    # No code of a word that the reference texts lack.
    in_use = {i for ids in other.concept_ids for i in ids}
    assert in_use < {i for ids in own.concept_ids for i in ids} | in_use
    assert in_use != {i for ids in own.concept_ids for i in ids}


def test_evidence_is_compared_with_the_salient_words(model, words):
    rows = [{**row, "rationale": row["label"]} for row in ROWS]

    result = run(model, words, rows, causal=False)

    assert result.salient.in_rationale is not None
    assert result.salient.in_rationale >= 0.95
    shares = [1 / len(row["text"].split()) for row in ROWS]
    assert result.salient.rationale_words == pytest.approx(sum(shares) / len(shares))
    assert result.concept_in_rationale is not None
    assert result.concept_in_rationale > 0.9
    assert run(model, words, causal=False).concept_in_rationale is None


def test_words_without_a_latent_share_no_concept(model, task):
    filler = VOCABULARY.index(FILLERS[0])
    fillers = torch.cat(
        [
            task.reader.run(batch).lower[batch.text.tokens == filler]
            for batch in task.reader.batches("")
        ]
    ).detach()
    direction = fillers.mean(0) - task.sample.lower_mean
    sae = StandardSAE(StandardSAEConfig(d_in=D, d_sae=1))
    with torch.no_grad():
        sae.W_enc[:, 0], sae.W_dec[0] = direction, direction
        sae.b_enc.copy_(-(fillers @ direction).amin() + 1e-3)
    rows = [{**row, "rationale": row["label"]} for row in ROWS]

    result = run(model, on(sae), rows, causal=False)

    assert set(result.concept_ids) == {(-1,)}
    assert result.concept_in_rationale is None
    assert result.row().rank == result.row().removed_norm == 0


# Readouts and label words


def test_label_words_are_read_where_the_model_would_say_them(model, words):
    result = run(model, words, readout="last", label_words=LABEL_WORDS, batch_size=64)

    for place in names.CAUSAL:
        for method in ("none", names.CONCEPT, names.RANDOM_EQUAL, names.MEAN, names.LEACE):
            row = result.row(place, method, "word", names.LABEL_WORDS)
            assert len(row.correct) == len(ROWS)
    assert {row.place for row in result.rows if row.read_by == names.LABEL_WORDS} == {*names.CAUSAL}
    ids = model.tokenizer.convert_tokens_to_ids(list(LABEL_WORDS))
    said = [int(model(row["text"])[0, -1, ids].argmax()) for row in ROWS]
    correct = [s == label for s, label in zip(said, result.labels, strict=True)]
    assert list(result.row(names.EVERYWHERE, "none", "", names.LABEL_WORDS).correct) == correct
    assert result.salient.readout_share is not None


def test_a_template_stands_around_each_text(model, words):
    task = AblationTask.prepare(
        model,
        HOOKS,
        ROWS,
        settings(readout=None, template="odd {text} maybe", label_words=LABEL_WORDS),
        verbose=False,
    )
    result = ablate(task, words)

    texts = task.reader.texts
    at = texts.tokens[torch.arange(len(ROWS)), texts.readout]
    assert model.tokenizer.convert_ids_to_tokens(at.tolist()) == ["maybe"] * len(ROWS)
    assert set(result.salient.words) <= {GOOD, BAD, *FILLERS}
    _, cache = model.run_with_cache(f"odd {ROWS[3]['text']} maybe")
    torch.testing.assert_close(task.vectors[1][3], cache[UPPER_HOOK][0, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("readout", ["last", "first", "mean"])
def test_vectors_are_of_the_text_read_alone(model, readout):
    task = AblationTask.prepare(model, HOOKS, ROWS, settings(readout=readout), verbose=False)

    for i in (0, 5):
        _, cache = model.run_with_cache(ROWS[i]["text"])
        for k, hook in enumerate(HOOKS):
            acts = cache[hook][0]
            expected = {"last": acts[-1], "first": acts[0], "mean": acts[1:].mean(0)}[readout]
            torch.testing.assert_close(task.vectors[k][i], expected, atol=1e-5, rtol=1e-4)


def test_a_text_without_a_token_has_no_mean(model, words, caplog):
    empty = {"text": "<eos>", "label": ROWS[0]["label"]}
    rows = [empty, *ROWS[:5], {**empty, "text": "<eos> <eos>"}, *ROWS[5:]]
    task = AblationTask.prepare(model, HOOKS, rows, settings(readout="mean"), verbose=False)
    assert f"2 of {len(rows)} texts are left out: no token of them" in caplog.text
    alone = AblationTask.prepare(model, HOOKS, ROWS, settings(readout="mean"), verbose=False)
    assert task.data.texts == alone.data.texts
    assert task.fold.tolist() == alone.fold.tolist()
    torch.testing.assert_close(task.vectors, alone.vectors)
    assert len(ablate(task, words).salient.words) == len(ROWS)

    [alone_class] = task.predict([ROWS[0]["text"]])[0].tolist()
    assert alone_class >= 0
    assert task.predict([ROWS[0]["text"], "<eos>"])[0].tolist() == [alone_class, -1]
    # Where one position is read, that is there.
    last = AblationTask.prepare(model, HOOKS, rows, settings(readout="last"), verbose=False)
    assert len(last.data) == len(rows)


def test_the_concept_may_be_that_of_the_readout(model, words):
    result = run(model, words, readout="last", salient="readout")

    assert {row.concept_of for row in result.rows} == {"", "readout"}
    assert result.row(names.SALIENT, concept_of="readout").removed_norm > 0
    assert result.salient.words == tuple(row["text"].split()[-1] for row in ROWS)
    assert result.salient.missing is None


@pytest.mark.parametrize("salient", ["gradient_x_activation", "integrated_gradients"])
@pytest.mark.parametrize("protocol", ["controlled", "released"])
def test_both_attributions_work_in_both_protocols(model, words, salient, protocol):
    result = run(model, words, salient=salient, protocol=protocol, probe="logistic")

    is_causal = any(row.place in names.CAUSAL for row in result.rows)
    assert is_causal == (protocol == "controlled")
    hits = sum(w == row["label"] for w, row in zip(result.salient.words, ROWS, strict=True))
    assert hits > 0.9 * len(ROWS)
    assert (result.salient.missing is None) == (salient == "gradient_x_activation")


# Models


def test_an_encoder_is_read_at_its_first_token():
    encoder: Any = make_headless_encoder()
    rows = [
        {"text": f"word{i % 7} word{i % 2 + 20} word{i % 5}", "label": i % 2} for i in range(24)
    ]
    hooks = ("blocks.0.hook_out", "blocks.1.hook_out")
    task = AblationTask.prepare(encoder, hooks, rows, settings(readout=None), verbose=False)

    result = ablate(task, Clusters.fit(task.sample.lower, 6, hooks[0]))

    assert task.reader.readout == "first"
    assert task.ordinary is None
    assert result.ordinary_ce is None
    assert all(not row.ce_change for row in result.rows)
    assert result.row(names.EVERYWHERE).removed_norm > 0
    with pytest.raises(ValueError, match="no next token, so it has no logits for label_words"):
        AblationTask.prepare(
            encoder, hooks, rows, settings(readout=None, label_words=["word1", "word2"])
        )


def test_a_bridge_works_as_a_hooked_model_does(tmp_path):
    bridge = make_bridge(tmp_path)
    rows = [
        {"text": f"word{i % 7} word{i % 2 + 20} word{i % 5}", "label": i % 2} for i in range(24)
    ]
    hook = "blocks.0.hook_out"
    places = torch.randn(6, D_IN, generator=torch.Generator().manual_seed(0))

    result = run(bridge, Clusters(places, hook), rows, label_words=["word1", "word2"], readout=None)

    assert result.hook_names == (hook, "blocks.1.hook_out")
    assert result.ordinary_ce is not None
    assert result.row(names.EVERYWHERE, read_by=names.LABEL_WORDS).removed_norm > 0


# Dictionaries


def topk_transcoder() -> Any:
    sae = TopKTranscoder(TopKTranscoderConfig(d_in=D_IN, d_out=D_IN, d_sae=40, k=4))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return on(sae, hook_out=UPPER_HOOK)


def topk_sae(d_in: int = D_IN) -> Any:
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=40, k=4))
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(d_in, 40, generator=torch.Generator().manual_seed(0)))
        sae.W_dec.copy_(sae.W_enc.T)
    return on(sae)


def clvq(decoder: str = "token", hook_out: str | None = UPPER_HOOK) -> Any:
    sae = on(make_clvq(d_out=D_IN, decoder=decoder), hook_out=hook_out)
    small = make_model(D_IN)
    acts = [small.run_with_cache(row["text"])[1][LOWER_HOOK][0] for row in ROWS[:8]]
    return fit_codes(sae, torch.cat(acts))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        pytest.param(topk_sae, "topk", id="topk"),
        pytest.param(lambda: on(make_bae()), "bae", id="bae"),
        pytest.param(clvq, "clvq_vae", id="clvq"),
        pytest.param(lambda: clvq("transformer"), "clvq_vae", id="clvq transformer"),
        pytest.param(topk_transcoder, "topk_transcoder", id="topk transcoder"),
        pytest.param(
            lambda: on(make_transcoder(), hook_out=UPPER_HOOK), "transcoder", id="transcoder"
        ),
    ],
)
def test_dictionaries_of_all_kinds_are_measured(make, name):
    result = run(make_model(D_IN), make())

    assert name in result.dictionary
    assert result.hook_names == HOOKS
    # A latent that is read and written at the lower hook point says nothing of the upper one.
    upper = (names.UPPER,) if name not in ("topk", "bae") else ()
    for place in (names.LOWER, *upper, *names.CAUSAL):
        for row in (result.row(place), result.row(place, names.RANDOM_EQUAL)):
            assert 0 < row.removed_norm < 2
            assert row.rank == pytest.approx(1, abs=0.05)
    assert result.row(names.UPPER, names.LEACE).rank == 1
    with_concept = {row.place for row in result.rows if row.method == names.CONCEPT}
    assert (names.UPPER in with_concept) == bool(upper)
    assert all(len(ids) == 1 for ids in result.concept_ids)


def test_a_dictionary_of_a_single_layer_is_read_at_the_last_block():
    model = make_model(D_IN, n_layers=3)

    result = run(model, topk_sae(), causal=False)
    named = run(model, topk_sae(), causal=False, hook_name_out=UPPER_HOOK)

    assert result.hook_names == (LOWER_HOOK, "blocks.2.hook_resid_post")
    assert named.hook_names == HOOKS


def test_one_hook_point_may_be_both(model, words):
    result = run(model, words, hook_name_out=LOWER_HOOK)

    assert result.hook_names == (LOWER_HOOK, LOWER_HOOK)
    assert {row.place for row in result.rows} == {names.LOWER, *names.CAUSAL}
    # What is ablated everywhere is ablated in the mean.
    stored, everywhere = result.row(), result.row(names.EVERYWHERE)
    same = sum(a == b for a, b in zip(stored.correct, everywhere.correct, strict=True))
    assert same > 0.8 * len(ROWS)


def test_several_latents_go_together(model, words):
    result = run(model, words, rank=3, causal=False)

    assert all(len(ids) == 3 == len(set(ids)) for ids in result.concept_ids)
    assert result.row().rank == result.row(method=names.RANDOM).rank == 3
    assert result.row().removed_norm > run(model, words, causal=False).row().removed_norm


def test_three_classes(model, words):
    rows = make_rows(60, (GOOD, BAD, ODD))

    result = run(model, words, rows, label_words=("no", "yes", "maybe"), readout="last")

    assert result.label_names == (BAD, GOOD, ODD)
    assert result.chance == pytest.approx(1 / 3)
    assert result.row(names.SALIENT, names.LEACE).rank == 2


# Errors


def test_a_hook_that_the_model_lacks_is_refused_with_what_it_may_be(model):
    stray = Clusters(torch.zeros(2, D), "blocks.0.hook_resid_pots")
    with pytest.raises(ValueError, match=r"no hook point .*pots.*Did you mean .*resid_post"):
        run(model, stray)
    with pytest.raises(ValueError, match=r"no hook point 'blocks.7.hook_resid_post'"):
        run(
            model, Clusters(torch.zeros(2, D), LOWER_HOOK), hook_name_out="blocks.7.hook_resid_post"
        )


def test_a_dictionary_of_another_width_is_refused(model):
    with pytest.raises(ValueError, match=f"width {D + 1}; those at its hook point have {D}"):
        run(model, Clusters(torch.zeros(2, D + 1), LOWER_HOOK), causal=False)


def test_a_dictionary_of_which_nothing_is_active_is_refused():
    sae = make_bae()
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1.0)
    with pytest.raises(ValueError, match=r"No latent of bae is active on any token"):
        run(make_model(D_IN), on(sae), causal=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**row, "label": 1} for row in ROWS], "All 64 labels are '1'"),
        (ROWS[:3], "Each of 2 folds needs a text of every class; got 1 of 'bad', 2 of 'good'"),
        ([{"text": "good"}], "no column 'label'"),
        (
            LabeledTexts(["good", "bad"], torch.tensor([0, 0]), ["a", "b"], [None, None]),
            "two classes at least",
        ),
    ],
)
def test_labels_that_no_probe_learns_are_refused(model, words, rows, message):
    with pytest.raises(ValueError, match=message):
        run(model, words, rows)


def test_columns_can_be_named_and_a_data_frame_be_given(model, words):
    table = pd.DataFrame(ROWS).rename(columns={"text": "review", "label": "sentiment"})
    columns = {"text_column": "review", "label_column": "sentiment"}
    expected = run(model, words, causal=False)

    for data in (table, table.to_dict("records")):
        result = run(model, words, data, causal=False, **columns)

        assert result.labels == expected.labels
        assert result.label_names == expected.label_names
        with pytest.raises(ValueError, match="Its texts seem to be in 'review'"):
            run(model, words, data, causal=False)


@pytest.mark.parametrize("name", ["text_column", "label_column", "split"])
def test_columns_of_texts_that_are_read_already(model, words, name):
    with pytest.raises(ValueError, match=f"{name} is for data that are still to be read"):
        run(model, words, LabeledTexts.read(ROWS), causal=False, **{name: "other"})


def test_no_reference_texts_are_not_the_labeled_ones(model, words):
    with pytest.raises(ValueError, match="reference_texts is empty"):
        run(model, words, causal=False, reference_texts=[])


@pytest.mark.parametrize(
    ("label_words", "message"),
    [
        (("yes",), "one per class, in the order bad, good; got 1: 'yes'"),
        (("yes", "no", "maybe"), "got 3"),
        (("yes no", "yes maybe"), "begin with the same token"),
    ],
)
def test_label_words_that_do_not_tell_the_classes_apart_are_refused(
    model, words, label_words, message
):
    with pytest.raises(ValueError, match=message):
        run(model, words, readout="last", label_words=label_words)


@pytest.mark.parametrize("label_words", [("", "no"), ("yes", " ")])
def test_a_label_word_without_a_token_is_refused(model, words, label_words):
    with pytest.raises(ValueError, match=r"label_words .* has no token"):
        run(model, words, readout="last", label_words=label_words)


def test_a_model_without_a_tokenizer_is_refused(words):
    model = make_model(D)
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        run(model, words)
    model.tokenizer = make_tokenizer()
    assert run(model, words, causal=False).labels
