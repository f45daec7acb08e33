"""Where an SAE reads and where it writes."""

from __future__ import annotations

from typing import Any

from sae_lens import SAE


def hook_names(sae: SAE[Any]) -> tuple[str, str]:
    """Names of the hook point that an SAE reads and of the one that it writes, which may be the same.

    Raises:
        ValueError: if its metadata names no hook point.
    """
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError("The SAE's metadata names no hook point (metadata.hook_name).")
    return metadata.hook_name, metadata.hook_name_out or metadata.hook_name


def output_is_decoded_code(sae: SAE[Any]) -> bool:
    """Whether ``decode(encode(x))`` is all of ``sae(x)``.

    It is not for SAELens' skip transcoders, whose ``decode`` leaves the skip connection out, nor for
    a CLVQ-VAE with ``decoder_memory="encoder"``.
    """
    return not hasattr(sae, "W_skip") and getattr(sae.cfg, "decoder_memory", "codes") == "codes"
