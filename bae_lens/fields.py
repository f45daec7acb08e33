"""Fields of a config that SAELens' command line can read."""

from __future__ import annotations

from typing import Any

from simple_parsing.helpers.fields import field


def number_or_none(default: float | str | None, *words: str, kind: type = float) -> Any:
    """A dataclass field that is a number, None (``none`` on the command line) or one of ``words``."""

    def parse(text: str) -> float | str | None:
        if text.lower() == "none":
            return None
        return text if text in words else kind(text)

    parse.__name__ = " or ".join(["number", *words, "none"])
    return field(default=default, type=parse)
