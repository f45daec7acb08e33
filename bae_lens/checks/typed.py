"""Check that what was made from a file has the types that its class declares, and counts that can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_MOST_SHOWN = 60


def check_types(value: Any, hint: Any = None, name: str = "") -> None:
    """Compare a dataclass or named tuple, and all that is in it, with its annotations.

    A whole number is a float as well, true and false are no numbers, and a list may stand for a
    tuple. Hints that say nothing of plain data (``Any``, other classes) pass. A field that is called
    ``n`` or ``n_…`` is a count, or several, and none may be below 0.

    Args:
        value: what to compare.
        hint: its type; its own class if omitted.
        name: of it, for the message.

    Raises:
        ValueError: naming the first value that is of another type, or the first count below 0.
    """
    hint = type(value) if hint is None else hint
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        _check_union(value, arguments, name, hint)
    elif origin is Literal:
        _check(any(type(value) is type(a) and value == a for a in arguments), value, name, hint)
    elif hint in _PLAIN:
        _check(type(value) in _PLAIN[hint], value, name, hint)
    elif origin in (tuple, list, Sequence):
        _check(isinstance(value, (tuple, list)), value, name, hint)
        _check_items(value, arguments, name, hint)
    elif origin in (dict, Mapping) or hint in (dict, Mapping):
        _check(isinstance(value, Mapping), value, name, hint)
        for key, item in value.items() if arguments else ():
            check_types(key, arguments[0], name)
            check_types(item, arguments[1], f"{name}[{key!r}]")
    elif isinstance(hint, type) and (is_dataclass(hint) or hasattr(hint, "_fields")):
        _check(isinstance(value, hint), value, name, hint)
        for field, own in _hints(hint):
            path, part = f"{name}.{field}" if name else field, getattr(value, field)
            check_types(part, own, path)
            if field == "n" or field.startswith("n_"):
                _check_counts(part, path)


_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    None: (type(None),),
    type(None): (type(None),),
}


def _check_items(value: Sequence[Any], arguments: tuple[Any, ...], name: str, hint: Any) -> None:
    is_fixed = get_origin(hint) is tuple and arguments[-1:] != (...,)
    if is_fixed:
        _check(len(value) == len(arguments), value, name, hint)
        for item, own in zip(value, arguments, strict=True):
            check_types(item, own, name)
        return
    if not arguments:
        return
    if set(map(type, value)) <= _plain_types(arguments[0]):
        return  # Millions of token ids, in no time.
    for i, item in enumerate(value):
        check_types(item, arguments[0], f"{name}[{i}]")


def _check_counts(value: Any, name: str) -> None:
    if isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            _check_counts(part, name)
    elif isinstance(value, (int, float)) and value < 0:
        raise ValueError(f"{name} must be 0 at least; got {value}.")


@lru_cache(maxsize=256)
def _plain_types(hint: Any) -> frozenset[type]:
    """The types of plain values that a hint allows, of a union too; none where it has others."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not all(own in _PLAIN for own in hints):
        return frozenset()
    return frozenset(kind for own in hints for kind in _PLAIN[own])


def _check_union(value: Any, arguments: Iterable[Any], name: str, hint: Any) -> None:
    for own in arguments:
        try:
            check_types(value, own, name)
        except ValueError as error:
            # What is inside a value of the right kind says more than that no kind fits.
            if not str(error).startswith(f"{name} must be"):
                raise
        else:
            return
    _check(False, value, name, hint)


@lru_cache(maxsize=256)
def _hints(kind: type) -> tuple[tuple[str, Any], ...]:
    """The fields of a class; those that only describe the class are left out."""
    names = getattr(kind, "_fields", None) or kind.__dataclass_fields__
    return tuple((name, hint) for name, hint in get_type_hints(kind).items() if name in names)


def _check(is_right: bool, value: Any, name: str, hint: Any) -> None:
    if is_right:
        return
    expected = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    shown = repr(value)
    shown = shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    raise ValueError(f"{name} must be of type {expected.replace('typing.', '')}; got {shown}.")
