"""The config files that ship with this package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

SUFFIXES = (".yaml", ".yml", ".json")


def list_configs() -> list[str]:
    """Names of the configs that ship with this package, each one that ``load_config`` takes."""
    files = (resources.files("bae_lens") / "configs").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(SUFFIXES))
