from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from bae_lens.architectures.codebook_init import CODEBOOK_INITS, initial_codebook
from bae_lens.nn import EMACodebook, nearest_codes, squared_distances

D, K = 5, 8
KMEANS = [method for method in CODEBOOK_INITS if method != "random"]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(n: int = 600, noise: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mixture of K clusters about different directions and norms, in unequal shares, and labels."""
    centers = torch.nn.functional.normalize(normal(K, D, seed=7), dim=1)
    centers = centers * torch.linspace(1, 4, K)[:, None]
    share = torch.arange(1.0, K + 1)
    labels = torch.multinomial(
        share, n, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    return centers[labels] + noise * normal(n, D, seed=seed), labels


def distortion(x: Tensor, codebook: Tensor) -> float:
    return squared_distances(x, codebook).amin(1).mean().item()


def matched(codebook: Tensor, reference: Tensor) -> Tensor:
    """Rows of ``codebook`` in the order of the reference rows that they are nearest to."""
    order = nearest_codes(reference, codebook)
    assert len(order.unique()) == len(reference)
    return codebook[order]


@pytest.mark.parametrize("method", KMEANS)
def test_initializers_beat_random_on_a_planted_mixture(method):
    x, _ = planted()

    best = distortion(x, initial_codebook(x, K, method)[0])

    for seed in range(5):
        assert best < 0.5 * distortion(x, initial_codebook(x, K, "random", seed)[0])
        noise = normal(K, D, seed=seed)  # what the release calls random
        assert best < 0.1 * distortion(x, noise)


@pytest.mark.parametrize("method", KMEANS)
def test_the_planted_clusters_are_found(method):
    x, labels = planted()
    clusters = [x[labels == k] for k in range(K)]

    codebook, counts = initial_codebook(x, K, method, n_init=5)

    means = torch.stack([cluster.mean(0) for cluster in clusters])
    torch.testing.assert_close(matched(codebook, means), means, rtol=0, atol=0.01)
    order = nearest_codes(means, codebook)
    assert counts[order].tolist() == [len(cluster) for cluster in clusters]


def test_kmeans_is_reproduced_by_scipy():
    # Lloyd's algorithm of another library, begun at the codes, has nowhere to go.
    x, _ = planted(noise=0.3)
    codebook, counts = initial_codebook(x, K, "kmeans++", max_iter=300)

    oracle, labels = kmeans2(x.double().numpy(), codebook.double().numpy(), minit="matrix", iter=20)

    np.testing.assert_allclose(codebook.numpy(), oracle, rtol=0, atol=0.02)
    assert np.abs(np.bincount(labels, minlength=K) - counts.numpy()).max() <= 6


def test_spherical_kmeans_is_reproduced_by_its_definition():
    x, _ = planted(noise=0.3)
    codebook, counts = initial_codebook(x, K, max_iter=300)

    points, norms = x.double(), x.double().norm(dim=1)
    directions = points / norms[:, None]
    code_directions = codebook.double() / codebook.double().norm(dim=1, keepdim=True)
    # Nearest by cosine but for members at a border, since k-means' own centers are shorter.
    by_cosine = (directions @ code_directions.T).argmax(1)
    assert (torch.bincount(by_cosine, minlength=K) - counts).abs().max() <= 0.1 * len(x)
    for k in range(K):
        members = by_cosine == k
        mean = directions[members].mean(0)
        assert torch.cosine_similarity(mean, codebook[k].double(), dim=0) > 0.99
        assert codebook[k].norm().item() == pytest.approx(norms[members].mean().item(), rel=0.1)


def test_spherical_codes_have_the_mean_norm_of_their_members_exactly():
    directions = torch.eye(D)
    lengths = torch.tensor([1.0, 2.0, 6.0])
    x = (directions[:, None] * lengths[:, None] * torch.arange(1, D + 1)[:, None, None]).flatten(
        0, 1
    )

    codebook, counts = initial_codebook(x, D)

    expected = 3 * torch.diag(torch.arange(1.0, D + 1))
    torch.testing.assert_close(matched(codebook, expected), expected)
    assert counts.tolist() == [3.0] * D


def test_spherical_codes_ignore_norms_where_plain_ones_follow_them():
    # One direction at two norms far apart, and another direction: two codes are one a direction.
    x = torch.cat([torch.tensor([[1.0, 0], [100, 0]]), torch.tensor([[0.0, 1]])]).repeat(10, 1)

    spherical, _ = initial_codebook(x, 2)
    plain, _ = initial_codebook(x, 2, "kmeans++")

    torch.testing.assert_close(
        spherical[spherical[:, 0].argsort()], torch.tensor([[0.0, 1], [50.5, 0]])
    )
    torch.testing.assert_close(plain[plain[:, 0].argsort()], torch.tensor([[0.5, 0.5], [100, 0]]))


def test_random_codes_are_distinct_activations():
    x = normal(30, D).repeat(4, 1)

    codebook, counts = initial_codebook(x, 20, "random")

    is_row = (codebook[:, None] == x[:30]).all(-1)
    assert is_row.any(1).all()
    assert is_row.any(0).sum() == 20
    assert torch.equal(counts, torch.bincount(nearest_codes(x, codebook), minlength=20).float())
    assert counts.min() >= 4


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_as_many_codes_as_distinct_activations(method):
    x = normal(K, D).repeat_interleave(torch.arange(1, K + 1), dim=0)

    codebook, counts = initial_codebook(x, K, method)

    distinct = x.unique(dim=0)
    torch.testing.assert_close(matched(codebook, distinct), distinct)
    assert sorted(counts.tolist()) == list(range(1, K + 1))


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_one_code(method):
    x = normal(20, D)

    codebook, counts = initial_codebook(x, 1, method)

    assert codebook.shape == (1, D)
    assert counts.tolist() == [20.0]
    if method == "kmeans++":
        torch.testing.assert_close(codebook[0], x.mean(0))


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_the_seed_decides(method):
    x = normal(200, D)

    first, second, other = (initial_codebook(x, K, method, seed)[0] for seed in (0, 0, 1))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", CODEBOOK_INITS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_codes_and_counts_are_float32_and_set_a_codebook(method, dtype):
    x = normal(200, D).to(dtype).requires_grad_()

    codebook, counts = initial_codebook(x, K, method)
    book = EMACodebook(K, D)
    book.set_codebook(codebook, counts)

    assert codebook.dtype == counts.dtype == torch.float32
    assert not codebook.requires_grad
    assert counts.sum() == 200
    assert torch.equal(book.ema_sum, codebook * counts[:, None])


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_activations_of_zero_are_vectors_like_others(method):
    x = torch.cat([torch.zeros(10, D), normal(100, D)])

    codebook, counts = initial_codebook(x, K, method)

    assert codebook.isfinite().all()
    assert counts.sum() == 110


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_fewer_distinct_vectors_than_codes_are_refused(method):
    x = normal(7, D).repeat(10, 1)
    what = "directions" if method == "scaled_spherical_kmeans++" else "vectors"

    with pytest.raises(ValueError, match=rf"distinct {what}; these 70 activations have 7\."):
        initial_codebook(x, K, method)


def test_zero_and_minus_zero_are_not_two_vectors():
    with pytest.raises(ValueError, match="these 2 activations have 1"):
        initial_codebook(torch.tensor([[0.0, 1.0], [-0.0, 1.0]]), 2, "kmeans++")


def test_vectors_of_one_direction_are_one_direction():
    x = torch.arange(1.0, 10)[:, None] * torch.tensor([0.0, 1.0])

    with pytest.raises(ValueError, match="distinct directions; these 9 activations have 1"):
        initial_codebook(x, 2)
    assert initial_codebook(x, 2, "kmeans++")[0].shape == (2, 2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_activations_that_are_not_finite_are_refused(bad, method):
    x = normal(50, D)
    x[20, 3] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        initial_codebook(x, K, method)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "spherical"}, r"one of random, kmeans\+\+, scaled.*; got 'spherical'"),
        ({"n_codes": 0}, "n_codes must be a whole number of at least 1; got 0"),
        ({"activations": torch.zeros(2, 3, D)}, r"\[n, d\].*got shape \(2, 3, 5\)"),
        ({"activations": torch.zeros(0, D)}, "these 0 activations have 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        initial_codebook(**{"activations": normal(50, D), "n_codes": K, **changes})
