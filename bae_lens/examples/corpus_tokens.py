"""Tokens drawn at random from a corpus, with everything that fires at each: where a latent does not fire."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bae_lens.examples.corpus import TokenBlock
from bae_lens.examples.reservoir import FiringKeys, Reservoir


class CorpusSample:
    """``n`` tokens of a corpus, each as likely as any other, in one pass and bounded memory.

    Which they are depends on the seed and on where a token stands, not on batches. Memory is a window
    and the list of what fires for each of them.

    Args:
        n: tokens kept.
        n_latents: number of latents.
        place: see ``place_dtype``.
        seed: 0 … 2⁶⁴ − 1.
    """

    def __init__(self, n: int, n_latents: int, place: np.dtype[Any], seed: int) -> None:
        self.n_latents = n_latents
        self.reservoir = Reservoir(1, n, place)
        # A step of its own, so that it does not draw what a latent draws.
        self._step = FiringKeys(seed, n_latents + 1).of_latents[-1]
        self._firing: dict[tuple[int, int], NDArray[np.int32]] = {}

    def update(self, block: TokenBlock, token_keys: NDArray[np.uint64]) -> None:
        """Take in the next tokens.

        Args:
            block: the tokens.
            token_keys: ``[len(block)]``, see ``FiringKeys.of_tokens``.
        """
        priorities = token_keys + self._step
        rows = np.flatnonzero(priorities < self.reservoir.limits[0])
        if len(rows) == 0:
            return
        for row in rows[np.argsort(priorities[rows])][: self.reservoir.n]:
            begin, end = block.firings.indptr[row : row + 2]
            latents = np.sort(block.firings.indices[begin:end]).astype(np.int32)
            self._firing[_place(block.places[row])] = latents
        self.reservoir.offer(
            np.zeros(len(rows), dtype=np.int64),
            priorities[rows],
            np.zeros(len(rows), dtype=np.float32),
            rows,
            block.places,
        )
        self._forget_others()

    def merge(self, other: CorpusSample) -> None:
        """Take in a sample of other tokens, drawn with the same seed."""
        self.reservoir.merge(other.reservoir)
        self._firing |= other._firing
        self._forget_others()

    def _forget_others(self) -> None:
        kept = {_place(place) for place in self.reservoir.of(0)[1]}
        self._firing = {place: latents for place, latents in self._firing.items() if place in kept}

    def firing(self, text: int, position: int, when_off: NDArray[np.bool_]) -> tuple[int, ...]:
        """The latents that fire at one of the tokens, in order.

        Args:
            text: where it stands.
            position: in that text.
            when_off: ``[n_latents]``, those that count as firing where they do not.
        """
        on = np.zeros(self.n_latents, dtype=bool)
        on[self._firing[text, position]] = True
        return tuple(np.flatnonzero(on != when_off).tolist())


def _place(place: Any) -> tuple[int, int]:
    return int(place["text"]), int(place["position"])
