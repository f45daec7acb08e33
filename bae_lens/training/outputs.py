"""Where a run writes: found out before it begins, its own while it lasts, and never half there."""

from __future__ import annotations

import json
import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from safetensors import SafetensorError

from bae_lens.files.folder_lock import LOCK_FILENAME, locked_folder
from bae_lens.files.folder_swap import finish_replacing, sweep
from bae_lens.files.whole import check_output_folder, whole_folder

logger = logging.getLogger(__name__)

METRICS_FILENAME = "metrics.jsonl"
# Of a run whose output folder holds the autoencoder of another one, with that one's metrics.
UNFINISHED_METRICS_FILENAME = "metrics.unfinished.jsonl"
# What writing to a full disk is, from the system, safetensors and torch.
WRITING_ERRORS = (OSError, SafetensorError, RuntimeError)


class NotSavedError(OSError, ValueError):
    """What was trained is not where it was to be; the message says where it is."""


def check_outputs(cfg: Any) -> None:
    """That a run will be able to write its results, and that no other one is at it.

    Args:
        cfg: a runner's config.

    Raises:
        ValueError: if ``output_path`` or ``checkpoint_path`` cannot be written to, or is in use.
    """
    for field in ("output_path", "checkpoint_path"):
        path = getattr(cfg, field)
        if path is None:
            continue
        try:
            json.dumps(cfg.to_dict())
        except TypeError as error:
            raise ValueError(
                f"The config cannot be saved as JSON ({error}): give names in place of objects, such "
                "as 'bfloat16' for a dtype."
            ) from error
        try:
            check_output_folder(path)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from error
        if (Path(path) / LOCK_FILENAME).exists():
            with locked_folder(path):
                pass


@contextmanager
def held_folders(folders: Iterable[str | Path | None]) -> Iterator[None]:
    """While inside, no other run uses the folders; what killed runs left half done is put right.

    Folders that are made for it are removed in the end where nothing was written into them.

    Raises:
        ValueError: if another run uses one; the message says which.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(os.path.realpath(f) for f in folders if f is not None):
            stack.enter_context(_held(Path(folder)))
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with locked_folder(folder):
            finish_replacing(folder, SAE_WEIGHTS_FILENAME)
            sweep(folder)
            yield
    finally:
        for path in made:
            with suppress(OSError):  # It is not empty.
                path.rmdir()


def holds_sae(folder: Path) -> bool:
    """Whether a saved autoencoder, or a part of one, is in a folder."""
    return any((folder / name).exists() for name in (SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME))


def save_or_keep(
    path: Path,
    save: Callable[[Path], None],
    others: Iterable[Path | None],
    without: Collection[str] = (),
) -> None:
    """Write a folder as a whole; where that cannot be, somewhere else, since it is hours of work.

    Args:
        path: of the folder.
        save: writes its files into a folder that it is given.
        others: folders in which a new one is made if ``path`` cannot be written, tried in order; the
            system's temporary folder comes after them.
        without: names in ``path`` that are of what was there before, and not carried over.

    Raises:
        NotSavedError: if it could not be written to ``path``; says why, and where it is.
    """
    try:
        with whole_folder(path, last=SAE_WEIGHTS_FILENAME, without=without) as folder:
            save(folder)
        return
    except WRITING_ERRORS as error:
        failed, reason = error, getattr(error, "strerror", None) or error
        logger.error("%s could not be written: %s", path, reason)
    for other in (*others, Path(tempfile.gettempdir())):
        if other is None:
            continue
        kept = other / f"{path.name}-unsaved-{secrets.token_hex(4)}"
        try:
            with whole_folder(kept) as folder:
                save(folder)
        except WRITING_ERRORS:
            continue
        raise NotSavedError(
            f"{path} could not be written: {reason}. What was to be there is in {kept}: copy it to "
            "where there is room."
        ) from failed
    raise NotSavedError(
        f"{path} could not be written: {reason}; nor could any other folder."
    ) from failed
