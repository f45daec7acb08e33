"""A folder that takes the place of another, with everything else that lies in that."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from bae_lens.files.flock import is_left

# Of renameat2 on Linux and renamex_np on macOS.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
# A folder with more in it than this (somebody's home, a repository) is not linked file by file.
_MOST_CARRIED = 2000
_SECONDS_UNTIL_LOCKED = 60
_LEFTOVER = re.compile(r"\.[0-9a-f]{8}-[0-9a-f]{16}\.part")
_STAGED = re.compile(r"\.[0-9a-f]{8}-[0-9a-f]{16}\.new")


def folder_beside(target: Path) -> Path:
    """A new, empty folder to become ``target``; inside it where it cannot lie beside it.

    That is where the parent takes no files, and where the process works inside ``target``, which
    would lose its working directory.
    """
    name = f"{_prefix(target)}{secrets.token_hex(8)}.part"
    if not _holds_working_directory(target):
        try:
            (target.parent / name).mkdir()
            return target.parent / name
        except OSError:
            if not target.is_dir():
                raise
    (target / name).mkdir()
    return target / name


def take_place(new: Path, target: Path, last: str | None, without: Collection[str]) -> None:
    """Put ``new`` (of ``folder_beside``) where ``target`` is, and carry over what else is there.

    At one stroke, where the system can exchange two names: files of ``target`` that ``new`` lacks
    are linked into it first. Where it cannot (a mount point, other file systems, thousands of files),
    file by file: ``last`` is taken away first and comes last, and ``finish_replacing`` completes what
    a killed process has begun.

    Args:
        new: what is to be there.
        target: a folder or nothing.
        last: the file without which the folder is of no use to a reader.
        without: names in ``target`` that are not carried over.
    """
    if not target.exists():
        new.rename(target)
        return
    own = {entry.name for entry in os.scandir(new)}
    left_behind = own | set(without)
    if new.parent != target:
        try:
            _carry_over(target, new, left_behind)
            shutil.copystat(target, new)
            _exchange(new, target)
        except OSError:
            for entry in list(os.scandir(new)):
                if entry.name not in own:
                    _remove(Path(entry.path))
        else:
            with suppress(OSError):  # What came while the links were made.
                _carry_over(new, target, left_behind)
            shutil.rmtree(new, ignore_errors=True)
            return
        inside = target / new.name
        shutil.move(new, inside)
        new = inside
    for name in without:
        _remove(target / name)
    new.rename(new.with_suffix(".new"))
    finish_replacing(target, last)


def finish_replacing(target: Path, last: str | None) -> None:
    """Complete what ``take_place`` has begun file by file in a process that was killed."""
    for staged in _folders(target, _STAGED):
        names = sorted((entry.name for entry in os.scandir(staged)), key=lambda name: name == last)
        if last in names:
            _remove(target / last)
        for name in names:
            if (target / name).is_dir() or (staged / name).is_dir():
                _remove(target / name)
            (staged / name).replace(target / name)
        staged.rmdir()


def sweep(target: Path) -> None:
    """Remove unfinished folders that were to become ``target`` or were to lie in it.

    Their processes are gone: to be called by one that holds the lock of ``target``.
    """
    for folder in _leftovers(target):
        shutil.rmtree(folder, ignore_errors=True)


def sweep_left(target: Path) -> None:
    """``sweep`` of those whose processes are gone, which nobody has to hold a lock of ``target`` for.

    A new folder has a moment in which its process has not locked it yet.
    """
    for folder in _leftovers(target):
        with suppress(OSError):  # Somebody else has just removed it.
            is_new = time.time() - folder.stat().st_mtime < _SECONDS_UNTIL_LOCKED
            if not is_new and is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _leftovers(target: Path) -> list[Path]:
    beside = (f for f in _folders(target.parent, _LEFTOVER) if f.name.startswith(_prefix(target)))
    return [*beside, *_folders(target, _LEFTOVER)]


def _prefix(target: Path) -> str:
    """Short however long the name is, and of no other folder beside it.

    What is to become part of an unfinished folder is swept with it.
    """
    if _LEFTOVER.fullmatch(target.name):
        return target.name.partition("-")[0] + "-"
    return f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]}-"


def _folders(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _holds_working_directory(target: Path) -> bool:
    try:
        return Path(os.path.realpath(Path.cwd())).is_relative_to(target)
    except OSError:  # It is there no more.
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _carry_over(old: Path, new: Path, left_behind: Collection[str]) -> None:
    """Hard links in ``new`` to every file of ``old``: whoever has one open writes to the same one.

    Raises:
        OSError: if there are too many, or the file system has no such links.
    """
    n_carried = 0

    def carry(old: Path, new: Path, left_behind: Collection[str]) -> None:
        nonlocal n_carried
        for entry in list(os.scandir(old)):
            if entry.name in left_behind:
                continue
            n_carried += 1
            if n_carried > _MOST_CARRIED:
                raise OSError(f"There are more than {_MOST_CARRIED} files in {old}.")
            to = new / entry.name
            if entry.is_dir(follow_symlinks=False):
                to.mkdir(exist_ok=True)
                carry(Path(entry.path), to, ())
                shutil.copystat(entry.path, to)
            elif not _is_same(entry, to):
                link = new / f".{secrets.token_hex(8)}.part"
                os.link(entry.path, link, follow_symlinks=False)
                link.replace(to)

    carry(old, new, left_behind)


def _is_same(entry: os.DirEntry[str], path: Path) -> bool:
    try:
        return os.path.samestat(entry.stat(follow_symlinks=False), path.lstat())
    except FileNotFoundError:
        return False


def _exchange(a: Path, b: Path) -> None:
    """What was at the one name is at the other, with no moment in between.

    Raises:
        OSError: if the system or the file system cannot.
    """
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(a), os.fsencode(b)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _RENAME_SWAP)  # pyright: ignore[reportOptionalMemberAccess]
    elif hasattr(library, "renameat2"):
        failed = library.renameat2(  # pyright: ignore[reportOptionalMemberAccess]
            _AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)
        )
    else:
        raise OSError("This system cannot exchange two names.")
    if failed:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(a))
