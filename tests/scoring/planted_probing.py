"""Texts whose class is in one latent, for tests of sparse probing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

from bae_lens.scoring import (
    SparseProbingResult,
    SparseProbingSettings,
    SparseProbingTask,
    probe_latents,
)
from tests.helpers import HOOK

N_TEXTS, N_LATENTS, PLANTED, LENGTH = 400, 64, 7, 6


def reads_dimensions(n: int = N_LATENTS, hook_name: str = HOOK) -> StandardSAE:
    """An SAE each of whose latents is a dimension of the activation where that is above zero."""
    sae = StandardSAE(StandardSAEConfig(d_in=n, d_sae=n, apply_b_dec_to_input=False))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(n))
        sae.W_dec.copy_(torch.eye(n))
    sae.cfg.metadata.hook_name = hook_name
    return sae


def planted_task(
    labels: np.ndarray, planted: bool = True, scale: float = 1.0, **settings: Any
) -> SparseProbingTask:
    """Texts of random bits, one of which is on at a token of each text of class 1 and nowhere else."""
    rng = np.random.default_rng(0)
    acts = (rng.random((len(labels), LENGTH, N_LATENTS)) < 0.3).astype(np.float32)
    if planted:
        acts[:, :, PLANTED] = 0
        acts[labels == 1, 2, PLANTED] = scale
    return SparseProbingTask(
        settings=SparseProbingSettings(**settings),
        hook_name=HOOK,
        head_index=None,
        label_names=[f"class {c}" for c in range(labels.max() + 1)],
        labels=labels,
        is_test=np.arange(len(labels)) % 4 == 0,
        acts=torch.from_numpy(acts).flatten(0, 1),
        text_of=np.repeat(np.arange(len(labels)), LENGTH),
        n_truncated=0,
        n_repeated=0,
        n_outlier_tokens=0,
    )


def random_labels(n_classes: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(n_classes, size=N_TEXTS)


def make_probing(**settings: Any) -> SparseProbingResult:
    """A result, of two classes."""
    return probe_latents(planted_task(random_labels(), **settings), reads_dimensions())
