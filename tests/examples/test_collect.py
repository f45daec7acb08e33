"""Evidence of planted codes, and of dictionaries against the model read by hand."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from sae_lens import ActivationsStore
from scipy import sparse

from bae_lens.activations.sentence_store import SentenceStore
from bae_lens.concept_ablation import Clusters
from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from bae_lens.examples import collector as collecting
from bae_lens.examples import corpus as reading
from bae_lens.examples.collector import Collector
from bae_lens.examples.corpus import NOTHING, TokenBlock, place_dtype
from bae_lens.examples.token_text import TokenStrings
from bae_lens.report.sentences import collect_sentences
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    between,
    fit_codes,
    make_abstopk,
    make_bae,
    make_bridge,
    make_clvq,
    make_headless_encoder,
    make_model,
    make_text,
    make_training_bae,
    make_transcoder,
)

SMALL = ExampleSettings(n_tokens=None, n_strongest=3, n_random=4, n_left=3, n_right=2)
N_SPECIAL = 4


def settings(**overrides: Any) -> ExampleSettings:
    return ExampleSettings(**{**vars(SMALL), **overrides})


def texts_of(n: int = 30) -> list[str]:
    """Of one to six words, some of them empty."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"word{w}" for w in rng.integers(40, size=1 + i % 6)) for i in range(n)]
    texts[4], texts[11] = "", "  "
    return texts


# Planted codes, without a model


def planted(
    acts: np.ndarray, tokens: np.ndarray | None = None, classes: np.ndarray | None = None
) -> TokenBlock:
    """A block of one-token windows; the token of row i is text i // 10, position i % 10."""
    n = len(acts)
    places = np.empty(n, place_dtype(SMALL))
    places["text"], places["position"] = np.arange(n) // 10, np.arange(n) % 10
    places["window"] = NOTHING
    tokens = np.arange(n) % 7 if tokens is None else tokens
    places["window"][:, SMALL.n_left] = tokens
    firings = sparse.csr_matrix(acts.astype(np.float32))
    return TokenBlock(firings, tokens, places, np.full(n, -1) if classes is None else classes)


def records_of(
    block: TokenBlock,
    strength: Any = "activation",
    chunk: int = 10**9,
    n_classes: int = 0,
    **overrides: Any,
):
    n, d = block.firings.shape
    collector = Collector(d, strength, settings(**overrides), n_classes)
    for begin in range(0, n, chunk):
        collector.update(block[begin : min(begin + chunk, n)])
    coder: Any = SimpleNamespace(strength=strength, codebook=torch.eye(d))
    return list(collector.latents(coder, TokenStrings(None)))


def rows_of(examples: Any) -> list[int]:
    return [10 * e.text + e.position for e in examples]


def make_bits(n: int = 400) -> np.ndarray:
    """Bits that are on: never, rarely, often, for more than half, nearly always, always."""
    rates = np.array([0, 0.02, 0.3, 0.7, 0.98, 1])
    return (np.random.default_rng(0).random((n, 6)) < rates).astype(np.float32)


def test_what_a_bit_says_is_the_rarer_value():
    bits = make_bits()

    found = records_of(planted(bits), "surprise")

    assert [latent.when_off for latent in found] == [False] * 3 + [True] * 3
    for j, latent in enumerate(found):
        says = bits[:, j] != latent.when_off
        assert latent.n_firings == says.sum()
        assert latent.rate == says.mean() <= 0.5
        for examples, n in ((latent.strongest, 3), (latent.random, 4)):
            assert len(examples) == min(n, says.sum())
            assert says[rows_of(examples)].all()
            assert {e.strength for e in examples} <= {-math.log2(says.mean() or 1)}
        if says.sum() >= 7:
            assert set(rows_of(latent.strongest)).isdisjoint(rows_of(latent.random))
    assert found[0].n_firings == found[5].n_firings == 0


def test_a_bit_and_its_opposite_have_the_same_evidence_but_the_draw():
    bits = make_bits()
    tokens = np.random.default_rng(1).integers(7, size=len(bits))

    found = records_of(planted(bits, tokens), "surprise", chunk=100)
    opposite = records_of(planted(1 - bits, tokens), "surprise", chunk=100)

    for one, other in zip(found, opposite, strict=True):
        assert one.when_off != other.when_off or one.n_firings == 0
        if one.n_firings == 0:
            continue
        assert (one.strongest, one.random) == (other.strongest, other.random)
        assert one.rate == other.rate
        assert one.top_tokens == other.top_tokens
        assert one.count_error == other.count_error == 0
        assert one.neighbors == other.neighbors


def test_bits_that_change_their_side_say_how_many_tokens_were_not_counted():
    bits = np.zeros((300, 2), dtype=np.float32)
    bits[:30, 0], bits[60:, 0] = 1, 1  # at first half on, then always: off at 30 of 300

    latent = records_of(planted(bits), "surprise", chunk=60)[0]
    known = sum(count.n for count in latent.top_tokens)

    assert latent.when_off
    assert (latent.n_firings, latent.count_error) == (30, 30 - known)
    assert latent.count_error == 30
    # Examples miss nothing.
    assert all(30 <= row < 60 for row in rows_of(latent.strongest + latent.random))


@pytest.mark.parametrize("strength", ["activation", "surprise"])
def test_blocks_of_any_size_give_the_same(strength, monkeypatch):
    acts = make_bits()
    if strength == "activation":
        acts = acts * np.random.default_rng(2).normal(size=acts.shape)
    block = planted(acts, classes=np.arange(400) % 3)
    whole = records_of(block, strength, n_classes=3)

    monkeypatch.setattr(collecting, "_MAX_PAIRS", 50)
    for chunk in (7, 100):
        found = records_of(block, strength, chunk, n_classes=3)
        if strength == "surprise":  # whose tokens may depend on it
            assert [(x.strongest, x.random, x.neighbors, x.class_shares) for x in found] == [
                (x.strongest, x.random, x.neighbors, x.class_shares) for x in whole
            ]
        else:
            assert found == whole


def test_activations_of_either_sign_are_as_strong_as_their_magnitude():
    acts = np.zeros((40, 2))
    acts[:8, 0] = [1, -9, 2, -2.5, 0.5, 8, -0.1, 3]
    acts[:8, 1] = np.abs(acts[:8, 0])
    signed, unsigned = records_of(planted(acts))
    assert [e.strength for e in signed.strongest] == [-9, 8, 3]
    assert [e.strength for e in unsigned.strongest] == [9, 8, 3]
    assert signed.histogram == unsigned.histogram
    # Of codes the nearest has the least distance.
    codes = np.where(np.arange(8) < 4, -acts[:8, 1], 0)[:, None]
    [code] = records_of(planted(codes), "nearness")
    assert [e.strength for e in code.strongest] == [-1, -2, -2.5]


def test_the_strongest_of_an_sae_with_activations_of_either_sign():
    model, sae = make_model(), make_abstopk()
    records = collect_examples(model, sae, make_text(20), settings(n_random=2000))
    assert any(e.strength < 0 for latent in records.latents for e in latent.strongest)
    for latent in records.latents:
        sizes = sorted((abs(e.strength) for e in latent.random), reverse=True)
        assert len(sizes) == latent.n_firings
        assert [abs(e.strength) for e in latent.strongest] == sizes[:3]


def test_a_sample_of_off_bits_is_from_all_over_the_corpus():
    n, d = 400, 300
    bits = np.ones((n, d), dtype=np.float32)
    bits[::2] = np.random.default_rng(3).random((n // 2, d)) < 0.2

    found = records_of(planted(bits), "surprise", chunk=37)

    rows = [row for latent in found for row in rows_of(latent.random) if latent.when_off]
    counts = np.bincount(np.array(rows) // 40, minlength=10)
    # 1,200 draws: chi-squared with 9 degrees of freedom is below 27.9 but once in a thousand times.
    assert len(rows) == 4 * d
    assert ((counts - len(rows) / 10) ** 2 / (len(rows) / 10)).sum() < 27.9


def test_the_strongest_tokens_lift_and_classes_of_planted_latents():
    acts = np.zeros((100, 2))
    tokens = np.arange(100) % 5
    classes = np.where(np.arange(100) < 80, 0, 1)
    acts[tokens == 2, 0] = 1 + np.arange(20) / 10  # 20 times at token 2
    acts[0, 0] = 9
    acts[85:95, 1] = 1

    found = records_of(planted(acts, tokens, classes), n_classes=2)

    assert rows_of(found[0].strongest) == [0, 97, 92]
    assert [e.strength for e in found[0].strongest] == pytest.approx([9, 2.9, 2.8])
    assert [(c.string, c.n, c.token) for c in found[0].top_tokens] == [
        ("<2>", 20, 2),
        ("<0>", 1, 0),
    ]
    assert found[0].top_tokens[0].lift == pytest.approx((20 / 21) / (20 / 100))
    assert found[0].class_shares == pytest.approx((17 / 21, 4 / 21))
    assert found[1].class_shares == (0, 1)
    assert found[1].rate == pytest.approx(0.1)


class _Words(TokenStrings):
    """Tokens that are called as they are listed."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(None)
        self._known = dict(enumerate(words))


def test_lemmas_add_up_forms(monkeypatch):
    forms = {"dogs": "dog", "barked": "bark"}
    fake = SimpleNamespace(lemmatize=lambda word, lang: forms.get(word, word))
    monkeypatch.setitem(sys.modules, "simplemma", fake)
    words = [" dog", " dogs", " barked", "!"]
    acts = np.zeros((40, 2))
    acts[np.arange(40) % 4 < 2, 0] = 1
    block = planted(acts, np.arange(40) % 4)
    collector = Collector(2, "activation", settings(lemmas="en"), 0)
    collector.update(block)
    coder: Any = SimpleNamespace(strength="activation")

    found = list(collector.latents(coder, _Words(words)))

    assert found[0].top_lemmas is not None
    [lemma] = found[0].top_lemmas
    assert (lemma.string, lemma.n, lemma.token) == ("dog", 20, None)
    assert lemma.lift == pytest.approx(2)
    assert found[1].top_lemmas == ()


def test_no_pairs_of_too_many_latents(monkeypatch, caplog):
    monkeypatch.setattr(collecting, "MAX_PAIRED", 5)

    found = records_of(planted(make_bits()), "surprise")

    assert [latent.neighbors for latent in found] == [None] * 6
    assert "5 latents at most" in caplog.text


def test_memory_does_not_grow_with_the_corpus():
    collector = Collector(6, "surprise", settings(n_counters=10, n_top_tokens=5), 0)
    rng = np.random.default_rng(0)

    def n_bytes() -> int:
        places = (
            r.places.nbytes + r.priorities.nbytes for r in (collector.random, collector.strongest)
        )
        return sum(places) + collector.tokens.counts.data.nbytes

    sizes = []
    for _ in range(30):
        bits = (rng.random((200, 6)) < 0.4).astype(np.float32)
        collector.update(planted(bits, rng.integers(1000, size=200)))
        sizes.append(n_bytes())

    assert max(sizes[10:]) <= sizes[0] + 12 * 2 * 10 * 8


# Models and dictionaries


DICTIONARIES = {
    "bae": make_bae,
    "training bae": make_training_bae,
    "bae of levels": lambda: make_bae(n_levels=3, feedback_steps=1),
    "transcoder": make_transcoder,
    "clvq_vae": lambda: make_clvq(d_out=D_IN, decoder="token"),
    "clusters": lambda: Clusters(
        torch.randn(5, D_IN, generator=torch.Generator().manual_seed(0)), HOOK
    ),
}


def dictionary(kind: str, model: Any, hook: str = HOOK) -> Any:
    made = DICTIONARIES[kind]()
    if kind == "clusters":
        return replace(made, hook_name=hook)
    if kind == "clvq_vae":
        tokens = model.to_tokens(texts_of()[5])
        fit_codes(made, model.run_with_cache(tokens)[1][hook])
    return between(made, hook)


def code_by_hand(made: Any, x: torch.Tensor) -> torch.Tensor:
    if isinstance(made, Clusters):
        nearest = torch.cdist(x, made.centroids).argmin(-1)
        return torch.nn.functional.one_hot(nearest, len(made.centroids))
    return made.encode(x).detach()


@pytest.mark.parametrize("kind", DICTIONARIES)
@pytest.mark.parametrize("which", ["decoder", "bridge", "encoder"])
def test_against_texts_read_one_by_one(kind, which, tmp_path):
    model: Any = {
        "decoder": make_model,
        "bridge": lambda: make_bridge(tmp_path),
        "encoder": make_headless_encoder,
    }[which]()
    hook = HOOK if which == "decoder" else "blocks.0.hook_out"  # as a Bridge calls it
    texts, made = texts_of(), dictionary(kind, model, hook)

    found = collect_examples(model, made, texts, settings(batch_size=4))

    # Every latent's firings: text and position.
    n_tokens, seen, windows = 0, [], {}
    for i, text in enumerate(texts):
        if not text.strip():
            continue
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids[0, 0] != 0 and which != "encoder":
            ids = torch.cat([torch.zeros(1, 1, dtype=torch.long), ids], 1)
        code = code_by_hand(made, model.run_with_cache(ids)[1][hook][0])
        for position in range(ids.shape[1]):
            if ids[0, position] >= 3:
                n_tokens += 1
                seen.append((i, position, int(ids[0, position]), code[position] != 0))
                low = max(0, position - 3)
                window = tuple(ids[0, low : position + 3].tolist())
                windows[i, position] = (window, position - low)
    assert found.n_tokens == n_tokens
    assert found.n_texts == len({i for i, *_ in seen})
    for latent in found.latents:
        own = [(i, p, t) for i, p, t, fired in seen if bool(fired[latent.index]) != latent.when_off]
        assert latent.n_firings == len(own)
        assert latent.rate == pytest.approx(len(own) / n_tokens)
        # Every token at which it fires can be had with enough counters.
        assert latent.count_error == 0
        best = max((t for *_, t in own), key=[t for *_, t in own].count, default=None)
        assert (latent.top_tokens[0].n if own else None) == (
            [t for *_, t in own].count(best) if own else None
        )
        assert len(latent.random) == min(4, len(own))
        assert len(latent.strongest) == min(3, len(own))
        for example in latent.strongest + latent.random:
            key = (example.text, example.position)
            assert key in {(i, p) for i, p, _ in own}
            assert (example.tokens, example.marked) == windows[key]
            assert len(example.strings) == len(example.tokens)
            assert example.strings[example.marked].strip() == model.tokenizer.decode(
                [example.tokens[example.marked]]
            )
        strengths = [example.strength for example in latent.strongest]
        assert strengths == sorted(strengths, reverse=True)
    json_text = json.dumps(found.to_dict(), allow_nan=False)
    assert LatentRecords.from_dict(json.loads(json_text)) == found


def without_strength(records: LatentRecords) -> list[Any]:
    """What rounding in the model does not change: which tokens, and of latents without strengths of
    their own, in which order."""
    return [
        (
            x.n_firings,
            x.top_tokens,
            x.count_error,
            *([e[:2] + e[3:7] for e in part] for part in (x.strongest, x.random)),
            [n.latent for n in x.neighbors or ()],
        )
        for x in records.latents
    ]


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_any_batch_size_and_block_size_give_the_same(kind, monkeypatch):
    model = make_model()
    made = dictionary(kind, model)
    one, other = (
        collect_examples(model, made, texts_of(), settings(n_tokens=60, batch_size=n))
        for n in (1, 7)
    )
    monkeypatch.setattr(reading, "_MAX_BLOCK", 11)
    third = collect_examples(model, made, texts_of(), settings(n_tokens=60, batch_size=7))

    assert one.n_tokens == other.n_tokens == 60
    assert without_strength(one) == without_strength(other)
    if kind in ("transcoder", "clvq_vae", "clusters"):
        assert without_strength(one) == without_strength(third)


def test_a_seed_draws_again():
    model, made = make_model(), between(make_transcoder())

    def drawn(seed: int) -> list[Any]:
        found = collect_examples(model, made, texts_of(), settings(seed=seed))
        return [latent.random for latent in found.latents]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_few_tokens_are_from_all_over_the_dataset():
    made = between(make_transcoder())
    texts = [f"word{i % 40}" for i in range(400)]

    found = collect_examples(make_model(), made, texts, settings(n_tokens=40))

    seen = {e.text for latent in found.latents for e in latent.random}
    assert len(seen) > 20
    assert min(seen) < 80
    assert max(seen) >= 320
    # Each is what that text has.
    example = found[max(range(D_SAE), key=lambda j: found[j].n_firings)].random[0]
    assert example.strings[example.marked].strip() == texts[example.text]


@pytest.mark.parametrize("as_dataset", [True, False])
def test_class_shares_are_of_the_labeled_texts(as_dataset):
    texts = ["word1 word2", "", "word3 word3 word3", "word1 word4 word5 word6"]
    labels = ["pos", "neg", "neg", "pos"]
    data = Dataset.from_dict({"text": texts}) if as_dataset else texts
    made = between(make_transcoder())

    found = collect_examples(make_model(), made, data, SMALL, labels=labels)

    assert found.class_names == ("neg", "pos")
    assert found.class_shares == pytest.approx((3 / 9, 6 / 9))
    for latent in found.latents:
        shares = latent.class_shares
        assert shares is not None
        assert sum(shares) == pytest.approx(1 if latent.n_firings else 0)
        if latent.n_firings <= 3:  # all of them are among the examples
            own = [e.text for e in latent.strongest]
            assert shares[0] * latent.n_firings == pytest.approx(own.count(2))


def test_a_dataset_is_read_as_the_dictionary_was_trained():
    model, made = make_model(), between(make_bae())

    found = collect_examples(model, made, make_text(), settings(n_tokens=200))
    store = ActivationsStore.from_sae(model, made, make_text(), streaming=False)
    from_store = collect_examples(model, made, store, settings(n_tokens=200))

    assert found.n_tokens == from_store.n_tokens == 200
    # Joined texts: BOS, and 15 words.
    assert found.n_texts >= 200 / (CONTEXT_SIZE - 1)
    examples = [e for latent in found.latents for e in latent.random]
    assert max(e.position for e in examples) < CONTEXT_SIZE
    assert all(e.tokens[e.marked] >= N_SPECIAL for e in examples)


def test_all_of_a_store_is_read_to_its_last_sequence():
    model, made = make_model(), between(make_bae())
    store = ActivationsStore.from_sae(
        model, made, make_text(9), streaming=False, store_batch_size_prompts=4
    )
    sequences = 0
    try:
        while True:
            store.get_batch_tokens(1, raise_at_epoch_end=True)
            sequences += 1
    except StopIteration:
        pass
    assert sequences % 4

    assert collect_examples(model, made, store, SMALL).n_texts == sequences


def test_a_store_of_sentences_is_read_from_its_beginning():
    model, made = make_model(), between(make_bae())
    store = SentenceStore(model, texts_of(), [HOOK], context_size=CONTEXT_SIZE)
    store.get_batch(5)

    found = collect_examples(model, made, store, SMALL, labels=[0, 1] * 15)

    assert found.n_texts == 28
    assert found.class_names == ("0", "1")


def test_special_tokens_count_where_asked_for():
    model, made = make_model(), between(make_bae())

    found = collect_examples(model, made, texts_of(), SMALL, exclude_special_tokens=False)

    assert found.n_tokens == collect_examples(model, made, texts_of(), SMALL).n_tokens + 28


def test_a_short_text_is_told(caplog):
    found = collect_examples(make_model(), between(make_bae()), ["word1"], settings(n_tokens=9))

    assert found.n_tokens == 1
    assert "The text ended after 1 of 9 tokens." in caplog.text


# Errors


def collect_small(source: Any = None, made: Any = None, **kwargs: Any) -> LatentRecords:
    made = between(make_bae()) if made is None else made
    return collect_examples(make_model(), made, source or texts_of(), SMALL, **kwargs)


def test_no_token_is_an_error():
    with pytest.raises(ValueError, match="no token that counts"):
        collect_small(["", " "])


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got 29 labels for 30 texts"):
        collect_small(labels=[0] * 29)
    with pytest.raises(ValueError, match=r"whole number or name a text; got 0\.5"):
        collect_small(labels=[0.5] * 30)
    stream = make_text(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="got 3 labels, and there is a text"):
        collect_small(stream, labels=[0, 1, 0])


def test_labels_of_texts_that_are_joined_are_refused():
    made = between(make_bae())
    store = ActivationsStore.from_sae(make_model(), made, make_text(), streaming=False)

    with pytest.raises(ValueError, match="joins texts"):
        collect_small(store, made, labels=[0] * 160)


def test_a_hook_that_the_model_lacks_is_named():
    with pytest.raises(ValueError, match=r"no such hook.*Did you mean blocks"):
        collect_small(made=between(make_bae(), "blocks.0.hook_resid_pots"))


def test_activations_of_another_width_are_refused():
    with pytest.raises(ValueError, match="Is it of this model and hook point"):
        collect_small(made=between(make_bae(), "blocks.0.mlp.hook_post"))


def test_clusters_need_texts():
    with pytest.raises(ValueError, match="give a dataset or a list of texts; got None"):
        collect_examples(make_model(), Clusters(torch.zeros(2, D_IN), HOOK), None, SMALL)


def test_lemmas_without_their_package_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplemma", None)
    model: Any = None

    with pytest.raises(ImportError, match="simplemma"):
        collect_examples(model, between(make_bae()), texts_of(), settings(lemmas="en"))


# Models that have no BOS, texts that are missing, and what is no text


def test_texts_of_a_model_without_bos_have_none():
    model, sae = make_model(), make_bae()
    sae.cfg.metadata.hook_name = HOOK
    first = {}
    for wanted in (True, False):
        model.cfg.default_prepend_bos = wanted
        records = collect_examples(model, sae, ["word1 word2"], SMALL)
        assert records.n_tokens == 2
        windows = {tuple(e.tokens) for latent in records.latents for e in latent.random}
        first[wanted] = {window[0] for window in windows}
        [shown] = collect_sentences(model, sae, ["word1 word2"], records)
        assert ("<bos>" in "".join(shown.strings)) == wanted
    assert first == {True: {0}, False: {5}}


@pytest.mark.parametrize("seed", range(4))
def test_missing_texts_are_passed_over_with_their_labels(seed):
    model, sae = make_model(), make_bae()
    sae.cfg.metadata.hook_name = HOOK
    texts = [None, "word1", "word2 word3", "word4 word5 word6"]
    given: list[Any] = [texts, Dataset.from_dict({"text": texts})]
    for source in given:
        records = collect_examples(
            model, sae, source, settings(seed=seed), labels=["x", "a", "b", "a"]
        )
        assert records.n_texts == 3
        assert records.class_names is not None
        assert records.class_shares is not None
        shares = dict(zip(records.class_names, records.class_shares, strict=True))
        assert shares == pytest.approx({"a": 4 / 6, "b": 2 / 6, "x": 0})


def test_a_text_that_no_file_can_hold_is_refused_by_its_number():
    sae = make_bae()
    sae.cfg.metadata.hook_name = HOOK
    with pytest.raises(ValueError, match=r"^Text 2 has .* half of a surrogate pair"):
        collect_examples(make_model(), sae, ["word1", "word2", "\ud800"], settings(seed=3))


def test_a_text_without_end_and_without_tokens_ends_with_an_error():
    def rows() -> Any:
        while True:
            yield {"text": "<eos> <pad>"}

    sae = make_bae()
    sae.cfg.metadata.hook_name = HOOK
    store = SentenceStore(
        make_model(),
        IterableDataset.from_generator(rows),
        [HOOK],
        context_size=8,  # pyright: ignore[reportArgumentType]
    )
    with pytest.raises(ValueError, match="100 batches in a row had none"):
        collect_examples(make_model(), sae, store, SMALL)
