"""Batches of two hook points: the same tokens in every row, and which of them count."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.paired_activations import ContextStore, PairedActivations
from bae_lens.activations.paired_batch import PairedBatch
from bae_lens.activations.sentence_store import SentenceStore
from tests.activations.test_sentence_store import CLS, SEP, TEXTS, make_encoder
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    HOOK_OUT,
    make_bridge,
    make_model,
    make_text,
    make_tokens,
)

BOS = 0
PROMPTS = 8
WIDTH = 2 * D_IN + 1
MLP = "blocks.1.mlp.hook_post"
PAIRS = {
    "same width": (HOOK, HOOK_OUT),
    "wider": (HOOK, MLP),
    "narrower": (MLP, HOOK_OUT),
    "upper first": (HOOK_OUT, HOOK),
    "one hook": (HOOK, HOOK),
    "heads": ("blocks.0.attn.hook_z", HOOK_OUT),
}


def context_store(
    model: Any = None,
    hooks: Sequence[str] = PAIRS["same width"],
    dataset: Any = None,
    special: Sequence[int] = (BOS,),
    **overrides: Any,
) -> ContextStore:
    """Over contexts of 16 tokens, words and the BOS between texts, 8 contexts a forward pass."""
    model = make_model() if model is None else model
    options = {
        "streaming": False,
        "context_size": CONTEXT_SIZE,
        "store_batch_size_prompts": PROMPTS,
        "n_batches_in_buffer": 16,
        "train_batch_size_tokens": BATCH,
        **overrides,
    }
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=make_text() if dataset is None else dataset,
        hook_names=list(dict.fromkeys(hooks)),
        hook_d_ins={name: hook_width(model, name) for name in hooks},
        **options,
    )
    return ContextStore(store, hooks, special)


class NumberedStore:
    """Serves tokens 1, 2, 3 … and on request says when they are used up.

    Token i is ``[i, i]`` at the lower hook point and ``[-i, i, 2i]`` at the upper one; every third
    is special. Token 0 has zeros for activations, and counts.
    """

    device = torch.device("cpu")

    def __init__(self, n_batches: int = 6, batch: int = 2, length: int = 8) -> None:
        self.n_batches = n_batches
        self.shape = (batch, length)
        self.n_read = 0

    @property
    def valid_tokens(self) -> list[int]:
        n = self.n_batches * self.shape[0] * self.shape[1]
        return [i for i in range(n) if i % 3 != 1]

    def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch:
        if self.n_read == self.n_batches:
            self.n_read = 0
            if raise_on_epoch_end:
                raise StopIteration
        n = self.shape[0] * self.shape[1]
        tokens = (torch.arange(n) + n * self.n_read).reshape(self.shape)
        self.n_read += 1
        i = tokens[..., None].float()
        upper = i * torch.tensor([-1.0, 1.0, 2.0])
        return PairedBatch(tokens, i.repeat(1, 1, 2), upper, tokens % 3 != 1)

    def save_to_checkpoint(self, checkpoint_path: Any) -> None:
        raise NotImplementedError

    def load_from_checkpoint(self, checkpoint_path: Any) -> None:
        raise NotImplementedError


def numbers(rows: Tensor) -> list[int]:
    """Which tokens the rows of a NumberedStore are; their parts have to agree."""
    lower, upper, valid = rows.split([2, 3, 1], dim=1)
    i = lower[:, 0]
    assert torch.equal(lower, i[:, None].repeat(1, 2))
    assert torch.equal(upper, i[:, None] * torch.tensor([-1.0, 1.0, 2.0]))
    assert torch.equal(valid[:, 0], (i % 3 != 1).float())
    return i.int().tolist()


def take(source: Iterator[Tensor], n: int) -> list[Tensor]:
    return list(itertools.islice(source, n))


@contextmanager
def counted_passes(model: Any) -> Iterator[list[int]]:
    """Tokens of each forward pass of a model."""
    passes: list[int] = []
    handle = model.embed.register_forward_pre_hook(
        lambda module, inputs: passes.append(inputs[0].numel())
    )
    try:
        yield passes
    finally:
        handle.remove()


def plain_activations(model: Any, tokens: Tensor, hooks: Sequence[str]) -> list[Tensor]:
    """``[batch, pos, d]`` at each hook point, from a forward pass of its own for each."""
    with torch.no_grad():
        return [
            model.run_with_cache(tokens, names_filter=[name], prepend_bos=False)[1][name].flatten(2)
            for name in hooks
        ]


# ContextStore


@pytest.mark.parametrize("hooks", PAIRS.values(), ids=PAIRS.keys())
def test_both_hooks_are_the_models_at_the_same_tokens_and_come_from_one_pass(hooks):
    store = context_store(hooks=hooks)
    model = store.store.model
    with counted_passes(model) as passes:
        batches = [store.paired_batch(), store.paired_batch()]
    assert passes == [PROMPTS * CONTEXT_SIZE] * 2
    assert not torch.equal(batches[0].tokens, batches[1].tokens)
    for tokens, lower, upper, valid in batches:
        expected = plain_activations(model, tokens, hooks)
        torch.testing.assert_close(lower, expected[0])
        torch.testing.assert_close(upper, expected[1])
        assert torch.equal(valid, tokens != BOS)
        assert not valid[:, 0].any()


def test_on_a_bridge_too(tmp_path):
    bridge = make_bridge(tmp_path)
    hooks = ("blocks.0.hook_out", "blocks.1.mlp.hook_out")
    store = context_store(bridge, hooks)
    with counted_passes(bridge) as passes:
        tokens, lower, upper, valid = store.paired_batch()
    assert passes == [PROMPTS * CONTEXT_SIZE]
    expected = plain_activations(bridge, tokens, hooks)
    torch.testing.assert_close(lower, expected[0])
    torch.testing.assert_close(upper, expected[1])
    assert torch.equal(valid, tokens != BOS)


def test_without_special_tokens_to_exclude_every_position_counts():
    assert context_store(special=()).paired_batch().valid.all()


def test_any_token_can_be_excluded():
    word = 17
    batch = context_store(special=(BOS, word)).paired_batch()
    assert (batch.tokens == word).any()
    assert torch.equal(batch.valid, (batch.tokens != BOS) & (batch.tokens != word))


@pytest.mark.parametrize("seqpos_slice", [(1, None), (2, 10), (None, -3), (0, 16, 4)])
def test_positions_are_sliced_alike_in_all_parts(seqpos_slice):
    store, whole = context_store(seqpos_slice=seqpos_slice), context_store()
    positions = slice(*seqpos_slice)
    for actual, expected in zip(store.paired_batch(), whole.paired_batch(), strict=True):
        torch.testing.assert_close(actual, expected[:, positions])


def test_it_says_when_the_text_has_ended_and_begins_again():
    # 16 rows of 24 words with a BOS between them: 25 contexts and a piece, so three batches of 8.
    store = context_store(dataset=make_text(16))
    first = store.paired_batch(raise_on_epoch_end=True)
    for _ in range(2):
        store.paired_batch(raise_on_epoch_end=True)
    with pytest.raises(StopIteration):
        store.paired_batch(raise_on_epoch_end=True)
    assert torch.equal(store.paired_batch().tokens, first.tokens)


# Single tokens


def test_rows_of_a_pass_are_its_valid_tokens_in_order():
    store, same = context_store(), context_store()
    rows = PairedActivations(store, BATCH).get_filtered_llm_batch()
    tokens = same.paired_batch().tokens
    lower, upper = plain_activations(same.store.model, tokens, PAIRS["same width"])
    is_word = tokens != BOS
    assert 0 < is_word.sum() < tokens.numel()
    expected = torch.cat([lower[is_word], upper[is_word], torch.ones(int(is_word.sum()), 1)], 1)
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("name", ["same width", "wider", "one hook"])
def test_mixed_rows_are_still_of_one_token_each(name):
    hooks = PAIRS[name]
    same = context_store(hooks=hooks)
    batches = [same.paired_batch() for _ in range(12)]
    known_lower, known_upper = (
        torch.cat([part[batch.valid] for part, batch in zip(parts, batches, strict=True)])
        for parts in ([b.lower for b in batches], [b.upper for b in batches])
    )
    mixed = PairedActivations(context_store(hooks=hooks), BATCH, buffer_size=256)
    rows = torch.cat(take(mixed, 10))
    lower, upper, valid = rows.split([D_IN, rows.shape[1] - D_IN - 1, 1], dim=1)
    # Not by way of a product of matrices, which rounds small distances away.
    exact = "donot_use_mm_for_euclid_dist"
    distance, which = torch.cdist(lower, known_lower, compute_mode=exact).min(1)
    assert distance.max() < 1e-4
    torch.testing.assert_close(upper, known_upper[which], rtol=0, atol=1e-4)
    assert (valid == 1).all()
    # Mixed, that is: not in the order of the text.
    assert (which.diff() != 1).float().mean() > 0.9


@pytest.mark.parametrize(("batch_size", "buffer_size"), [(8, 40), (16, 16), (5, 64), (24, 8)])
def test_every_valid_token_is_served_once_a_pass(batch_size, buffer_size):
    store = NumberedStore()
    batches = PairedActivations(store, batch_size, buffer_size=buffer_size)
    n = len(store.valid_tokens)
    read: list[int] = []
    unmixed = batches.get_filtered_llm_batch

    def read_and_note(raise_on_epoch_end: bool = False) -> Tensor:
        rows = unmixed(raise_on_epoch_end)
        read.extend(numbers(rows))
        return rows

    batches.get_filtered_llm_batch = read_and_note
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        served = [numbers(batch) for batch in take(batches, 3 * n // batch_size)]
    assert all(len(batch) == batch_size for batch in served)
    flat = list(itertools.chain(*served))
    # What is read is the text, over and over; what is served is read, and nothing twice.
    assert read == (store.valid_tokens * 9)[: len(read)]
    times_read, times_served = (
        torch.tensor(values).bincount(minlength=max(store.valid_tokens) + 1)
        for values in (read, flat)
    )
    assert (times_served <= times_read).all()
    assert len(read) - len(flat) < buffer_size + batch_size + 16
    assert flat != read[: len(flat)]


def test_the_share_that_stays_for_the_next_mixing_can_be_nothing():
    batches = PairedActivations(NumberedStore(), 8, buffer_size=32, mix_fraction=0.0)
    assert numbers(torch.cat(take(batches, 5))) == NumberedStore().valid_tokens[:40]


def test_a_token_without_any_activation_is_one_like_the_others():
    rows = PairedActivations(NumberedStore(), 8).get_filtered_llm_batch()
    assert numbers(rows)[0] == 0
    assert rows[0].tolist() == [0, 0, 0, 0, 0, 1]


def test_a_pass_without_valid_tokens_is_gone_over():
    class Blank(NumberedStore):
        def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch:
            batch = super().paired_batch(raise_on_epoch_end)
            return batch._replace(valid=batch.valid & (batch.tokens >= 16))

    batches = PairedActivations(Blank(), 8, buffer_size=8, mix_fraction=0.0)
    assert numbers(next(batches)) == [i for i in Blank().valid_tokens if i >= 16][:8]


# Whole sequences


def test_sequences_keep_their_order_and_every_position_with_its_mask():
    length = CONTEXT_SIZE
    store, same = context_store(), context_store()
    batches = PairedActivations(store, 4 * length, length)
    tokens = torch.cat([same.paired_batch().tokens for _ in range(3)])
    lower, upper = plain_activations(same.store.model, tokens, PAIRS["same width"])
    expected = torch.cat([lower, upper, (tokens != BOS)[..., None].float()], -1)
    rows = torch.stack([batch.unflatten(0, (4, length)) for batch in take(batches, 6)])
    torch.testing.assert_close(rows.flatten(0, 1), expected)


@pytest.mark.parametrize("n_sequences", [1, 3, 5])
def test_batches_may_be_cut_differently_from_forward_passes(n_sequences):
    store = NumberedStore()
    batches = PairedActivations(store, n_sequences * 8, 8)
    rows = torch.cat(take(batches, 60 // (n_sequences * 8)))
    assert numbers(rows) == list(range(len(rows)))


def test_the_mask_says_what_is_no_token_and_zeros_do_not():
    rows = next(PairedActivations(NumberedStore(), 16, 8))
    assert rows[0].tolist() == [0, 0, 0, 0, 0, 1]
    assert rows[1].tolist() == [1, 1, -1, 1, 2, 0]


def test_sentences_are_padded_to_the_same_length():
    encoder = make_encoder()
    hooks = ["blocks.0.hook_out", "blocks.1.hook_out"]
    options: dict[str, Any] = {
        "context_size": CONTEXT_SIZE,
        "store_batch_size_prompts": 2,
        "exclude_special_tokens": [CLS, SEP],
    }
    batches = PairedActivations(
        SentenceStore(encoder, TEXTS, hooks, **options), len(TEXTS) * CONTEXT_SIZE, CONTEXT_SIZE
    )
    rows = next(batches).unflatten(0, (-1, CONTEXT_SIZE))
    assert rows.shape == (len(TEXTS), CONTEXT_SIZE, WIDTH)
    for text, row in zip(TEXTS, rows, strict=True):
        n = len(text.split())
        lower, upper, valid = row.split([D_IN, D_IN, 1], dim=-1)
        tokens = encoder.tokenizer(text, return_tensors="pt")["input_ids"]  # pyright: ignore[reportOptionalCall]
        expected = plain_activations(encoder, tokens, hooks)
        torch.testing.assert_close(lower[: n + 2], expected[0][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(upper[: n + 2], expected[1][0], rtol=0, atol=1e-5)
        # [CLS] and [SEP] stand there and do not count.
        assert valid[:, 0].tolist() == [0] + [1] * n + [0] * (CONTEXT_SIZE - n - 1)
    # Behind the longest of a pass there is nothing.
    longest = max(len(text.split()) for text in TEXTS) + 2
    assert rows[0, longest - 1].any()
    assert not rows[:, longest:].any()


def test_sentences_as_single_tokens_have_no_padding():
    store = SentenceStore(
        make_encoder(),
        TEXTS,
        ["blocks.0.hook_out", "blocks.1.hook_out"],
        context_size=CONTEXT_SIZE,
        store_batch_size_prompts=len(TEXTS),
        exclude_special_tokens=[CLS, SEP],
    )
    rows = PairedActivations(store, 4).get_filtered_llm_batch()
    assert rows.shape == (sum(len(text.split()) for text in TEXTS), WIDTH)
    assert (rows[:, -1] == 1).all()


def test_a_batch_has_to_hold_whole_sequences():
    with pytest.raises(ValueError, match="whole sequences of 16 tokens; got a batch size of 40"):
        PairedActivations(NumberedStore(), 40, 16)
    with pytest.raises(ValueError, match="multiple of 16, for example 32"):
        PairedActivations(NumberedStore(), 40, 16)
    with pytest.raises(ValueError, match="multiple of 16, for example 16"):
        PairedActivations(NumberedStore(), 8, 16)


@pytest.mark.parametrize("length", [4, 6])
def test_a_sequence_length_below_that_of_the_text_is_refused(length):
    # Sequences of 8 tokens would be cut, or run over their end, and no one would know.
    batches = PairedActivations(NumberedStore(), 2 * length, length)
    with pytest.raises(ValueError, match="sequence"):
        next(batches)


# Both


@pytest.mark.parametrize("sequence_length", [None, 8])
def test_at_the_end_of_the_text_it_begins_again_and_says_so(sequence_length):
    store = NumberedStore(n_batches=3)
    batches = PairedActivations(store, 16, sequence_length, buffer_size=16, mix_fraction=0.0)
    text = store.valid_tokens if sequence_length is None else list(range(48))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = take(batches, len(text) // 16)
    with pytest.warns(UserWarning, match="text is used up; beginning with it again"):
        more = take(batches, 3)
    assert numbers(torch.cat(first + more)) == (text * 3)[: 16 * len(first + more)]


def test_there_is_no_end_to_it_and_it_is_its_own_iterator():
    batches = PairedActivations(NumberedStore(n_batches=1), 8, buffer_size=8)
    assert iter(batches) is batches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(take(batches, 50)) == 50


@pytest.mark.parametrize("sequence_length", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_the_dtype_asked_for(sequence_length, dtype):
    batches = PairedActivations(NumberedStore(), 16, sequence_length, dtype=dtype)
    rows = next(batches)
    assert rows.dtype == dtype
    assert set(rows[:, -1].tolist()) <= {0.0, 1.0}


def test_a_batch_may_be_larger_than_the_buffer():
    batches = PairedActivations(NumberedStore(), 24, buffer_size=4)
    assert [len(batch) for batch in take(batches, 2)] == [24, 24]


@pytest.mark.parametrize("sequence_length", [None, CONTEXT_SIZE])
@pytest.mark.parametrize("kind", ["context", "sentence"])
def test_a_checkpoint_goes_on_with_the_text(tmp_path: Path, kind: str, sequence_length: int | None):
    model = make_model()
    texts = make_text(40, 15)["text"]

    def batches() -> PairedActivations:
        if kind == "context":
            # Rows that are contexts already: SAELens counts rows, and may be within one elsewhere.
            rows = Dataset.from_dict({"tokens": make_tokens(40).tolist()})
            store: Any = context_store(model, dataset=rows)
        else:
            store = SentenceStore(
                model,
                texts,
                PAIRS["same width"],
                context_size=CONTEXT_SIZE,
                store_batch_size_prompts=PROMPTS,
                exclude_special_tokens=[BOS],
            )
        size = PROMPTS * (CONTEXT_SIZE if sequence_length else CONTEXT_SIZE - 1)
        return PairedActivations(store, size, sequence_length, buffer_size=1, mix_fraction=0.0)

    reader = batches()
    take(reader, 2)
    reader.save_to_checkpoint(tmp_path)
    resumed = batches()
    resumed.load_from_checkpoint(tmp_path)
    expected, actual = take(reader, 2), take(resumed, 2)
    assert not torch.equal(expected[0], expected[1])
    torch.testing.assert_close(actual, expected)
