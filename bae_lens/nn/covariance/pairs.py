"""The covariance penalty of a sparse binary code, from the pairs of bits that fire together.

After majority-on bits are flipped, which changes no |C_ij|, a trained code is sparse. Two bits that
fire in no common row have the covariance −N_i·N_j / n(n − 1), known from their counts alone, so what
is not is a sum over the pairs that do:

    n(n − 1)·Σ_{i≠j} |C_ij| = (Σ N_i)² − Σ N_i² + Σ_{N_ij > 0} (|n·N_ij − N_i·N_j| − N_i·N_j)

and likewise the gradient 2/(n − 1)·(B − p)·sign(C) is a rank-one part and a sparse one, with sign(C)
= −1 for every other pair of bits that vary.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from bae_lens.nn.sparse_code import SparseCode

# Rows whose part of the gradient is in memory, in sparse form, at a time, per thread.
_ROWS = 128


def pairs_value_and_grad(
    code: SparseCode, dtype: torch.dtype, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Σ_{i≠j} |C_ij| and its gradient to the codes before they were flipped.

    Exact: counts are integers, signs are decided in them, and a tie has the sign 0. The sparse
    products are SciPy's, on the CPU; the gradient is the only matrix n × d.
    """
    n, d, device = code.n, code.d, code.counts.device
    counts = code.counts.cpu().double()
    on = _sparse(code, dtype)
    together = (on.T.tocsr() @ on).tocsr()
    row = torch.from_numpy(np.repeat(np.arange(d), np.diff(together.indptr)))
    col = torch.from_numpy(together.indices).long()
    is_self = row == col
    # Up to n², which float64 holds exactly.
    independent = counts[row] * counts[col]
    scaled = n * torch.from_numpy(together.data).double() - independent
    value = counts.sum() ** 2 - counts.square().sum()
    value = value + (scaled.abs() - independent).masked_fill(is_self, 0).sum()
    value = (value / (n * (n - 1))).to(device, dtype)
    if not needs_grad:
        return value, None
    # What is added to the sign −1 of all pairs, and on the diagonal, which has none, B itself.
    correction = (scaled.sign() + 1).masked_fill(is_self, 1).to(dtype)
    mean = (counts / n).to(dtype)
    weighted = (correction * mean[row]).masked_fill(is_self, 0)
    offset = torch.zeros(d, dtype=dtype).index_add_(0, col, weighted) + mean
    varies = (counts > 0).to(dtype)
    n_on = torch.from_numpy(np.diff(on.indptr)).to(dtype)
    grad = torch.addr((-offset).expand(n, d), n_on - mean.sum(), varies, alpha=-1)
    matrix = scipy.sparse.csr_matrix(
        (correction.numpy(), together.indices, together.indptr), shape=(d, d)
    )

    def add_rows(start: int) -> None:
        stop = min(start + _ROWS, n)
        part = (on[start:stop] @ matrix).tocsr()
        rows = np.repeat(np.arange(start, stop, dtype=np.int64), np.diff(part.indptr))
        # No index is there twice, so that it can be read and written at once.
        grad.view(-1)[torch.from_numpy(rows * d + part.indices)] += torch.from_numpy(part.data)

    # SciPy lets other threads run.
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        list(pool.map(add_rows, range(0, n, _ROWS)))
    factor = torch.where(code.flipped.cpu(), -2.0, 2.0).to(dtype) / (n - 1)
    return value, grad.mul_(factor).to(device, dtype)


def _sparse(code: SparseCode, dtype: torch.dtype) -> scipy.sparse.csr_matrix:
    columns = code.on.columns.cpu().numpy().astype(np.int32)
    ends = np.append(code.on.starts.cpu().numpy(), len(columns)).astype(np.int32)
    ones = torch.ones(len(columns), dtype=dtype).numpy()
    return scipy.sparse.csr_matrix((ones, columns, ends), shape=(code.n, code.d))
