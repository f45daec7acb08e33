"""The import rule of ARCHITECTURE.md: a room imports only rooms before it, and no module in a circle.

Imports within functions and under ``TYPE_CHECKING`` count as well.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bae_lens"
MAX_LINES = 450
# The package itself, which everybody may enter by and nothing within it imports.
DOOR = {"bae_lens", "bae_lens.__main__", "bae_lens.moved", "bae_lens.registration"}
# What breaks the rule as (module, imported module). The list may shrink and must not grow.
VIOLATIONS: set[tuple[str, str]] = set()


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in PACKAGE.rglob("*.py")}


def rooms() -> list[str]:
    """The rooms in the order of the numbered list in ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    return re.findall(r"^\d+\. `(\w+)`", text, re.MULTILINE)


def imports_of(source: str) -> set[str]:
    """Modules of this package that a source text imports, wherever in it.

    ``from bae_lens import x`` is an import of the package itself unless x is a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "Imports are absolute, so that this test can read them."
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            found |= modules | ({node.module or ""} if names - modules else set())
    return {name for name in found if name.split(".")[0] == "bae_lens"}


IMPORTS = {name: imports_of(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def broken_rules() -> set[tuple[str, str]]:
    order = {room: place for place, room in enumerate(rooms())}

    def place(module: str) -> int:
        return len(order) if module in DOOR else order[module.split(".")[1]]

    return {
        (module, imported)
        for module, found in IMPORTS.items()
        for imported in found
        if module not in DOOR and place(imported) > place(module)
    }


def test_the_list_has_every_room_once_and_no_other() -> None:
    there = {name.split(".")[1] for name in MODULES if name not in DOOR}
    assert sorted(rooms()) == sorted(there)


def test_a_room_imports_only_rooms_before_it() -> None:
    assert broken_rules() - VIOLATIONS == set()


def test_violations_that_are_mended_leave_the_list() -> None:
    assert VIOLATIONS - broken_rules() == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_one_room_alone_calls_torch_distributed() -> None:
    callers = {
        name for name, path in MODULES.items() if "torch.distributed" in path.read_text("utf-8")
    }
    assert {name.split(".")[1] for name in callers} == {"distributed"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_long_module_says_why(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    if len(text.splitlines()) > MAX_LINES:
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert "One module because" in docstring, (
            f"{name} has more than {MAX_LINES} lines: divide it, or say in its docstring "
            "'One module because …'."
        )


def test_imports_are_seen_wherever_they_stand() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from bae_lens.cli import data
def f():
    import bae_lens.nn.entropy
    from bae_lens import stats, BAE
    from bae_lens.nn import widened
"""
    assert imports_of(source) == {
        "bae_lens",
        "bae_lens.cli.data",
        "bae_lens.nn",
        "bae_lens.nn.entropy",
        "bae_lens.stats",
    }


def test_modules_that_the_map_names_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+/[\w/]*(?:\.\w+)?)`", text)
    assert len(named) > 30
    for name in named:
        assert (PACKAGE / name).exists() or (ROOT / name).exists(), name
