"""Results as JSON files, which hold no NaN and no infinity and are written whole or not at all."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from typing_extensions import Self

from bae_lens.checks.old_names import with_new_names
from bae_lens.checks.typed import check_types
from bae_lens.files.whole import write_bytes

# Of what is wrong with a file, which may quote what stands in it.
_LONGEST_REASON = 400
_MOST_DIGITS = 20  # of an integer of 64 bits, with its sign

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

    def check(self) -> None:
        """Check that its parts fit together, which every file that is loaded has to show.

        Raises:
            ValueError: if they do not.
        """

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
        own: Any = cls
        # Files of an earlier version lack what has come since, which has a default.
        needed = [f.name for f in fields(own) if f.default is MISSING]
        return load_json(path, cls._file_of, cls.from_dict, *needed, renamed=cls)


@dataclass(frozen=True)
class ResultOfWeights(JsonResult):
    """A result that says which dictionary it is of, beyond its name.

    Attributes:
        weights_sha256: see ``bae_lens.fingerprint``; None in files of versions before it.
    """

    weights_sha256: str | None = field(default=None, kw_only=True)


def finite_or_none(value: Any) -> Any:
    """The value, or None in place of a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, values: Mapping[str, Any], indent: int | None = 1) -> None:
    """All or nothing; without indent much faster, as json's C encoder is for one line only.

    Raises:
        ValueError: if a number is NaN or infinite, or something that is no regular file is in the way.
    """
    content = json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
    try:
        encoded = content.encode("utf-8")
    except UnicodeEncodeError:
        # Half a surrogate pair, which only an escape can hold. Nothing is lost over one letter.
        encoded = json.dumps(values, indent=indent, allow_nan=False).encode("ascii")
    write_bytes(path, encoded + b"\n")


def parse_json(content: str | bytes) -> Any:
    """JSON of which nothing is taken that it does not say clearly.

    Raises:
        ValueError: if it is no JSON, is nested too deep, has a name twice in one object, or a number
            that is not finite or an integer of more than 64 bits.
    """
    try:
        return json.loads(
            content,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_parse_float,
            object_pairs_hook=_unique_names,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _parse_int(digits: str) -> int:
    # What is longer overflows, and costs time and memory, in the hands of the next one.
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits: {digits[:_MOST_DIGITS]}…")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"a number that is not finite: {digits[:_MOST_DIGITS]}")
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"{twice[:80]!r} stands twice in one object")
    return values


def read_json(
    path: str | Path, expected: str, *names: str, renamed: type | None = None
) -> dict[str, Any]:
    """What ``write_json`` wrote, or somebody hands in: anything may stand in it.

    Args:
        path: the file.
        expected: what it should be, for the message.
        names: that it has to have.
        renamed: a class whose fields had other names, under which they may stand.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        values = parse_json(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no {expected}: it is no JSON ({error}).") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no {expected}: it is no object of names and values.")
    if renamed is not None:
        try:
            values = with_new_names(renamed, values)
        except ValueError as error:
            raise ValueError(f"{path} is no {expected}: {error}.") from error
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{path} is no {expected}: it has no {', '.join(map(repr, missing))}.")
    return values


def load_json(
    path: str | Path,
    expected: str,
    from_dict: Callable[[dict[str, Any]], T],
    *names: str,
    renamed: type | None = None,
) -> T:
    """What was made into a dict and written by ``write_json``.

    Args:
        path: the file.
        expected: see ``read_json``.
        from_dict: makes it again.
        names: see ``read_json``.
        renamed: see ``read_json``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    values = read_json(path, expected, *names, renamed=renamed)
    try:
        result = from_dict(values)
        check_types(result)
        # Then: of wrong types, nothing else can be said.
        if isinstance(result, JsonResult):
            result.check()
        return result
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, ValueError) else repr(error)
        why = why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"
        raise ValueError(f"{path} is no {expected}: {why.removesuffix('.')}.") from error
