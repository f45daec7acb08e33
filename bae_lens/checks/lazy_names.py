"""Public names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> None:
    """Give a package a ``__getattr__`` and a ``__dir__`` that know its public names.

    They are set here and not in the package's own text, where a type checker would take any name for one of them. Its
    submodules are found as attributes too, as they are where a package imports all of them. Of a public name that
    is also that of a submodule, the public one is meant.

    Args:
        package: its ``__name__``.
        homes: the names by the module that has them.
    """
    home_of = {name: home for home, names in homes.items() for name in names}
    module = sys.modules[package]
    if any(f"{package}.{name}" in homes for name in home_of):

        class Package(ModuleType):
            def __setattr__(self, name: str, value: Any) -> None:
                # The import system binds a submodule to its name in the package.
                if not (name in home_of and isinstance(value, ModuleType)):
                    super().__setattr__(name, value)

        module.__class__ = Package

    def __getattr__(name: str) -> Any:
        if name in home_of:
            value = getattr(importlib.import_module(home_of[name]), name)
            setattr(module, name, value)
            return value
        full = f"{package}.{name}"
        # By its file: a name that has moved is imported by who asks for it, not by who asks what there is.
        if not name.startswith("_") and PathFinder.find_spec(full, module.__path__) is not None:
            return importlib.import_module(full)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*module.__dict__, *home_of})

    module.__dict__.update(__getattr__=__getattr__, __dir__=__dir__)
