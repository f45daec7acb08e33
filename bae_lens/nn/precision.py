"""Buffers that a cast of the module leaves in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import Self


class Float32Buffers(nn.Module):
    """Mixin: ``.to(dtype)`` casts the weights, but not the running statistics named here.

    A running mean or count in bfloat16 stands still as soon as a step is smaller than its rounding.
    """

    float32_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Statistics keep their precision and only follow the device.
        kept = {name: getattr(self, name) for name in self.float32_buffers}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = getattr(self, name)
            setattr(self, name, moved.float() if value.is_meta else value.to(moved.device))
        return self
