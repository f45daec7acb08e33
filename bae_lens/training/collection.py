"""Activations collected into a folder: written once, described, and memory-mapped afterwards."""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from sae_lens.util import str_to_dtype
from torch import Tensor
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)

# The folder inside the one that is named: it is there as a whole or not at all.
_FINISHED = "collection"
_ROWS = "activations.bin"
_DESCRIPTION = "description.json"
# Of the two files; another number where rows are written in another way.
_FORMAT = 1


def sequence_length_of(store: Any) -> int:
    """Rows of a store that stay together; 1 for single tokens."""
    return getattr(store, "sequence_length", None) or 1


def read_rows(store: Any, n_tokens: int) -> Iterator[Tensor]:
    """A store's text in order, its special tokens left out, a forward pass at a time.

    Args:
        store: SAELens' ``ActivationsStore`` or ``PairedActivations``.
        n_tokens: how many rows in all, in whole sequences. Fewer come, with a logged warning,
            where the text ends before.
    """
    n_read = 0
    n_tokens -= n_tokens % sequence_length_of(store)
    with tqdm(total=n_tokens, desc="Collecting activations", unit="tok") as bar:
        while n_read < n_tokens:
            try:
                batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                break
            batch = batch[: n_tokens - n_read].to(store.dtype)
            n_read += len(batch)
            bar.update(len(batch))
            yield batch
    if n_read < n_tokens:
        logger.warning("The text ended after %d of %d tokens.", n_read, n_tokens)


def kept_rows(
    path: str | Path, store: Any, n_tokens: int, described: Mapping[str, Any] | None = None
) -> Tensor:
    """The rows of ``read_rows``, memory-mapped from a folder, and collected if they are not there.

    Nothing but one forward pass is held in memory while they are collected. They are written under
    a temporary name and renamed once they are whole: what a run that was killed leaves
    (``.collecting-…``) is never read. How far the text was read is kept with them: a store whose
    rows are there already passes over so much text, as one that is resumed does, and goes on with
    text that was not collected.

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
    if folder.is_dir():
        store.load_from_checkpoint(folder)
        logger.info("Replaying the activations in %s; the language model is not run.", path)
    else:
        _collect(Path(path), store, n_tokens, asked)
        # Another run may have been faster; what it collected is compared like any other.
        check_collection(path, asked)
    return _map(folder)


def check_collection(path: str | Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder whose rows are not those asked for; one that holds none will do.

    Args:
        path: of the folder.
        asked: what the description of its rows has to agree in; other fields are not compared.

    Raises:
        ValueError: if it does not agree, or cannot be read.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"Activations are kept in a folder; {str(path)!r} is a file.")
    if not (path / _FINISHED).is_dir():
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
    path.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".collecting-", dir=path) as temporary:
        folder = Path(temporary) / _FINISHED
        folder.mkdir()
        n_rows, width = _write_rows(folder / _ROWS, read_rows(store, n_tokens))
        shape = {"format": _FORMAT, "n_rows": n_rows, "width": width}
        _write(folder / _DESCRIPTION, [_as_json({**shape, **asked}).encode()])
        store.save_to_checkpoint(folder)
        # safetensors lets no other user read what it writes.
        shutil.copymode(folder / _ROWS, folder / ACTIVATIONS_STORE_STATE_FILENAME)
        try:
            folder.rename(path / _FINISHED)
        except OSError:
            if not (path / _FINISHED).is_dir():
                raise


def _write_rows(path: Path, batches: Iterator[Tensor]) -> tuple[int, int]:
    """Number of rows and their width."""
    n_rows = width = 0

    def as_bytes() -> Iterator[bytes]:
        nonlocal n_rows, width
        for batch in batches:
            n_rows, width = n_rows + len(batch), batch.shape[1]
            # As bytes, since NumPy has no bfloat16.
            yield batch.contiguous().cpu().view(torch.uint8).numpy().tobytes()

    _write(path, as_bytes())
    return n_rows, width


def _write(path: Path, chunks: Iterator[bytes] | list[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(chunks)
        file.flush()
        # On disk before the folder has its name, also if the machine goes down.
        os.fsync(file.fileno())


def _as_json(fields: Mapping[str, Any]) -> str:
    # Such things as a torch.dtype among the model's keyword arguments are told by their names.
    return json.dumps(fields, indent=2, default=str) + "\n"


# Reading


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Delete {str(folder.parent)!r} to collect anew."
        ) from error


def _map(folder: Path) -> Tensor:
    described = _read_description(folder)
    shape, dtype = (described["n_rows"], described["width"]), str_to_dtype(described["dtype"])
    path = folder / _ROWS
    n_expected = shape[0] * shape[1] * dtype.itemsize
    n_bytes = path.stat().st_size if path.is_file() else 0
    if n_bytes != n_expected:
        raise ValueError(
            f"{path} should have {n_expected} bytes, {shape[0]} rows of {shape[1]} numbers, but "
            f"has {n_bytes}. Delete {str(folder.parent)!r} to collect anew."
        )
    if n_bytes == 0:
        return torch.empty(shape, dtype=dtype)
    with path.open("rb") as file:
        # Shared and read-only. torch.from_file, safetensors and torch.load(mmap=True) map
        # privately, for which Linux wants as much memory as the file is large.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_RANDOM"):
        # Or every row brings its neighbourhood along, which no shuffled batch has a use for.
        mapped.madvise(mmap.MADV_RANDOM)
    with warnings.catch_warnings():
        # That it is read-only.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)
