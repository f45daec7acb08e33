"""Devices that this machine has."""

from __future__ import annotations

from typing import Any

import torch

from bae_lens.checks.fields import Device, check


def check_device(name: str, device: Any) -> str:
    """A device's name, if something can be computed on it.

    Raises:
        ValueError: if torch knows no such device, or this machine has none.
    """
    device = check(name, device, Device())
    try:
        if torch.empty(1, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except torch.OutOfMemoryError:
        raise
    # What torch raises over a device that is not there: by its kind.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(
            f"{name} must be a device that this machine has; got {device!r} ({' '.join(str(error).split())[:200]})."
        ) from error
    return device
