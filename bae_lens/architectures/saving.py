"""What SAELens writes file by file, as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sae_lens.constants import SAE_WEIGHTS_FILENAME

from bae_lens.files.whole import whole_folder


def save_whole(path: str | Path, save: Callable[[Path], tuple[Path, Path]]) -> tuple[Path, Path]:
    """Save an autoencoder's two files so that they take the place of those that were there together.

    Args:
        path: the folder; what else is in it stays.
        save: SAELens' method, given a folder; returns the paths of weights and config in it.

    Returns:
        The paths of both in ``path``.
    """
    with whole_folder(path, last=SAE_WEIGHTS_FILENAME) as folder:
        weights_path, cfg_path = save(folder)
    return Path(path) / weights_path.name, Path(path) / cfg_path.name


def change_l0(cfg_path: Path, change: Callable[[float], float]) -> None:
    """Correct ``metadata.l0`` in a config that SAELens wrote, where training recorded one.

    Args:
        cfg_path: the config, which is written anew.
        change: from what SAELens counted to what the saved autoencoder has.
    """
    cfg = json.loads(cfg_path.read_text())
    if cfg["metadata"].get("l0") is not None:
        cfg["metadata"]["l0"] = change(cfg["metadata"]["l0"])
        cfg_path.write_text(json.dumps(cfg))
