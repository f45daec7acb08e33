"""Outlier tokens of a text: the norm they are told by, and scores with them beside those without."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from sae_lens import SAE, ActivationsStore
from sae_lens.evals import ExplainedVarianceCalculator
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

logger = logging.getLogger(__name__)

# Sequences in a row without any token that counts, after which there is no hope.
_MOST_EMPTY = 100


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
        while n_left > 0 and n_empty < _MOST_EMPTY:
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


class OutlierScores:
    """Counts outliers among tokens that are scored, and scores the code with them among the others.

    Args:
        outliers: which tokens.
        hook_names: where inputs and targets are from.
    """

    def __init__(self, outliers: OutlierTokens, hook_names: tuple[str, str]) -> None:
        self.outliers, self.hook_names = outliers, hook_names
        self.n_tokens = self.n_outliers = 0
        self._n_fired = 0
        self._explained_variance = ExplainedVarianceCalculator()

    def kept(self, inputs: Tensor, targets: Tensor, acts: Tensor, outputs: Tensor) -> Tensor:
        """Take in a batch; True where a token is no outlier.

        Args:
            inputs: ``[n, d_in]``, what is encoded.
            targets: ``[n, d_out]``, what is to be rebuilt.
            acts: ``[n, d_sae]``, the code.
            outputs: ``[n, d_out]``, the reconstruction.
        """
        lower, upper = self.hook_names
        at = [(lower, inputs)] if lower == upper else [(lower, inputs), (upper, targets)]
        mask = self.outliers.any_mask(*at).to(acts.device)
        self.n_tokens += len(mask)
        self.n_outliers += int(mask.sum())
        self._n_fired += int((acts != 0).sum())
        self._explained_variance.add_batch(sae_output=outputs, hidden_acts=targets)
        return ~mask

    def compute(self) -> dict[str, Any]:
        """How many outliers there were, by what norm, and the scores of all tokens."""
        if self.n_tokens == 0:
            return {"n_tokens": 0, "n_outlier_tokens": 0}
        return {
            "n_tokens": self.n_tokens,
            "n_outlier_tokens": self.n_outliers,
            "explained_variance_with_outliers": self._explained_variance.compute(),
            "l0_with_outliers": self._n_fired / self.n_tokens,
        }


def described(outliers: OutlierTokens, names: tuple[str, str]) -> dict[str, float]:
    """How outliers were told, as metrics."""
    norms = {"reference_norm": outliers.reference_norms[names[0]]}
    if names[0] != names[1]:
        norms["reference_norm_out"] = outliers.reference_norms[names[1]]
    return {"multiple": outliers.multiple, **norms}


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
    own = store
    while "store" in vars(own) and "iterable_sequences" not in vars(own):
        own = own.store  # A wrapper, which hands on what is asked of it and not what is set.
    is_stream = "iterable_sequences" in vars(own)
    is_known = is_stream or "_rows" in vars(own)
    before = dict(vars(own))
    for name in ("_missing", "_progress"):
        # What they count is of what is served, and this is not.
        if name in before:
            setattr(own, name, copy(before[name]))
    if is_stream:
        own.iterable_sequences = own._iterate_tokenized_sequences()
    else:
        own.reset_input_dataset()
    try:
        yield
    finally:
        if is_known:
            vars(own).clear()
            vars(own).update(before)
        else:
            own.reset_input_dataset()
