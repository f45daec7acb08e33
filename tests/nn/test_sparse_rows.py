import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.nn.sparse_rows import SparseRows


def matrix(n: int, d: int, density: float, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=generator, dtype=dtype)
    return values * (torch.rand(n, d, generator=generator) < density)


@given(
    n=st.integers(0, 20), d=st.integers(1, 20), density=st.floats(0, 1), seed=st.integers(0, 10**6)
)
@settings(max_examples=60, deadline=None)
def test_products_are_those_of_the_matrix(n, d, density, seed):
    x = matrix(n, d, density, seed)
    rows = SparseRows.of(x)

    torch.testing.assert_close(rows @ matrix(d, 5, 1), x @ matrix(d, 5, 1))
    torch.testing.assert_close(rows.transposed(d) @ matrix(n, 3, 1), x.T @ matrix(n, 3, 1))


def test_without_values_every_entry_is_one():
    x = (matrix(9, 7, 0.4) != 0).double()
    rows = SparseRows.of(x)._replace(values=None)

    assert torch.equal(rows @ torch.eye(7).double(), x)
    assert torch.equal(rows.transposed(7) @ torch.eye(9).double(), x.T)


def test_entries_know_their_rows():
    x = torch.tensor([[0.0, 2, 0], [0, 0, 0], [3, 0, 4]])
    rows = SparseRows.of(x)

    assert rows.rows.tolist() == [0, 2, 2]
    assert rows.columns.tolist() == [1, 0, 2]
    assert rows.starts.tolist() == [0, 1, 1]
    assert rows.values is not None
    assert rows.values.tolist() == [2, 3, 4]


@pytest.mark.parametrize("shape", [(4, 3), (1, 1)])
def test_a_matrix_of_nothing_gives_zeros(shape):
    rows = SparseRows.of(torch.zeros(shape))
    assert torch.equal(rows @ torch.ones(shape[1], 2), torch.zeros(shape[0], 2))
    assert torch.equal(
        rows.transposed(shape[1]) @ torch.ones(shape[0], 2), torch.zeros(shape[1], 2)
    )
