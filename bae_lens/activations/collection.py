"""Activations collected into a folder: written once, described, and memory-mapped afterwards.

What lies there is checked before it is used: the description against what is asked for, sizes against
those of the files, and every byte by a checksum.
"""

from __future__ import annotations

import json
import logging
import mmap
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor

from bae_lens.activations.collecting import (
    DESCRIPTION,
    FINISHED,
    FORMAT,
    PIECE,
    ROWS,
    as_json,
    collect_into,
)
from bae_lens.distributed import all_gather_objects, n_ranks, on_every_rank, rank
from bae_lens.files.json_file import parse_json
from bae_lens.files.unfinished import sweep
from bae_lens.files.whole import check_output_folder

logger = logging.getLogger(__name__)

_LARGEST = 2**63 - 1


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

    Where there are several ranks, each reads its share of the text and of the tokens into the one collection,
    in rank order, and each verifies a part of the checksums. What is there serves any number of ranks. The
    position in the text is then rank 0's.

    Args:
        path: of the folder, which all ranks have to see; made if it is not there.
        store: SAELens' ``ActivationsStore`` or ``PairedActivations``.
        n_tokens: how many tokens to keep.
        described: what else decides what the rows are, as JSON holds it; written beside them.

    Returns:
        ``[n_rows, width]`` on the CPU, for reading only: writing in place ends the process.

    Raises:
        ValueError: if the folder holds rows that are described differently, or are damaged.
    """
    folder = Path(path) / FINISHED
    asked = {
        **(described or {}),
        "replay_tokens": n_tokens,
        "sequence_length": getattr(store, "sequence_length", None),
        "dtype": str(store.dtype),
    }
    with on_every_rank():
        check_collection(path, asked)
        if rank() == 0:
            sweep(path)
    is_there = is_seen_by_all(path)
    if not is_there:
        collect_into(Path(path), store, n_tokens, asked)
    with on_every_rank():
        # Another run may have been faster; what it collected is compared like any other.
        check_collection(path, asked)
        rows = _map(folder, store, n_tokens)
        if is_there and rank() == 0:
            store.load_from_checkpoint(folder)
    if is_there:
        logger.info("Replaying the activations in %s; the language model is not run.", path)
    return rows


def is_seen_by_all(path: str | Path) -> bool:
    """Whether a folder holds a collection; one that only some ranks see is refused.

    Raises:
        ValueError: on every rank, if it is one.
    """
    sees = all_gather_objects((Path(path) / FINISHED).is_dir())
    if any(sees) and not all(sees):
        without = ", ".join(str(r) for r, sees_it in enumerate(sees) if not sees_it)
        raise ValueError(
            f"Activations are there in {str(path)!r} for rank {sees.index(True)}, and not for rank {without}. "
            "Name a folder that all machines share."
        )
    return all(sees)


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
    if not (path / FINISHED).is_dir():
        check_output_folder(path)
        return
    there = _read_description(path / FINISHED)
    wanted = json.loads(as_json({"format": FORMAT, **asked}))
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


# Reading


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
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
    path = folder / ROWS
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
            f"{folder / DESCRIPTION}: there are {n_rows} rows of {width} numbers, and {n_tokens} rows "
            f"were asked for. {_anew(folder)}"
        )
    # PairedActivations has two widths, which are compared as d_in and d_out.
    expected = vars(store).get("d_in", width)
    if n_rows > 0 and width != expected:
        raise ValueError(
            f"{folder / DESCRIPTION}: width is {width} there and {expected} here. {_anew(folder)}"
        )
    return n_rows, width


def _whole_number(described: Mapping[str, Any], name: str, folder: Path) -> int:
    value = described.get(name)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(
            f"{folder / DESCRIPTION}: {name} has to be a whole number from 0 up; got {value!r}. "
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
        raise ValueError(f"{folder / DESCRIPTION}: its checksums cannot be read. {_anew(folder)}")
    state = folder / ACTIVATIONS_STORE_STATE_FILENAME
    if not state.is_file() or zlib.crc32(state.read_bytes()) != described.get("crc32_state"):
        raise ValueError(f"{state} is not what was written there. {_anew(folder)}")
    n_blocks = -(-n_bytes // block)
    with (folder / ROWS).open("rb") as file:
        # Each rank looks at some.
        for i in range(rank(), min(n_blocks, len(expected)), n_ranks()):
            file.seek(i * block)
            end = min((i + 1) * block, n_bytes)
            checksum = 0
            while content := file.read(min(PIECE, end - file.tell())):
                checksum = zlib.crc32(content, checksum)
            if checksum != expected[i]:
                raise ValueError(
                    f"{folder / ROWS} is not what was written there: the checksum of bytes {i * block} to "
                    f"{end} differs. {_anew(folder)}"
                )
    if len(expected) != n_blocks:
        raise ValueError(
            f"{folder / DESCRIPTION} has {len(expected)} checksums for {n_blocks} blocks. "
            f"{_anew(folder)}"
        )
    logger.info("The checksums of the %d bytes in %s are right.", n_bytes, folder / ROWS)


def _anew(folder: Path) -> str:
    return f"Delete {str(folder.parent)!r} to collect anew."
