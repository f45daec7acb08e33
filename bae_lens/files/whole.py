"""Files and folders that appear as a whole or not at all: the one way in which this package writes."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bae_lens.files.flock import held
from bae_lens.files.folder_swap import finish_replacing, folder_beside, sweep_left, take_place
from bae_lens.files.full_disk import full_disk_told
from bae_lens.files.stopping import stoppable

_SUFFIX = ".part"


def write_bytes(path: str | Path, content: bytes) -> None:
    """A file's whole content, by ``whole_file``.

    Raises:
        ValueError: if something that is no regular file is in the way.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """``write_bytes`` of the text in UTF-8.

    Raises:
        ValueError: as ``write_bytes``; and, before anything is written, if UTF-8 cannot hold it.
    """
    write_bytes(path, content.encode("utf-8"))


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A new file to be written, which takes the place of ``path`` when the block ends well.

    It lies in the same folder under a random name, is made exclusively (nobody's link or file of that
    name is written through), is on the disk before it is renamed, and is removed if the block fails,
    also where SIGTERM or SIGHUP would end the process (see ``stoppable``), which then end it once the
    file is gone.
    A symbolic link stays one: its target is replaced. The permissions of a file that was there are
    kept. A character device, such as ``/dev/null`` or ``/dev/stdout``, is written to and not replaced.

    Raises:
        ValueError: if a folder, a pipe or another thing that is no regular file is in the way.
        OSError: naming ``path``, if the disk is full.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_in_the_way(path, target)
    if mode is not None and stat.S_ISCHR(mode):
        with tempfile.TemporaryDirectory() as folder:
            yield (content := Path(folder) / "content")
            with target.open("wb") as device:
                device.write(content.read_bytes())
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_told(path), stoppable():
        partial = temporary_name(target.parent)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield partial
            if mode is not None:
                partial.chmod(stat.S_IMODE(mode))
            to_disk(partial)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    to_disk(target.parent)


@contextmanager
def whole_folder(
    path: str | Path, last: str | None = None, without: Collection[str] = ()
) -> Iterator[Path]:
    """A new, empty folder to be filled, which takes the place of ``path`` when the block ends well.

    It is on the disk before that, and is removed if the block fails, also by SIGTERM or SIGHUP (see ``stoppable``); what
    killed processes have left of earlier ones for ``path`` is removed first. A folder that was there stays
    whole until the new one is. What else was in that one (of other names than the new files) is
    carried over: nobody's file is lost. For how, and what happens where a folder cannot be exchanged
    for another at one stroke, see ``folder_swap.take_place``.

    Args:
        path: of the folder. A symbolic link stays one.
        last: the file that a reader cannot do without: never there beside files of another whole.
        without: names that are not carried over.

    Raises:
        ValueError: if a file is in the way.
        OSError: naming ``path``, if the disk is full.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise ValueError(f"{path} is a file; a folder is to be written there. Name another one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    finish_replacing(target, last)
    sweep_left(target)
    with full_disk_told(path), stoppable():
        partial = folder_beside(target)
        try:
            with held(partial):
                yield partial
                for file in partial.rglob("*"):
                    to_disk(file)
                take_place(partial, target, last, without)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    to_disk(target)
    to_disk(target.parent)


def temporary_name(folder: Path) -> Path:
    """A name in a folder that nobody can foresee, hidden, and short however long the final one is."""
    return folder / f".{secrets.token_hex(8)}{_SUFFIX}"


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk, where that can be asked."""
    # Some file systems, and Windows of folders, cannot.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output_file(path: str | Path) -> None:
    """That ``whole_file`` will be able to write there; nothing is left behind.

    Raises:
        ValueError: if it will not, and why.
    """
    with _named(path, "a file"):
        target = Path(os.path.realpath(path))
        mode = _mode_in_the_way(path, target)
        if mode is None or not stat.S_ISCHR(mode):
            _check_folder(target.parent)


def check_output_folder(path: str | Path) -> None:
    """That files can be written into a folder, which may still have to be made; nothing is left behind.

    Raises:
        ValueError: if they cannot, and why.
    """
    with _named(path, "a folder"):
        _check_folder(Path(os.path.realpath(path)))


@contextmanager
def _named(path: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ValueError(
            f"{path} cannot be written as {what}: {reason}. Name another one."
        ) from error


def _check_folder(folder: Path) -> None:
    """Write in the folder, or in the one that it would have to be made in.

    Raises:
        OSError: what the system says, which counts: permissions do not bind root, /proc takes nothing.
    """
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:  # Any other error, of a name too long for one, is the answer.
        _check_folder(folder.parent)
        return
    if not is_folder:
        raise NotADirectoryError(f"{folder} is no folder")
    probe = temporary_name(folder)
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    finally:
        probe.unlink(missing_ok=True)


def _mode_in_the_way(path: str | Path, target: Path) -> int | None:
    """Of what is at the end of a path that may be a link; None where nothing is."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
        return mode
    what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
    raise ValueError(f"{path} is {what}; a file is to be written there. Name another one.")
