"""What each rank reads of a text, and random numbers of its own to mix it by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor

from bae_lens.distributed import n_ranks, rank

_T = TypeVar("_T")


def own_text(dataset: Any) -> Any:
    """This rank's share of a dataset: a piece of it, in its order; of a stream its shards, or every R-th row.

    Args:
        dataset: of ``datasets``, or a list of texts; None stays None. A name is left alone.

    Raises:
        ValueError: if it has fewer rows than there are ranks, or cannot be divided.
    """
    if n_ranks() == 1 or dataset is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return split_dataset_by_node(dataset, rank(), n_ranks())
    if isinstance(dataset, str) or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"A dataset that is a {type(dataset).__name__} cannot be divided among processes. Give a Dataset or "
            "an IterableDataset of the library datasets, or a list."
        )
    if len(dataset) < n_ranks():
        raise ValueError(
            f"The dataset has {len(dataset)} rows, fewer than there are processes ({n_ranks()}). Start fewer."
        )
    if isinstance(dataset, Dataset):
        return split_dataset_by_node(dataset, rank(), n_ranks())
    start, end = (len(dataset) * r // n_ranks() for r in (rank(), rank() + 1))
    return dataset[start:end]


def own_number(n: int, multiple: int = 1) -> int:
    """How many of n tokens this rank reads: as many as the others, but for what is left over.

    Args:
        n: of all ranks.
        multiple: how many stay together.
    """
    n //= multiple
    return multiple * (n * (rank() + 1) // n_ranks() - n * rank() // n_ranks())


class OwnNumbers(Iterator[_T]):
    """An iterator that draws its random numbers from a stream of its own.

    Ranks have the same numbers from torch otherwise, as they must wherever they draw something for all of them.
    One that mixes other rows, or more of them, would get out of step.

    Args:
        batches: drawn with torch's default generators.
        on_cuda: whether they are drawn on this rank's GPU too.
    """

    def __init__(self, batches: Iterator[_T], on_cuda: bool = False) -> None:
        self.batches = batches
        self._devices = [torch.cuda.current_device()] if on_cuda else []
        # The seed of the run, and one for each rank.
        self._seed = (torch.initial_seed() + 1_000_003 * (rank() + 1)) % 2**63
        self._states: list[Tensor] = []

    def __next__(self) -> _T:
        with torch.random.fork_rng(self._devices):
            if not self._states:
                torch.manual_seed(self._seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(self._devices, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            batch = next(self.batches)
            cuda = [torch.cuda.get_rng_state(device) for device in self._devices]
            self._states = [torch.get_rng_state(), *cuda]
        return batch
