"""A config and fields of it on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bae_lens.training.shipped_configs import list_configs

TRUST = "--trust_remote_code"


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """``CONFIG``."""
    parser.add_argument(
        "CONFIG",
        help="a YAML or JSON file, or the name of a shipped config: " + ", ".join(list_configs()),
    )


def overrides_of(options: Sequence[str]) -> dict[str, str]:
    """``--name value``, ``--name=value`` and ``--name`` (true) as a dict.

    Raises:
        ValueError: if there is something else among them.
    """
    overrides: dict[str, str] = {}
    rest = list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise ValueError(f"Expected --FIELD VALUE after the config; got {option!r}.")
        name, equals, value = option[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        overrides[name] = value
    return overrides
