"""What each of several ranks reads, told without starting any."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from bae_lens.activations import rank_share
from bae_lens.activations.rank_share import OwnNumbers, own_number, own_text


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this process one of several."""

    def become(number: int, ranks: int) -> None:
        monkeypatch.setattr(rank_share, "rank", lambda: number)
        monkeypatch.setattr(rank_share, "n_ranks", lambda: ranks)

    return become


def texts(n: int) -> list[str]:
    return [f"text {i}" for i in range(n)]


def stream(n: int, n_shards: int = 1) -> IterableDataset:
    return Dataset.from_dict({"text": texts(n)}).to_iterable_dataset(n_shards)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (texts, [["text 0", "text 1"], ["text 2", "text 3"], ["text 4", "text 5", "text 6"]]),
        (
            lambda n: Dataset.from_dict({"text": texts(n)}),
            [["text 0", "text 1", "text 2"], ["text 3", "text 4"], ["text 5", "text 6"]],
        ),
        (stream, [["text 0", "text 3", "text 6"], ["text 1", "text 4"], ["text 2", "text 5"]]),
        (
            lambda n: stream(n, 3),
            [["text 0", "text 1", "text 2"], ["text 3", "text 4"], ["text 5", "text 6"]],
        ),
    ],
    ids=["list", "dataset", "stream", "shards"],
)
def test_ranks_share_a_text(as_rank: Any, make: Any, expected: list[list[str]]):
    dataset = make(7)
    shares = []
    for number in range(3):
        as_rank(number, 3)
        rows = list(own_text(dataset))
        shares.append([row if isinstance(row, str) else row["text"] for row in rows])
    assert shares == expected


def test_one_process_reads_all_of_it():
    dataset = Dataset.from_dict({"text": texts(3)})
    assert own_text(dataset) is dataset
    assert own_text(None) is None
    assert own_number(7) == 7
    assert own_number(7, 2) == 6


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (texts(2), "has 2 rows, fewer than there are processes"),
        ("a name", "is a str cannot be divided"),
        ({"text"}, "is a set cannot be divided"),
    ],
)
def test_what_cannot_be_shared_is_refused(as_rank: Any, dataset: Any, said: str):
    as_rank(0, 3)
    with pytest.raises(ValueError, match=said):
        own_text(dataset)


@pytest.mark.parametrize(("n", "multiple"), [(100, 1), (7, 1), (100, 16), (0, 1)])
def test_ranks_share_tokens_in_whole_sequences(as_rank: Any, n: int, multiple: int):
    shares = []
    for number in range(3):
        as_rank(number, 3)
        shares.append(own_number(n, multiple))
    assert sum(shares) == n - n % multiple
    assert all(share % multiple == 0 for share in shares)
    assert max(shares) - min(shares) <= multiple


def drawn() -> Iterator[Tensor]:
    while True:
        yield torch.rand(3)


def test_each_rank_draws_its_own_numbers_and_leaves_torchs_alone(as_rank: Any):
    torch.manual_seed(0)
    expected = torch.rand(2)
    streams = []
    for number in (0, 1, 1):
        as_rank(number, 2)
        torch.manual_seed(0)
        streams.append(torch.cat(list(itertools.islice(OwnNumbers(drawn()), 4))))
        assert torch.equal(torch.rand(2), expected)
    assert torch.equal(streams[1], streams[2])
    for a, b in ((streams[0], streams[1]), (streams[1][:3], streams[1][3:6])):
        assert not torch.equal(a, b)
    assert not torch.equal(streams[0][:2], expected)
