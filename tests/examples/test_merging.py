"""What parts of a corpus have shown, merged, beside what is seen of it in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bae_lens.distributed import start_process_group
from bae_lens.examples import LatentRecords, collect_examples
from bae_lens.examples.collector import Collector
from bae_lens.examples.pair_counts import PairCounts
from bae_lens.examples.token_counts import TokenCounts
from tests.distributed.ranks import on_ranks, results_of
from tests.examples.test_collect import planted, settings, texts_of
from tests.helpers import between, make_bae, make_model, make_text, make_transcoder

N = 400


def collected(strength: Any, begin: int, end: int) -> Collector:
    rng = np.random.default_rng(1)
    acts = rng.exponential(size=(N, 6)) * (rng.random((N, 6)) < [0.05, 0.2, 0.4, 0.7, 0.95, 0])
    tokens, classes = rng.integers(30, size=N), rng.integers(3, size=N)
    collector = Collector(6, strength, settings(n_corpus_tokens=20), 3)
    block = planted(acts if strength == "activation" else (acts > 0), tokens, classes)
    # Numbers of tokens are those of the whole, so that what is drawn is too.
    collector.first_token = begin
    collector.update(block[begin:end])
    return collector


@pytest.mark.parametrize("strength", ["activation", "surprise"])
def test_parts_merged_are_the_whole(strength: Any):
    whole = collected(strength, 0, N)
    merged = collected(strength, 0, 150)
    merged.merge(collected(strength, 150, 151))
    merged.merge(collected(strength, 151, N))
    assert (merged.n_tokens, merged.n_texts) == (N, 41), "a text that is divided counts twice"
    for name in ("n_on", "token_totals", "class_counts", "class_totals"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert merged.pairs is not None
    assert whole.pairs is not None
    assert np.array_equal(merged.pairs.together, whole.pairs.together)
    assert merged.corpus_sample is not None
    assert whole.corpus_sample is not None
    assert len(merged.corpus_sample._firing) == 20
    pairs = [(merged.strongest, whole.strongest), (merged.random, whole.random)]
    for one, other in [*pairs, (merged.corpus_sample.reservoir, whole.corpus_sample.reservoir)]:
        assert np.array_equal(one.priorities, other.priorities)
        assert np.array_equal(one.places, other.places)
        assert np.array_equal(one.values, other.values, equal_nan=True)
    bins, every = merged.values.counts, whole.values.counts
    assert (bins != every).nnz == 0
    assert every.sum() > 0 or strength == "surprise", "there are no margins here"


def test_counts_that_do_not_fit_stay_within_their_error():
    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.5, 3000) % 200
    parts = [TokenCounts(1, 8) for _ in range(3)]
    for part, own in zip(parts, np.array_split(tokens, 3), strict=True):
        part.update(np.zeros(len(own), dtype=np.int64), own)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    exact = np.bincount(tokens, minlength=parts[0].counts.shape[1])
    kept = parts[0].counts.toarray()[0]
    short = exact[: len(kept)] - kept
    assert parts[0].n_counted[0] == 3000
    assert (short >= 0).all()
    assert short[kept > 0].max() <= parts[0].short_by[0] < 3000 / 8


def test_pairs_over_more_tokens_than_can_be_counted_are_refused():
    counts, other = PairCounts(2), PairCounts(2)
    counts._n_tokens = other._n_tokens = 2**30
    with pytest.raises(ValueError, match="2,147,483,648"):
        counts.merge(other)
    assert counts._n_tokens == 2**30


def collect_on_ranks(folder: Path) -> dict[str, LatentRecords | str]:
    start_process_group()
    model, sae = make_model(), between(make_transcoder(), hook_out=None)
    found: dict[str, Any] = {}
    for name, dictionary, source, labels in given():
        found[name] = collect_examples(
            model, dictionary, source, settings(), labels=labels, all_ranks=True
        )
    try:
        collect_examples(model, sae, ["word1"], settings(), all_ranks=True)
    except ValueError as error:
        found["too little"] = str(error)
    return found


def given() -> list[tuple[str, Any, Any, Any]]:
    """Dictionary, corpus and labels, by name."""
    transcoder, bits = between(make_transcoder(), hook_out=None), between(make_bae(), hook_out=None)
    texts = texts_of()
    return [
        ("texts", transcoder, texts, [i % 3 for i in range(len(texts))]),
        ("bits", bits, texts, None),
        ("dataset", transcoder, make_text(20), None),
    ]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of(on_ranks(2, collect_on_ranks, tmp_path_factory.mktemp("x"), group=False))


@pytest.mark.parametrize("name", ["texts", "bits"])
def test_ranks_see_what_one_process_sees(ranks: list[dict[str, Any]], name: str):
    [(dictionary, source, labels)] = [g[1:] for g in given() if g[0] == name]
    alone = collect_examples(make_model(), dictionary, source, settings(), labels=labels)
    assert ranks[0][name] == ranks[1][name]
    records = ranks[0][name]
    for field in ("n_tokens", "n_texts", "class_shares", "weights_sha256"):
        assert getattr(records, field) == getattr(alone, field), field
    for one, other in zip(records.latents, alone.latents, strict=True):
        for field in ("n_firings", "rate", "when_off", "neighbors", "class_shares"):
            assert getattr(one, field) == getattr(other, field), field
        counts = [x.histogram and sum(x.histogram.counts) for x in (one, other)]
        # Of a bit they depend on where blocks end, as its tokens do.
        assert counts[0] == counts[1] if name == "texts" else counts[0] is not None
        assert all(e.activations and e.activations[e.marked] for e in one.random)
        strengths = [[e.margin or e.strength for e in x.strongest] for x in (one, other)]
        assert strengths[0] == pytest.approx(strengths[1], rel=1e-3)
        if name == "texts":
            places = [[(e.text, e.position) for e in x.strongest] for x in (one, other)]
            assert places[0] == places[1], "texts have the numbers of the whole list"
            # Of a bit they depend on where blocks end.
            tops = [{c.token: c.n for c in x.top_tokens} for x in (one, other)]
            assert tops[0] == tops[1]
        assert one.count_error <= one.n_firings


def test_joined_texts_are_shared_too(ranks: list[dict[str, Any]]):
    records = ranks[0]["dataset"]
    assert records == ranks[1]["dataset"]
    assert records.n_tokens > 0
    numbers = {e.text % 2 for latent in records.latents for e in latent.random}
    assert numbers == {0, 1}


def test_fewer_texts_than_ranks_are_refused(ranks: list[dict[str, Any]]):
    for found in ranks:
        assert "has 1 rows, fewer than there are processes (2)" in found["too little"]
