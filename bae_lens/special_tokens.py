"""Which tokens are special, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor


def special_token_ids(model: Any, exclude: bool | Iterable[int]) -> list[int]:
    """Token ids that SAELens' option ``exclude_special_tokens`` stands for.

    Args:
        model: a language model; its tokenizer is asked where ``exclude`` is True.
        exclude: True for BOS, EOS, PAD and SEP, False for none, or token ids.

    Raises:
        ValueError: if ``exclude`` is True and the model has no tokenizer.
    """
    if exclude is not True:
        return list(exclude or ())
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            "The model has no tokenizer that could say which tokens are special: give their token "
            "ids as exclude_special_tokens, or False to exclude none."
        )
    return get_special_token_ids(model.tokenizer)


def special_token_mask(tokens: Int[Tensor, "*shape"], ids: Iterable[int]) -> Bool[Tensor, "*shape"]:
    """True where a token is one of ``ids``."""
    return torch.isin(tokens, torch.tensor(list(ids), dtype=tokens.dtype, device=tokens.device))


def missing_bos(model: Any) -> list[int]:
    """BOS, where the model has a text begin with it and its tokenizer alone does not; else nothing.

    Args:
        model: a language model of TransformerLens with its tokenizer.
    """
    first = model.to_tokens("a")[0, :1].tolist()
    first_of_tokenizer = model.tokenizer("a")["input_ids"][:1]
    return first if first == [model.tokenizer.bos_token_id] != first_of_tokenizer else []
