"""Ways to damage a file, each as often as it is asked for."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple


class Damaged(NamedTuple):
    """A file's content; and whether a reader can tell that something is wrong with it."""

    name: str
    content: bytes
    is_told: bool = True


def damaged_bytes(content: bytes, random: Random, is_checked: bool = True) -> Iterator[Damaged]:
    """Without end. A flipped bit can be told where the format has a checksum (``is_checked``)."""
    while True:
        n = random.randrange(1, len(content))
        yield Damaged(f"cut to {n} bytes", content[:n])
        yield Damaged("empty", b"")
        yield Damaged("noise", random.randbytes(random.randrange(1, 200)))
        yield Damaged("a pickle", b"\x80\x04\x95" + random.randbytes(40))
        at = random.randrange(len(content))
        flipped = content[:at] + bytes([content[at] ^ (1 << random.randrange(8))])
        yield Damaged(f"bit at {at}", flipped + content[at + 1 :], is_checked)
        yield Damaged("a header that claims much", struct.pack("<Q", 2**62) + content[8:])
        yield Damaged("more at the end", content + random.randbytes(9), is_checked)


def damaged_json(
    content: bytes,
    random: Random,
    needed: tuple[str, ...],
    untyped: tuple[str, ...] = (),
    is_result: bool = False,
) -> Iterator[Damaged]:
    """Without end, of an object of names and values.

    Args:
        content: of a whole file.
        random: draws what is damaged.
        needed: names that it cannot do without.
        untyped: names of values that may be anything.
        is_result: whether what counts by its name may not be below 0.
    """
    values = json.loads(content)
    while True:
        yield from damaged_text(content, random)
        yield Damaged("nested", b'{"a":' + b"[" * random.randrange(10_000, 200_000))
        other = random.choice([b"[1, 2]", b"3", b"null", b'"text"', b"true"])
        yield Damaged(f"{other.decode()} and no object", other)
        name = random.choice(needed)
        rest = {k: v for k, v in values.items() if k != name}
        yield Damaged(f"without {name}", json.dumps(rest).encode())
        twice = json.dumps(values)[:-1] + f", {json.dumps(name)}: {json.dumps(values[name])}}}"
        yield Damaged(f"{name} twice", twice.encode())
        for damage in (_other_type, _no_number, _long_number):
            yield damage(values, random, untyped)
        counts = _counts(values, untyped)
        if is_result and counts:
            path = random.choice(counts)
            yield Damaged(f"-3 at {_shown(path)}", _replaced(values, path, -3))


def damaged_text(content: bytes, random: Random) -> Iterator[Damaged]:
    """Once each, of a text of which no part is whole."""
    n = random.randrange(1, max(2, len(content) - 2))
    yield Damaged(f"cut to {n} bytes", content[:n])
    yield Damaged("empty", b"")
    yield Damaged("noise", b"\x00\xff" + random.randbytes(random.randrange(1, 200)))
    at = random.randrange(len(content))
    yield Damaged("a byte that is no UTF-8", content[:at] + b"\xe9\xff" + content[at:])


def _paths(values: Any, untyped: tuple[str, ...], path: tuple[Any, ...] = ()) -> list[Any]:
    found = [path] if path else []
    items = (
        values.items()
        if isinstance(values, dict)
        else enumerate(values[:3])
        if isinstance(values, list)
        else ()
    )
    for key, value in items:
        if key not in untyped and value is not None:
            found += _paths(value, untyped, (*path, key))
    return found


def _replaced(values: Any, path: tuple[Any, ...], value: Any) -> bytes:
    own = copy.deepcopy(values)
    inner = own
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(own).encode()


def _counts(values: Any, untyped: tuple[str, ...]) -> list[Any]:
    """Where a number is by whose name it counts something."""
    return [
        path
        for path in _paths(values, untyped)
        if type(_at(values, path)) is int
        and any(str(key) in ("n", "counts") or str(key).startswith("n_") for key in path[-2:])
    ]


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _other_type(values: Any, random: Random, untyped: tuple[str, ...]) -> Damaged:
    path = random.choice(_paths(values, untyped))
    others = {
        bool: ["yes", [1]],
        int: ["3", [3], {"a": 1}],
        float: ["0.5", [0.5], {"a": 1}],
        str: [3, ["a"], {"a": 1}],
        list: [3, "a", {"a": 1}],
        dict: [3, "a", [1]],
    }
    value = random.choice(others[type(_at(values, path))])
    return Damaged(f"{json.dumps(value)} at {_shown(path)}", _replaced(values, path, value))


def _number_path(values: Any, random: Random, untyped: tuple[str, ...]) -> Any:
    paths = [p for p in _paths(values, untyped) if type(_at(values, p)) in (int, float)]
    return random.choice(paths) if paths else None


def _no_number(values: Any, random: Random, untyped: tuple[str, ...]) -> Damaged:
    path = _number_path(values, random, untyped) or _paths(values, untyped)[0]
    value = random.choice([float("nan"), float("inf"), -float("inf")])
    return Damaged(f"{value} at {_shown(path)}", _replaced(values, path, value))


def _long_number(values: Any, random: Random, untyped: tuple[str, ...]) -> Damaged:
    path = _number_path(values, random, untyped) or _paths(values, untyped)[0]
    return Damaged(f"400 digits at {_shown(path)}", _replaced(values, path, int("9" * 400)))


def _shown(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
