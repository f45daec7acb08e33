"""What a language model reads in an evaluation, and its activations there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Int
from sae_lens import ActivationsStore
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor
from transformer_lens.HookedRootModule import HookedRootModule
from typing_extensions import TypeIs

from bae_lens.activations.special_tokens import special_token_mask
from bae_lens.checks.suggest import did_you_mean


class MaskedTextStore(Protocol):
    """A store of texts of different lengths, such as ``SentenceStore``."""

    def get_batch(
        self, batch_size: int | None = None, raise_at_epoch_end: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Token ids ``[batch, pos]``, and True where there is a token and not padding."""
        ...

    def reset_input_dataset(self) -> None:
        """Go on with the first text."""
        ...


class TextBatch(NamedTuple):
    """A batch of token sequences.

    Attributes:
        tokens: token ids.
        valid: True where a token counts: neither padding nor special.
        attention_mask: True where there is a token at all; None where there is one everywhere.
    """

    tokens: Int[Tensor, "batch pos"]
    valid: Bool[Tensor, "batch pos"]
    attention_mask: Bool[Tensor, "batch pos"] | None = None

    @classmethod
    def of(cls, tokens: Tensor, special_tokens: Iterable[int] = ()) -> TextBatch:
        """Make a batch of tokens without padding."""
        return cls(tokens, ~special_token_mask(tokens, special_tokens))

    @classmethod
    def read(
        cls,
        store: ActivationsStore | MaskedTextStore,
        special_tokens: Iterable[int],
        n_prompts: int | None = None,
        raise_at_epoch_end: bool = False,
    ) -> TextBatch:
        """The next text of a store; positions outside its ``seqpos_slice`` do not count.

        Args:
            store: gives the tokens, and their attention mask if it can.
            special_tokens: ids of tokens that do not count.
            n_prompts: how many sequences; as the store is set if omitted.
            raise_at_epoch_end: raise ``StopIteration`` at the end of the text, of which SAELens'
                store then loses the beginning of a batch that it cannot fill: see ``until_end``.

        Raises:
            StopIteration: if asked for.
            ValueError: if the text has not one sequence.
        """
        if has_masks(store):
            tokens, mask = store.get_batch(n_prompts, raise_at_epoch_end=raise_at_epoch_end)
        else:
            mask = None
            try:
                tokens = store.get_batch_tokens(n_prompts, raise_at_epoch_end=raise_at_epoch_end)
            except StopIteration:
                if raise_at_epoch_end:
                    raise
                raise ValueError(no_sequence(store)) from None
        return cls._counted(store, tokens, mask, special_tokens)

    @classmethod
    def until_end(
        cls, store: ActivationsStore | MaskedTextStore, special_tokens: Iterable[int]
    ) -> Iterator[TextBatch]:
        """Batches up to the end of a store's text, the last one smaller; it then begins again."""
        if has_masks(store):
            while True:
                try:
                    yield cls.read(store, special_tokens, raise_at_epoch_end=True)
                except StopIteration:
                    return
        for tokens in tokens_until_end(store):
            yield cls._counted(store, tokens, None, special_tokens)

    @classmethod
    def _counted(
        cls, store: Any, tokens: Tensor, mask: Tensor | None, special_tokens: Iterable[int]
    ) -> TextBatch:
        """Mark the tokens that count: those that are neither special nor padding, in the store's slice."""
        batch = cls.of(tokens, special_tokens)
        valid = torch.zeros_like(batch.valid)
        positions = slice(*getattr(store, "seqpos_slice", (None,)))
        valid[:, positions] = batch.valid[:, positions]
        return cls(tokens, valid if mask is None else valid & mask, mask)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, padding left out."""
        mask = self.attention_mask
        return self.tokens.numel() if mask is None else int(mask.sum())

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """What a forward pass has to be told beside the tokens."""
        return {} if self.attention_mask is None else {"attention_mask": self.attention_mask.long()}


def tokens_until_end(store: ActivationsStore) -> Iterator[Int[Tensor, "batch pos"]]:
    """Batches of SAELens' store up to the end of its text, the last one smaller."""
    sequences: list[Tensor] = []
    while True:
        # One at a time, for it throws away the beginning of a batch that it cannot fill.
        try:
            sequences.append(store.get_batch_tokens(1, raise_at_epoch_end=True))
        except StopIteration:
            break
        if len(sequences) == store.store_batch_size_prompts:
            yield torch.cat(sequences)
            sequences = []
    if sequences:
        yield torch.cat(sequences)


# Where a group of metrics asks for more text than there is.
READ_AGAIN = (
    "The text is shorter than the batches that were asked for: some of it was read more than once."
)


def text_of(store: Any) -> Any:
    """The iterator that a store reads its text from: another one where the text has begun again."""
    return getattr(store, "iterable_sequences", getattr(store, "_rows", None))


def no_sequence(store: Any) -> str:
    """What is wrong where a store has no text at all."""
    return (
        f"The text has no sequence of context_size = {store.context_size} tokens: it is empty or "
        "too short. Give more text."
    )


def has_masks(store: ActivationsStore | MaskedTextStore) -> TypeIs[MaskedTextStore]:
    """Whether a store's tokens come with an attention mask."""
    return hasattr(store, "get_batch")


def read_hooks(
    model: HookedRootModule,
    batch: TextBatch,
    hook_names: Sequence[str],
    model_kwargs: Mapping[str, Any] | None = None,
    stop_after: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Activations at hook points, from one forward pass.

    Args:
        model: a hooked language model.
        batch: what it reads.
        hook_names: of the hook points.
        model_kwargs: passed to the model.
        stop_after: leave out the layers that no hook point needs.

    Returns:
        The model's output, which is its logits if it was not stopped, and the activations as the
        hook points have them.

    Raises:
        ValueError: if the model lacks one of the hooks, or it does not fire.
    """
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    known = [stop for stop in stops if stop is not None]
    output, cache = model.run_with_cache(
        batch.tokens,
        prepend_bos=False,
        names_filter=list(dict.fromkeys(hook_names)),
        stop_at_layer=max(known) if stop_after and len(known) == len(stops) else None,
        **{**batch.model_kwargs, **(model_kwargs or {})},
    )
    for name in hook_names:
        if name not in cache:
            raise ValueError(
                f"There are no activations at {name!r}: the model has no such hook, or it does not "
                f"fire. {did_you_mean(name, model.hook_dict)}"
            )
    return output, [cache[name] for name in hook_names]  # pyright: ignore[reportReturnType]
