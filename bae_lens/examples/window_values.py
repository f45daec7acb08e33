"""What a latent has at every token of a window, and not only at the marked one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from bae_lens.examples.corpus import AWAY, TokenBlock

# The smallest margin of a bit that fires, since 0 says that it does not.
_TINY = np.float32(2.0**-24)


class WindowValues:
    """Looked up for those firings only that are kept.

    Of bits a value is the margin where the bit fires, of other codes the entry of the code; 0 where it does
    not fire, of one-hot codes NaN, whose entries may be 0; NaN where a token does not count or was not read.

    Args:
        block: tokens, with those around them (``TokenBlock.around``).
        is_one_hot: whether each token has one code.
    """

    def __init__(self, block: TokenBlock, is_one_hot: bool) -> None:
        self._block = block
        self._around, self._first = (block, 0) if block.around is None else block.around
        firings = self._around.firings
        # Which entry is at a place, from 1, since entries themselves may be 0.
        entries = np.arange(1, firings.nnz + 1)
        self._entries: Any = sparse.csr_matrix(
            (entries, firings.indices, firings.indptr), shape=firings.shape
        )
        self._data = np.append(firings.data, np.float32(0))
        self._nothing = np.nan if is_one_hot else 0.0

    def __call__(self, rows: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.float32]:
        """Of the windows around some tokens, ``[m, width]``.

        Args:
            rows: ``[m]``, of the block.
            groups: ``[m]``, the latent; of a bit that says something where it is off, ``n_latents`` more.
        """
        n_rows, n_latents = self._around.firings.shape
        steps = self._block.steps
        if steps is None:
            return np.full((len(rows), self._block.places["window"].shape[1]), np.nan, np.float32)
        steps = steps[rows]
        at = self._first + rows[:, None] + steps
        known = (steps != AWAY) & (at >= 0) & (at < n_rows)
        tokens, groups = at[known], np.repeat(groups, known.sum(axis=1))
        latents = groups % n_latents
        # SciPy looks up no empty list.
        entries = np.zeros(0, dtype=np.int64)
        if len(tokens) > 0:
            entries = np.asarray(self._entries[tokens, latents]).ravel()
        fires = (entries > 0) != (groups >= n_latents)
        if self._around.margins is None:
            found = self._data[entries - 1]
        else:
            found = np.maximum(self._around.margins[tokens, latents], _TINY)
        values = np.full(at.shape, np.nan, dtype=np.float32)
        values[known] = np.where(fires, found, self._nothing)
        return values
