"""What ranks have counted, merged into one."""

from __future__ import annotations

import io
from typing import Any, Protocol, TypeVar

import torch
from typing_extensions import Self

from bae_lens.distributed.collectives import broadcast_object, receive_object, send_object
from bae_lens.distributed.ranks import n_ranks, rank


class Mergeable(Protocol):
    """Counts that take in another's, such as ``CodeStatistics``."""

    def merge(self, other: Self, /) -> None: ...


M = TypeVar("M", bound=Mergeable)
T = TypeVar("T")


def gather_merge(counts: M) -> M:
    """The counts of all ranks together, the same on each; to be called on every rank.

    Rank r's are merged into rank r − 1's, those of pairs into those of pairs and so on, in rank order and in
    log2(R) rounds, and what comes of it is sent to all. Beside its own, a rank holds one other's at a time.

    Args:
        counts: this rank's; changed on the way, so that only what is returned is of use.

    Returns:
        ``counts`` itself, unchanged, where there is one rank.
    """
    step = 1
    while step < n_ranks():
        if rank() % (2 * step) == step:
            send_object(_packed(counts), rank() - step)
            break
        if rank() + step < n_ranks():
            counts.merge(_unpacked(receive_object(rank() + step)))
        step *= 2
    return from_first(counts)


def from_first(value: T) -> T:
    """Rank 0's object, whose tensors on a GPU come to each rank's own."""
    if n_ranks() == 1:
        return value
    packed = broadcast_object(_packed(value) if rank() == 0 else b"")
    return value if rank() == 0 else _unpacked(packed)


def _packed(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def _unpacked(packed: bytes) -> Any:
    def to_own_device(storage: Any, location: str) -> Any:
        return storage.cuda() if location.startswith("cuda") else storage

    # From this package's own processes.
    return torch.load(io.BytesIO(packed), map_location=to_own_device, weights_only=False)
