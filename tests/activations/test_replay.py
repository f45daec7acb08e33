from __future__ import annotations

import copy
import pickle

import pytest
import torch
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens import TrainingBAE
from bae_lens.activations.paired_activations import PairedActivations
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.architectures.packed_rows import unpack_rows
from tests.activations.test_paired_activations import context_store
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    make_activations,
    make_model,
    make_text,
    make_tokenizer,
    runner_cfg,
    trainer_cfg,
    training_cfg,
)


def numbered(n: int) -> torch.Tensor:
    """Activations that can be told apart: row i is [i, i]."""
    return torch.arange(n, dtype=torch.float32).unsqueeze(1).repeat(1, 2)


def rows_of(batches: list[torch.Tensor]) -> list[int]:
    return torch.cat(batches)[:, 0].int().tolist()


def make_store(tmp_path, n_rows: int = 160, **overrides) -> ActivationsStore:
    return ActivationsStore.from_config(
        make_model(), runner_cfg(tmp_path, **overrides), override_dataset=make_text(n_rows)
    )


def test_an_epoch_serves_every_row_once():
    store = ReplayedActivations(numbered(12), batch_size=3)

    batches = [next(store) for _ in range(store.batches_per_epoch)]

    assert all(batch.shape == (3, 2) for batch in batches)
    assert sorted(rows_of(batches)) == list(range(12))


def test_rows_stay_whole():
    batch = next(ReplayedActivations(numbered(12), batch_size=5))

    assert torch.equal(batch[:, 0], batch[:, 1])


def test_epochs_are_shuffled_differently():
    store = ReplayedActivations(numbered(64), batch_size=64)

    epochs = [rows_of([next(store)]) for _ in range(3)]

    assert all(epoch != list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_rest_shorter_than_a_batch_waits_for_the_next_epochs_shuffle():
    store = ReplayedActivations(numbered(11), batch_size=3)
    assert store.batches_per_epoch == 3

    epochs = [rows_of([next(store) for _ in range(3)]) for _ in range(20)]

    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert set().union(*epochs) == set(range(11))


def test_batches_depend_on_the_seed_and_on_nothing_else():
    first = next(ReplayedActivations(numbered(64), 16, seed=1))
    torch.rand(10)
    same = next(ReplayedActivations(numbered(64), 16, seed=1))
    other = next(ReplayedActivations(numbered(64), 16, seed=2))

    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_serving_leaves_the_global_random_state_alone():
    store = ReplayedActivations(numbered(64), 16)
    state = torch.get_rng_state()

    next(store)

    assert torch.equal(torch.get_rng_state(), state)


def test_is_its_own_iterator():
    store = ReplayedActivations(numbered(8), 4)

    assert iter(store) is store


@pytest.mark.parametrize("n_before", [0, 1, 4, 5, 13])
def test_a_checkpoint_goes_on_with_the_very_next_batch(tmp_path, n_before):
    store = ReplayedActivations(numbered(22), batch_size=4)
    for _ in range(n_before):
        next(store)
    store.save_to_checkpoint(tmp_path)
    expected = rows_of([next(store) for _ in range(8)])

    resumed = ReplayedActivations(numbered(22), batch_size=4)
    next(resumed)  # as SAELens' norm estimate may have drawn before
    resumed.load_from_checkpoint(str(tmp_path))

    assert rows_of([next(resumed) for _ in range(8)]) == expected


def test_a_checkpoint_of_another_kind_of_store_is_refused(tmp_path):
    make_store(tmp_path).save_to_checkpoint(tmp_path)

    with pytest.raises(ValueError, match="not written by ReplayedActivations"):
        ReplayedActivations(numbered(8), 4).load_from_checkpoint(tmp_path)


def test_activations_must_be_flat():
    with pytest.raises(ValueError, match=r"\[n_tokens, d_in\]; got \(2, 3, 4\)"):
        ReplayedActivations(torch.zeros(2, 3, 4), 1)


def test_less_than_one_batch_is_refused():
    with pytest.raises(ValueError, match="needs 9 tokens, but only 8 were collected"):
        ReplayedActivations(numbered(8), 9)


def test_collects_a_stores_text_in_order_without_special_tokens(tmp_path):
    store = make_store(tmp_path)
    tokens = make_store(tmp_path).get_batch_tokens(40)
    acts = store.model.run_with_cache(tokens, prepend_bos=False)[1][store.hook_name]
    special = make_tokenizer().all_special_ids
    expected = acts[~torch.isin(tokens, torch.tensor(special))]

    replayed = ReplayedActivations.collect(store, 300)

    assert len(expected) > 300
    assert replayed.activations.shape == (300, D_IN)
    assert replayed.batch_size == BATCH
    torch.testing.assert_close(replayed.activations, expected[:300])


def test_collects_special_tokens_where_the_store_keeps_them(tmp_path):
    with_special = ReplayedActivations.collect(
        make_store(tmp_path, exclude_special_tokens=False), 10 * CONTEXT_SIZE
    )
    without = ReplayedActivations.collect(make_store(tmp_path), 10 * CONTEXT_SIZE)

    bos = with_special.activations[0]
    assert (with_special.activations == bos).all(1).sum() == 10
    assert not (without.activations == bos).all(1).any()


def test_collects_in_the_stores_dtype(tmp_path):
    replayed = ReplayedActivations.collect(make_store(tmp_path, dtype="bfloat16"), BATCH)

    assert replayed.activations.dtype == torch.bfloat16


def test_collects_what_there_is_where_the_text_ends_before(tmp_path, caplog):
    # 16 rows of 24 words and the separators between them fill 24 sequences and a piece.
    replayed = ReplayedActivations.collect(make_store(tmp_path, n_rows=16), 10**6)

    assert 16 * CONTEXT_SIZE < len(replayed.activations) <= 16 * 24
    assert len(replayed.activations.unique(dim=0)) > 0.9 * len(replayed.activations)
    assert f"ended after {len(replayed.activations)} of 1000000 tokens" in caplog.text


def test_too_little_text_for_a_batch_says_so(tmp_path):
    with pytest.raises(ValueError, match="Collect more tokens or lower train_batch_size_tokens"):
        ReplayedActivations.collect(
            make_store(tmp_path, n_rows=12, train_batch_size_tokens=500), 500
        )


def test_the_language_model_does_not_run_again(tmp_path, monkeypatch):
    store = make_store(tmp_path)
    replayed = ReplayedActivations.collect(store, 2 * BATCH)
    monkeypatch.setattr(store.model, "run_with_cache", None)

    for _ in range(5):
        assert next(replayed).shape == (BATCH, D_IN)


def test_batches_are_served_where_they_are_wanted():
    activations = numbered(12)
    assert ReplayedActivations(activations, 4).device == activations.device
    store = ReplayedActivations(activations, 4, device="meta")

    assert next(store).device == store.device == torch.device("meta")
    assert store.activations is activations


def test_other_questions_are_answered_by_the_store(tmp_path):
    store = make_store(tmp_path)
    replayed = ReplayedActivations.collect(store, BATCH)

    assert replayed.context_size == CONTEXT_SIZE
    assert replayed.get_batch_tokens(2).shape == (2, CONTEXT_SIZE)
    assert replayed.store is store


def test_without_a_store_there_is_nothing_to_ask():
    with pytest.raises(AttributeError, match=r"no attribute 'get_batch_tokens', and no store"):
        ReplayedActivations(numbered(8), 4).get_batch_tokens(2)


def test_can_be_copied_and_pickled():
    store = ReplayedActivations(numbered(22), batch_size=4)
    for _ in range(7):
        next(store)
    copies = [copy.deepcopy(store), pickle.loads(pickle.dumps(store))]

    expected = rows_of([next(store)])

    assert [rows_of([next(c)]) for c in copies] == [expected, expected]


def test_feeds_saelens_trainer():
    store = ReplayedActivations(make_activations(4 * BATCH), BATCH)
    sae = TrainingBAE(training_cfg())

    SAETrainer(trainer_cfg(10), sae, store).fit()

    assert sae.n_updates.item() == 10
    assert store.n_batches_served == 10 + 2  # two for the norm estimate


# Whole sequences of two hook points


def sequences_of(batches: list[torch.Tensor], length: int) -> list[list[int]]:
    return [rows_of([sequence]) for batch in batches for sequence in batch.split(length)]


@pytest.mark.parametrize(("n_sequences", "per_batch"), [(12, 3), (11, 3), (5, 5), (7, 1)])
def test_sequences_are_shuffled_and_stay_whole(n_sequences, per_batch):
    length = 4
    store = ReplayedActivations(
        numbered(n_sequences * length), per_batch * length, sequence_length=length
    )
    whole = numbered(n_sequences * length)[:, 0].int().unflatten(0, (-1, length)).tolist()

    epochs = [
        sequences_of([next(store) for _ in range(store.batches_per_epoch)], length)
        for _ in range(3)
    ]

    for epoch in epochs:
        assert all(sequence in whole for sequence in epoch)
        assert len({sequence[0] for sequence in epoch}) == len(epoch)
        assert len(epoch) == n_sequences - n_sequences % per_batch
        assert epoch != whole[: len(epoch)]
    assert epochs[0] != epochs[1]


def test_a_checkpoint_goes_on_with_the_very_next_sequences(tmp_path):
    store = ReplayedActivations(numbered(44), 8, sequence_length=4)
    for _ in range(7):
        next(store)
    store.save_to_checkpoint(tmp_path)
    resumed = ReplayedActivations(numbered(44), 8, sequence_length=4)
    resumed.load_from_checkpoint(tmp_path)

    assert rows_of([next(resumed) for _ in range(6)]) == rows_of([next(store) for _ in range(6)])


@pytest.mark.parametrize(("n_rows", "batch_size"), [(24, 6), (26, 8)])
def test_sequences_have_to_be_whole(n_rows, batch_size):
    message = f"of 4 tokens must be whole; got {n_rows} rows and a batch size of {batch_size}"
    with pytest.raises(ValueError, match=message):
        ReplayedActivations(numbered(n_rows), batch_size, sequence_length=4)


def test_collects_whole_contexts_of_two_hook_points_in_order():
    paired = PairedActivations(context_store(), 2 * CONTEXT_SIZE, CONTEXT_SIZE)
    same = context_store()

    replayed = ReplayedActivations.collect(paired, 20 * CONTEXT_SIZE + 5)

    assert replayed.sequence_length == CONTEXT_SIZE
    assert replayed.batch_size == 2 * CONTEXT_SIZE
    assert len(replayed.activations) == 20 * CONTEXT_SIZE
    lower, upper, valid = unpack_rows(replayed.activations, D_IN, D_IN)
    expected = [same.paired_batch() for _ in range(3)]
    for actual, name in ((lower, "lower"), (upper, "upper"), (valid, "valid")):
        text = torch.cat([getattr(batch, name) for batch in expected]).flatten(0, 1)
        torch.testing.assert_close(actual, text[: len(actual)])
    assert not valid.all()


def test_collects_single_tokens_of_two_hook_points_without_special_ones():
    replayed = ReplayedActivations.collect(PairedActivations(context_store(), BATCH), 300)
    same = context_store()

    batches = [same.paired_batch() for _ in range(3)]
    assert replayed.sequence_length == 1
    assert len(replayed.activations) == 300
    lower, upper, valid = unpack_rows(replayed.activations, D_IN, D_IN)
    assert valid.all()
    for actual, name in ((lower, "lower"), (upper, "upper")):
        expected = torch.cat([getattr(batch, name)[batch.valid] for batch in batches])
        torch.testing.assert_close(actual, expected[:300])


def test_collects_whole_contexts_where_the_text_ends_before(caplog):
    paired = PairedActivations(context_store(dataset=make_text(16)), CONTEXT_SIZE, CONTEXT_SIZE)

    replayed = ReplayedActivations.collect(paired, 10**6)

    assert len(replayed.activations) == 24 * CONTEXT_SIZE
    assert f"ended after {24 * CONTEXT_SIZE} of" in caplog.text
