"""What the head of a classifier reads; apart from what loads one, which takes seconds to import."""

from __future__ import annotations

from typing import Literal

Pooling = Literal["cls", "mean"]
