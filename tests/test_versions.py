"""The page on versions names every module that waits for TransformerLens 4."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "tutorials/guides/versions.md").read_text(encoding="utf-8")
# What TransformerLens 4 has not: names, and modules with all that is in them.
GONE = {"HookedTransformer", "HookedTransformerConfig", "HookedEncoder", "HookedSAETransformer"}
GONE_MODULES = {
    *("HookedTransformer", "HookedEncoder", "components", "loading_from_pretrained"),
    *("pretrained", "utils"),
}


def _waits(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, _, module = node.module.partition(".")
        names = {alias.name for alias in node.names}
        if package == "transformer_lens" and module.partition(".")[0] in GONE_MODULES:
            return True
        if package in ("transformer_lens", "sae_lens") and names & GONE:
            return True
    return False


def test_the_page_names_what_waits_for_transformer_lens_4() -> None:
    waiting = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bae_lens").rglob("*.py")
        if _waits(path.read_text(encoding="utf-8"))
    }
    _, _, section = PAGE.partition("## TransformerLens 4")
    named = {part for part in section.split("`") if part.startswith("bae_lens/")}
    assert named == waiting
