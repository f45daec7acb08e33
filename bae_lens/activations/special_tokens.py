"""Which tokens are special, and where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from sae_lens.util import get_special_token_ids
from torch import Tensor

from bae_lens.checks.fields import plain, shown


def special_token_ids(model: Any, exclude: bool | Iterable[int]) -> list[int]:
    """Token ids that SAELens' option ``exclude_special_tokens`` stands for.

    Args:
        model: a language model; its tokenizer is asked where ``exclude`` is True.
        exclude: True for BOS, EOS, PAD and SEP, False for none, or token ids.

    Raises:
        ValueError: if ``exclude`` is True and the model has no tokenizer, or it is anything else, or
            all tokens that there are.
    """
    # Of an array: the token ids in it, of which 0 is one.
    exclude = exclude.tolist() if hasattr(exclude, "tolist") else exclude  # pyright: ignore
    if exclude is None or exclude is False:
        return []
    if exclude is not True:
        return _token_ids(model, exclude)
    if getattr(model, "tokenizer", None) is None:
        raise ValueError(
            "The model has no tokenizer that could say which tokens are special: give their token "
            "ids as exclude_special_tokens, or False to exclude none."
        )
    return get_special_token_ids(model.tokenizer)


def _token_ids(model: Any, given: Any) -> list[int]:
    is_many = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    ids: list[Any] = [plain(i) for i in given] if is_many else [None]
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(
            f"exclude_special_tokens must be True, False or token ids; got {shown(given)}."
        )
    n_tokens = getattr(getattr(model, "cfg", None), "d_vocab", None)
    if isinstance(n_tokens, int) and 0 < n_tokens <= len({i for i in ids if i < n_tokens}):
        raise ValueError(
            f"exclude_special_tokens names all {n_tokens} tokens of the model's vocabulary, so that no "
            "token is left. Name the special ones, or give True."
        )
    return ids


def special_token_mask(tokens: Int[Tensor, "*shape"], ids: Iterable[int]) -> Bool[Tensor, "*shape"]:
    """True where a token is one of ``ids``."""
    return torch.isin(tokens, torch.tensor(list(ids), dtype=tokens.dtype, device=tokens.device))


class TextStart(NamedTuple):
    """How texts begin that a model's tokenizer has made into tokens.

    Attributes:
        added: BOS, where the model has a text begin with it and its tokenizer alone does not.
        n_dropped: tokens at the beginning, which are BOS, that the tokenizer puts there and the model
            does not have.
    """

    added: list[int]
    n_dropped: int

    @property
    def n_more(self) -> int:
        """Tokens that a text has more than its tokenizer gives it; below 0: fewer."""
        return len(self.added) - self.n_dropped

    def of(self, ids: Sequence[int]) -> list[int]:
        """Token ids that begin as the model has them begin.

        Args:
            ids: of a text, as the tokenizer gives them.
        """
        return [*self.added, *ids[self.n_dropped :]]


def text_start(
    model: Any, add_special_tokens: bool = True, prepend_bos: bool | None = None
) -> TextStart:
    """What ``model.to_tokens`` does to the beginning of a text beside calling its tokenizer.

    Everything in this package that makes tokens of texts begins them so. Whether that is with BOS is
    the model's ``cfg.default_prepend_bos``, which TransformerBridge sets to False for GPT-NeoX, Qwen2,
    Phi and others, whatever their tokenizers put there.

    Args:
        model: a language model of TransformerLens with its tokenizer.
        add_special_tokens: whether the tokenizer is called with it.
        prepend_bos: whether a text begins with BOS; None: as the model has it.
    """
    bos = model.tokenizer.bos_token_id
    by_tokenizer = model.tokenizer("a", add_special_tokens=add_special_tokens)["input_ids"]
    options = {} if prepend_bos is None else {"prepend_bos": prepend_bos}
    # Counted, since a tokenizer that does not know the letter may call it BOS.
    n_more = _n_leading(model.to_tokens("a", **options)[0].tolist(), bos) - _n_leading(
        by_tokenizer, bos
    )
    return TextStart([bos] * max(n_more, 0), max(-n_more, 0))


def _n_leading(ids: Sequence[int], token: int | None) -> int:
    return next((i for i, id_ in enumerate(ids) if id_ != token), len(ids))
