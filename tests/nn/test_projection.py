import pytest
import torch

from bae_lens.nn import component, orthonormal_basis, subspace_rank


def test_a_basis_is_orthonormal_and_spans_what_was_given():
    vectors = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    basis = orthonormal_basis(vectors)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(3).expand(5, 3, 3))
    torch.testing.assert_close(vectors @ basis.mT @ basis, vectors)


@pytest.mark.parametrize(
    ("vectors", "rank"),
    [
        ([[1.0, 0, 0], [0, 2, 0]], 2),
        ([[1.0, 0, 0], [-3, 0, 0]], 1),
        ([[0.0, 0, 0], [0, 1e-3, 0]], 1),
        ([[0.0, 0, 0], [0, 0, 0]], 0),
    ],
)
def test_what_is_dependent_or_nought_adds_no_rank(vectors, rank):
    basis = orthonormal_basis(torch.tensor(vectors))
    assert subspace_rank(basis) == rank
    # Rows are either whole or nothing.
    assert sorted(basis.norm(dim=-1).round(decimals=5).tolist()) == [0] * (2 - rank) + [1] * rank


def test_more_vectors_than_dimensions():
    basis = orthonormal_basis(torch.randn(7, 4))
    assert basis.shape == (4, 4)
    x = torch.randn(4)
    torch.testing.assert_close(component(x, basis), x)


def test_what_is_left_is_orthogonal_and_projecting_again_changes_nothing():
    x, basis = torch.randn(6, 8), orthonormal_basis(torch.randn(6, 2, 8))
    left = x - component(x, basis)
    assert torch.einsum("nd,nrd->nr", left, basis).abs().max() < 1e-5
    torch.testing.assert_close(left - component(left, basis), left, atol=1e-6, rtol=1e-5)


def test_pythagoras():
    x, basis = torch.randn(6, 8), orthonormal_basis(torch.randn(6, 1, 8))
    left = x - component(x, basis)
    along = (x * basis[:, 0]).sum(-1)
    torch.testing.assert_close(left.square().sum(-1), x.square().sum(-1) - along**2)


def test_about_a_center_the_center_is_what_stays():
    x, basis, center = torch.randn(6, 8), orthonormal_basis(torch.randn(6, 2, 8)), torch.randn(8)
    left = x - component(x, basis, center)
    torch.testing.assert_close(
        torch.einsum("nd,nrd->nr", left, basis), torch.einsum("d,nrd->nr", center, basis)
    )
    torch.testing.assert_close(left - component(left, basis, center), left, atol=1e-6, rtol=1e-5)


def test_one_basis_for_a_batch_of_positions():
    x, basis = torch.randn(3, 5, 8), orthonormal_basis(torch.randn(3, 2, 8))
    together = component(x, basis[:, None])
    for i in range(3):
        for j in range(5):
            torch.testing.assert_close(together[i, j], component(x[i, j], basis[i]))
