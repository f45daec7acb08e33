"""Fields and names that have been renamed: what was saved or is asked for under an old one is found."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_OLD_NAMES = "_old_names"
C = TypeVar("C", bound=type)


def renamed_fields(**new_of_old: str) -> Callable[[C], C]:
    """Class decorator, above ``dataclass``: takes old names of fields, and answers to those of methods too, with a warning.

    >>> from dataclasses import dataclass
    >>> @renamed_fields(centre="center")
    ... @dataclass
    ... class Settings:
    ...     center: bool = True
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     Settings(centre=False)
    Settings(center=False)

    Args:
        **new_of_old: the present name of each old one.
    """

    def rename(cls: C) -> C:
        init = cls.__init__

        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            for old in new_of_old.keys() & values.keys():
                _warn(cls, old, new_of_old[old])
            init(self, *args, **with_new_names(cls, values))

        cls.__init__ = __init__
        setattr(cls, _OLD_NAMES, new_of_old)
        for old, new in new_of_old.items():
            setattr(cls, old, property(functools.partial(_answer, cls=cls, old=old, new=new)))
        return cls

    return rename


def with_new_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, under the names that a class has today; no warning: files are no one's fault.

    Raises:
        ValueError: if something stands under both names.
    """
    new_of_old: Mapping[str, str] = getattr(cls, _OLD_NAMES, {})
    for old, new in new_of_old.items():
        if old in values and new in values:
            raise ValueError(f"{new!r} stands twice, also under its old name {old!r}")
    return {new_of_old.get(name, name): value for name, value in values.items()}


def renamed_names(module: str, **new_of_old: str) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that answers to old names of what it exports, with a warning.

    Args:
        module: its ``__name__``.
        **new_of_old: the present name of each old one.
    """

    def __getattr__(name: str) -> Any:
        if name not in new_of_old:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now {module}.{new_of_old[name]}; the old name goes with the next "
            "release.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], new_of_old[name])

    return __getattr__


def _answer(self: Any, *, cls: type, old: str, new: str) -> Any:
    _warn(cls, old, new)
    return getattr(self, new)


def _warn(cls: type, old: str, new: str) -> None:
    # Above this: the wrapper or the property, and then the caller.
    warnings.warn(
        f"{cls.__name__}.{old} is now {new}; the old name goes with the next release.",
        FutureWarning,
        stacklevel=3,
    )
