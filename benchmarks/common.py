"""What the benchmarks share: activations of language models."""

from __future__ import annotations

from typing import Any, Literal

import torch
from sae_lens import ActivationsStore
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from bae_lens import offline as demo
from bae_lens.activations.paired_activations import PairedStore
from bae_lens.architectures.packed_rows import pack_rows

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


def collect_pairs(
    store: PairedStore, n_tokens: int, length: int, what: str = ""
) -> dict[str, Tensor]:
    """Whole sequences of two hook points, as many as have ``n_tokens`` valid tokens together.

    Returns:
        ``tokens`` [n, length] and packed ``rows`` [n · length, d_in + d_out + 1] in order; shorter
        sequences are padded at their end.
    """
    all_tokens: list[Tensor] = []
    all_rows: list[Tensor] = []
    n = 0
    with tqdm(total=n_tokens, desc=f"Collecting {what}".rstrip(), unit="tok") as bar:
        while n < n_tokens:
            batch = store.paired_batch()
            missing = (0, length - batch.tokens.shape[1])
            tokens, valid = (pad(x, missing) for x in (batch.tokens, batch.valid))
            lower, upper = (pad(x, (0, 0, *missing)) for x in (batch.lower, batch.upper))
            # The last batch has more sequences than are wanted.
            n_valid = n + valid.sum(1).cumsum(0)
            keep = slice(int((n_valid < n_tokens).sum()) + 1)
            all_tokens.append(tokens[keep])
            all_rows.append(pack_rows(lower[keep], upper[keep], valid[keep]))
            bar.update(int(n_valid[keep][-1]) - n)
            n = int(n_valid[keep][-1])
    return {"tokens": torch.cat(all_tokens), "rows": torch.cat(all_rows)}
