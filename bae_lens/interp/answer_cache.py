"""Answers on disk, each written before it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

logger = logging.getLogger(__name__)


def key_of(request: Mapping[str, Any]) -> str:
    """A hash of everything that decides an answer; the order of names does not matter."""
    content = json.dumps(request, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


class AnswerCache:
    """A JSON-lines file of answers by key, which only ever grows.

    An answer is on the disk when ``put`` returns. What a killed process left of a line is passed over
    and costs no other line. Threads may share it. Processes may not: neither sees what the other one
    writes, so that both would ask.

    Args:
        path: the file; None keeps answers in memory only.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = Lock()
        self._answers: dict[str, str | None] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> str | None:
        return self._answers[key]

    def put(self, key: str, answer: str | None, about: Mapping[str, Any] | None = None) -> None:
        """Keep an answer; None: there is no usable one.

        Args:
            key: see ``key_of``.
            answer: what is given back.
            about: written beside it, for people.
        """
        line = json.dumps({"key": key, "answer": answer, **(about or {})}, ensure_ascii=True)
        with self._lock:
            if self.path is not None:
                self._append(self.path, line.encode() + b"\n")
            self._answers[key] = answer

    def _read(self, path: Path) -> None:
        n_broken = 0
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line)
                key, answer = record["key"], record["answer"]
            except (ValueError, KeyError, TypeError):
                key, answer = None, None
            if isinstance(key, str) and (answer is None or isinstance(answer, str)):
                self._answers[key] = answer
            elif line.strip():
                n_broken += 1
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
