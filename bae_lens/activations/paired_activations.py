"""Packed batches of two hook points, from one forward pass, for SAELens' trainer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from sae_lens import ActivationsStore
from sae_lens.training.mixing_buffer import mixing_buffer
from torch import Tensor

from bae_lens.activations.paired_batch import PairedBatch
from bae_lens.activations.rank_share import OwnNumbers
from bae_lens.activations.special_tokens import special_token_mask
from bae_lens.activations.text_store import Progress, describe_positions
from bae_lens.architectures.packed_rows import pack_rows
from bae_lens.checks.fields import Number, check, whole
from bae_lens.distributed import n_ranks


class PairedStore(Protocol):
    """What serves the same tokens at two hook points: ``ContextStore``, ``SentenceStore``."""

    @property
    def device(self) -> torch.device: ...
    def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch: ...
    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None: ...
    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None: ...


class ContextStore:
    """SAELens' store of two hook points, with whole contexts and a mask.

    SAELens' own loader of several hook points deletes the rows of special tokens, after which
    nothing says where a sequence begins.

    Args:
        store: from ``ActivationsStore.from_config_multi_hook``.
        hook_names: the lower and the higher hook point.
        exclude_special_tokens: ids of tokens that ``PairedBatch.valid`` leaves out.
    """

    def __init__(
        self,
        store: ActivationsStore,
        hook_names: Sequence[str],
        exclude_special_tokens: Sequence[int] = (),
    ) -> None:
        self.store = store
        self.hook_names = list(hook_names)
        self.special_tokens = list(exclude_special_tokens)

    def paired_batch(self, raise_on_epoch_end: bool = False) -> PairedBatch:
        """The next contexts, position-sliced as the store slices them.

        Raises:
            StopIteration: at the end of the text, if asked for.
        """
        tokens = self.store.get_batch_tokens(raise_at_epoch_end=raise_on_epoch_end)
        activations = self.store.get_multi_hook_activations(tokens)
        tokens = tokens[:, slice(*self.store.seqpos_slice)].to(self.device)
        lower, upper = (activations[name].to(self.device) for name in self.hook_names)
        valid = ~special_token_mask(tokens, self.special_tokens)
        return PairedBatch(tokens, lower, upper, valid)

    @property
    def device(self) -> torch.device:
        return self.store.device

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write how much of the text was read, as SAELens does."""
        self.store.save_to_checkpoint(checkpoint_path)

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on with the text where the checkpoint was written."""
        self.store.load_from_checkpoint(checkpoint_path)


class PairedActivations:
    """Batches of packed rows, ``[lower | upper | valid]``, endlessly.

    Without ``sequence_length``: single tokens, only valid ones, mixed as SAELens mixes them. With
    it: whole sequences in order, every position with its mask, padded to that length.

    Args:
        store: where to read.
        batch_size: rows per batch.
        sequence_length: rows of a sequence; None for single tokens.
        buffer_size: tokens that are mixed.
        mix_fraction: share of them that stays for the next mixing.
        dtype: of the rows.

    Raises:
        ValueError: if ``batch_size`` is not a number of whole sequences.
    """

    def __init__(
        self,
        store: PairedStore,
        batch_size: int,
        sequence_length: int | None = None,
        buffer_size: int = 8192,
        mix_fraction: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        batch_size = check("batch_size", batch_size, whole(1))
        sequence_length = check("sequence_length", sequence_length, whole(1, or_none=True))
        buffer_size = check("buffer_size", buffer_size, whole(0))
        mix_fraction = check("mix_fraction", mix_fraction, Number(least=0, most=1))
        if sequence_length is not None and batch_size % sequence_length:
            raise ValueError(
                f"A batch must hold whole sequences of {sequence_length} tokens; got a batch size "
                f"of {batch_size}. Set train_batch_size_tokens to a multiple of {sequence_length}, "
                f"for example {max(1, batch_size // sequence_length) * sequence_length}."
            )
        self.store = store
        self.sequence_length = sequence_length
        self.train_batch_size_tokens = batch_size
        self.buffer_size = max(buffer_size, batch_size)
        self.mix_fraction = mix_fraction
        self.dtype = dtype
        self._batches: Iterator[Tensor] | None = None
        self._progress = Progress(describe_positions(getattr(store, "store", store)))

    def get_filtered_llm_batch(self, raise_on_epoch_end: bool = False) -> Float[Tensor, "n width"]:
        """Rows of one forward pass.

        Raises:
            StopIteration: at the end of the text, if asked for.
            ValueError: if no token is left after special ones are taken out.
        """
        try:
            _, lower, upper, valid = self.store.paired_batch(raise_on_epoch_end)
        except StopIteration:
            self._progress.at_end()
            raise
        self._progress.see(int(valid.sum()))
        lower, upper = lower.to(self.dtype), upper.to(self.dtype)
        if self.sequence_length is None:
            return pack_rows(lower[valid], upper[valid])
        missing = self.sequence_length - valid.shape[1]
        if missing < 0:
            raise ValueError(
                f"The text comes in sequences of {valid.shape[1]} tokens, longer than the "
                f"sequence_length of {self.sequence_length}."
            )
        if missing > 0:
            lower, upper = (torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in (lower, upper))
            valid = torch.nn.functional.pad(valid, (0, missing))
        return pack_rows(lower, upper, valid)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Float[Tensor, "batch_size width"]:
        if self._batches is None:
            if self.sequence_length is None:
                size, fraction = self.buffer_size, self.mix_fraction
            else:
                # Unmixed, mixing_buffer only cuts the stream into batches.
                size, fraction = self.train_batch_size_tokens, 0.0
            batches = mixing_buffer(size, self.train_batch_size_tokens, self._endless(), fraction)
            self._batches = batches if n_ranks() == 1 else OwnNumbers(batches)
        return next(self._batches)

    def _endless(self) -> Iterator[Tensor]:
        while True:
            try:
                yield self.get_filtered_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                warnings.warn("The text is used up; beginning with it again.", stacklevel=2)
                yield self.get_filtered_llm_batch()

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """See the store's."""
        self.store.save_to_checkpoint(checkpoint_path)

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """See the store's."""
        self.store.load_from_checkpoint(checkpoint_path)
