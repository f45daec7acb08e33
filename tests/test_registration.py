"""The architectures are registered with SAELens, whoever is imported first."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.test_architecture import IMPORTS, MODULES

_REGISTERED = """
from sae_lens import registry
for known in (registry.SAE_CLASS_REGISTRY, registry.SAE_TRAINING_CLASS_REGISTRY):
    assert {"bae", "clvq_vae", "topk_transcoder"} <= set(known)
assert registry.SAE_CLASS_REGISTRY["bae"][0].__module__ == "bae_lens.architectures.bae"
"""
ORDERS = {
    # Asking whether there is SAELens imports nothing, and uses nothing up.
    "this package alone": """
import importlib.util, sys
import bae_lens
assert importlib.util.find_spec("sae_lens") is not None
heavy = {"sae_lens", "transformer_lens", "torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
""",
    "an architecture": "from bae_lens.architectures.bae_config import BAEConfig",
}


@pytest.mark.parametrize("first", ORDERS)
def test_architectures_are_registered(first: str) -> None:
    code = f"{ORDERS[first]}\n{_REGISTERED}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def _imports_sae_lens(module: str) -> bool:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = [
        name
        for node in tree.body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    return any(name.partition(".")[0] in ("sae_lens", "transformer_lens") for name in names)


def test_no_module_that_imports_sae_lens_is_needed_by_the_architectures() -> None:
    """Such a module would be half imported when SAELens has them imported."""
    needed: set[str] = set()
    open_ones = ["bae_lens.architectures"]
    while open_ones:
        name = open_ones.pop()
        # The package itself imports none of them before it is asked.
        if name in MODULES and name != "bae_lens" and name not in needed:
            needed.add(name)
            open_ones += [*IMPORTS[name], name.rpartition(".")[0]]
    outside = {name for name in needed if not name.startswith("bae_lens.architectures")}
    assert "bae_lens.nn.levels" in outside
    assert {name for name in outside if _imports_sae_lens(name)} == set()
