"""Activations of one pass over the text, kept in memory or on disk and replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bae_lens.activations.collecting import (
    read_rows,
    sequence_length_of,
    warn_if_shares_ended,
)
from bae_lens.activations.collection import kept_rows
from bae_lens.activations.rank_share import own_number
from bae_lens.activations.store_state import load_count, save_count
from bae_lens.checks.fields import check, whole
from bae_lens.distributed import all_gather_objects, n_ranks, on_every_rank, own_rows, own_slice


class ReplayedActivations:
    """A stand-in for SAELens' ``ActivationsStore`` that runs the language model only once.

    The language model is most of the cost of a run, and the activations of 250k tokens at width
    576 are 0.6 GB: several trainings (or several epochs) can share them, also those of another
    process, where ``collect`` keeps them in a folder. Assign it to ``runner.activations_store``, or
    hand it to ``SAETrainer`` as its data provider. Each epoch is shuffled whole, from ``seed`` and
    the epoch's number alone, so a resumed run goes on with the very batch that would have come
    next. Whatever else is asked of it (``get_batch_tokens``, used by SAELens' evals) is answered by
    the store that it was filled from.

    Args:
        activations: ``[n_tokens, d_in]``, special tokens already left out; or packed rows of two hook
            points.
        batch_size: tokens per batch; a rest shorter than that is left for the next epoch's shuffle.
        seed: of the shuffles.
        store: the store that ``activations`` came from.
        sequence_length: rows that stay together, in order; the shuffle moves whole sequences.
        device: where batches are served; where ``activations`` are, if omitted.
        is_common: whether every rank has these activations. Then ``batch_size`` is that of all ranks, a
            batch has the rows that it would have in one process, and each rank is served its share of them.

    Raises:
        ValueError: if ``activations`` is not 2-D or holds less than one batch, or it or the batch
            is not a number of whole sequences, or ranks cannot have as many of those each.
    """

    def __init__(
        self,
        activations: Tensor,
        batch_size: int,
        seed: int = 42,
        store: Any = None,
        sequence_length: int = 1,
        device: str | torch.device | None = None,
        is_common: bool = False,
    ) -> None:
        batch_size, seed = (
            check("batch_size", batch_size, whole(1)),
            check("seed", seed, whole(None)),
        )
        sequence_length = check("sequence_length", sequence_length, whole(1))
        if activations.ndim != 2:
            raise ValueError(
                "activations must have shape [n_tokens, d_in]; "
                f"got {tuple(activations.shape)}. Flatten batch and position first."
            )
        if len(activations) < batch_size:
            raise ValueError(
                f"One batch needs {batch_size} tokens, but only {len(activations)} were collected. "
                "Collect more tokens or lower train_batch_size_tokens."
            )
        if len(activations) % sequence_length or batch_size % sequence_length:
            raise ValueError(
                f"Sequences of {sequence_length} tokens must be whole; got {len(activations)} rows "
                f"and a batch size of {batch_size}."
            )
        if is_common:
            own_slice(batch_size, sequence_length)
        self.activations = activations
        self.batch_size = batch_size
        self.is_common = is_common
        self.sequence_length = sequence_length
        self.seed = seed
        self.store = store
        self.device = activations.device if device is None else torch.device(device)
        self.n_batches_served = 0
        self._order: tuple[int, Tensor] | None = None

    @classmethod
    def collect(
        cls,
        store: Any,
        n_tokens: int,
        seed: int = 42,
        path: str | Path | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> ReplayedActivations:
        """Fill from a store: its text in order, its special tokens left out.

        Args:
            store: where to read, SAELens' ``ActivationsStore`` or ``PairedActivations``; its batch
                size and device are kept.
            n_tokens: how many tokens to keep, in whole sequences. Fewer are kept, with a logged
                warning, where the text ends before.
            seed: of the shuffles.
            path: a folder to keep them in. What an earlier call has collected there is used, and
                the language model does not run. ``activations`` are memory-mapped, for reading
                only, and may be larger than memory: a batch reads its own rows. None keeps them in
                memory. Of several ranks each keeps its share of the tokens in memory, and shuffles that;
                in a folder there is one collection for all of them.
            described: with ``path``, what decides what the rows are, as JSON holds it: the model's
                name, the hook's and so on. What is in the folder has to agree in it.

        Raises:
            ValueError: if fewer tokens than a batch were kept, or what is in the folder does not
                agree with ``n_tokens``, the store's dtype and sequence length, or ``described``.
        """
        n_tokens = check("n_tokens", n_tokens, whole(1))
        device = None
        length, batch_size = sequence_length_of(store), store.train_batch_size_tokens
        if path is None:
            with on_every_rank():
                batches = list(read_rows(store, own_number(n_tokens, length)))
            activations = torch.cat(batches) if batches else torch.empty(0, 0)
            warn_if_shares_ended(len(activations), n_tokens)
        else:
            # The store's is a rank's own.
            batch_size *= n_ranks()
            activations = kept_rows(path, store, n_tokens, described)
            # PairedActivations leaves it to the store that it reads.
            device = store.device if hasattr(store, "device") else store.store.device
        with on_every_rank():
            return cls(activations, batch_size, seed, store, length, device, path is not None)

    @property
    def n_collected(self) -> int:
        """Tokens of all ranks, each of which has to ask."""
        own = len(self.activations)
        return own if self.is_common else sum(all_gather_objects(own))

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one pass."""
        return len(self.activations) // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        epoch, i = divmod(self.n_batches_served, self.batches_per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            n_sequences = len(self.activations) // self.sequence_length
            order = torch.randperm(n_sequences, generator=generator)
            # All at once: a GPU would be waited for with every batch.
            self._order = (epoch, order.to(self.activations.device))
        n = self.batch_size // self.sequence_length
        chosen = self._order[1][i * n : (i + 1) * n]
        if self.is_common:
            chosen = own_rows(chosen)
        self.n_batches_served += 1
        sequences = self.activations.unflatten(0, (-1, self.sequence_length))
        return sequences[chosen].flatten(0, 1).to(self.device)

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write how many batches were served, under the name SAELens gives its store's state."""
        save_count(checkpoint_path, "n_batches_served", self.n_batches_served)

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on where the checkpoint was written.

        Raises:
            ValueError: if the checkpoint was written by another kind of store.
        """
        n_batches_served = load_count(checkpoint_path, "n_batches_served", type(self).__name__)
        self.n_batches_served = n_batches_served

    def __getattr__(self, name: str) -> Any:
        store = self.__dict__.get("store")
        if store is None or name.startswith("__"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}, and no store to ask for it."
            )
        return getattr(store, name)
