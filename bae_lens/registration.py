"""The architectures are in SAELens' registries as soon as there is SAELens in the process.

SAELens takes seconds to import. Who imports ``bae_lens`` first, as the command line does to print its help, does not wait
for it: an import hook of Python's (PEP 302) has them registered right after ``sae_lens`` itself, before anybody can
look.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_SAE_LENS = "sae_lens"
# Its import registers.
_ARCHITECTURES = "bae_lens.architectures"


class RegistersAfterSAELens(MetaPathFinder):
    """Finds ``sae_lens`` as the other finders do, and has the architectures imported after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """For the import system."""
        if fullname != _SAE_LENS:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find and find(fullname, path, target)
            if spec:
                return _followed_by_ours(spec)
        return None


def _followed_by_ours(spec: ModuleSpec) -> ModuleSpec:
    loader = spec.loader
    if loader is not None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # Where it is what imports SAELens, it is under way already and registers at its own end.
            importlib.import_module(_ARCHITECTURES)

        loader.exec_module = exec_module
    return spec


def register_with_sae_lens() -> None:
    """Register the architectures now if SAELens is there, otherwise as soon as it is."""
    if _SAE_LENS in sys.modules:
        importlib.import_module(_ARCHITECTURES)
    # Once in a process, also where this package is imported a second time.
    elif not any(type(f).__name__ == RegistersAfterSAELens.__name__ for f in sys.meta_path):
        sys.meta_path.insert(0, RegistersAfterSAELens())
