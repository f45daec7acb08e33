"""Outlier tokens in training: the norm that they are told by, and dropping them where that is asked for."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from bae_lens.activations.outlier_tokens import (
    METADATA_FIELD,
    N_REFERENCE_TOKENS,
    OutlierTokens,
    reference_norm,
)
from bae_lens.activations.paired_activations import PairedActivations
from bae_lens.activations.paired_batch import PairedBatch
from bae_lens.activations.reference_norms import first_reference_norms
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.special_tokens import special_token_ids
from bae_lens.architectures.packed_rows import unpack_rows
from bae_lens.distributed import broadcast_object, on_every_rank

logger = logging.getLogger(__name__)


def keep_reference_norms(runner: Any) -> None:
    """Keep in a runner's SAE, in its metadata, what outlier tokens are told by wherever it is scored: of
    the first rows where activations are replayed, or else of the first tokens of the text.

    Nothing is kept, with a warning, where half of the activations are zero, nor of cached activations,
    which come without text.

    Args:
        runner: a ``TrainingRunner`` whose activations can be read.
    """
    store, cfg = runner.activations_store, runner.cfg
    hook_in, hook_out = _hook_names(cfg)
    try:
        if isinstance(store, ReplayedActivations):
            rows = store.activations[:N_REFERENCE_TOKENS]
            d_out = getattr(cfg.sae, "d_out", cfg.sae.d_in)
            lower, upper, valid = unpack_rows(rows, cfg.sae.d_in, d_out)
            norms = {hook_in: reference_norm(lower[valid])}
            if hook_out != hook_in:
                norms[hook_out] = reference_norm(upper[valid])
        else:
            norms = _norms_of_text(runner)
    except ValueError as error:
        logger.warning("No reference norm for outlier tokens is kept with the SAE: %s", error)
        return
    if norms is not None:
        runner.sae.cfg.metadata[METADATA_FIELD] = norms


def drop_outliers(runner: Any, multiple: float) -> None:
    """Have a runner's store drop outliers as it drops special tokens, at either hook point.

    Args:
        runner: a ``TrainingRunner`` that has read nothing yet.
        multiple: of the reference norm over the first tokens of the text.

    Raises:
        ValueError: if there is no such norm: activations that were cached come without text.
    """
    with on_every_rank():
        norms = _norms_of_text(runner)
    # By rank 0's text on all ranks, as it is saved.
    norms = broadcast_object(norms)
    if norms is None:
        raise ValueError(
            "exclude_outlier_tokens needs text, of whose first tokens the reference norm is taken: there "
            "is none with cached activations, or no token of it counts. Set it to false."
        )
    outliers, (hook_in, hook_out) = OutlierTokens(norms, multiple), _hook_names(runner.cfg)
    runner.sae.cfg.metadata.exclude_outlier_tokens = multiple
    store = runner.activations_store
    if isinstance(store, PairedActivations):
        paired_batch = store.store.paired_batch

        def without_outliers(raise_on_epoch_end: bool = False) -> PairedBatch:
            batch = paired_batch(raise_on_epoch_end)
            mask = outliers.any_mask((hook_in, batch.lower), (hook_out, batch.upper))
            return batch._replace(valid=batch.valid & ~mask.to(batch.valid.device))

        store.store.paired_batch = without_outliers
        return
    get_batch = store.get_filtered_llm_batch

    def filtered(raise_on_epoch_end: bool = False) -> Tensor:
        rows = get_batch(raise_on_epoch_end=raise_on_epoch_end)
        return rows[~outliers.mask(rows, hook_in)]

    store.get_filtered_llm_batch = filtered


def _norms_of_text(runner: Any) -> dict[str, float] | None:
    """Reference norms over the first tokens that a runner's store reads; None where it reads no text."""
    store, cfg = runner.activations_store, runner.cfg
    if getattr(store, "cached_activation_dataset", None) is not None:
        return None
    text: Any = store
    if isinstance(store, PairedActivations):
        text = getattr(store.store, "store", store.store)
    hook_in, hook_out = _hook_names(cfg)
    return first_reference_norms(
        text,
        runner.model,
        {hook_out: None, hook_in: cfg.hook_head_index},
        special_token_ids(runner.model, cfg.exclude_special_tokens),
        cfg.model_kwargs,
    )


def _hook_names(cfg: Any) -> tuple[str, str]:
    """Names of the hook points that a runner's autoencoder reads and writes."""
    return cfg.hook_name, getattr(cfg, "hook_name_out", None) or cfg.hook_name
