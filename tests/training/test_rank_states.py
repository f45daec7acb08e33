"""States of ranks in a checkpoint, told without starting any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors.torch import load_file, save_file

from bae_lens.training import rank_states
from bae_lens.training.rank_states import load_store, restore_random_state

STEM, SUFFIX = ACTIVATIONS_STORE_STATE_FILENAME.rsplit(".", 1)


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    def become(number: int, ranks: int) -> None:
        monkeypatch.setattr(rank_states, "rank", lambda: number)
        monkeypatch.setattr(rank_states, "n_ranks", lambda: ranks)

    return become


def write(folder: Path, name: str, *counts: int) -> None:
    for r, count in enumerate(counts):
        own = f"{STEM}.rank{r}.{SUFFIX}" if r else ACTIVATIONS_STORE_STATE_FILENAME
        save_file({name: torch.tensor(count)}, folder / own)
        save_file(
            {"cpu": torch.Generator().manual_seed(r).get_state()},
            folder / own.replace(STEM, "random_state"),
        )


def loaded(folder: Path, name: str, n_then: int) -> int:
    """The count that a store is given."""
    found: list[int] = []
    load_store(
        lambda path: found.append(int(load_file(path / ACTIVATIONS_STORE_STATE_FILENAME)[name])),
        folder,
        n_then,
    )
    return found[0]


@pytest.mark.parametrize(
    ("name", "ranks", "expected"),
    [
        ("n_dataset_processed", 3, [10, 20, 31]),
        ("n_dataset_processed", 2, [30, 30]),
        ("n_dataset_processed", 1, [61]),
        ("n_texts_read", 4, [15, 15, 15, 15]),
        ("n_batches_served", 2, [10, 10]),
    ],
)
def test_as_many_ranks_go_on_with_their_own_text_and_others_with_as_much(
    tmp_path: Path, as_rank: Any, name: str, ranks: int, expected: list[int]
):
    write(tmp_path, name, 10, 20, 31)
    found = []
    for number in range(ranks):
        as_rank(number, ranks)
        found.append(loaded(tmp_path, name, 3))
    assert found == expected


def test_random_numbers_are_a_ranks_own_or_those_of_the_first(tmp_path: Path, as_rank: Any):
    write(tmp_path, "n_texts_read", 0, 0)
    before = torch.get_rng_state()
    try:
        for ranks, number, seed in ((2, 1, 1), (2, 0, 0), (3, 2, 0), (1, 0, 0)):
            as_rank(number, ranks)
            restore_random_state(tmp_path, 2)
            assert torch.initial_seed() == seed
    finally:
        torch.set_rng_state(before)


def test_a_checkpoint_of_one_process_is_read_where_it_is(tmp_path: Path):
    paths: list[Path] = []
    load_store(paths.append, str(tmp_path), 1)
    assert paths == [tmp_path]
