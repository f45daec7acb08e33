"""Products with a matrix that is mostly zero, by adding up the rows that its entries point to."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class SparseRows(NamedTuple):
    """Where a matrix ``[n, d]`` is not zero, row by row.

    PyTorch's embedding bags add up rows several times as fast as its sparse matrices do.

    Attributes:
        columns: the column of each entry.
        starts: the first entry of each row.
        values: the value of each entry; None means that all are 1.

    Examples:
        >>> x = torch.tensor([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
        >>> rows = SparseRows.of(x)
        >>> rows.columns.tolist(), rows.starts.tolist(), rows.values.tolist()
        ([1, 0], [0, 1, 1], [2.0, 1.0])
        >>> torch.equal(rows @ torch.eye(2), x)
        True
    """

    columns: Int[Tensor, " m"]
    starts: Int[Tensor, " n"]
    values: Float[Tensor, " m"] | None = None

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> SparseRows:
        rows, columns = x.nonzero().unbind(1)
        values = x[rows, columns]
        return cls(columns.contiguous(), _starts(rows, len(x)), values)

    @property
    def rows(self) -> Int[Tensor, " m"]:
        """The row of each entry."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.columns)])])
        row = torch.arange(len(self.starts), device=self.columns.device)
        return row.repeat_interleave(ends - self.starts, output_size=len(self.columns))

    def transposed(self, d: int) -> SparseRows:
        """The transposed matrix.

        Args:
            d: its number of rows, which is not to be read from the entries.
        """
        columns, order = self.columns.sort(stable=True)
        values = None if self.values is None else self.values[order]
        return SparseRows(self.rows[order], _starts(columns, d), values)

    def __matmul__(self, dense: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
        return F.embedding_bag(
            self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values
        )


def _starts(sorted_rows: Tensor, n: int) -> Tensor:
    counts = sorted_rows.bincount(minlength=n)
    return counts.cumsum(0) - counts
