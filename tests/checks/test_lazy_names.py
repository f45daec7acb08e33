"""Public names that are imported when they are first used."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bae_lens

_ROOT = Path(bae_lens.__file__).parent
LAZY = [
    path for path in sorted(_ROOT.rglob("__init__.py")) if "lazy_names(" in path.read_text("utf-8")
]


def _name(path: Path) -> str:
    return ".".join(("bae_lens", *path.parent.relative_to(_ROOT).parts))


def test_the_package_and_some_rooms_are_lazy() -> None:
    assert {"bae_lens", "bae_lens.activations", "bae_lens.training"} <= set(map(_name, LAZY))


@pytest.mark.parametrize("path", LAZY, ids=_name)
def test_what_a_type_checker_reads_is_what_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    [call] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_names"
    ]
    # Literals, and tuples that others are spread into.
    homes: dict[str, tuple[str, ...]] = eval(ast.unparse(call.args[1]), {})
    assert {name: home for home, names in homes.items() for name in names} == declared
    package = importlib.import_module(_name(path))
    assert sorted({*package.__all__} - {"__version__"}) == sorted(declared)
    assert set(declared) <= set(dir(package))
    for name, home in declared.items():
        assert home is not None
        assert getattr(package, name) is getattr(importlib.import_module(home), name)


def test_submodules_are_attributes_and_other_names_are_none() -> None:
    package: Any = bae_lens

    assert package.training.outputs is sys.modules["bae_lens.training.outputs"]
    assert isinstance(package.scoring, ModuleType)
    with pytest.raises(AttributeError, match="'bae_lens' has no attribute 'nonsense'"):
        _ = package.nonsense
    # It has moved: who asks what there is imports nothing by an old name.
    assert not hasattr(package.training, "sentences")


def test_of_a_room_and_the_function_in_it_the_package_shows_the_function() -> None:
    room: Any = importlib.import_module("bae_lens.concept_ablation")

    assert isinstance(room, ModuleType)
    assert bae_lens.concept_ablation is room.concept_ablation
    importlib.import_module("bae_lens.concept_ablation.settings")
    assert bae_lens.concept_ablation is room.concept_ablation
