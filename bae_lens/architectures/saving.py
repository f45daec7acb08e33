"""What SAELens writes file by file, as a whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sae_lens.constants import SAE_WEIGHTS_FILENAME

from bae_lens.files.whole import whole_folder


def save_whole(path: str | Path, save: Callable[[Path], tuple[Path, Path]]) -> tuple[Path, Path]:
    """An autoencoder's two files, which take the place of those that were there together.

    Args:
        path: of the folder; what else is in it stays.
        save: SAELens' method, given a folder; returns the paths of weights and config in it.

    Returns:
        The paths of both in ``path``.
    """
    with whole_folder(path, last=SAE_WEIGHTS_FILENAME) as folder:
        weights_path, cfg_path = save(folder)
    return Path(path) / weights_path.name, Path(path) / cfg_path.name
