"""Custom operators of torch that outlive a second import of the package, as by autoreload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Where they are kept: torch takes an operator down when its definition goes, or when another one of its
# name comes, and whoever still has the old one crashes.
_KEPT = "_kept"


def custom_op(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    """As ``torch.library.custom_op``, but one that is there already stays.

    Args:
        name: in the namespace ``bae_lens``.
        schema: of arguments and results.
    """
    namespace: Any = torch.ops.bae_lens
    if _KEPT not in vars(namespace):
        setattr(namespace, _KEPT, {})
    kept = vars(namespace)[_KEPT]

    def define(function: Callable[..., Any]) -> Any:
        if name not in kept:
            own = torch.library.custom_op(f"bae_lens::{name}", mutates_args=(), schema=schema)
            kept[name] = own(function)
        return kept[name]

    return define
