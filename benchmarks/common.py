"""What the benchmarks share: activations of SmolLM2-135M."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sae_lens import ActivationsStore
from torch import Tensor
from tqdm.auto import tqdm

from bae_lens import demo

D_IN, CONTEXT_SIZE = 576, 128


def hook_name(layer: int) -> str:
    """The residual stream after a block."""
    return f"blocks.{layer}.hook_resid_post"


def collect(
    layers: list[int], split: Literal["train", "test"], n_tokens: int, device: str = "cpu"
) -> dict[int, Tensor]:
    """Activations ``[n_tokens, 576]`` after each layer's block, from one pass, BOS left out."""
    hooks = {layer: hook_name(layer) for layer in layers}
    model: Any = demo.load_model(demo.MODEL_NAME, device=device)
    dataset: Any = demo.load_dataset(demo.DATASET_NAME, split=split)
    store = ActivationsStore.from_config_multi_hook(
        model,
        dataset=dataset,
        hook_names=list(hooks.values()),
        hook_d_ins=dict.fromkeys(hooks.values(), D_IN),
        context_size=CONTEXT_SIZE,
        disable_concat_sequences=True,
        device=device,
    )
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    n = 0
    with tqdm(total=n_tokens, desc=f"Collecting {split}", unit="tok") as bar:
        while n < n_tokens:
            acts = store.get_multi_hook_activations(store.get_batch_tokens())
            for layer, hook in hooks.items():
                parts[layer].append(acts[hook][:, 1:].reshape(-1, D_IN).cpu())
            n += len(parts[layers[0]][-1])
            bar.update(len(parts[layers[0]][-1]))
    return {layer: torch.cat(part)[:n_tokens] for layer, part in parts.items()}
