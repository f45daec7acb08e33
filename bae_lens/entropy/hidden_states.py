"""Hidden states of a language model at chosen hooks and positions, from one pass over the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from tqdm.auto import tqdm

from bae_lens.activations.equal_lengths import equal_lengths
from bae_lens.activations.hook_points import hook_width
from bae_lens.activations.special_tokens import text_start
from bae_lens.activations.texts import check_text
from bae_lens.checks.fields import check, whole


@torch.no_grad()
def hidden_states(
    model: Any,
    hooks: Sequence[str],
    sequences: Sequence[Int[Tensor, " length"]],
    positions: Int[Tensor, "n k"],
    batch_size: int = 32,
    verbose: bool = False,
) -> dict[str, Float[Tensor, "n k width"]]:
    """What a model computes at some positions of each sequence.

    Sequences of equal length are run together and nothing is padded, so the states are those of
    single runs whatever the model makes of padding. The model stops after the last hook.

    Args:
        model: a HookedTransformer or TransformerBridge.
        hooks: names of hook points; heads are flattened.
        sequences: token ids, with BOS where the model has it.
        positions: which positions of each sequence to keep.
        batch_size: sequences per forward pass.
        verbose: show a progress bar.

    Returns:
        float32 on the CPU, by hook.

    Raises:
        ValueError: if a hook is not one of the model's, or has not one vector per token.
    """
    batch_size = check("batch_size", batch_size, whole(1))
    widths = {hook: hook_width(model, hook) for hook in hooks}
    stops = [extract_stop_at_layer_from_tlens_hook_name(hook) for hook in hooks]
    layers = [stop for stop in stops if stop is not None]
    stop_at_layer = max(layers) if len(layers) == len(stops) else None
    device = next(model.parameters()).device

    states = {
        hook: torch.empty(*positions.shape, width, dtype=torch.float32)
        for hook, width in widths.items()
    }
    n_tokens = sum(map(len, sequences))
    with tqdm(total=n_tokens, desc="Reading", unit="tok", disable=not verbose) as bar:
        for same_length in equal_lengths(sequences, batch_size):
            rows = torch.tensor(same_length)
            tokens = torch.stack([sequences[i] for i in same_length])
            _, cache = model.run_with_cache(
                tokens.to(device),
                names_filter=list(hooks),
                stop_at_layer=stop_at_layer,
                prepend_bos=False,
            )
            for hook in hooks:
                if cache[hook].shape[:2] != tokens.shape:
                    raise ValueError(
                        f"{hook!r} has no one vector per token: it gives {tuple(cache[hook].shape)} "
                        f"for {tuple(tokens.shape)} tokens. Choose a hook of the residual stream, "
                        "of an MLP or of a head's output."
                    )
                acts = cache[hook].flatten(2)
                at = positions[rows].to(acts.device)
                picked = acts[torch.arange(len(rows), device=acts.device)[:, None], at]
                states[hook][rows] = picked.float().cpu()
            bar.update(tokens.numel())
    return states


def check_tokenizer(model: Any) -> None:
    """That the model can make tokens of texts.

    Raises:
        ValueError: if it has no tokenizer, or begins texts with BOS and its tokenizer has none: the
            first word would be where attention is parked.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("The model has no tokenizer; set model.tokenizer to the one it goes with.")
    if tokenizer.bos_token_id is None and model.cfg.default_prepend_bos:
        raise ValueError(
            "The model's tokenizer has no BOS token, and texts are to begin with one. Set "
            "model.tokenizer.bos_token to the token that the model was trained to begin with, or "
            "model.cfg.default_prepend_bos to False if there is none."
        )


def tokenize(model: Any, texts: Sequence[str]) -> list[Int[Tensor, " length"]]:
    """Token ids of each text by itself, whole, with BOS before them where the model has it there."""
    for i, text in enumerate(texts):
        check_text(text, f"Text {i}")
    start = text_start(model, add_special_tokens=False)
    ids = model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    # Also of no token at all.
    return [torch.tensor(start.of(row), dtype=torch.long) for row in ids]
