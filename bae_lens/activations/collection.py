"""Activations collected into a folder: written once, described, and memory-mapped afterwards.

What lies there is checked before it is used: the description against what is asked for, sizes against
those of the files, and every byte by a checksum.
"""

from __future__ import annotations

import json
import logging
import mmap
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor

from bae_lens.activations.first_tokens import first_tokens, warn_if_text_ended
from bae_lens.activations.text_store import Progress, describe_positions
from bae_lens.files.json_file import parse_json
from bae_lens.files.unfinished import sweep, unfinished_folder
from bae_lens.files.whole import check_output_folder, to_disk

logger = logging.getLogger(__name__)

# The folder inside the one that is named: it is there as a whole or not at all.
_FINISHED = "collection"
_ROWS = "activations.bin"
_DESCRIPTION = "description.json"
# Of the two files; another number where rows are written in another way.
_FORMAT = 1
# Each block has a checksum of its own, so that damage can be placed. It is read in pieces.
_BLOCK, _PIECE = 64 * 2**20, 2**20
_LARGEST = 2**63 - 1


def sequence_length_of(store: Any) -> int:
    """Rows of a store that stay together; 1 for single tokens."""
    return getattr(store, "sequence_length", None) or 1


def read_rows(store: Any, n_tokens: int) -> Iterator[Tensor]:
    """A store's text in order, its special tokens left out, a forward pass at a time.

    Args:
        store: SAELens' ``ActivationsStore`` or ``PairedActivations``.
        n_tokens: how many rows in all, in whole sequences. Fewer come, with a logged warning,
            where the text ends before. Rows with NaN or infinity are counted in another.

    Raises:
        ValueError: if no token is left after special ones are taken out.
    """
    n_read = n_not_finite = 0
    n_tokens -= n_tokens % sequence_length_of(store)
    batches = first_tokens(_one_pass(store), n_tokens, "Collecting activations", leave_bar=True)
    for batch in batches:
        batch = batch.to(store.dtype)
        n_read += len(batch)
        n_not_finite += int((~batch.isfinite()).any(-1).sum())
        yield batch
    warn_if_text_ended(n_read, n_tokens)
    if n_not_finite:
        logger.warning(
            "%d of %d collected activations have NaN or infinite values in %s; every training step that "
            "meets one is skipped. Look at the activations at the hook point.",
            *(n_not_finite, n_read, store.dtype),
        )


def _one_pass(store: Any) -> Iterator[Tensor]:
    """What a store reads up to the end of its text, a forward pass at a time."""
    # Stores of this package have their own, which knows masks; SAELens' has none.
    progress = Progress(describe_positions(store))
    while True:
        try:
            batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
        except StopIteration:
            progress.at_end()
            return
        progress.see(len(batch))
        yield batch


def kept_rows(
    path: str | Path, store: Any, n_tokens: int, described: Mapping[str, Any] | None = None
) -> Tensor:
    """The rows of ``read_rows``, memory-mapped from a folder, and collected if they are not there.

    Nothing but one forward pass is held in memory while they are collected. They are written under
    a temporary name and renamed once they are whole: what a run that was killed leaves
    (``.collecting-…``) is never read, and the next run removes it. How far the text was read is kept
    with them: a store whose rows are there already passes over so much text, as one that is resumed
    does, and goes on with text that was not collected. Their checksums are verified once each time
    that they are mapped, which reads the file (CRC-32, about 2 GB a second).

    Args:
        path: of the folder; made if it is not there.
        store: SAELens' ``ActivationsStore`` or ``PairedActivations``.
        n_tokens: how many tokens to keep.
        described: what else decides what the rows are, as JSON holds it; written beside them.

    Returns:
        ``[n_rows, width]`` on the CPU, for reading only: writing in place ends the process.

    Raises:
        ValueError: if the folder holds rows that are described differently, or are damaged.
    """
    folder = Path(path) / _FINISHED
    asked = {
        **(described or {}),
        "replay_tokens": n_tokens,
        "sequence_length": getattr(store, "sequence_length", None),
        "dtype": str(store.dtype),
    }
    check_collection(path, asked)
    sweep(path)
    if folder.is_dir():
        rows = _map(folder, store, n_tokens)
        store.load_from_checkpoint(folder)
        logger.info("Replaying the activations in %s; the language model is not run.", path)
        return rows
    _collect(Path(path), store, n_tokens, asked)
    # Another run may have been faster; what it collected is compared like any other.
    check_collection(path, asked)
    return _map(folder, store, n_tokens)


def check_collection(path: str | Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder whose rows are not those asked for; one that holds none and can be written will do.

    Args:
        path: of the folder.
        asked: what the description of its rows has to agree in; other fields are not compared.

    Raises:
        ValueError: if it does not agree, or cannot be read or written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"Activations are kept in a folder; {str(path)!r} is a file.")
    if not (path / _FINISHED).is_dir():
        check_output_folder(path)
        return
    there = _read_description(path / _FINISHED)
    wanted = json.loads(_as_json({"format": _FORMAT, **asked}))
    differing = [
        f"{name} is {there.get(name)!r} there and {value!r} here"
        for name, value in wanted.items()
        if there.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"The activations in {str(path)!r} are not those that this run asks for: "
            f"{'; '.join(differing)}. Name another folder, or delete this one to collect anew."
        )


# Writing


def _collect(path: Path, store: Any, n_tokens: int, asked: Mapping[str, Any]) -> None:
    with unfinished_folder(path) as temporary:
        folder = temporary / _FINISHED
        folder.mkdir()
        checksums = _Checksums(_BLOCK)
        n_rows, width = _write_rows(folder / _ROWS, read_rows(store, n_tokens), checksums)
        store.save_to_checkpoint(folder)
        # safetensors lets no other user read what it writes.
        state = folder / ACTIVATIONS_STORE_STATE_FILENAME
        shutil.copymode(folder / _ROWS, state)
        shape = {"format": _FORMAT, "n_rows": n_rows, "width": width}
        check = {"crc32_block_bytes": _BLOCK, "crc32": checksums.blocks()}
        check["crc32_state"] = zlib.crc32(state.read_bytes())
        _write(folder / _DESCRIPTION, [_as_json({**shape, **asked, **check}).encode()])
        try:
            folder.rename(path / _FINISHED)
        except OSError:
            if not (path / _FINISHED).is_dir():
                raise
        to_disk(path)


def _write_rows(path: Path, batches: Iterator[Tensor], checksums: _Checksums) -> tuple[int, int]:
    """Number of rows and their width."""
    n_rows = width = 0

    def as_bytes() -> Iterator[bytes]:
        nonlocal n_rows, width
        for batch in batches:
            n_rows, width = n_rows + len(batch), batch.shape[1]
            # As bytes, since NumPy has no bfloat16.
            content = batch.contiguous().cpu().view(torch.uint8).numpy().tobytes()
            checksums.update(content)
            yield content

    _write(path, as_bytes())
    return n_rows, width


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(chunks)
    # Before the folder has its name, also if the machine goes down.
    to_disk(path)


class _Checksums:
    """CRC-32 of bytes that come in pieces, one for every ``block`` of them."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._done: list[int] = []
        self._crc = self._n = 0

    def update(self, content: bytes) -> None:
        """Take in the next bytes."""
        rest = memoryview(content)
        while len(rest) > 0:
            part = rest[: self._block - self._n]
            self._crc, self._n, rest = (
                zlib.crc32(part, self._crc),
                self._n + len(part),
                rest[len(part) :],
            )
            if self._n == self._block:
                self._done.append(self._crc)
                self._crc = self._n = 0

    def blocks(self) -> list[int]:
        """The checksums of all blocks so far, of which the last may be shorter."""
        return [*self._done, self._crc] if self._n else list(self._done)


def _as_json(fields: Mapping[str, Any]) -> str:
    # Such things as a torch.dtype among the model's keyword arguments are told by their names.
    return json.dumps(fields, indent=2, default=str) + "\n"


# Reading


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        described = parse_json(path.read_bytes())
        if not isinstance(described, dict):
            raise ValueError("it is no object of names and values")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_anew(folder)}") from error
    return described


def _map(folder: Path, store: Any, n_tokens: int) -> Tensor:
    """The rows, of which nothing is believed that the file itself does not bear out."""
    described = _read_description(folder)
    shape, dtype = _shape_of(described, folder, store, n_tokens), str_to_dtype(described["dtype"])
    path = folder / _ROWS
    n_expected = shape[0] * shape[1] * dtype.itemsize
    n_bytes = path.stat().st_size if path.is_file() else 0
    if n_bytes != n_expected:
        raise ValueError(
            f"{path} should have {n_expected} bytes, {shape[0]} rows of {shape[1]} numbers, but "
            f"has {n_bytes}. {_anew(folder)}"
        )
    _verify(folder, described, n_bytes)
    if n_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    with path.open("rb") as file:
        # Shared and read-only. torch.from_file, safetensors and torch.load(mmap=True) map
        # privately, for which Linux wants as much memory as the file is large.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Or every row brings its neighborhood along, which no shuffled batch has a use for.
        mapped.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        # That it is read-only.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)


def _shape_of(
    described: Mapping[str, Any], folder: Path, store: Any, n_tokens: int
) -> tuple[int, int]:
    n_rows, width = (_whole_number(described, name, folder) for name in ("n_rows", "width"))
    # No file backs rows without numbers, however many there are said to be.
    if n_rows > n_tokens or (n_rows > 0 and width == 0):
        raise ValueError(
            f"{folder / _DESCRIPTION}: there are {n_rows} rows of {width} numbers, and {n_tokens} rows "
            f"were asked for. {_anew(folder)}"
        )
    # PairedActivations has two widths, which are compared as d_in and d_out.
    expected = vars(store).get("d_in", width)
    if n_rows > 0 and width != expected:
        raise ValueError(
            f"{folder / _DESCRIPTION}: width is {width} there and {expected} here. {_anew(folder)}"
        )
    return n_rows, width


def _whole_number(described: Mapping[str, Any], name: str, folder: Path) -> int:
    value = described.get(name)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(
            f"{folder / _DESCRIPTION}: {name} has to be a whole number from 0 up; got {value!r}. "
            f"{_anew(folder)}"
        )
    return value


def _verify(folder: Path, described: Mapping[str, Any], n_bytes: int) -> None:
    """Compare what the files hold with the checksums in the description."""
    if "crc32" not in described:
        logger.warning(
            "The activations in %s are of a version that wrote no checksum: that they are still what "
            "was collected cannot be told.",
            folder.parent,
        )
        return
    block, expected = described.get("crc32_block_bytes"), described["crc32"]
    if type(block) is not int or block < 1 or not isinstance(expected, list):
        raise ValueError(f"{folder / _DESCRIPTION}: its checksums cannot be read. {_anew(folder)}")
    state = folder / ACTIVATIONS_STORE_STATE_FILENAME
    if not state.is_file() or zlib.crc32(state.read_bytes()) != described.get("crc32_state"):
        raise ValueError(f"{state} is not what was written there. {_anew(folder)}")
    checksums = _Checksums(block)
    with (folder / _ROWS).open("rb") as file:
        while content := file.read(_PIECE):
            checksums.update(content)
    for i, (there, is_now) in enumerate(zip(expected, checksums.blocks(), strict=False)):
        if there != is_now:
            raise ValueError(
                f"{folder / _ROWS} is not what was written there: the checksum of bytes {i * block} to "
                f"{min((i + 1) * block, n_bytes)} differs. {_anew(folder)}"
            )
    if len(expected) != len(checksums.blocks()):
        raise ValueError(
            f"{folder / _DESCRIPTION} has {len(expected)} checksums for {len(checksums.blocks())} blocks. "
            f"{_anew(folder)}"
        )
    logger.info("The checksums of the %d bytes in %s are right.", n_bytes, folder / _ROWS)


def _anew(folder: Path) -> str:
    return f"Delete {str(folder.parent)!r} to collect anew."
