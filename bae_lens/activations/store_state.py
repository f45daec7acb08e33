"""How far a store has served its text, in the file of a checkpoint that SAELens keeps its store's state in."""

from __future__ import annotations

from pathlib import Path

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors.torch import load_file, save_file


def save_count(checkpoint_path: str | Path, name: str, n: int) -> None:
    """Write one number under its name."""
    save_file({name: torch.tensor(n)}, Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME)


def load_count(checkpoint_path: str | Path, name: str, written_by: str) -> int:
    """Read the number that ``save_count`` has written.

    Args:
        checkpoint_path: folder of the checkpoint.
        name: what the number is called.
        written_by: name of the class whose state it is.

    Raises:
        ValueError: if the checkpoint was written by another kind of store.
    """
    path = Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME
    state = load_file(path)
    if name not in state:
        raise ValueError(
            f"{path} was not written by {written_by} (it has {sorted(state)}). "
            "Resume with the same kind of activations store as the run began with."
        )
    return int(state[name])
