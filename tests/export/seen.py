"""Small dictionaries with what was seen of them, and what they truly have at every token."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import HookedSAETransformer, StandardSAE, StandardSAEConfig
from torch import Tensor

from bae_lens.examples import ExampleSettings, LatentRecords, collect_examples
from tests.helpers import CONTEXT_SIZE, D_IN, D_SAE, HOOK, make_text

SETTINGS = ExampleSettings(
    n_tokens=None, n_strongest=3, n_random=3, n_left=5, n_right=3, n_corpus_tokens=20, batch_size=4
)
TEXTS: list[str] = list(make_text(12)["text"])


def make_standard() -> StandardSAE:
    """Of SAELens, real-valued, at the tests' hook point."""
    cfg = StandardSAEConfig(d_in=D_IN, d_sae=D_SAE, normalize_activations="none")
    sae = StandardSAE(cfg)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return at_hook(sae)


def at_hook(sae: Any, **metadata: Any) -> Any:
    """The same with metadata that commands and stores need."""
    known = {
        "model_name": "bae-lens/tiny",
        "model_class_name": "HookedTransformer",
        "dataset_path": "bae-lens/tiny-text",
        "hook_name": HOOK,
        "context_size": CONTEXT_SIZE,
        "prepend_bos": True,
        "exclude_special_tokens": True,
    }
    for name, value in {**known, **metadata}.items():
        sae.cfg.metadata[name] = value
    return sae


def seen(model: HookedSAETransformer, sae: Any) -> LatentRecords:
    """What ``collect_examples`` sees of it, text by text."""
    return collect_examples(model, sae, TEXTS, SETTINGS, exclude_outlier_tokens=False)


@torch.no_grad()
def true_code(model: HookedSAETransformer, sae: Any, tokens: Tensor) -> Tensor:
    """Activations ``[batch, pos, d_sae]`` from a pass of its own; 0 at special tokens."""
    _, cache = model.run_with_cache(tokens, names_filter=[HOOK])
    code = sae.encode(cache[HOOK])
    return torch.where((tokens > 3)[..., None], code, 0.0)
