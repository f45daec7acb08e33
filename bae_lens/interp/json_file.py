"""Results as JSON files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """All or nothing.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    content = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False)
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
    if not isinstance(values, dict) or not set(names) <= set(values):
        raise ValueError(f"{path} is no {expected}: it must have {', '.join(names)}.")
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
