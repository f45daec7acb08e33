"""Every command and flag of ``bae-lens`` that a text names is one that there is."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from bae_lens import CrossLayerRunnerConfig
from bae_lens.cli import _COMMANDS
from bae_lens.training.config_file import list_configs

_ROOT = Path(__file__).parents[2]
_TEXTS = [
    *(_ROOT / name for name in ("README.md", "SECURITY.md")),
    *sorted((_ROOT / "tutorials").glob("*.ipynb")),
    *sorted((_ROOT / "bae_lens").rglob("*.py")),
]
# Of pip, git and other programs that texts name, and of argparse itself.
_OTHERS = {"--no-deps", "--help", "--editable", "--quiet", "--depth", "--upgrade"}
# A field of a config stands for each of them.
_PLACEHOLDERS = {"--FIELD"}


def _options(command: str) -> set[str]:
    if command == "train":
        classes = [LanguageModelSAERunnerConfig, CrossLayerRunnerConfig, LoggingConfig]
        classes += [config for _, config in SAE_TRAINING_CLASS_REGISTRY.values()]
        names = {field.name for own in classes for field in fields(own)} - {"sae", "logger"}
        ours = {"architecture", "replay_tokens", "replay_path", "trust_remote_code"}
        flat = {f"--{name}" for name in names | ours}
        return flat | {f"--{section}.{name}" for name in names for section in ("sae", "logger")}
    parser = argparse.ArgumentParser()
    importlib.import_module(f"bae_lens.cli.{command.replace('-', '_')}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


OPTIONS = {command: _options(command) for command in _COMMANDS}


def _read(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def _flags(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[A-Za-z][\w.-]*\w", text)


@pytest.mark.parametrize("path", _TEXTS, ids=lambda path: path.name)
def test_commands_and_flags_that_are_named(path: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", _read(path))
    for found in re.finditer(r"\bbae-lens ([a-z][a-z-]*)\b([^\n`#]*)", text):
        command, rest = found.groups()
        if command not in OPTIONS:
            # "bae-lens is …" in prose; what stands in code has to be a command.
            assert not re.search(rf"[`$!] ?bae-lens {command}\b", text), found.group()
            continue
        assert set(_flags(rest)) - _PLACEHOLDERS - _OTHERS <= OPTIONS[command], found.group()
        name = rest.split()[0] if rest.split() else ""
        if command == "train" and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name):
            assert name in list_configs(), found.group()
    if path.suffix in (".md", ".ipynb"):
        known = set().union(*OPTIONS.values()) | _OTHERS | _PLACEHOLDERS
        for benchmark in (_ROOT / "benchmarks").rglob("*.py"):
            known |= set(_flags(benchmark.read_text(encoding="utf-8")))
        assert set(_flags(text)) <= known


def test_a_flag_that_is_none_is_found() -> None:
    assert "--config" in _flags("bae-lens train --config smollm2-bae")
    assert "--config" not in OPTIONS["train"]
    assert {"--data", "--model", "--trust_remote_code"} <= OPTIONS["eval"]
