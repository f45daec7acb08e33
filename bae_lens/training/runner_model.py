"""The language model that a run's config names, and what SAELens says of one that is handed over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig
from transformer_lens.HookedRootModule import HookedRootModule

from bae_lens.loading.language_models import load_model


def load_runner_model(
    cfg: LanguageModelSAERunnerConfig[Any], hook_names: list[str], trust_remote_code: bool
) -> HookedRootModule:
    """The language model that a config names, from PyPI or through SAELens."""
    return load_model(
        cfg.model_name,
        cfg.model_class_name,
        device=cfg.llm_device,
        options=cfg.model_from_pretrained_kwargs,
        hook_names=hook_names,
        trust_remote_code=trust_remote_code,
    )


@contextmanager
def no_override_warning(kinds: list[str]) -> Iterator[None]:
    """Mute SAELens' warning that a run cannot be repeated from its config, where it can.

    It is given for every model or dataset that is handed over, also one that the config names.
    """

    def is_kept(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(f"passed in a {kind} which will override" in message for kind in kinds)

    sae_lens_logger = logging.getLogger("sae_lens")
    sae_lens_logger.addFilter(is_kept)
    try:
        yield
    finally:
        sae_lens_logger.removeFilter(is_kept)
