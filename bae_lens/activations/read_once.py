"""A language model that remembers what it has read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class ReadOnce:
    """A hooked model that runs once over each batch of tokens, whoever asks for its activations.

    What asks is ``read_hooks``, by ``run_with_cache``; the model's output is not kept, nor given. All else is the model's
    own. Activations are kept as long as this is: 4 bytes times width and tokens.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: dict[Any, dict[str, Tensor]] = {}

    @torch.no_grad()
    def run_with_cache(
        self, tokens: Tensor, *args: Any, names_filter: Sequence[str], **options: Any
    ) -> tuple[None, dict[str, Tensor]]:
        """As the model's, for the same tokens and names not run again."""
        masks = {
            name: value.tolist() for name, value in options.items() if isinstance(value, Tensor)
        }
        plain = {name: value for name, value in options.items() if name not in masks}
        key = (repr((tokens.tolist(), masks, sorted(plain.items()), args)), tuple(names_filter))
        if key not in self._seen:
            _, cache = self._model.run_with_cache(
                tokens, *args, names_filter=list(names_filter), **options
            )
            self._seen[key] = {name: cache[name] for name in names_filter if name in cache}
        return None, self._seen[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
