"""YAML, and config files in it or in JSON, of which nothing is taken that they do not say clearly.

A file may be somebody else's: no tag makes an object of it, and what it says stays as large as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bae_lens.checks.fields import shown
from bae_lens.files.json_file import parse_json

# A config has about a hundred fields, in about a hundred lines.
_MOST_BYTES = 256 * 1024
_MOST_VALUES = 20_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes ``1e-3`` for a string; here it is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of YAML text.

    Raises:
        ValueError: if it is no YAML, asks for objects, is nested too deep, has a name twice in one
            section, or grows beyond measure by the anchors that it repeats.
    """
    try:
        # YAML's own errors are none of Python's, and numbers and dates raise Python's.
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _n_values(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except yaml.YAMLError as error:
        raise ValueError(f"it is no YAML: {' '.join(str(error).split())}") from error


def _n_values(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Of a node with all that its aliases stand for, which is more than there is in the file."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise ValueError("an anchor is repeated inside itself")
        return found
    known[id(node)] = None
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_names(node)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    n = 1 + sum(_n_values(part, known) for part in parts)
    if n > _MOST_VALUES:
        raise ValueError(f"it holds more than {_MOST_VALUES:,} values, repeated anchors counted")
    known[id(node)] = n
    return n


def _check_names(node: yaml.MappingNode) -> None:
    names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice[1])} stands twice in one section")


def read_config(path: Path) -> dict[str, Any]:
    """The fields and values of a config file: JSON by its suffix, otherwise YAML.

    Raises:
        ValueError: if it is too large for one, not UTF-8, or neither fields nor values.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"{path} is no config: it is larger than {_MOST_BYTES // 1024} KiB.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} has to be UTF-8, and byte {error.start + 1} is not ({error.reason}). Save it anew "
            "with that encoding."
        ) from error
    try:
        content = parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold fields and their values; got {shown(content)}.")
    return content
