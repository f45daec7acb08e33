"""Sums and decisions that ranks share: the only room that calls ``torch.distributed``.

Every rank of a process group computes the loss of the *global* batch, the rows of all ranks one after the
other, and its backward pass gives that rank's share of the gradient; shares are added up by ``sum_gradients``.
Where no process group is initialized there is one rank, and every function here gives back what it was given.

The calls are collective: every rank makes them, in one order. Once a process group is initialized, training
steps of this package's architectures make them, so that no rank can take a step alone.

``start_process_group`` initializes the group that torchrun's environment asks for, which the runners and
``bae-lens`` do by themselves. What one rank may refuse stands inside ``on_every_rank``, so that all of them end
with an error; where they wait for each other, ``failures_named`` says which of them has failed.
"""

from bae_lens.distributed.agreement import RankError, check_same, on_every_rank
from bae_lens.distributed.collectives import (
    all_any,
    all_gather_objects,
    all_gather_rows,
    all_max,
    all_mean,
    all_sum,
    all_sums,
    all_to_all_rows,
    any_soon,
    barrier,
    broadcast,
    broadcast_object,
)
from bae_lens.distributed.gradients import sum_gradients
from bae_lens.distributed.health import RankFailedError, failures_named
from bae_lens.distributed.merging import Mergeable, from_first, gather_merge
from bae_lens.distributed.processes import n_launched, own_device, start_process_group
from bae_lens.distributed.ranks import n_ranks, own_rows, own_slice, rank

__all__ = [
    "Mergeable",
    "RankError",
    "RankFailedError",
    "all_any",
    "all_gather_objects",
    "all_gather_rows",
    "all_max",
    "all_mean",
    "all_sum",
    "all_sums",
    "all_to_all_rows",
    "any_soon",
    "barrier",
    "broadcast",
    "broadcast_object",
    "check_same",
    "failures_named",
    "from_first",
    "gather_merge",
    "n_launched",
    "n_ranks",
    "on_every_rank",
    "own_device",
    "own_rows",
    "own_slice",
    "rank",
    "start_process_group",
    "sum_gradients",
]
