"""Examples of a bit in the order of their margins, tokens by lift, and what is left out as outliers."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bae_lens.activations.outlier_tokens import OutlierTokens
from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from bae_lens.report import collect_sentences
from bae_lens.scoring.tested_latents import TestedLatents
from tests.helpers import (
    HOOK,
    SINK,
    between,
    make_bae,
    make_clvq,
    make_model,
    make_sinking_model,
    make_training_bae,
    make_transcoder,
)

SETTINGS = ExampleSettings(n_tokens=None, n_strongest=5, n_random=5, n_left=3, n_right=2)


def texts_of(n: int = 60) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(f"word{w}" for w in rng.integers(40, size=3 + i % 6)) for i in range(n)]


def read_by_hand(model, texts):
    """Activations by text and position, BOS left out."""
    acts = {}
    for i, text in enumerate(texts):
        tokens = model.to_tokens(text)
        x = model.run_with_cache(tokens, names_filter=[HOOK])[1][HOOK][0]
        for position in range(1, tokens.shape[1]):
            acts[i, position] = (int(tokens[0, position]), x[position].detach())
    return acts


@pytest.mark.parametrize("make", [make_bae, make_training_bae])
def test_the_strongest_examples_of_a_bit_have_the_largest_margin(make):
    model, texts = make_model(), texts_of()
    sae = between(make(), HOOK, None)
    with torch.no_grad():
        # So that some bits are on at most tokens, and say something where they are off.
        sae.b_enc[::3] += 3
    records = collect_examples(model, sae, texts, SETTINGS)

    places, x = zip(*((k, v) for k, (_, v) in read_by_hand(model, texts).items()), strict=True)
    pre = sae.process_sae_in(torch.stack(x)) @ sae.W_enc + sae.b_enc
    assert records.order == "margin"
    assert any(own.when_off for own in records.latents)
    n_checked = 0
    for own in records.latents:
        margin = pre[:, own.index].detach() * (-1 if own.when_off else 1)
        fires = margin > 0
        assert int(fires.sum()) == own.n_firings
        expected = margin[fires].sort(descending=True).values[:5]
        found = [e.margin for e in own.strongest]
        # Kept in half precision.
        np.testing.assert_allclose(np.array(found, float), expected, rtol=1e-3, atol=1e-4)
        for e in (*own.strongest, *own.random, *(own.more_random or ())):
            own_margin = margin[places.index((e.text, e.position))]
            assert e.margin == pytest.approx(float(own_margin), rel=1e-3, abs=1e-4)
        n_checked += own.n_firings > 5
    assert n_checked > 10


def test_scores_draw_from_random_samples_whatever_the_margins():
    records = collect_examples(make_model(), between(make_bae(), HOOK, None), texts_of(), SETTINGS)
    tested = TestedLatents(records)
    for own in records.latents:
        assert own.more_random is not None
        shown = tested.examples(own.index, "strongest")
        assert set(shown) <= set(own.more_random)
        assert len(own.more_random) == min(5, own.n_firings)
        if own.n_firings >= 10:
            places = [{(e.text, e.position) for e in s} for s in (own.random, own.more_random)]
            assert places[0].isdisjoint(places[1])


def test_evidence_without_margins_is_in_random_order(tmp_path):
    records = collect_examples(make_model(), between(make_bae(), HOOK, None), texts_of(), SETTINGS)
    records.save(tmp_path / "examples.json")
    assert LatentRecords.load(tmp_path / "examples.json") == records
    # As it was written before there were any.
    old = json.loads((tmp_path / "examples.json").read_text())
    del old["outliers"]
    for latent in old["latents"]:
        latent["strongest"] = latent.pop("more_random")
        del latent["lift_tokens"]
        for example in (*latent["strongest"], *latent["random"]):
            del example["margin"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = LatentRecords.load(tmp_path / "old.json")
    assert read.order == "random"
    assert read.outliers is None
    assert TestedLatents(read).examples(3, "strongest") == tuple(
        e._replace(margin=None) for e in TestedLatents(records).examples(3, "strongest")
    )


@pytest.mark.parametrize("make", [make_transcoder, make_clvq])
def test_other_codes_are_ordered_by_their_strength(make):
    records = collect_examples(make_model(), between(make(), HOOK), texts_of(), SETTINGS)
    assert records.order == "strength"
    for own in records.latents:
        strengths = [e.strength for e in own.strongest]
        assert strengths == sorted(strengths, reverse=True)
        assert own.more_random is None
        assert all(e.margin is None for e in own.strongest)


def test_tokens_by_lift():
    model, texts = make_model(), texts_of()
    sae = between(make_bae(), HOOK, None)
    records = collect_examples(model, sae, texts, SETTINGS)

    tokens, x = zip(*read_by_hand(model, texts).values(), strict=True)
    tokens, fires = np.array(tokens), (sae.encode(torch.stack(x)) != 0).numpy()
    for own in records.latents:
        says = fires[:, own.index] != own.when_off
        lifts = {}
        for token in set(tokens[says].tolist()):
            n = int((tokens[says] == token).sum())
            if n >= 3:
                lifts[token] = n / says.sum() / (tokens == token).mean()
        assert own.lift_tokens is not None
        expected = sorted(lifts.values(), reverse=True)[:10]
        np.testing.assert_allclose([c.lift for c in own.lift_tokens], expected, rtol=1e-9)
        for count in own.lift_tokens:
            assert count.lift == pytest.approx(lifts[count.token])
            assert count.n == (tokens[says] == count.token).sum()


def test_sinks_are_no_evidence_and_are_counted(caplog):
    model, texts = make_sinking_model(), texts_of()
    sae = between(make_bae(), HOOK, None)
    n_sinks = sum(token == SINK for token, _ in read_by_hand(model, texts).values())
    assert n_sinks > 5

    everything = collect_examples(model, sae, texts, SETTINGS, exclude_outlier_tokens=False)
    one, other = (
        collect_examples(model, sae, texts, replace(SETTINGS, batch_size=n)) for n in (1, 7)
    )

    assert everything.outliers is None
    for found in (one, other):
        assert found.outliers is not None
        assert found.outliers.n == n_sinks
        assert found.outliers.multiple == 10
        assert found.n_tokens == everything.n_tokens - n_sinks
        tokens = {c.token for own in found.latents for c in own.top_tokens}
        assert SINK not in tokens
        assert len(tokens) > 10
    assert f"{n_sinks} of {everything.n_tokens} tokens" in caplog.text
    # All examples of a list read alike with them.
    most_frequent = [own.top_tokens[0].token for own in everything.latents if own.top_tokens]
    assert SINK in most_frequent

    # A saved reference is what is used, and stored sentences have no code there either.
    sae.cfg.metadata.outlier_reference_norms = {HOOK: 2.0}
    kept = collect_examples(model, sae, texts, SETTINGS)
    assert kept.outliers is not None
    assert kept.outliers.reference_norm == 2
    given = OutlierTokens({HOOK: one.outliers.reference_norm}) if one.outliers else False
    again = collect_examples(model, sae, texts, one.settings, exclude_outlier_tokens=given)
    assert again == one
    sentences = collect_sentences(model, sae, texts, again, n_sentences=60)
    sinks = [
        (codes, others)
        for s in sentences
        for string, codes, others in zip(s.strings, s.codes, s.others or (), strict=True)
        if string.strip() == f"word{SINK - 4}"
    ]
    assert len(sinks) == n_sinks
    assert set(sinks) == {((), ())}


def test_all_that_fires_at_a_token_of_a_stored_sentence_is_kept():
    model, texts = make_model(), texts_of(10)
    sae = between(make_bae(), HOOK, None)
    records = collect_examples(model, sae, texts, SETTINGS)
    when_off = {own.index for own in records.latents if own.when_off}
    order = np.random.default_rng(0).permutation(10)
    acts = read_by_hand(model, texts)
    for i, s in enumerate(collect_sentences(model, sae, texts, records, n_codes=2)):
        assert s.others is not None
        for position in range(1, len(s.strings)):
            on = set(sae.encode(acts[int(order[i]), position][1]).nonzero().flatten().tolist())
            best = {j for j, _ in s.codes[position]}
            assert len(best) <= 2
            assert best | set(s.others[position]) == on ^ when_off
            assert best.isdisjoint(s.others[position])
            assert list(s.others[position]) == sorted(s.others[position])
