"""Custom operators of torch that outlive a second import of the package, as by autoreload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def custom_op(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """A torch custom operator that mutates nothing; one that is there already stays.

    Torch takes an operator down when its definition goes, or another one of its name comes, and
    whoever still calls the old one crashes. So the first one is kept where no import forgets it.

    Args:
        name: in the namespace ``bae_lens``.
        schema: torch's schema of arguments and results.
    """
    kept = vars(torch.ops.bae_lens).setdefault("_kept", {})

    def define(function: Callable[..., Any]) -> Any:
        if name not in kept:
            own = torch.library.custom_op(f"bae_lens::{name}", mutates_args=(), schema=schema)
            kept[name] = own(function)
        return kept[name]

    return define
