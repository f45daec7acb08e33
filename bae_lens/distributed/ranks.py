"""How many ranks there are, which one this is, and which rows are its own."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def n_ranks() -> int:
    """Processes of the process group; 1 where none is initialized."""
    return dist.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0; 0 where no process group is initialized."""
    return dist.get_rank() if _is_initialized() else 0


def own_slice(n: int, multiple: int = 1) -> slice:
    """Which of ``n`` rows in rank order are this rank's: from r·n/R to (r + 1)·n/R.

    Args:
        n: rows of the global batch.
        multiple: how many rows must stay together, as those of a text.

    Raises:
        ValueError: if ranks cannot have as many rows each, in whole multiples.
    """
    ranks = n_ranks()
    if n % (ranks * multiple):
        whole = f" in whole sequences of {multiple}" if multiple > 1 else ""
        raise ValueError(
            f"A batch of {n} rows cannot be divided among {ranks} processes{whole}: make it a multiple of "
            f"{ranks * multiple}, or change the number of processes."
        )
    own = n // ranks
    return slice(rank() * own, (rank() + 1) * own)


def own_rows(x: Tensor, multiple: int = 1) -> Tensor:
    """This rank's rows ``[n / R, ...]`` of the global batch ``[n, ...]``; see ``own_slice``."""
    return x if n_ranks() == 1 else x[own_slice(len(x), multiple)]


def _is_initialized() -> bool:
    # A torch that was built without it has neither function.
    return dist.is_available() and dist.is_initialized()
