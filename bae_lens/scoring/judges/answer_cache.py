"""Answers on disk, each written before it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from bae_lens.files.json_file import parse_json
from bae_lens.files.whole import check_output_file

logger = logging.getLogger(__name__)

# Bytes of a line that are read: answers are short.
_MAX_LINE = 2**20


def key_of(request: Mapping[str, Any]) -> str:
    """A hash of everything that decides an answer; the order of names does not matter."""
    content = json.dumps(request, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A JSON-lines file of answers by key, which only ever grows.

    An answer is on the disk when ``put`` returns. What a killed process left of a line is passed over
    and costs no other line. Threads may share it. Processes may not: neither sees what the other one
    writes, so that both would ask.

    Versions before this one kept ``null`` for a question without a usable answer. Such a question is
    open, as one that was never asked.

    Args:
        path: the file; None keeps answers in memory only.

    Attributes:
        path: as given.
        was_open: keys that the file has ``null`` for.

    Raises:
        ValueError: if what is there is no file, or cannot be read.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.was_open: frozenset[str] = frozenset()
        self._lock = Lock()
        self._answers: dict[str, str] = {}
        if self.path is not None and self.path.exists():
            if not self.path.is_file():
                raise ValueError(f"{self.path} is no file; answers are to be kept there.")
            try:
                self._read(self.path)
            except OSError as error:
                raise ValueError(f"{self.path} cannot be read: {error.strerror}.") from error

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> str:
        return self._answers[key]

    def check(self) -> None:
        """That answers can be kept, before one is paid for.

        Raises:
            ValueError: if the file cannot be written.
        """
        if self.path is None:
            return
        check_output_file(self.path)
        try:
            if self.path.exists():
                self.path.open("ab").close()
        except OSError as error:
            raise ValueError(f"{self.path} cannot be written: {error.strerror}.") from error

    def put(self, key: str, answer: str, about: Mapping[str, Any] | None = None) -> None:
        """Keep an answer.

        Args:
            key: see ``key_of``.
            answer: what is given back.
            about: written beside it, for people.

        Raises:
            ValueError: if the file cannot be written.
        """
        line = json.dumps({"key": key, "answer": answer, **(about or {})}, ensure_ascii=True)
        with self._lock:
            if self.path is not None:
                try:
                    self._append(self.path, line.encode() + b"\n")
                except OSError as error:
                    raise ValueError(
                        f"{self.path} cannot be written: {error.strerror}. Answers up to now are in "
                        "it: make room and run again to go on."
                    ) from error
            self._answers[key] = answer

    def _read(self, path: Path) -> None:
        n_broken, was_open = 0, set[str]()
        with path.open("rb") as file:
            for line in _lines(file):
                try:
                    record = parse_json(line)
                    key, answer = record["key"], record["answer"]
                except (ValueError, LookupError, TypeError):
                    key, answer = None, None
                if isinstance(key, str) and isinstance(answer, str):
                    self._answers[key] = answer
                elif isinstance(key, str) and answer is None:
                    was_open.add(key)
                elif line.strip():
                    n_broken += 1
        self.was_open = frozenset(was_open - set(self._answers))
        if n_broken:
            logger.warning("%d lines of %s are no answers and passed over.", n_broken, path)

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # What a killed process left.
                    line = b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Of lines that are longer than any answer the beginning, which is none."""
    while line := file.readline(_MAX_LINE):
        yield line
        while len(line) == _MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE)
