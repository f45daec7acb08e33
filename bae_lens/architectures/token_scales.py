"""The code of any SAE, and what decoding it needs beside: what the SAE has scaled each token by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE, Transcoder
from torch import Tensor

from bae_lens.architectures.sae_fields import SCALES_BY_TOKEN

# What SAELens leaves at an SAE that it has scaled tokens for: taken off, and divided or multiplied by.
_SCALES = ("ln_mu", "ln_std", "x_norm_coeff")


@dataclass(frozen=True, eq=False)
class TokenScales:
    """What an SAE has scaled each token by to encode it, which decoding undoes; of most SAEs nothing.

    SAELens leaves that at the SAE, where the next ``decode`` uses it up. Kept here, any code of these tokens, or
    of some of them, can be decoded, and as often as one likes.

    Attributes:
        of_tokens: ``[..., 1]``, by SAELens' names.
    """

    of_tokens: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, kept: Bool[Tensor, "*batch"]) -> TokenScales:
        """Those of some tokens."""
        return TokenScales({name: x[kept.to(x.device)] for name, x in self.of_tokens.items()})

    @property
    def factor(self) -> Tensor | float:
        """What the decoded part of a code is multiplied by: ``[..., 1]``, or 1."""
        of = self.of_tokens
        return 1 / of["x_norm_coeff"] if "x_norm_coeff" in of else of.get("ln_std", 1.0)


def scales_by_token(sae: SAE[Any]) -> bool:
    """Whether an SAE scales each token by itself, and undoes that in decoding (SAELens' transcoders do not)."""
    return sae.cfg.normalize_activations in SCALES_BY_TOKEN and not isinstance(sae, Transcoder)


def encode_with_scales(sae: SAE[Any], x: Tensor) -> tuple[Tensor, TokenScales]:
    """The code of activations, dense, heads taken flattened, with gradients; and what decoding it needs beside."""
    with flat_heads(sae):
        acts = dense(sae.encode(x))
    scales = {name: vars(sae).pop(name) for name in _SCALES if name in vars(sae)}
    return acts, TokenScales(scales if scales_by_token(sae) else {})


def dense(acts: Tensor) -> Tensor:
    """A code that may come sparse."""
    return acts if acts.layout == torch.strided else acts.to_dense()


@contextmanager
def flat_heads(sae: SAE[Any]) -> Iterator[None]:
    """Let an SAE of ``hook_z`` take its heads flattened, as a store gives them, while inside."""
    if not sae.hook_z_reshaping_mode:
        yield
        return
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        sae.turn_on_forward_pass_hook_z_reshaping()
