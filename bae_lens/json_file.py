"""Results as JSON files, which hold no NaN and no infinity and are written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from typing_extensions import Self

T = TypeVar("T")


class JsonResult:
    """A dataclass that is saved as a JSON file with all of its fields."""

    _file_of: ClassVar[str]
    """What its files are called in messages."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        own: Any = self
        return asdict(own)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write as JSON, all or nothing."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What ``save`` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it holds something else.
        """
        names: Any = cls
        return load_json(path, cls._file_of, cls.from_dict, *(f.name for f in fields(names)))


def finite_or_none(value: Any) -> Any:
    """The value, or None in place of a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, values: Mapping[str, Any], indent: int | None = 1) -> None:
    """All or nothing; without indent much faster, as json's C encoder is for one line only.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    content = json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
    partial.write_text(content + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: str | Path, expected: str, *names: str) -> dict[str, Any]:
    """What ``write_json`` wrote, or somebody hands in: anything may stand in it.

    Args:
        path: the file.
        expected: what it should be, for the message.
        names: that it has to have.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        values = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no {expected}: it is no JSON ({error}).") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no {expected}: it is no object of names and values.")
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{path} is no {expected}: it has no {', '.join(map(repr, missing))}.")
    return values


def load_json(
    path: str | Path, expected: str, from_dict: Callable[[dict[str, Any]], T], *names: str
) -> T:
    """What was made into a dict and written by ``write_json``.

    Args:
        path: the file.
        expected: see ``read_json``.
        from_dict: makes it again.
        names: see ``read_json``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    values = read_json(path, expected, *names)
    try:
        return from_dict(values)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} is no {expected}: {why.removesuffix('.')}.") from error
