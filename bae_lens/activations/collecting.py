"""Activations that are read from a store of text and written into a folder, by one process or by several ranks."""

from __future__ import annotations

import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from torch import Tensor

from bae_lens.activations.first_tokens import first_tokens, warn_if_text_ended
from bae_lens.activations.rank_share import own_number
from bae_lens.activations.text_store import Progress, describe_positions
from bae_lens.distributed import (
    all_gather_objects,
    broadcast_object,
    n_ranks,
    on_every_rank,
    rank,
)
from bae_lens.files.full_disk import full_disk_told
from bae_lens.files.unfinished import unfinished_folder
from bae_lens.files.whole import to_disk

logger = logging.getLogger(__name__)

# The folder inside the one that is named: it is there as a whole or not at all.
FINISHED = "collection"
ROWS = "activations.bin"
DESCRIPTION = "description.json"
# What a rank other than 0 has written, until it is joined to the rows.
_PIECE_OF = "activations.{}.bin"
_SECONDS_TO_SEE = 30
# Of the two files; another number where rows are written in another way.
FORMAT = 1
# Each block has a checksum of its own, so that damage can be placed. It is read in pieces.
BLOCK, PIECE = 64 * 2**20, 2**20


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


def warn_if_shares_ended(n_own: int, n_tokens: int) -> int:
    """Say on every rank if all of them together have read less than was asked for; returns how much.

    Args:
        n_own: tokens of this rank.
        n_tokens: of all ranks.
    """
    every = all_gather_objects(n_own)
    if len(every) > 1 and sum(every) < n_tokens:
        logger.warning(
            "The text ended: %d of %d tokens were read, by rank %s.",
            *(sum(every), n_tokens, ", ".join(map(str, every))),
        )
    return sum(every)


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


def collect_into(path: Path, store: Any, n_tokens: int, asked: Mapping[str, Any]) -> None:
    """Write the rows of ``read_rows``, each rank its share, with what was asked for as their description.

    Args:
        path: in which the finished folder is to be.
        store: where to read.
        n_tokens: rows of all ranks.
        asked: the description.
    """
    with _folder_of_all_ranks(path) as temporary:
        folder = temporary / FINISHED
        own = folder / (ROWS if rank() == 0 else _PIECE_OF.format(rank()))
        checksums = _Checksums(BLOCK)
        with on_every_rank():
            own_tokens = own_number(n_tokens, sequence_length_of(store))
            n_rows, width = _write_rows(own, read_rows(store, own_tokens), checksums)
        n_rows, widths = warn_if_shares_ended(n_rows, n_tokens), all_gather_objects(width)
        with on_every_rank():
            if rank() == 0:
                _join_pieces(folder, checksums)
                _finish(
                    path,
                    folder,
                    store,
                    {**asked, "n_rows": n_rows, "width": max(widths)},
                    checksums,
                )


def _finish(
    path: Path, folder: Path, store: Any, described: Mapping[str, Any], checksums: _Checksums
) -> None:
    """Write what belongs to the rows, and give the folder its name."""
    store.save_to_checkpoint(folder)
    # safetensors lets no other user read what it writes.
    state = folder / ACTIVATIONS_STORE_STATE_FILENAME
    shutil.copymode(folder / ROWS, state)
    check = {"crc32_block_bytes": BLOCK, "crc32": checksums.blocks()}
    check["crc32_state"] = zlib.crc32(state.read_bytes())
    content = as_json({"format": FORMAT, **described, **check})
    _write(folder / DESCRIPTION, [content.encode()])
    try:
        folder.rename(path / FINISHED)
    except OSError:
        if not (path / FINISHED).is_dir():
            raise
    to_disk(path)


@contextmanager
def _folder_of_all_ranks(path: Path) -> Iterator[Path]:
    """``unfinished_folder`` of rank 0, in which every rank writes."""
    with full_disk_told(path), ExitStack() as stack:
        name = ""
        with on_every_rank():
            if rank() == 0:
                temporary = stack.enter_context(unfinished_folder(path))
                (temporary / FINISHED).mkdir()
                name = temporary.name
        temporary = path / broadcast_object(name)
        with on_every_rank():
            end = time.monotonic() + _SECONDS_TO_SEE
            # A network file system may show it late.
            while not (temporary / FINISHED).is_dir():
                if time.monotonic() > end:
                    raise ValueError(
                        f"{str(path)!r} is not the folder that rank 0 writes to. Name one that all machines "
                        "share."
                    )
                time.sleep(0.1)
        yield temporary


def _join_pieces(folder: Path, checksums: _Checksums) -> None:
    """Append what other ranks have written to rank 0's rows."""
    if n_ranks() == 1:
        return
    with (folder / ROWS).open("ab") as rows:
        for number in range(1, n_ranks()):
            piece = folder / _PIECE_OF.format(number)
            with piece.open("rb") as content:
                while part := content.read(PIECE):
                    checksums.update(part)
                    rows.write(part)
            piece.unlink()
    to_disk(folder / ROWS)


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


def as_json(fields: Mapping[str, Any]) -> str:
    # Such things as a torch.dtype among the model's keyword arguments are told by their names.
    return json.dumps(fields, indent=2, default=str) + "\n"
