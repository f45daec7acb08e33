"""How far each rank has read its text, and its random state, in the one checkpoint of all ranks.

Rank 0's are in the files that one process writes; those of another rank r in files of the same name with ``.rank<r>``.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bae_lens.distributed import all_gather_objects, n_ranks, on_every_rank, rank

logger = logging.getLogger(__name__)

RANDOM_STATE_FILENAME = "random_state.safetensors"


def load_state(file: Path) -> dict[str, Tensor]:
    """Tensors of a file of a checkpoint.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}. Give a whole checkpoint.") from error


def write_state(folder: Path, store: Any) -> None:
    """A rank's state, under the names that one process gives it."""
    store.save_to_checkpoint(folder)
    save_file(random_state(), folder / RANDOM_STATE_FILENAME)


def gather_states(store: Any) -> dict[str, bytes]:
    """The files of all ranks but rank 0; empty where there is one. Every rank calls it at the same step.

    Args:
        store: this rank's, with ``save_to_checkpoint``.

    Raises:
        OSError: on a rank that cannot write its own to its temporary folder.
        RankError: on the others.
    """
    own: dict[str, bytes] = {}
    with on_every_rank():
        if rank() > 0:
            with tempfile.TemporaryDirectory() as name:
                write_state(Path(name), store)
                own = {
                    _of_rank(f.name, rank()): f.read_bytes() for f in sorted(Path(name).iterdir())
                }
    return {name: content for files in all_gather_objects(own) for name, content in files.items()}


def load_store(load: Callable[[Path], None], path: str | Path, n_then: int) -> None:
    """Let this rank's store go on from a checkpoint.

    Where as many ranks go on as have written it, each goes on with its own text. Others pass over as much of
    theirs, on average, as was read. Of replayed activations every rank has the same state.

    Args:
        load: of the store, from a folder with SAELens' file.
        path: of the checkpoint.
        n_then: ranks that have written it.
    """
    if (n_then, n_ranks()) == (1, 1):
        load(Path(path))
        return
    path, name = Path(path), ACTIVATIONS_STORE_STATE_FILENAME
    with tempfile.TemporaryDirectory() as folder:
        if n_then == n_ranks():
            shutil.copyfile(path / _of_rank(name, rank()), Path(folder) / name)
        else:
            states = [load_state(path / _of_rank(name, r)) for r in range(n_then)]
            save_file({key: _spread(key, states) for key in states[0]}, Path(folder) / name)
        load(Path(folder))


def _spread(key: str, states: list[dict[str, Tensor]]) -> Tensor:
    if key == "n_batches_served":
        return states[0][key]
    return sum((state[key] for state in states), torch.tensor(0)) // n_ranks()


def say_what_differs(path: Path, n_then: int, is_replayed: bool) -> None:
    """Log what is not as in a run of as many ranks; nothing where there are as many."""
    if n_then == n_ranks():
        return
    if is_replayed:
        batches = (
            "With a replay_path the batches are those that would have come next; without one each process "
            "collects another share of the text"
        )
    else:
        batches = "Each process passes over as much of its share of the text as was read on average"
    logger.warning(
        "%s was written by %d processes, and %d go on from it: weights, optimizer and schedules are those of then. "
        "%s, and random numbers are those of rank 0.",
        *(path, n_then, n_ranks(), batches),
    )


def random_state() -> dict[str, Tensor]:
    """Torch's generators: those of the CUDA devices, where there are any, by number; with several ranks
    its own device's, as the first."""
    states = {f"cuda:{i}": torch.cuda.get_rng_state(device) for i, device in enumerate(_devices())}
    return {"cpu": torch.get_rng_state()} | states


def restore_random_state(path: Path, n_then: int = 1) -> None:
    """Take the random state of a checkpoint up again; one of SAELens' own runner has none."""
    file = path / _of_rank(RANDOM_STATE_FILENAME, rank() if n_then == n_ranks() else 0)
    if not file.is_file():
        return
    state = load_state(file)
    torch.set_rng_state(state.pop("cpu"))
    for i, device in enumerate(_devices()):
        if f"cuda:{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{i}"], device)


def _devices() -> list[int]:
    if not torch.cuda.is_available():
        return []
    return (
        list(range(torch.cuda.device_count())) if n_ranks() == 1 else [torch.cuda.current_device()]
    )


def _of_rank(name: str, number: int) -> str:
    if number == 0:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}.rank{number}{dot}{suffix}"
