"""SAELens' store with an end to every loop: what is left out is counted, what leaves nothing is refused."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from sae_lens import ActivationsStore

from bae_lens import CrossLayerTrainingRunner, TrainingRunner
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.paired_activations import ContextStore, PairedActivations
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.text_store import Progress, TextStore, check_dataset, check_positions
from tests.activations.test_paired_activations import context_store
from tests.helpers import BATCH, CONTEXT_SIZE, HOOK, make_bae, make_model, make_text, runner_cfg
from tests.training.cross_layer_runs import make_cfg

ONLY_SPECIAL = Dataset.from_dict({"text": ["<bos> <eos> <pad>"] * 500})
NO_TOKEN = "No token is left after special ones are taken out: "


def make_store(dataset: Any, folder: Path = Path(), **overrides: Any) -> TextStore:
    cfg = runner_cfg(folder, **overrides)
    store = TextStore.from_config(make_model(), cfg, override_dataset=dataset)
    assert isinstance(store, TextStore)
    return store


def streamed(rows: list[dict[str, Any]]) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows))  # pyright: ignore[reportReturnType]


def words(n: int) -> str:
    return " ".join(f"word{i % 40}" for i in range(n))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("bae_lens")]


def to_the_end(store: TextStore, batch_size: int) -> list[int]:
    """Sizes of the batches that are left."""
    sizes = []
    while True:
        try:
            sizes.append(len(store.get_batch_tokens(batch_size, raise_at_epoch_end=True)))
        except StopIteration:
            return sizes


# The same as SAELens', where that works


def test_batches_are_those_of_saelens():
    ours, theirs = (
        make_store(make_text()),
        ActivationsStore.from_config(
            make_model(), runner_cfg(Path()), override_dataset=make_text()
        ),
    )
    copied = TextStore.of(
        ActivationsStore.from_config(make_model(), runner_cfg(Path()), override_dataset=make_text())
    )
    for _ in range(20):
        batch = theirs.get_filtered_llm_batch()
        assert torch.equal(ours.get_filtered_llm_batch(), batch)
        assert torch.equal(copied.get_filtered_llm_batch(), batch)
    assert ours.n_dataset_processed == copied.n_dataset_processed == theirs.n_dataset_processed


def test_it_goes_on_where_it_was(tmp_path: Path):
    dataset = Dataset.from_dict({"text": [words(24), None, words(31), "", *[words(20)] * 60]})
    one, other = make_store(dataset), make_store(dataset)
    one.get_batch_tokens(3)
    one.save_to_checkpoint(tmp_path)
    other.load_from_checkpoint(tmp_path)
    assert other.n_dataset_processed == one.n_dataset_processed


# Missing texts, and what is no text


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("missing", [None, ""])
@pytest.mark.parametrize("is_streamed", [True, False])
def test_missing_texts_are_passed_over_wherever_they_stand(at, missing, is_streamed, caplog):
    texts: list[Any] = [words(20 + i) for i in range(6)]
    with_gaps = [*texts[:at], missing, *texts[at:], missing]
    dataset: Any = Dataset.from_dict({"text": with_gaps})
    if is_streamed:
        dataset = streamed([{"text": text} for text in with_gaps])
    store = make_store(dataset)
    with caplog.at_level(logging.WARNING):
        read = [store.get_batch_tokens(1, raise_at_epoch_end=True) for _ in range(6)]
        to_the_end(store, 1)
    expected = make_store(Dataset.from_dict({"text": texts}))
    for tokens in read:
        assert torch.equal(tokens, expected.get_batch_tokens(1))
    assert messages(caplog) == [
        f"The {at + 1}. row that was read has no text in the column 'text'; such rows are passed over.",
        "2 of 8 rows have no text in the column 'text' and were passed over.",
    ]


def test_a_row_without_the_column_is_one_without_text():
    store = make_store(streamed([{"text": words(40)}, {"other": 1}, {"text": words(40)}]))
    assert store.get_batch_tokens(4).shape == (4, CONTEXT_SIZE)


@pytest.mark.parametrize("value", [5, 2.5, ["a"], {"a": 1}, b"abc", "a\ud800"])
def test_what_is_no_text_is_refused_with_row_and_value(value):
    store = make_store(streamed([{"text": words(3)}, {"text": value}]))
    with pytest.raises(ValueError, match=r"The 'text' of row 2 has .*(got |'\\ud800')") as caught:
        store.get_batch_tokens(1)
    str(caught.value).encode()


def test_a_dataset_of_nothing_but_gaps_is_refused():
    with pytest.raises(ValueError, match="All 3 rows have no text in the column 'text'"):
        make_store(Dataset.from_dict({"text": [None, "", None]})).get_batch_tokens(1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[5] * 16, [7] * 3], None),
        ([[5] * 16, [5] * 15 + [44]], "'input_ids' of row 2 has to be token ids, .* 0 to 43"),
        ([[5] * 16, [-1] * 16], "'input_ids' of row 2 has to be token ids"),
        ([[5] * 16, [0.5] * 16], "'input_ids' of row 2 has to be token ids"),
        ([[5] * 16, "abc"], "'input_ids' of row 2 has to be token ids.*got 'abc'"),
        ([[5] * 16, 7], "'input_ids' of row 2 has to be token ids.*got 7"),
        ([[5] * 16, [[1], [2, 3]]], "'input_ids' of row 2 has to be token ids"),
    ],
)
def test_rows_of_tokens_are_the_models_and_short_ones_are_dropped(rows, message):
    store = make_store(streamed([{"input_ids": row} for row in rows]))
    if message is None:
        assert store.get_batch_tokens(3).tolist() == [[5] * 16] * 3
        return
    with pytest.raises(ValueError, match=message):
        store.get_batch_tokens(2)


# Texts that are shorter than the context


def of_lengths(*lengths: int) -> Dataset:
    return Dataset.from_dict({"text": [words(n) for n in lengths]})


def test_short_texts_that_are_dropped_are_counted(caplog):
    # BOS is added, so that 15 words fill a context of 16.
    store = make_store(of_lengths(15, 14, 3, 40), disable_concat_sequences=True)
    with caplog.at_level(logging.WARNING):
        assert store.get_batch_tokens(5).shape == (5, CONTEXT_SIZE)
    assert messages(caplog) == [
        "2 of 4 texts, 17 of 72 tokens, were dropped: they are shorter than the context of 16 tokens, and "
        "texts are not joined (disable_concat_sequences)."
    ]


@pytest.mark.parametrize(
    ("n_long", "n_short", "is_refused"),
    [(1, 19, False), (1, 20, True), (0, 1, True), (60, 1200, True), (60, 900, False)],
)
def test_where_more_than_95_percent_are_dropped_it_is_refused(n_long, n_short, is_refused):
    lengths = [5] * n_short + [20] * n_long if n_short <= 900 else ([5] * 20 + [20]) * 60
    store = make_store(of_lengths(*lengths), disable_concat_sequences=True)
    if not is_refused:
        assert len(store.get_batch_tokens(2)) == 2
        return
    n_seen = min(1000, len(lengths))
    with pytest.raises(
        ValueError, match=rf"of the first {n_seen} texts are shorter .* more than 95%"
    ):
        store.get_batch_tokens(70)


def test_so_are_those_of_a_replay_a_run_and_a_held_out_store(tmp_path: Path):
    texts, message = of_lengths(*[5] * 30, 20), "30 of the first 31 texts are shorter"
    settings: Any = {"disable_concat_sequences": True}
    with pytest.raises(ValueError, match=message):
        ReplayedActivations.collect(make_store(texts, **settings), BATCH)
    runner = TrainingRunner(runner_cfg(tmp_path, **settings), texts, make_model())
    with pytest.raises(ValueError, match=message):
        runner.run()
    runner = CrossLayerTrainingRunner(make_cfg(tmp_path, **settings), texts, make_model())
    with pytest.raises(ValueError, match=message):
        runner.run()
    sae = make_bae()
    held_out = {"hook_name": HOOK, "context_size": 16, "prepend_bos": True, "dataset_path": "x"}
    for name, value in (held_out | settings).items():
        sae.cfg.metadata[name] = value
    with pytest.raises(ValueError, match=message):
        held_out_store(sae, make_model(), texts).get_batch_tokens(4)


def test_joined_texts_may_be_short_but_not_all_of_them_together():
    assert make_store(of_lengths(*[2] * 20)).get_batch_tokens(1).shape == (1, 16)
    with pytest.raises(ValueError, match="all 2 texts together have 4"):
        make_store(of_lengths(2, 2)).get_batch_tokens(1)


# The end of the text


def test_the_last_contexts_come_in_a_smaller_batch():
    store = make_store(of_lengths(*[15] * 11), disable_concat_sequences=True)
    for _ in range(2):
        assert to_the_end(store, 8) == [8, 3]
    # Unless the end is not asked for.
    assert [len(store.get_batch_tokens(8)) for _ in range(3)] == [8, 8, 8]


def test_what_was_read_is_collected_where_the_text_ends(caplog):
    replay = ReplayedActivations.collect(
        make_store(of_lengths(*[15] * 11), disable_concat_sequences=True), 10 * BATCH
    )
    assert len(replay.activations) == 11 * 15
    assert f"The text ended after 165 of {10 * BATCH} tokens." in messages(caplog)


# No token is left


@pytest.mark.parametrize("dataset", [ONLY_SPECIAL, streamed([{"text": "<bos> <eos>"}] * 200)])
def test_a_text_of_special_tokens_only_ends_with_an_error(dataset, tmp_path: Path):
    with pytest.raises(ValueError, match=f"{NO_TOKEN}the whole text, [0-9]+ batches, had none"):
        next(make_store(dataset))
    with pytest.raises(
        ValueError, match=f"{NO_TOKEN}.*exclude_special_tokens names 3, context_size"
    ):
        ReplayedActivations.collect(make_store(dataset), BATCH)
    with pytest.raises(ValueError, match=NO_TOKEN):
        TrainingRunner(runner_cfg(tmp_path), dataset, make_model()).run()
    for kind, message in (
        ("token", NO_TOKEN),
        ("transformer", "two valid tokens; the batch has 0"),
    ):
        runner = CrossLayerTrainingRunner(make_cfg(tmp_path, kind), dataset, make_model())
        with pytest.raises(ValueError, match=message):
            runner.run()


def endless() -> IterableDataset:
    def rows() -> Any:
        while True:
            yield {"text": "<bos> <eos> <pad>"}

    return IterableDataset.from_generator(rows)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("kind", [TextStore, ActivationsStore])
def test_so_does_one_without_end(kind):
    store = kind.from_config(make_model(), runner_cfg(Path()), override_dataset=endless())
    with pytest.raises(ValueError, match=f"{NO_TOKEN}100 batches in a row had none"):
        ReplayedActivations.collect(store, BATCH)


@pytest.mark.parametrize("length", [None, CONTEXT_SIZE])
def test_so_do_pairs(length):
    store = context_store(dataset=ONLY_SPECIAL, special=(0, 1, 2))
    assert isinstance(store, ContextStore)
    rows = PairedActivations(store, 2 * CONTEXT_SIZE, length)
    # Whole sequences come with all their positions masked, up to the end of the text.
    with pytest.raises(ValueError, match=NO_TOKEN):
        assert list(itertools.islice(rows, 100)) == []


def test_a_stretch_without_tokens_is_not_the_end():
    progress = Progress()
    for _ in range(3):
        for _ in range(99):
            progress.see(0)
        progress.see(1)
        progress.at_end()
    progress.at_end()  # Of a text that gave no batch, which is another's to tell.


# Refused before anything is read


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"context_size": 1}, "only position 0 is kept .context_size 1, .* Raise context_size"),
        (
            {"seqpos_slice": (0, 1)},
            r"only position 0 is kept .context_size 16, seqpos_slice \(0, 1\)",
        ),
        ({"seqpos_slice": (None, None, 16)}, "only position 0 is kept"),
        ({"context_size": 1, "exclude_special_tokens": [0]}, "only position 0 is kept"),
        ({"exclude_special_tokens": list(range(44))}, "names all 44 tokens"),
        (
            {"exclude_special_tokens": [-3]},
            "exclude_special_tokens must be True, False or ",
        ),
    ],
)
@pytest.mark.parametrize("replay_tokens", [None, BATCH])
def test_settings_that_leave_no_token_are_refused(tmp_path, overrides, message, replay_tokens):
    cfg = runner_cfg(tmp_path, **{"n_batches_in_buffer": 64, **overrides})
    with pytest.raises(ValueError, match=message):
        TrainingRunner(cfg, make_text(), make_model(), replay_tokens=replay_tokens)


def test_a_context_of_one_is_fine_without_bos():
    check_positions(1, (None,), prepend_bos=False, excluded=True)
    check_positions(1, (None,), prepend_bos=True, excluded=False)
    check_positions(1, None, prepend_bos=True, excluded=[3], bos=0)
    check_positions(2, (None,), prepend_bos=True, excluded=True)
    with pytest.raises(ValueError, match="leaves none of the 16 positions"):
        check_positions(16, (20, None), prepend_bos=True, excluded=False)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"text": []}), "The dataset is empty"),
        (streamed([]), "The dataset is empty"),
        ([], "The dataset is empty"),
        (["a text"], "the first is a str"),
        ([None], "the first is a NoneType"),
        (iter([{"text": "a"}]), "can be read once only"),
        (DatasetDict({"train": make_text()}), "has to be one split; got the splits train"),
        ([{"tokens": None}], "The 'tokens' of row 1 has to be token ids; got None"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_refused(dataset, message, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        check_dataset(dataset)
    if not isinstance(dataset, list):
        with pytest.raises(ValueError, match=message):
            TrainingRunner(runner_cfg(tmp_path), dataset, make_model())
