"""Types wide enough to sum in, and buffers that a cast of the module leaves in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self


def widened(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is so already: for sums, means, norms and logarithms.

    Whole numbers and bools become float32 too.

    Examples:
        >>> widened(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Float32Buffers(nn.Module):
    """Mixin: ``.to(dtype)`` casts the weights, but not the running statistics named here, as far as there are any.

    A running mean or count in bfloat16 stands still as soon as a step is smaller than its rounding.
    A state that is loaded takes their dtypes, and those of whole numbers.
    """

    float32_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Statistics keep their precision and only follow the device.
        kept = {name: getattr(self, name) for name in self.float32_buffers if name in self._buffers}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = getattr(self, name)
            setattr(self, name, moved.float() if value.is_meta else value.to(moved.device))
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # With assign=True the file's tensors take the place of these, dtype and all.
        for name, buffer in self.named_buffers(recurse=False):
            is_kept = name in self.float32_buffers or not buffer.is_floating_point()
            if is_kept and prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name].to(buffer.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
