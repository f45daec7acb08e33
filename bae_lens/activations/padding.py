"""Which tokens of a batch are of its texts, and which only fill up the shorter ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class PadToken(NamedTuple):
    """What texts are padded with.

    Attributes:
        token: its id.
        may_begin: whether a text may begin with it too: it is BOS, or (a T5 decoder's) what stands for BOS.
        may_end: whether a text may end with it too: it is EOS.
    """

    token: int
    may_begin: bool
    may_end: bool

    @classmethod
    def of(cls, model: Any) -> PadToken | None:
        """By the model's tokenizer; None without one."""
        tokenizer: Any = getattr(model, "tokenizer", None)
        token = getattr(tokenizer, "pad_token_id", None)
        if token is None:
            return None
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(token, bos in (None, token), eos in (None, token))

    def n_leading(self, tokens: Int[Tensor, " length"]) -> int:
        """Tokens at the beginning of one text that cannot be of it; none where all are."""
        n = int(_run(tokens[None] == self.token))
        return 0 if n == len(tokens) else max(n - self.may_begin, 0)


def own_tokens(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"] | None = None,
) -> Bool[Tensor, "batch pos"]:
    """True where a token is of the text, False where it is padding at its beginning or end.

    Args:
        model: its tokenizer says what is padding. Where texts begin or end with that token themselves (in GPT-2 it is
            BOS and EOS too), as many of them are of the text as of the text of the batch that has least there: the
            longest text of a batch is not padded.
        tokens: token ids.
        attention_mask: what the model was told, from which it is known.
    """
    if attention_mask is not None and attention_mask.shape == tokens.shape:
        return attention_mask.to(tokens.device) != 0
    pad = PadToken.of(model)
    if pad is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    is_pad = tokens == pad.token
    leading, trailing = _run(is_pad), _run(is_pad.flip(1))
    if pad.may_begin:
        leading = leading - leading.min()
    if pad.may_end:
        trailing = trailing - trailing.min()
    at = torch.arange(tokens.shape[1], device=tokens.device)
    return (at >= leading[:, None]) & (at < tokens.shape[1] - trailing[:, None])


def _run(is_pad: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """How many there are at the beginning of each row."""
    return is_pad.long().cumprod(1).sum(1)


def at_position(is_own: Bool[Tensor, "batch pos"], position: int) -> Bool[Tensor, "batch pos"]:
    """True at one token of each text.

    Args:
        is_own: where a text's tokens are.
        position: of the text's own tokens; from its end if negative.

    Raises:
        ValueError: if a text has fewer tokens.
    """
    least = position + 1 if position >= 0 else -position
    n_tokens = is_own.sum(1)
    if (n_tokens < least).any():
        i = int(n_tokens.argmin())
        raise ValueError(
            f"The position that is to be changed is {position}, and text {i} of those that the model was given has "
            f"{int(n_tokens[i])} tokens."
        )
    # Counted from the side that the position is counted from.
    nth = is_own.cumsum(1) if position >= 0 else is_own.flip(1).cumsum(1).flip(1)
    return is_own & (nth == least)
