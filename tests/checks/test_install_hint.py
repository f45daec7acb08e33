"""How what is optional is installed, by what pip notes of where this package came from."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from bae_lens.checks.install_hint import install_command

_CLONE = "pip install -e '.[demo]'  # in a clone of bae-lens"


@pytest.mark.parametrize(
    ("noted", "command"),
    [
        (
            {"url": "file:///home/me/bae%20lens", "dir_info": {"editable": True}},
            "pip install -e '/home/me/bae lens[demo]'",
        ),
        (
            {"url": "file:///home/me/bae-lens", "dir_info": {}},
            "pip install '/home/me/bae-lens[demo]'",
        ),
        (
            {"url": "https://host/bae-lens", "vcs_info": {"vcs": "git"}},
            "pip install 'bae-lens[demo] @ git+https://host/bae-lens'",
        ),
        (
            {"url": "https://host/bae_lens.whl", "archive_info": {}},
            "pip install 'bae-lens[demo] @ https://host/bae_lens.whl'",
        ),
        (None, _CLONE),
    ],
)
def test_it_names_where_the_package_came_from(
    noted: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if noted is None else json.dumps(noted)

    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution())
    assert install_command("demo") == command


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("demo") == _CLONE
