"""Metrics of text that several ranks have evaluated a share of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sae_lens.evals import EvalConfig

from bae_lens.distributed import all_gather_objects, n_ranks
from bae_lens.evals.cross_layer import WITH_OUTLIERS

_TOKENS = "token_stats"
_OF_THE_MODEL = "total_tokens_eval_reconstruction"
_OF_THE_CODE = "total_tokens_eval_sparsity_variance"


def own_share(config: EvalConfig) -> EvalConfig:
    """A config by which this rank evaluates its share of the batches, rounded up."""
    return replace(
        config,
        n_eval_reconstruction_batches=-(-config.n_eval_reconstruction_batches // n_ranks()),
        n_eval_sparsity_variance_batches=-(-config.n_eval_sparsity_variance_batches // n_ranks()),
    )


def averaged(
    metrics: Mapping[str, Any], per_latent: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``sae_lens.run_evals`` returns on each rank, averaged over all of them by their tokens.

    Of means over tokens that is the mean over all tokens. Scores are taken of these means. The explained variance
    of a group, which is no mean, comes out lower by the share of the variance that lies between ranks' means.

    Args:
        metrics: groups of metrics with their ``token_stats``.
        per_latent: lists of a number a latent.
    """
    every = all_gather_objects((dict(metrics), dict(per_latent)))
    groups = [of_rank for of_rank, _ in every]
    stats = [group.get(_TOKENS, {}) for group in groups]
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(name for of_rank in groups for name in of_rank):
        if name == _TOKENS:
            merged[name] = {key: sum(s[key] for s in stats) for key in stats[0]}
            continue
        # Where a rank has met no outliers, its figures with them are those without.
        values = [g.get(name) or g.get(name.removesuffix(WITH_OUTLIERS), {}) for g in groups]
        n_tokens = [
            s.get(_OF_THE_MODEL if name.startswith("model_") else _OF_THE_CODE, 0) for s in stats
        ]
        if not all(values):
            continue
        merged[name] = _scored(
            {key: _mean([value[key] for value in values], n_tokens) for key in values[0]}
        )
    n_tokens = [s.get(_OF_THE_CODE, 0) for s in stats]
    latents = [of_rank for _, of_rank in every]
    return merged, {
        name: [
            _mean(values, n_tokens) for values in zip(*(of[name] for of in latents), strict=True)
        ]
        for name in latents[0]
    }


def _mean(values: Sequence[Any], weights: Sequence[int]) -> Any:
    if any(value is None for value in values):
        return None
    if sum(weights) == 0:
        weights = [1] * len(values)
    # One that has no tokens may have no number either.
    pairs = [(v, w) for v, w in zip(values, weights, strict=True) if w > 0]
    return sum(v * w for v, w in pairs) / sum(w for _, w in pairs)


def _scored(group: dict[str, Any]) -> dict[str, Any]:
    """With the share of what each ablation loses that is kept, from the means."""
    for kind in ("ce_loss", "kl_div"):
        for ablation, score in (("ablation", "score"), ("mean_ablation", "score_mean_ablation")):
            lowest, highest = (
                group.get(f"{kind}_without_sae", 0.0),
                group.get(f"{kind}_with_{ablation}"),
            )
            if f"{kind}_{score}" in group and highest is not None:
                lost = highest - lowest
                kept = highest - group[f"{kind}_with_sae"]
                group[f"{kind}_{score}"] = kept / lost if lost else math.nan
    return group
