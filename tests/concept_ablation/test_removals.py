"""What is taken out of activations, as vectors."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bae_lens.concept_ablation.removals import (
    EqualNorm,
    Leace,
    Removal,
    Shrunk,
    Subspace,
    leace_fitters,
)
from tests.concept_ablation.helpers import noise

N, D, RANK = 9, 12, 3
EVERY = torch.arange(N)
X, CENTRE = noise(N, D), noise(D, seed=1)


def subspace(rank: int = RANK, seed: int = 2) -> Subspace:
    return Subspace.spanned_by(noise(N, rank, D, seed=seed))


def random_like(like: Subspace, seed: int = 0) -> Subspace:
    return Subspace.random(like, torch.Generator().manual_seed(seed))


def leace(n_classes: int = 2, n_folds: int = 3) -> Leace:
    fold = EVERY % n_folds
    fitters = leace_fitters(n_folds, D, n_classes)
    for f, fitter in enumerate(fitters):
        x = noise(60, D, seed=f).double()
        z = torch.nn.functional.one_hot(torch.arange(60) % n_classes).double()
        x[:, f] += 3 * z[:, 0]
        fitter.update(x, z)
    return Leace([fitter.eraser for fitter in fitters], fold, float(n_classes - 1))


REMOVALS: dict[str, Callable[[], Removal]] = {
    "subspace": subspace,
    "random": lambda: random_like(subspace()),
    "equal norm": lambda: EqualNorm(random_like(subspace()), subspace()),
    "shrunk": lambda: Shrunk(subspace(), random_like(subspace())),
    "leace": leace,
}


def lengths(removal: Removal, center: Tensor | None = CENTRE) -> Tensor:
    return removal(X, EVERY, center).norm(dim=1)


@pytest.mark.parametrize("kind", REMOVALS)
@pytest.mark.parametrize("by_position", [False, True])
def test_each_position_loses_what_it_would_alone(kind, by_position):
    removal, index = REMOVALS[kind](), torch.tensor([4, 0, 7])
    x = noise(3, 5, D, seed=6)
    center = noise(3, 5, D, seed=7) if by_position else CENTRE

    together = removal(x, index, center)

    assert together.shape == x.shape
    for row, i in enumerate(index):
        for pos in range(5):
            own = center[row, pos] if by_position else center
            alone = removal(x[row, pos][None], i[None], own)
            torch.testing.assert_close(together[row, pos], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", REMOVALS)
def test_what_is_removed_has_the_activations_type(kind):
    removed = REMOVALS[kind]()(X.bfloat16(), EVERY, CENTRE.bfloat16())

    assert removed.dtype == torch.bfloat16
    assert removed.isfinite().all()


@pytest.mark.parametrize("center", [None, CENTRE])
def test_of_a_subspace_nothing_is_left_but_the_center(center):
    own = subspace()

    left = X - own(X, EVERY, center)

    expected = torch.zeros(D) if center is None else center
    coordinates = torch.einsum("nd,nrd->nr", left - expected, own.basis)
    assert coordinates.abs().max() < 1e-5
    assert own.rank == RANK


def test_each_example_has_its_own_subspace():
    own = subspace()

    removed = own(X[[5, 2]], torch.tensor([5, 2]), None)

    torch.testing.assert_close(removed, own(X, EVERY, None)[[5, 2]])


# Controls


@pytest.mark.parametrize("center", [None, CENTRE])
def test_equal_norm_is_as_long_as_the_other_and_points_its_own_way(center):
    own, random = subspace(), random_like(subspace())
    equal = EqualNorm(random, own)

    torch.testing.assert_close(lengths(equal, center), lengths(own, center))
    cosines = torch.cosine_similarity(equal(X, EVERY, center), random(X, EVERY, center))
    torch.testing.assert_close(cosines, torch.ones(N))
    assert equal.rank == random.rank


def test_nothing_is_as_long_as_nothing():
    nothing = Subspace(torch.zeros(N, 1, D))

    assert (lengths(EqualNorm(subspace(), nothing)) == 0).all()
    assert (lengths(EqualNorm(nothing, subspace())) == 0).all()
    assert (lengths(Shrunk(nothing, subspace())) == 0).all()
    assert nothing.rank == 0


def test_shrunk_is_never_longer_than_either():
    own, bound = subspace(), random_like(subspace())
    shrunk = Shrunk(own, bound)

    shorter = torch.minimum(lengths(own), lengths(bound))
    torch.testing.assert_close(lengths(shrunk), shorter)
    # Each of the two bounds some of them.
    assert 0 < (lengths(own) < lengths(bound)).sum() < N
    torch.testing.assert_close(lengths(Shrunk(bound, own)), shorter)
    assert shrunk.rank == RANK


def test_random_directions_are_as_many_as_an_examples_own():
    vectors = noise(N, RANK, D, seed=8)
    vectors[0, 1] = -2 * vectors[0, 0]
    vectors[1] = 0
    vectors[2, 1:] = 0
    own = Subspace.spanned_by(vectors)

    random = random_like(own)

    ranks = random.basis.square().sum((1, 2)).round().tolist()
    assert ranks == [2, 0, 1] + [RANK] * (N - 3)
    assert random.rank == own.rank == pytest.approx(sum(ranks) / N)
    assert (own.basis[:, :1] @ random.basis.mT).abs().max() < 0.95


def test_random_directions_are_the_generators():
    own = subspace()

    assert torch.equal(random_like(own).basis, random_like(own).basis)
    assert not torch.allclose(random_like(own).basis, random_like(own, 1).basis)
    drawn = Subspace.random(Subspace(torch.eye(D)[:1].expand(4000, 1, D)), torch.Generator())
    # No direction is likelier than another.
    second = torch.einsum("nrd,nre->de", drawn.basis, drawn.basis) / 4000
    torch.testing.assert_close(second, torch.eye(D) / D, atol=0.01, rtol=0)


# LEACE


def test_each_example_is_erased_by_the_eraser_of_its_fold():
    removal = leace()

    left = X - removal(X, EVERY, CENTRE)

    for i in range(N):
        expected = removal.erasers[i % 3](X[i][None].double())[0]
        torch.testing.assert_close(left[i], expected.float())
    for f in range(3):
        # What the fold's fitter was given the label in.
        assert lengths(removal)[f == EVERY % 3].min() > 0
    subset = torch.tensor([7, 2, 3])
    torch.testing.assert_close(removal(X[subset], subset, None), removal(X, EVERY, None)[subset])


def test_by_fold_all_examples_have_one_eraser():
    removal = leace()

    for f, alike in enumerate(removal.by_fold()):
        erased = X - alike(X, EVERY, None)
        torch.testing.assert_close(erased, removal.erasers[f](X.double()).float())
        mine = f == EVERY % 3
        torch.testing.assert_close(alike(X, EVERY, None)[mine], removal(X, EVERY, None)[mine])
    assert len(removal.by_fold()) == 3


def test_leace_leaves_no_difference_between_the_classes_it_saw():
    labels = torch.arange(60) % 3
    x = noise(60, D) + 2 * noise(3, D, seed=5)[labels]
    (fitter,) = leace_fitters(1, D, 3)
    fitter.update(x.double(), torch.nn.functional.one_hot(labels).double())

    removal = Leace([fitter.eraser], torch.zeros(60, dtype=torch.long), 2.0)
    left = x - removal(x, torch.arange(60), None)

    means = torch.stack([left[labels == c].mean(0) for c in range(3)])
    assert (means - means[0]).abs().max() < 1e-4
    removed = torch.linalg.matrix_rank(x - left - (x - left).mean(0), atol=1e-3)
    assert removed == removal.rank


def test_without_the_package_the_error_is_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(ImportError, match=r"pip install .*\[interp\]"):
        leace_fitters(2, D, 2)
