"""What several ranks are started with: one run, of which each has its own device and rank 0 the files."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bae_lens.distributed import (
    RankError,
    all_gather_objects,
    broadcast_object,
    check_same,
    n_ranks,
    on_every_rank,
    own_device,
    own_slice,
    rank,
)
from bae_lens.training.run_identity import is_same_model

_PACKAGES = ("bae-lens", "sae-lens", "torch", "transformer-lens", "transformers", "datasets")
_DEVICES = ("device", "llm_device", "act_store_device")
# A rank's own: where it computes, and the name that SAELens makes up for a folder, which is rank 0's.
_OF_A_RANK = {*_DEVICES, "checkpoint_path", "sae.device"}


def own_config(cfg: Any) -> Any:
    """A run's config as this rank is to use it; the config itself where there is one rank.

    ``cuda`` is its own GPU, checkpoints go where rank 0 writes them, and rank 0 alone logs to W&B. All numbers
    are those of the whole run.

    Args:
        cfg: a runner's config, the same on every rank.

    Raises:
        ValueError: on every rank, if the batch cannot be divided among ranks, configs or versions of packages
            differ, or a device is not for several processes.
    """
    if n_ranks() == 1:
        return cfg
    check_same(describe(cfg))
    own = copy.copy(cfg)
    own.checkpoint_path = broadcast_object(cfg.checkpoint_path)
    with on_every_rank():
        batch = getattr(cfg, "train_batch_size_tokens", None) or cfg.batch_size
        own_slice(batch, getattr(cfg, "sequence_length", None) or 1)
        for name in _DEVICES:
            if (device := getattr(cfg, name, None)) is not None:
                setattr(own, name, own_device(str(device)))
        if getattr(cfg, "prefetch_llm_batches", False) and own.device == "cpu":
            raise ValueError(
                "prefetch_llm_batches is not supported on the CPU with several processes: the thread would draw "
                "random numbers that all of them must draw alike. Set it to false."
            )
    if rank() > 0:
        own.logger = replace(cfg.logger, log_to_wandb=False)
    return own


def own_batch_size(cfg: Any) -> int:
    """Tokens of a training batch that this rank has."""
    return cfg.train_batch_size_tokens // n_ranks()


def describe(cfg: Any) -> dict[str, Any]:
    """A config and the packages that read it, by name."""
    content: dict[str, Any] = json.loads(json.dumps(cfg.to_dict(), default=str))
    plain: dict[str, Any] = {}
    for name, value in content.items():
        is_section = isinstance(value, dict)
        plain |= {f"{name}.{n}": v for n, v in value.items()} if is_section else {name: value}
    plain = {name: value for name, value in plain.items() if name not in _OF_A_RANK}
    return plain | {f"the version of {name}": _version(name) for name in _PACKAGES}


def check_same_given(given: Mapping[str, Any]) -> None:
    """Refuse ranks that were given other texts or models under the same names.

    Args:
        given: ``text`` of ``describe_text`` and ``model`` of ``describe_model``, or None.

    Raises:
        RankError: on every rank.
    """
    check_same({"the text": given["text"]})
    models = all_gather_objects(given["model"])
    for r, model in enumerate(models):
        if None not in (model, models[0]) and not is_same_model(models[0], model):
            raise RankError(f"The language model has other weights on rank 0 than on rank {r}.")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
