"""Which weights a result is of."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE
    from torch import Tensor

_BLOCK = 2**24  # bytes read at once
_NOT_DECIDING = ("dtype", "device", "metadata")
_HOOKS = ("hook_name", "hook_name_out", "hook_head_index")

logger = logging.getLogger(__name__)


def weights_sha256(weights: torch.nn.Module | Mapping[str, Tensor]) -> str:
    """A hash of an autoencoder's weights and buffers, or of tensors by name: names, types, shapes and
    every byte.

    It is that of the autoencoder in memory, so that it tells what was measured whatever folder stands
    for it now. The same weights on another device have the same hash, in another dtype another one.

    Returns:
        64 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256()
    named = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    for name, value in sorted(named.items()):
        head = json.dumps([name, str(value.dtype), list(value.shape)])
        digest.update(head.encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def deciding_fields(sae: SAE[Any]) -> dict[str, Any]:
    """What of an SAE's config decides what it makes of a model, beside its weights: TopK's k is no weight.

    Returns:
        Fields as JSON has them, those of the hook points among them; not where and in which type it runs, nor notes.
    """
    fields = {k: v for k, v in sae.cfg.to_dict().items() if k not in _NOT_DECIDING}
    metadata = sae.cfg.metadata
    hooks = {name: getattr(metadata, name) for name in _HOOKS}
    return json.loads(json.dumps({**fields, **hooks}, default=str))


def files_sha256(files: Iterable[Path]) -> str:
    """A hash of files: their names and every byte, in the order of the names."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(json.dumps([file.name, file.stat().st_size]).encode())
        with file.open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def is_of_weights(found: object, expected: str, what: str) -> bool:
    """Whether a result that was read is of these weights.

    Args:
        found: its ``weights_sha256``. None, of a version that did not write one, passes with a logged
            warning: it cannot be told.
        expected: of the weights.
        what: the result is, for the warning.
    """
    if found is None:
        logger.warning(
            "%s does not say which weights it is of (an earlier version wrote it); it is taken for "
            "the weights that lie beside it.",
            what,
        )
    return found is None or found == expected
