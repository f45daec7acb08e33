"""Which tokens are special, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor

from bae_lens.fields import shown


def special_token_ids(model: Any, exclude: bool | Iterable[int]) -> list[int]:
    """Token ids that SAELens' option ``exclude_special_tokens`` stands for.

    Args:
        model: a language model; its tokenizer is asked where ``exclude`` is True.
        exclude: True for BOS, EOS, PAD and SEP, False for none, or token ids.

    Raises:
        ValueError: if ``exclude`` is True and the model has no tokenizer, or it is anything else.
    """
    # Of an array: the token ids in it, of which 0 is one.
    exclude = exclude.tolist() if hasattr(exclude, "tolist") else exclude  # pyright: ignore
    if exclude is None or exclude is False:
        return []
    if exclude is not True:
        return _token_ids(exclude)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            "The model has no tokenizer that could say which tokens are special: give their token "
            "ids as exclude_special_tokens, or False to exclude none."
        )
    return get_special_token_ids(model.tokenizer)


def _token_ids(given: Any) -> list[int]:
    is_many = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    ids: list[Any] = [getattr(i, "item", lambda i=i: i)() for i in given] if is_many else [None]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(
            f"exclude_special_tokens must be True, False or token ids; got {shown(given)}."
        )
    return ids


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
