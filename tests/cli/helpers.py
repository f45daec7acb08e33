"""What the commands' tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sae_lens import HookedSAETransformer

from bae_lens import offline as demo
from tests.helpers import make_model, make_text


def resolve_to_tiny(
    monkeypatch: pytest.MonkeyPatch, text_of: Callable[[str], Any] = lambda _: make_text()
) -> list[tuple[str, str]]:
    """Whatever model is asked for by name is a tiny one, and whatever dataset is what ``text_of`` its name
    gives; the list tells which were asked for: a model with its class, a dataset with its split."""
    asked: list[tuple[str, str]] = []

    def load_model(
        name: str, class_name: str = "HookedTransformer", device: Any = "cpu", **options: Any
    ) -> HookedSAETransformer | None:
        if Path(name).is_dir():  # It is not ours.
            return None
        asked.append((name, class_name))
        return make_model()

    def load_dataset(name: str, split: str = "train") -> Any:
        asked.append((name, split))
        return text_of(name)

    monkeypatch.setattr(demo, "load_model", load_model)
    monkeypatch.setattr(demo, "load_dataset", load_dataset)
    return asked
