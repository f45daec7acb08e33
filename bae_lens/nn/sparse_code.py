"""A binary code as the entries that are on, after bits that are mostly on were flipped."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bae_lens.nn.sparse_rows import SparseRows


class BitCounts(NamedTuple):
    """How often each column would fire as a bit, and which fire for more than half of the rows.

    Attributes:
        flipped: whether a bit is mostly on.
        counts: rows in which each bit fires once those are flipped: at most half of them.
    """

    flipped: Bool[Tensor, " d"]
    counts: Float[Tensor, " d"]

    @classmethod
    def of(cls, codes: Float[Tensor, "n d"]) -> BitCounts:
        n = len(codes)
        counts = codes.sum(0, dtype=torch.promote_types(codes.dtype, torch.float32))
        flipped = 2 * counts > n
        return cls(flipped, torch.where(flipped, n - counts, counts))


class SparseCode(NamedTuple):
    """A binary code with its majority-on bits flipped, which changes no |covariance|.

    Attributes:
        on: where bits fire; of its values there are none, all being 1.
        counts: rows in which each bit fires, at most half of them.
        flipped: whether a bit was flipped.
        n: rows.
    """

    on: SparseRows
    counts: Float[Tensor, " d"]
    flipped: Bool[Tensor, " d"]
    n: int

    @property
    def d(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, codes: Float[Tensor, "n d"], bits: BitCounts) -> SparseCode | None:
        """The code in this form, or None if anything but zeros and ones is among the codes."""
        x = torch.where(bits.flipped, 1 - codes, codes) if bits.flipped.any() else codes
        # Counted before they are listed: the list of a matrix that is full is large.
        if int(x.count_nonzero()) != int(bits.counts.sum(dtype=torch.float64)):
            return None
        on = SparseRows.of(x)
        if on.values is not None and not bool((on.values == 1).all()):
            return None
        return cls(on._replace(values=None), bits.counts, bits.flipped, len(codes))
