from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bae_lens.nn import (
    EMACodebook,
    nearest_codes,
    sample_codes,
    squared_distances,
    straight_through,
)
from tests.helpers import grad_of

N, D, K = 64, 6, 9


def vectors(n: int = N, d: int = D, seed: int = 0, offset: float = 0.5) -> Tensor:
    return offset + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Distances and the nearest code


def by_brute_force(z: Tensor, codebook: Tensor) -> Tensor:
    return torch.stack([(z.double() - code.double()).square().sum(-1) for code in codebook], -1)


@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (0,), (2, 3, 4)])
def test_distances_equal_brute_force(shape):
    z, codebook = vectors(64).reshape(-1)[: 6 * 24].reshape(-1, D), vectors(K, seed=1)
    z = z[: torch.Size(shape).numel()].reshape(*shape, D)

    distances = squared_distances(z, codebook)

    assert distances.shape == (*shape, K)
    torch.testing.assert_close(distances.double(), by_brute_force(z, codebook), rtol=1e-5, atol=0)


def test_brute_force_nearest_equals_nearest_codes():
    z, codebook = vectors(500), vectors(40, seed=1)

    assert torch.equal(nearest_codes(z, codebook), by_brute_force(z, codebook).argmin(-1))


def test_a_large_common_mean_does_not_hide_the_nearest_code():
    # Norms of 2,400 and distances of about 3: expanded as they stand, the squares of 6·10⁶ would
    # leave nothing of them in float32.
    z, codebook = vectors(500, offset=1000.0), vectors(40, seed=1, offset=1000.0)

    distances = squared_distances(z, codebook)

    torch.testing.assert_close(
        distances.double(), by_brute_force(z, codebook), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(nearest_codes(z, codebook), by_brute_force(z, codebook).argmin(-1))


def test_ties_go_to_the_lowest_index():
    codebook = torch.tensor([[3.0, 0], [1, 0], [-1, 0], [1, 0], [0, 1]])
    z = torch.tensor([[0.0, 0], [1, 0], [0, 2]])

    assert nearest_codes(z, codebook).tolist() == [1, 1, 4]


def test_a_code_is_at_distance_zero_from_itself():
    codebook = vectors(K)

    distances = squared_distances(codebook, codebook)

    assert distances.min() >= 0
    assert distances.diagonal().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_lower_the_precision_of_distances(dtype):
    z, codebook = vectors().to(dtype), vectors(K, seed=1)
    expected = squared_distances(z, codebook)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        distances = squared_distances(z, codebook)
        indices = sample_codes(distances.to(dtype), 3, 1.0, 2.0, generator())

    assert distances.dtype == torch.float32
    assert torch.equal(distances, expected)
    assert torch.equal(indices, sample_codes(expected.to(dtype), 3, 1.0, 2.0, generator()))


@pytest.mark.parametrize("z", [torch.zeros(3, 5), torch.zeros(()), torch.zeros(D, 3)])
def test_another_width_is_refused(z):
    with pytest.raises(ValueError, match=r"same width d; got .* and \(9, 6\)"):
        squared_distances(z, vectors(K))
    with pytest.raises(ValueError, match=r"quantizes vectors \[\.\.\., 6\]; got shape"):
        EMACodebook(K, D).quantize(z)
    with pytest.raises(ValueError, match=r"quantizes vectors \[\.\.\., 6\]; got shape"):
        EMACodebook(K, D).update(z, torch.zeros(3, dtype=torch.int64))


# Sampling


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected).square() / expected).sum().item()


@pytest.mark.parametrize("scale", [1.0, 0.4, 7.0])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sampling_frequencies_match_softmax_probabilities(scale, temperature):
    row = torch.tensor([4.0, 1.0, 9.0, 1.5, 1.2, 2.0])
    near = torch.tensor([1, 4, 3, 5])
    probabilities = (-row[near] / (scale * temperature)).softmax(0).double()
    draws = 40_000

    indices = sample_codes(row.expand(draws, -1), 4, temperature, scale, generator())

    counts = torch.bincount(indices, minlength=6).double()
    assert counts[near].sum() == draws
    is_possible = probabilities * draws > 5
    # With at most three degrees of freedom 21 is passed once in 10,000 times.
    statistic = chi_square(counts[near][is_possible], probabilities[is_possible])
    assert statistic < 21
    assert counts[near][~is_possible].sum() < 30


def test_a_shift_of_the_distances_changes_no_draw():
    distances = squared_distances(vectors(), vectors(K, seed=1))

    first = sample_codes(distances, 5, 1.0, 2.0, generator())
    second = sample_codes(distances + 1000, 5, 1.0, 2.0, generator())

    assert (first == second).float().mean() > 0.98


def test_top_k_of_one_is_the_nearest_code():
    distances = squared_distances(vectors(), vectors(K, seed=1))

    assert torch.equal(sample_codes(distances, 1, 1e6), distances.argmin(-1))


def test_top_k_above_the_number_of_codes_is_all_of_them():
    distances = squared_distances(vectors(400), vectors(3, seed=1))

    many = sample_codes(distances, 50, 1e6, generator=generator())
    three = sample_codes(distances, 3, 1e6, generator=generator())

    assert torch.equal(many, three)
    assert set(many.tolist()) == {0, 1, 2}


def test_one_code_is_always_drawn():
    distances = squared_distances(vectors(), vectors(1, seed=1))

    assert not sample_codes(distances, 5, 1.0).any()


def test_a_scale_of_zero_gives_the_nearest_code():
    distances = squared_distances(vectors(), vectors(K, seed=1))

    indices = sample_codes(distances, 5, 1.0, torch.tensor(0.0))

    assert torch.equal(indices, distances.argmin(-1))


def test_a_higher_temperature_leaves_the_nearest_code_more_often():
    distances = squared_distances(vectors(2000), vectors(K, seed=1))
    nearest = distances.argmin(-1)

    moved = [
        (sample_codes(distances, 5, t, 1.0, generator()) != nearest).float().mean().item()
        for t in (1e-3, 0.3, 1.0, 3.0, 1e6)
    ]

    assert moved == sorted(moved)
    assert moved[0] < 0.02
    assert moved[-1] == pytest.approx(0.8, abs=0.05)


def test_sampling_repeats_with_its_generator():
    distances = squared_distances(vectors(), vectors(K, seed=1))

    draws = [sample_codes(distances, 5, 5.0, generator=generator(seed)) for seed in (0, 0, 1)]

    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("top_k", "temperature", "message"),
    [
        (0, 1.0, "top_k must be at least 1"),
        (-2, 1.0, "top_k must be at least 1"),
        (3, 0.0, "temperature must be greater than 0; got 0.0"),
        (3, float("nan"), "temperature must be greater than 0"),
    ],
)
def test_sampling_refuses_numbers_out_of_range(top_k, temperature, message):
    with pytest.raises(ValueError, match=message):
        sample_codes(torch.rand(3, 4), top_k, temperature)
    with pytest.raises(ValueError, match=message):
        EMACodebook(K, D).quantize(vectors(), top_k=top_k, temperature=temperature)


# Straight-through


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_straight_through_gradient_is_the_identity(dtype):
    z = vectors().to(dtype).requires_grad_()
    codes = (1e4 * vectors(seed=1)).requires_grad_()
    upstream = vectors(seed=2).to(dtype)

    out = straight_through(z, codes)
    out.backward(upstream)

    assert torch.equal(out, codes.to(dtype))  # to the last bit, whatever the magnitudes
    assert torch.equal(grad_of(z), upstream)
    assert codes.grad is None
