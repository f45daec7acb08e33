"""The folder of an export: written whole, with a note of what it is, and never over another one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bae_lens.files.json_file import read_json, write_json
from bae_lens.files.whole import check_output_folder, whole_folder

NOTE_FILENAME = "bae_lens_export.json"


def check_export_folder(path: str | Path, kind: str, sha256: str) -> None:
    """That an export can be written to a folder: it is empty, is not there yet, or has an earlier one of the same.

    Args:
        path: of the folder.
        kind: of the export, as ``"neuronpedia"``.
        sha256: of the dictionary's weights, see ``bae_lens.fingerprint``.

    Raises:
        ValueError: if it cannot be written, or holds another export, or files that are no export's.
    """
    _earlier_files(path, kind, sha256)
    check_output_folder(path)


@contextmanager
def export_folder(
    path: str | Path, kind: str, sha256: str, about: Mapping[str, Any]
) -> Iterator[Path]:
    """An empty folder to be filled, which takes the place of ``path`` when the block ends well.

    Files of an earlier export of the same kind and weights go; files that somebody has put beside them stay.

    Args:
        path: of the folder.
        kind: of the export.
        sha256: of the dictionary's weights.
        about: what its note says beside these.

    Raises:
        ValueError: see ``check_export_folder``.
    """
    earlier = _earlier_files(path, kind, sha256)
    with whole_folder(path, last=NOTE_FILENAME, without=earlier) as folder:
        yield folder
        files = sorted(entry.name for entry in folder.iterdir())
        note = {"export": kind, "weights_sha256": sha256, **about, "files": files}
        write_json(folder / NOTE_FILENAME, note)


def _earlier_files(path: str | Path, kind: str, sha256: str) -> list[str]:
    """What an earlier export of the same has written there."""
    target = Path(os.path.realpath(path))
    try:
        if not target.is_dir() or not any(target.iterdir()):
            return []
    except OSError:  # ``check_output_folder`` says why.
        return []
    file = target / NOTE_FILENAME
    if not file.is_file():
        raise ValueError(
            f"{path} has files in it that are of no export. Name a folder that is empty or not there yet."
        )
    note = read_json(file, "note of an export", "export", "weights_sha256", "files")
    if note["export"] != kind:
        raise ValueError(
            f"{path} holds an export for {str(note['export'])[:40]!r}, and this one is for {kind!r}. Name another folder."
        )
    if note["weights_sha256"] != sha256:
        raise ValueError(
            f"{path} holds an export of other weights than this dictionary's. Remove it, or name another folder."
        )
    files = note["files"]
    are_names = isinstance(files, list) and all(
        isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
        for name in files
    )
    if not are_names:
        raise ValueError(f"{file} is no note of an export: its files are no list of names.")
    return [*files, NOTE_FILENAME]
