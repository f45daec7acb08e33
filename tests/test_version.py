"""The version has one source, ``pyproject.toml``."""

from importlib.metadata import version

import bae_lens


def test_the_version_is_the_distributions() -> None:
    assert bae_lens.__version__ == version("bae-lens")
