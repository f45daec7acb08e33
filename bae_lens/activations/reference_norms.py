"""The norm that outlier tokens of a text are told by: measured over its first tokens, or as an SAE was saved with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.activations.hook_points import hook_names, take_heads
from bae_lens.activations.outlier_tokens import (
    MANY,
    N_REFERENCE_TOKENS,
    OutlierTokens,
    multiple_of,
    reference_norm,
    saved_outlier_tokens,
)
from bae_lens.activations.text_batch import MaskedTextStore, TextBatch, read_hooks
from bae_lens.activations.text_store import MOST_EMPTY

logger = logging.getLogger(__name__)


def outlier_tokens_of(
    exclude: bool | float | OutlierTokens,
    sae: SAE[Any] | Any,
    store: ActivationsStore | MaskedTextStore,
    model: HookedRootModule,
    special_tokens: Sequence[int],
    model_kwargs: Mapping[str, Any] | None = None,
    heads: Mapping[str, int | None] | None = None,
) -> OutlierTokens | None:
    """What an option ``exclude_outlier_tokens`` stands for, at the hook points of an SAE.

    Args:
        exclude: True for outliers at ``DEFAULT_MULTIPLE`` times the reference norm, or the multiple;
            the reference is what the SAE's metadata has, or else the median norm over the first
            ``N_REFERENCE_TOKENS`` tokens of the text. ``OutlierTokens`` say it themselves, to hold
            several SAEs to the same. False: no token is left out.
        sae: the SAE, or another dictionary, which has no metadata.
        store: the text; it goes on where it was.
        model: the language model.
        special_tokens: ids of tokens that do not count.
        model_kwargs: passed to the model.
        heads: see ``first_reference_norms``; if omitted, those of the SAE.

    Returns:
        None where no token is left out, or the text has none that counts.

    Raises:
        ValueError: if ``exclude`` is no such option, or the metadata has something else than norms.
    """
    multiple = multiple_of(exclude)
    if multiple is None or isinstance(exclude, OutlierTokens):
        return exclude if isinstance(exclude, OutlierTokens) else None
    if heads is None:
        names = list(dict.fromkeys(hook_names(sae)))
        heads = dict(zip(names, [sae.cfg.metadata.hook_head_index, None], strict=False))
    saved = saved_outlier_tokens(sae, heads, multiple)
    if saved is not None:
        return saved
    norms = first_reference_norms(store, model, heads, special_tokens, model_kwargs)
    if norms is None:
        return None
    logger.info(
        "There is no reference norm in metadata, by which outlier tokens are told: it is %s, the "
        "median over the first %d tokens of the text at most.",
        *(", ".join(f"{norm:.4g} at {name}" for name, norm in norms.items()), N_REFERENCE_TOKENS),
    )
    return OutlierTokens(norms, multiple)


@torch.no_grad()
def first_reference_norms(
    store: ActivationsStore | MaskedTextStore,
    model: HookedRootModule,
    heads: Mapping[str, int | None],
    special_tokens: Sequence[int],
    model_kwargs: Mapping[str, Any] | None = None,
    n_tokens: int = N_REFERENCE_TOKENS,
) -> dict[str, float] | None:
    """Reference norms over the first tokens of a store's text, which then goes on where it was.

    Args:
        store: the text.
        model: the language model.
        heads: the hook points, and which head is read there; None: all of them side by side.
        special_tokens: ids of tokens that do not count.
        model_kwargs: passed to the model.
        n_tokens: how many tokens, or as many as the text has.

    Returns:
        Norm by hook point; None where no token counts.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in heads}
    n_left, n_empty = n_tokens, 0
    with _from_the_beginning(store):
        # Whoever reads the text next says what is wrong with one that goes on without tokens.
        while n_left > 0 and n_empty < MOST_EMPTY:
            try:
                batch = TextBatch.read(store, special_tokens, 1, raise_at_epoch_end=True)
            except StopIteration:
                break
            _, read = read_hooks(model, batch, list(heads), model_kwargs)
            for (name, head), acts in zip(heads.items(), read, strict=True):
                kept[name].append(take_heads(acts, head)[batch.valid.to(acts.device)][:n_left])
            n_counted = int(batch.valid.sum())
            n_empty = 0 if n_counted else n_empty + 1
            n_left -= n_counted
    if n_left == n_tokens:
        return None
    return {name: reference_norm(torch.cat(rows)) for name, rows in kept.items()}


def warn_of_many(n_outliers: int, n_tokens: int, outliers: OutlierTokens) -> None:
    """Say so where more are left out than there are sinks in a text."""
    if n_outliers > MANY * n_tokens:
        logger.warning(
            "%d of %d tokens (%.1f %%) are left out as outliers: their norm is above %g times the "
            "reference (%s). Where those are ordinary tokens of the text, raise the multiple "
            "(exclude_outlier_tokens) or leave none out (False).",
            *(n_outliers, n_tokens, 100 * n_outliers / n_tokens, outliers.multiple),
            ", ".join(f"{norm:.4g} at {name}" for name, norm in outliers.reference_norms.items()),
        )


@contextmanager
def _from_the_beginning(store: Any) -> Iterator[None]:
    """While inside, a store serves its first text; it then goes on where it was, or, if that is not
    known of it, begins again."""
    inner = store
    while "store" in vars(inner) and "iterable_sequences" not in vars(inner):
        inner = inner.store  # A wrapper, which hands on what is asked of it and not what is set.
    is_stream = "iterable_sequences" in vars(inner)
    is_known = is_stream or "_rows" in vars(inner)
    before = dict(vars(inner))
    for name in ("_missing", "_progress"):
        # What they count is of what is served, and this is not.
        if name in before:
            setattr(inner, name, copy(before[name]))
    if is_stream:
        inner.iterable_sequences = inner._iterate_tokenized_sequences()
    else:
        inner.reset_input_dataset()
    try:
        yield
    finally:
        if is_known:
            vars(inner).clear()
            vars(inner).update(before)
        else:
            inner.reset_input_dataset()
