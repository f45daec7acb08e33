"""Token ids that are given in the place of a text, and how many of them a model can read."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from bae_lens.activations.padding import PadToken
from bae_lens.activations.texts import check_text
from bae_lens.checks.fields import shown


def context_of(model: Any) -> int | None:
    """Tokens that a language model reads at most; None where it does not say, or can read more.

    A HookedTransformer makes its masks and positions for ``cfg.n_ctx``. Of a TransformerBridge that is a limit only where
    positions are learned: rotary ones go on, and of models without positions it is a number that stands there for none.
    """
    cfg = getattr(model, "cfg", None)
    n_ctx = getattr(cfg, "n_ctx", None)
    is_learned = getattr(cfg, "positional_embedding_type", "standard") == "standard"
    if isinstance(model, TransformerBridge) and not is_learned:
        return None
    return n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else None


def sequence_of(model: Any, text: Any, what: str) -> Int[Tensor, " length"]:
    """The token ids of a text, or of one that is given as such.

    Args:
        model: the language model; of a text it reads no more than its context.
        text: a string, or token ids ``[length]``.
        what: it is, as the beginning of a sentence.

    Raises:
        ValueError: if it is neither, or token ids that the model cannot read or that begin with padding.
    """
    if isinstance(text, Tensor):
        return check_given_ids(model, text, what)
    return check_token_ids(model, model.to_tokens(check_text(text, what))[0], what)


def check_given_ids(model: Any, tokens: Tensor, what: str) -> Int[Tensor, " length"]:
    """Token ids of a text that somebody else made, as a model takes them.

    Raises:
        ValueError: as ``check_token_ids``, or if they begin with padding, which would be read as text and move all
            that follows.
    """
    tokens = check_token_ids(model, tokens, what)
    pad = PadToken.of(model)
    n_leading = 0 if pad is None else pad.n_leading(tokens)
    if n_leading:
        raise ValueError(
            f"{what} begins with padding ({n_leading} × token {tokens[0].item()}), which would be read as text. Give a "
            "list of token ids without padding, which need not be equally long, or texts."
        )
    return tokens


def check_token_ids(model: Any, tokens: Tensor, what: str) -> Int[Tensor, " length"]:
    """Token ids, as a model takes them.

    Raises:
        ValueError: if they are no row of whole numbers, none, not the model's, or more than its context.
    """
    is_whole = not (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool)
    if tokens.ndim != 1 or not is_whole:
        raise ValueError(
            f"{what} must be a text, or its token ids, whole numbers of shape [length]; got {tokens.dtype} of shape "
            f"{list(tokens.shape)}."
        )
    if not len(tokens):
        raise ValueError(f"{what} has no token. Leave it out.")
    n_tokens = getattr(getattr(model, "cfg", None), "d_vocab", None)
    least, most = tokens.min().item(), tokens.max().item()
    if isinstance(n_tokens, int) and n_tokens > 0 and not 0 <= least <= most < n_tokens:
        raise ValueError(
            f"{what} has the token id {shown(least if least < 0 else most)}, and the model's are 0 to {n_tokens - 1}."
        )
    n_ctx = context_of(model)
    if n_ctx is not None and len(tokens) > n_ctx:
        raise ValueError(
            f"{what} has {len(tokens)} tokens, and the model reads {n_ctx} at most. Shorten it, or leave it out."
        )
    return tokens.long()
