"""For all tests."""

from __future__ import annotations

import pytest

from tests.browser import browser, started_browser

__all__ = ["browser", "started_browser"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first, so that no worker is left alone with it in the end."""
    items.sort(key=lambda item: item.path.name != "test_tutorials.py")
