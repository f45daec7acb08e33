"""The covariance penalty of a sparse binary code, a strip of columns of the matrix at a time.

As by tiles, all pairs of bits are visited and the matrix is never held whole; but both products with
the code, N = BᵀB and B·sign(C), add up only rows of bits that are on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bae_lens.nn.sparse_code import SparseCode
from bae_lens.nn.sparse_rows import SparseRows

# Entries of a strip: 3 MB of floats, more of which is no faster. No narrower than a row that is worth adding up.
_STRIP, _MIN_WIDTH = 3 * 2**18, 64


def strips_value_and_grad(
    code: SparseCode, dtype: torch.dtype, needs_grad: bool, columns: slice | None = None
) -> tuple[Tensor, Tensor | None]:
    """Σ_{i≠j} |C_ij| and its gradient to the codes before they were flipped.

    Exact: counts are integers, signs are decided in them, and a tie has the sign 0.

    Args:
        code: of n rows.
        dtype: of what is returned.
        needs_grad: whether to compute the gradient; None stands in its place otherwise.
        columns: of the matrix, whose share of the value and gradient this is; None: all.
    """
    n, d = code.n, code.d
    first, last = (0, d) if columns is None else (columns.start, columns.stop)
    counts, by_bit = code.counts.to(dtype), code.on.transposed(code.d)
    # n·N_ij and N_i·N_j go up to n²/2, and are exact in float32 up to 2²⁴.
    exact = torch.float64 if n > 4096 else dtype
    total = counts.new_zeros((), dtype=torch.float64)
    grad = counts.new_empty(n, last - first) if needs_grad else None
    width = max(_MIN_WIDTH, _STRIP // d)
    for start in range(first, last, width):
        own = slice(start, min(start + width, last))
        part = _rows_of(by_bit, own)
        strip = counts.new_zeros(n, own.stop - start)
        strip[part.columns, part.rows] = 1
        together = by_bit @ strip
        scaled = together.to(exact).addr_(counts.to(exact), counts[own].to(exact), beta=n, alpha=-1)
        scaled[own].fill_diagonal_(0)
        if grad is None:
            total += torch.linalg.vector_norm(scaled, ord=1, dtype=torch.float64)
            continue
        sign = scaled.sign_().to(dtype)
        # Whole numbers, with which Σ|C| = Σ C·sign(C) comes without another look at the strip.
        signed_rows, signed_counts = code.on @ sign, counts @ sign
        total += n * signed_rows[part.columns, part.rows].sum(dtype=torch.float64)
        total -= signed_counts.double() @ counts[own].double()
        grad[:, start - first : own.stop - first] = signed_rows.sub_(signed_counts / n)
    value = (total / (n * (n - 1))).to(dtype)
    if grad is None:
        return value, None
    # ∂/∂b = 2/(n−1) · (b − mean)·sign(C), and the other way for a bit that was flipped.
    return value, grad.mul_(torch.where(code.flipped[first:last], -2.0, 2.0).to(dtype) / (n - 1))


def _rows_of(matrix: SparseRows, own: slice) -> SparseRows:
    starts = matrix.starts[own]
    first, last = int(starts[0]), len(matrix.columns)
    if own.stop < len(matrix.starts):
        last = int(matrix.starts[own.stop])
    return SparseRows(matrix.columns[first:last], starts - first)
