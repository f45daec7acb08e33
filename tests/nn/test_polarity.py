from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.nn import (
    flip_bits,
    heights_of,
    marginal_entropy,
    off_diagonal_covariance,
    thresholds_of,
)


def random_autoencoder(seed: int = 0, d_in: int = 5, d_sae: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "W_enc": normal(d_in, d_sae),
        "b_enc": normal(d_sae),
        "W_dec": normal(d_sae, d_in),
        "b_dec": normal(d_in),
        "scale": normal(d_sae).abs() + 0.5,
    }


def run(weights, scale, x, apply_b_dec_to_input):
    x = x - weights["b_dec"] if apply_b_dec_to_input else x
    pre = x @ weights["W_enc"] + weights["b_enc"]
    bits = pre > 0
    return pre, bits, (bits * scale) @ weights["W_dec"] + weights["b_dec"]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    flips=st.lists(st.booleans(), min_size=12, max_size=12),
    apply_b_dec_to_input=st.booleans(),
)
def test_flipped_bits_are_inverted_and_the_reconstruction_is_the_same(
    seed, flips, apply_b_dec_to_input
):
    weights = random_autoencoder(seed)
    flipped = torch.tensor(flips)
    x = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    new = flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=apply_b_dec_to_input)

    pre, bits, out = run(weights, weights["scale"], x, apply_b_dec_to_input)
    new_pre, new_bits, new_out = run(new, weights["scale"], x, apply_b_dec_to_input)
    torch.testing.assert_close(new_pre, torch.where(flipped, -pre, pre))
    assert torch.equal(new_bits, bits ^ flipped)
    torch.testing.assert_close(new_out, out)


def test_flipping_twice_gives_the_weights_back():
    weights = random_autoencoder()
    flipped = torch.arange(12) % 3 == 0
    options = {"scale": weights["scale"], "flipped": flipped, "apply_b_dec_to_input": True}

    once = flip_bits(**{**weights, **options})
    twice = flip_bits(**once, **options)

    assert not torch.equal(once["b_dec"], weights["b_dec"])
    for name, value in twice.items():
        torch.testing.assert_close(value, weights[name], msg=name)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_flipping_nothing_changes_nothing(apply_b_dec_to_input):
    weights = random_autoencoder()

    new = flip_bits(
        **weights,
        flipped=torch.zeros(12, dtype=torch.bool),
        apply_b_dec_to_input=apply_b_dec_to_input,
    )

    assert new.keys() == {"W_enc", "b_enc", "W_dec", "b_dec"}
    for name, value in new.items():
        assert torch.equal(value, weights[name])


def test_the_given_weights_are_neither_changed_nor_shared():
    weights = random_autoencoder()
    before = {name: value.clone() for name, value in weights.items()}

    new = flip_bits(**weights, flipped=torch.arange(12) % 2 == 0, apply_b_dec_to_input=True)
    for value in new.values():
        value.zero_()

    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_entropy_and_covariance_do_not_change():
    weights = random_autoencoder()
    x = torch.randn(211, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flipped = torch.arange(12) % 2 == 0

    new = flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=True)

    before, after = (run(w, weights["scale"], x, True)[1].double() for w in (weights, new))
    assert not torch.equal(before, after)
    torch.testing.assert_close(marginal_entropy(after), marginal_entropy(before))
    torch.testing.assert_close(off_diagonal_covariance(after), off_diagonal_covariance(before))


def test_dtype_is_kept():
    weights = {name: w.to(torch.bfloat16) for name, w in random_autoencoder().items()}

    new = flip_bits(**weights, flipped=torch.arange(12) % 2 == 0, apply_b_dec_to_input=True)

    assert {value.dtype for value in new.values()} == {torch.bfloat16}


def run_levels(weights, x, apply_b_dec_to_input, gain, steps):
    """Levels and reconstruction by their definitions, with feedback."""
    thresholds, heights = (
        thresholds_of(weights["threshold_gaps"]),
        heights_of(weights["level_heights"]),
    )
    shifted = x - weights["b_dec"] if apply_b_dec_to_input else x
    pre = shifted @ weights["W_enc"] + weights["b_enc"]

    def coded(pre):
        passes = pre.unsqueeze(-1) > thresholds
        acts = (passes * heights).sum(-1) * weights["scale"]
        return passes.sum(-1), acts @ weights["W_dec"] + weights["b_dec"]

    for _ in range(steps):
        pre = pre + gain * ((x - coded(pre)[1]) @ weights["W_enc"])
    return coded(pre)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    flips=st.lists(st.booleans(), min_size=12, max_size=12),
    apply_b_dec_to_input=st.booleans(),
    n_levels=st.integers(2, 5),
    steps=st.integers(0, 2),
)
def test_levels_are_counted_from_the_top_and_the_reconstruction_is_the_same(
    seed, flips, apply_b_dec_to_input, n_levels, steps
):
    weights = random_autoencoder(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name in ("threshold_gaps", "level_heights"):
        weights[name] = torch.randn(12, n_levels - 1, dtype=torch.float64, generator=generator)
    gain = torch.rand(12, dtype=torch.float64, generator=generator) / 20
    flipped = torch.tensor(flips)
    x = torch.randn(40, 5, dtype=torch.float64, generator=generator)

    new = flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=apply_b_dec_to_input)

    levels, out = run_levels(weights, x, apply_b_dec_to_input, gain, steps)
    new_levels, new_out = run_levels(weights | new, x, apply_b_dec_to_input, gain, steps)
    assert torch.equal(new_levels, torch.where(flipped, n_levels - levels, levels))
    torch.testing.assert_close(new_out, out)
    # The gauge is kept: the highest level of what was flipped is worth what the lowest was.
    assert torch.equal(new["scale"][~flipped], weights["scale"][~flipped])


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_level_whose_height_has_become_zero_is_inverted_with_the_rest(which, dtype):
    weights = {name: w.to(dtype) for name, w in random_autoencoder().items()}
    for name in ("threshold_gaps", "level_heights"):
        weights[name] = torch.zeros(12, 3, dtype=dtype)
    weights["level_heights"][:, which] = -1000
    assert heights_of(weights["level_heights"])[0, which + 1] == 0
    flipped = torch.arange(12) % 3 > 0
    x = torch.randn(40, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))

    new = flip_bits(**weights, flipped=flipped, apply_b_dec_to_input=True)

    assert all(value.isfinite().all() for value in new.values())
    # Nothing that fires is worth nothing.
    assert (heights_of(new["level_heights"])[flipped] * new["scale"][flipped, None] > 0).all()
    levels, out = run_levels(weights, x, True, gain=torch.zeros(12, dtype=dtype), steps=1)
    new_levels, new_out = run_levels(new, x, True, gain=torch.zeros(12, dtype=dtype), steps=1)
    assert torch.equal(new_levels, torch.where(flipped, 4 - levels, levels))
    torch.testing.assert_close(new_out, out)
