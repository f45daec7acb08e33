"""What takes long to make of a package's file, made once and kept where a user expects a cache.

``$XDG_CACHE_HOME/bae-lens``, or ``~/.cache/bae-lens``; the environment variable ``BAE_LENS_CACHE`` names another folder,
or is ``off``. Whatever lies there may be removed at any time, and no error of a cache stops what wanted it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bae_lens.files.folder_lock import FolderInUseError, locked_folder
from bae_lens.files.folder_swap import sweep
from bae_lens.files.json_file import read_json, write_json
from bae_lens.files.whole import whole_folder
from bae_lens.fingerprint import files_sha256

logger = logging.getLogger(__name__)

VARIABLE = "BAE_LENS_CACHE"
_OFF = "off"
# What a cached folder is of, and a hash of everything else in it.
_SEAL = "cached.json"
# Of another process that makes the same, which takes half a minute.
_PATIENCE, _POLL = 300, 0.2  # seconds


def cache_folder() -> Path | None:
    """Where caches of this package are; None where they are switched off or there is no home."""
    setting = os.environ.get(VARIABLE, "")
    if setting.strip().lower() == _OFF:
        return None
    if setting:
        return Path(setting).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # A relative path is to be ignored, says the standard of that variable.
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "bae-lens"
    except RuntimeError:
        return None


def cached_folder(name: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path | None:
    """The folder that ``make`` fills, made once for each name and key and then found again.

    It is used only as it was made: a hash of every byte in it is compared each time (half a second a gigabyte or
    so), and a folder that is damaged is made anew, with a logged warning. Of several processes that come at once, one
    makes it and the others wait.

    Args:
        name: of what is cached, for the folder's name.
        key: all that decides what ``make`` makes, as JSON can hold it. Another key, another folder.
        make: fills an empty folder with files.

    Returns:
        The folder; None where none can be had (caches are off, the disk is full or read-only), with a logged
        warning if they are not off. What went wrong is then for the caller to do without.
    """
    root = cache_folder()
    if root is None:
        return None
    text = json.dumps(key, sort_keys=True)
    folder = root / name / hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        if _is_as_made(folder, key):
            return folder
        with _locked(folder.parent):
            # Another process may have made it meanwhile.
            if _is_as_made(folder, key):
                return folder
            if folder.exists():
                logger.warning("%s is damaged, and is made anew.", folder)
            else:
                logger.info("%s is made once, and kept in %s.", name, folder)
            sweep(folder)
            # Nothing of a damaged one is carried over.
            left = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
            with whole_folder(folder, _SEAL, without=left) as new:
                make(new)
                write_json(new / _SEAL, {"of": dict(key), "sha256": files_sha256(_files(new))})
                for path in _files(new):  # safetensors writes for its user alone.
                    path.chmod(stat.S_IMODE((new / _SEAL).stat().st_mode))
        return folder
    except Exception as error:  # Of libraries that write, too: no list of them is whole.
        reason = " ".join(str(error).split())
        logger.warning(
            "%s cannot be kept in %s, and is made anew each time (%s: %s). Name another folder as %s, or set it "
            "to %s.",
            *(name, root, type(error).__name__, reason[:240], VARIABLE, _OFF),
        )
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """``locked_folder`` that waits for its turn.

    Raises:
        FolderInUseError: if that does not come.
    """
    end = time.monotonic() + _PATIENCE
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked_folder(folder))
                break
            except FolderInUseError:
                if time.monotonic() > end:
                    raise
                time.sleep(_POLL)
        yield


def _is_as_made(folder: Path, key: Mapping[str, Any]) -> bool:
    try:
        seal = read_json(folder / _SEAL, "seal of a cache")
        return seal == {"of": dict(key), "sha256": files_sha256(_files(folder))}
    except (OSError, ValueError):  # Not there, not to be read, or no JSON.
        return False


def _files(folder: Path) -> list[Path]:
    """All that is there but the seal. A folder among them cannot be read as a file, and breaks the seal."""
    return [path for path in folder.iterdir() if path.name != _SEAL]
