"""The estimate finds entropies that are known, at the fidelity asked for, and refuses what it cannot."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bae_lens import TrainingBAEConfig
from bae_lens.entropy import estimate_entropy

D, STEPS, BATCH = 24, 500, 256


def make_source(n_bits: int, n: int, seed: int = 0, repeat: int = 1) -> Tensor:
    """Vectors of independent fair bits, each written in ``repeat`` directions of its own."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(99))).Q
    bits = (torch.rand(n, n_bits, generator=generator) < 0.5).float()
    x = bits.repeat(1, repeat) @ mix[: n_bits * repeat]
    return x + 0.01 * torch.randn(n, D, generator=generator)


def small_cfg(d_sae: int = 32) -> TrainingBAEConfig:
    return TrainingBAEConfig(d_in=D, d_sae=d_sae, max_density=None, target_entropy=None)


@pytest.mark.parametrize(("n_bits", "repeat"), [(4, 1), (8, 1), (4, 2)])
def test_independent_bits_are_counted_once(n_bits, repeat):
    estimate = estimate_entropy(
        make_source(n_bits, 4096, repeat=repeat),
        make_source(n_bits, 4096, seed=1, repeat=repeat),
        0.01,
        small_cfg(),
        steps=STEPS,
        batch_size=BATCH,
        lr=5e-3,
    )

    assert estimate.entropy == pytest.approx(n_bits, rel=0.05)
    assert estimate.entropy == estimate.code.chow_liu_entropy
    assert estimate.unexplained_variance < 0.011
    assert estimate.code.n_tokens == estimate.n_train == 4096
    assert estimate.code.plug_in_ceiling == math.log2(4096)


@pytest.fixture(scope="module")
def quick():
    return estimate_entropy(*DATA, 0.3, small_cfg(), starts=(0.2,), steps=20, batch_size=BATCH)


DATA = make_source(6, 1024), make_source(6, 512, seed=1)


def test_it_repeats_itself_and_seeds_differ(quick):
    same, other = (
        estimate_entropy(
            *DATA, 0.3, small_cfg(), starts=(0.2,), steps=20, batch_size=BATCH, seed=seed
        )
        for seed in (0, 1)
    )

    assert same.to_dict() == quick.to_dict()
    assert other.entropy != quick.entropy


def test_numbers_are_flat_and_fit_for_json(quick):
    numbers = quick.to_dict()

    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["entropy"] == quick.entropy
    assert numbers["n_bits"] == quick.sae.cfg.d_sae
    assert numbers["initial_firing_rate"] == 0.2
    assert numbers["max_unexplained"] == 0.3


def test_the_config_and_the_vectors_stay_as_they_were():
    cfg, (x, held_out) = small_cfg(), (DATA[0].clone(), DATA[1].clone())

    estimate_entropy(x, held_out, 0.3, cfg, starts=(0.2,), steps=5, batch_size=BATCH)

    assert cfg.to_dict() == small_cfg().to_dict()
    assert torch.equal(x, DATA[0])


def test_the_scale_of_the_vectors_changes_nothing_much(quick):
    x, held_out = (100 * data + 7 for data in DATA)

    scaled = estimate_entropy(
        x, held_out, 0.3, small_cfg(), starts=(0.2,), steps=20, batch_size=BATCH
    )

    assert scaled.unexplained_variance == pytest.approx(quick.unexplained_variance, abs=0.1)


def test_a_fidelity_out_of_reach_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        estimate_entropy(*DATA, 0.001, small_cfg(4), starts=(0.2,), steps=2, batch_size=BATCH)

    assert "No start reached an unexplained variance of 0.001" in caplog.text


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        (torch.zeros(500, D), DATA[1], r"activations do not vary \(500 vectors\)"),
        (DATA[0], torch.ones(1, D), r"held_out do not vary \(1 vectors\)"),
        (DATA[0][:1], DATA[1], r"activations do not vary \(1 vectors\)"),
        (DATA[0][:0], DATA[1], r"activations do not vary \(0 vectors\)"),
        (DATA[0].clone().fill_(math.nan), DATA[1], "activations have NaN or infinite values"),
        (DATA[0], DATA[1] / 0, "held_out have NaN or infinite values"),
        (DATA[0].reshape(2, -1, D), DATA[1], r"activations must have shape \[n, d_in\]; got"),
        (DATA[0][:100], DATA[1], "One batch needs 256 tokens, but only 100"),
    ],
)
def test_vectors_that_have_no_entropy_to_find_are_refused(train, held_out, message):
    with pytest.raises(ValueError, match=message):
        estimate_entropy(train, held_out, 0.3, small_cfg(), steps=5, batch_size=BATCH)


@pytest.mark.parametrize("overrides", [{"n_levels": 2}, {"feedback_steps": 1}])
def test_a_code_that_is_not_pruned_is_refused_before_it_is_trained(overrides):
    with pytest.raises(ValueError, match="one bit a latent and without feedback"):
        estimate_entropy(*DATA, 0.3, replace(small_cfg(), **overrides), steps=10**9)


def test_no_start_is_refused():
    with pytest.raises(ValueError, match="starts must be a list of 1 or more values"):
        estimate_entropy(*DATA, 0.3, starts=())
