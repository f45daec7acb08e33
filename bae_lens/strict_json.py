"""JSON has no NaN and no infinity."""

from __future__ import annotations

import math
from typing import Any


def finite_or_none(value: Any) -> Any:
    """The value, or None in place of a number that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
