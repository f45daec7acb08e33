"""Activations of one pass over the text, kept in memory and replayed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATIONS_STORE_STATE_FILENAME
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class ReplayedActivations:
    """A stand-in for SAELens' ``ActivationsStore`` that runs the language model only once.

    The language model is most of the cost of a run, and the activations of 250k tokens at width
    576 are 0.6 GB: several trainings (or several epochs) can share them. Assign it to
    ``runner.activations_store``, or hand it to ``SAETrainer`` as its data provider. Each epoch is
    shuffled whole, from ``seed`` and the epoch's number alone, so a resumed run goes on with the
    very batch that would have come next. Whatever else is asked of it (``get_batch_tokens``, used
    by SAELens' evals) is answered by the store that it was filled from.

    Args:
        activations: ``[n_tokens, d_in]``, special tokens already left out; or packed rows of two hook
            points.
        batch_size: tokens a batch; a rest shorter than that is left for the next epoch's shuffle.
        seed: of the shuffles.
        store: the store that ``activations`` came from.
        sequence_length: rows that stay together, in order; the shuffle moves whole sequences.

    Raises:
        ValueError: if ``activations`` is not 2-D or holds less than one batch, or it or the batch
            is not a number of whole sequences.
    """

    def __init__(
        self,
        activations: Tensor,
        batch_size: int,
        seed: int = 42,
        store: Any = None,
        sequence_length: int = 1,
    ) -> None:
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
        self.activations = activations
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self.store = store
        self.n_batches_served = 0
        self._order: tuple[int, Tensor] | None = None

    @classmethod
    def collect(cls, store: Any, n_tokens: int, seed: int = 42) -> ReplayedActivations:
        """Fill from a store: its text in order, its special tokens left out.

        Args:
            store: where to read, SAELens' ``ActivationsStore`` or ``PairedActivations``; its batch
                size and device are kept.
            n_tokens: how many tokens to keep, in whole sequences. Fewer are kept, with a logged
                warning, where the text ends before.
            seed: of the shuffles.
        """
        batches: list[Tensor] = []
        n_kept = 0
        length = getattr(store, "sequence_length", None) or 1
        n_tokens -= n_tokens % length
        with tqdm(total=n_tokens, desc="Collecting activations", unit="tok") as bar:
            while n_kept < n_tokens:
                try:
                    batch = store.get_filtered_llm_batch(raise_on_epoch_end=True)
                except StopIteration:
                    break
                batch = batch[: n_tokens - n_kept].to(store.dtype)
                batches.append(batch)
                n_kept += len(batch)
                bar.update(len(batch))
        if n_kept < n_tokens:
            logger.warning("The text ended after %d of %d tokens.", n_kept, n_tokens)
        activations = torch.cat(batches) if batches else torch.empty(0, 0)
        return cls(activations, store.train_batch_size_tokens, seed, store, length)

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
            self._order = (epoch, torch.randperm(n_sequences, generator=generator))
        n = self.batch_size // self.sequence_length
        chosen = self._order[1][i * n : (i + 1) * n].to(self.activations.device)
        self.n_batches_served += 1
        sequences = self.activations.unflatten(0, (-1, self.sequence_length))
        return sequences[chosen].flatten(0, 1)

    def save_to_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Write how many batches were served, under the name SAELens gives its store's state."""
        save_file(
            {"n_batches_served": torch.tensor(self.n_batches_served)},
            Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME,
        )

    def load_from_checkpoint(self, checkpoint_path: str | Path) -> None:
        """Go on where the checkpoint was written.

        Raises:
            ValueError: if the checkpoint was written by another kind of store.
        """
        path = Path(checkpoint_path) / ACTIVATIONS_STORE_STATE_FILENAME
        state = load_file(path)
        if "n_batches_served" not in state:
            raise ValueError(
                f"{path} was not written by ReplayedActivations (it has {sorted(state)}). "
                "Resume with the same kind of activations store as the run began with."
            )
        self.n_batches_served = int(state["n_batches_served"])

    def __getattr__(self, name: str) -> Any:
        store = self.__dict__.get("store")
        if store is None or name.startswith("__"):
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}, and no store to ask for it."
            )
        return getattr(store, name)
