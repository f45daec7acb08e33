"""Which weights a result is of."""

from __future__ import annotations

import hashlib
import json

import torch


def weights_sha256(sae: torch.nn.Module) -> str:
    """A hash of an autoencoder's weights and buffers: names, types, shapes and every byte.

    It is that of the autoencoder in memory, so that it tells what was measured whatever folder stands
    for it now. The same weights on another device have the same hash, in another dtype another one.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, value in sorted(sae.state_dict().items()):
        head = json.dumps([name, str(value.dtype), list(value.shape)])
        digest.update(head.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
