"""Attach an SAE to a model so that special tokens pass by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sae_lens import SAE, HookedSAETransformer
from sae_lens.analysis.hooked_sae_transformer import set_deep_attr
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from bae_lens.special_tokens import special_token_ids, special_token_mask


@contextmanager
def attached(
    model: HookedSAETransformer | SAETransformerBridge,
    sae: SAE[Any],
    use_error_term: bool | None = None,
    exclude_special_tokens: bool | Sequence[int] = True,
) -> Iterator[HookedSAETransformer | SAETransformerBridge]:
    """A context in which ``model`` runs with ``sae`` at its hook point, special tokens untouched.

    The activation of BOS can be a hundred times longer than any other (an attention sink). SAEs are
    seldom trained on it, and to replace it by a reconstruction disturbs every position after it.
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
        ValueError: if the model does not have the SAE's hook point (SAELens only logs a warning),
            or has no tokenizer to say which tokens are special.
    """
    special = special_token_ids(model, exclude_special_tokens)
    name = sae.cfg.metadata.hook_name
    hooked = isinstance(model, HookedSAETransformer)
    options: dict[str, Any] = {"exclude_special_tokens": special or False} if hooked else {}
    with (
        _same_hook_point_afterwards(model, sae),
        model.saes(saes=[sae], use_error_term=use_error_term, **options),
    ):
        wrapper = model._acts_to_saes.get(name)  # pyright: ignore[reportArgumentType]
        if wrapper is None or wrapper.sae is not sae:
            raise ValueError(
                f"{type(model).__name__} has no hook point {name!r}, which the SAE's metadata names."
            )
        if hooked or not special:
            yield model
            return

        def note_special_tokens(module: Any, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
            tokens: Tensor = inputs[0]
            # Looked up anew: an SAE that was attached and removed inside leaves another wrapper.
            current = model._acts_to_saes[name]  # pyright: ignore[reportArgumentType]
            if current.sae is sae:
                current.set_token_mask(special_token_mask(tokens, special))

        # The embedding sees token ids whatever the caller passed: text, tokens, with BOS or not.
        handle = model.embed.register_forward_pre_hook(note_special_tokens)
        try:
            yield model
        finally:
            handle.remove()


@contextmanager
def _same_hook_point_afterwards(
    model: HookedSAETransformer | SAETransformerBridge, sae: SAE[Any]
) -> Iterator[None]:
    """Put a Bridge's own hook point back where SAELens leaves a new one (6.54).

    The new one has lost its full name, so that hooks added there by name silently do nothing, and
    its split into heads.
    """
    metadata = sae.cfg.metadata
    name = metadata.hook_name_out or metadata.hook_name
    if isinstance(model, HookedSAETransformer) or name is None:
        yield
        return
    path = model._resolve_hook_name(name)
    point = model._hook_registry.get(path)
    try:
        yield
    finally:
        if isinstance(point, HookPoint):
            set_deep_attr(model, path, point)
            point.name = path
            model._hook_registry[path] = point
