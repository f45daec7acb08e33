"""Attach an SAE to a model so that special tokens pass by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE, HookedSAETransformer
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from sae_lens.util import get_special_token_ids
from torch import Tensor


@contextmanager
def attached(
    model: HookedSAETransformer | SAETransformerBridge,
    sae: SAE[Any],
    use_error_term: bool | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
) -> Iterator[HookedSAETransformer | SAETransformerBridge]:
    """A context in which ``model`` runs with ``sae`` at its hook point, special tokens untouched.

    The activations of BOS can be a hundred times larger than any other (an attention sink), no SAE
    is trained on them, and replacing that one position costs more than all others together.
    ``HookedSAETransformer.add_sae`` can leave it alone; ``SAETransformerBridge.add_sae`` cannot
    (SAELens 6.54). This does it for both.

    Args:
        model: the model; what was attached to the hook point before is back afterwards.
        sae: any SAE; ``metadata.hook_name`` says where.
        use_error_term: add what the SAE misses, so that the model's output stays the same.
        exclude_special_tokens: True for the tokenizer's special tokens (BOS, EOS, PAD, SEP), or
            token ids; False to replace every position.

    Yields:
        ``model``.

    Raises:
        ValueError: if the model does not have the SAE's hook point (SAELens only logs a warning).
    """
    if isinstance(exclude_special_tokens, bool):
        special = get_special_token_ids(model.tokenizer) if exclude_special_tokens else []  # pyright: ignore[reportArgumentType]
    else:
        special = list(exclude_special_tokens)
    name = sae.cfg.metadata.hook_name
    hooked = isinstance(model, HookedSAETransformer)
    options: dict[str, Any] = {"exclude_special_tokens": special or False} if hooked else {}
    with model.saes(saes=[sae], use_error_term=use_error_term, **options):
        wrapper = model._acts_to_saes.get(name)  # pyright: ignore[reportArgumentType]
        if wrapper is None or wrapper.sae is not sae:
            raise ValueError(
                f"{type(model).__name__} has no hook point {name!r}, which the SAE's metadata names."
            )
        if hooked or not special:
            yield model
            return

        ids = torch.tensor(special)

        def note_special_tokens(module: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
            tokens: Tensor = inputs[0]
            wrapper.set_token_mask(torch.isin(tokens, ids.to(tokens.device)))

        # The embedding sees token ids whatever the caller passed: text, tokens, with BOS or not.
        handle = model.embed.register_forward_pre_hook(note_special_tokens)
        try:
            yield model
        finally:
            handle.remove()
