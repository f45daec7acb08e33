"""Tests of a TrainingBAE's entropy coefficient: the budget that it follows, its start, floor and warm-up."""

from __future__ import annotations

import math

import pytest
import torch
from sae_lens.saes.sae import TrainCoefficientConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingBAE
from bae_lens.nn import marginal_entropy
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    batches_of,
    make_activations,
    make_sparse_activations,
    make_training_bae,
    metric,
    train_step,
    trainer_cfg,
    training_cfg,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def entropy_of(sae: TrainingBAE, x: Tensor) -> float:
    return marginal_entropy(sae.encode(x)).item()


@pytest.mark.parametrize("relative_target", [0.2, 0.8, 0.95, 1.1, 1.25, 5.0])
def test_the_multiplier_moves_as_documented(relative_target):
    sae = make_training_bae()
    x = make_activations(61)
    sae.cfg.target_entropy = entropy_of(sae, x) * relative_target
    excess = 1 / relative_target - 1

    for step in (1, 2, 3):
        train_step(sae, x)

        expected = step * 0.02 * min(max(3 * excess, -1), 1)
        assert sae.log_entropy_multiplier.item() == pytest.approx(expected, rel=1e-4)


def test_without_a_target_the_coefficient_is_fixed():
    sae = make_training_bae(target_entropy=None)
    x = make_activations(61)

    losses = {train_step(sae, x).losses["entropy_loss"].item() for _ in range(4)}

    assert sae.log_entropy_multiplier.item() == 0
    assert len(losses) == 1


@pytest.mark.parametrize(("target", "limit"), [(1e-3, 12.0), (D_SAE, -12.0)])
def test_a_target_that_cannot_be_met_does_not_wind_the_multiplier_up(target, limit):
    sae = make_training_bae(target_entropy=target)
    x = make_activations(61)
    sae.log_entropy_multiplier.fill_(limit - math.copysign(0.03, limit))

    losses = [train_step(sae, x).loss for _ in range(4)]

    assert sae.log_entropy_multiplier.item() == limit
    assert losses[-1].isfinite()


def test_a_budget_beyond_the_codes_size_is_refused():
    with pytest.raises(ValueError, match=f"{D_SAE + 1} bits per token, but {D_SAE} bits"):
        TrainingBAE(training_cfg(target_entropy=D_SAE + 1))


def test_a_budget_that_the_cap_forbids_is_warned_of(caplog):
    # 0.469 bits each at a density of 0.1
    TrainingBAE(training_cfg(target_entropy=0.46 * D_SAE, max_density=0.1))
    assert not caplog.records

    TrainingBAE(training_cfg(target_entropy=0.48 * D_SAE, max_density=0.1))
    assert "will stay below its target" in caplog.text


@pytest.mark.parametrize("name", ["temperature", "entropy_coefficient", "covariance_coefficient"])
def test_none_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match=name):
        training_cfg(**{name: None})


def test_the_budget_is_held():
    activations = make_sparse_activations(4096)
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(target_entropy=9.0))
    trainer = SAETrainer(trainer_cfg(0, lr=3e-3), sae, batches_of(activations))
    entropies, multipliers = [], []
    for _ in range(600):
        output = trainer.step(next(trainer.data_provider))
        entropies.append(metric(output, "entropy").item())
        multipliers.append(sae.log_entropy_multiplier.item())

    # It starts off target, and the coefficient has to follow.
    assert not 8.5 < entropies[0] < 9.5
    assert max(map(abs, multipliers)) < 12
    assert sum(entropies[-200:]) / 200 == pytest.approx(9.0, rel=0.03)
    assert marginal_entropy(sae.encode(activations)).item() == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize("target", [0.2, 0.4])
def test_the_fidelity_is_held(target):
    torch.manual_seed(0)
    cfg = training_cfg(
        target_entropy=None, target_unexplained_variance=target, max_density=None, d_sae=64
    )
    sae = TrainingBAE(cfg)
    activations = make_sparse_activations(8192)

    SAETrainer(
        trainer_cfg(800, lr=5e-3, lr_decay_steps=160), sae, batches_of(activations[:4096])
    ).fit()

    held_out = activations[4096:]
    with torch.no_grad():
        error = (sae(held_out) - held_out).square().sum()
        variance = (held_out - held_out.mean(0)).square().sum()
    assert (error / variance).item() == pytest.approx(target, rel=0.1)


@pytest.mark.parametrize(
    ("share_of_target", "step"), [(1.0, 0.0), (0.5, 0.02), (2.0, -0.02), (1 / 1.1, 0.006)]
)
def test_the_multiplier_follows_the_fidelity_as_documented(share_of_target, step):
    x = make_activations(61)
    sae = make_training_bae(target_entropy=None, target_unexplained_variance=0.5)
    with torch.no_grad():
        # A decoder of zeros answers b_dec, which is off the mean by as much as is wanted.
        sae.W_dec.zero_()
        variance = (x - x.mean(0)).square().sum()
        sae.b_dec.copy_(x.mean(0))
        sae.b_dec[0] += (variance / len(x)).sqrt()
    # Left unexplained: the variance itself and as much again.
    sae.cfg.target_unexplained_variance = 2.0 / share_of_target

    train_step(sae, x)

    assert sae.log_entropy_multiplier.item() == pytest.approx(step, abs=1e-5)


def test_a_fidelity_target_leaves_a_constant_batch_finite():
    sae = make_training_bae(target_entropy=None, target_unexplained_variance=0.3)
    x = make_activations(1).expand(61, -1)

    assert train_step(sae, x).loss.isfinite()
    assert sae.log_entropy_multiplier.isfinite()
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.b_dec.copy_(x[0])
    train_step(sae, x)
    assert sae.log_entropy_multiplier.isfinite()


def test_a_fidelity_target_sees_three_dimensional_batches_as_flat_ones():
    x = make_activations(60)
    flat, deep = (
        make_training_bae(target_entropy=None, target_unexplained_variance=0.9) for _ in range(2)
    )

    train_step(flat, x)
    train_step(deep, x.reshape(4, 15, D_IN))

    torch.testing.assert_close(flat.log_entropy_multiplier, deep.log_entropy_multiplier)


def test_the_entropy_term_is_off_before_its_start_step():
    sae = make_training_bae(entropy_start_step=3, target_entropy=1.0)
    x = make_activations(61)

    losses, multipliers = [], []
    for _ in range(5):
        losses.append(train_step(sae, x).losses["entropy_loss"].item())
        multipliers.append(sae.log_entropy_multiplier.item())

    assert losses[:3] == [0, 0, 0]
    assert multipliers[:3] == [0, 0, 0]
    assert losses[3] == pytest.approx(sae.cfg.entropy_coefficient * entropy_of(sae, x), rel=1e-5)
    assert multipliers[3:] == pytest.approx([0.02, 0.04])


def test_before_its_start_step_the_entropy_gives_no_gradient():
    x = make_activations(61)
    grads = []
    for sae in (make_training_bae(entropy_start_step=1), make_training_bae(entropy_coefficient=0)):
        train_step(sae, x).loss.backward()
        grads.append(sae.W_enc.grad)

    assert torch.equal(*grads)


def test_the_entropy_term_is_off_at_or_below_its_floor():
    x = make_activations(61)
    entropy = entropy_of(make_training_bae(), x)

    def loss(floor):
        return train_step(make_training_bae(entropy_floor=floor), x).losses["entropy_loss"].item()

    assert loss(entropy * 0.99) > 0
    assert loss(entropy) == 0
    assert loss(entropy * 1.01) == 0


def test_coefficients_warm_up_through_saelens_trainer():
    cfg = training_cfg(
        entropy_coefficient=0.4,
        entropy_warm_up_steps=4,
        covariance_coefficient=1e-3,
        covariance_warm_up_steps=2,
        density_coefficient=3.0,
        target_entropy=None,
        normalize_activations="none",
    )
    sae = TrainingBAE(cfg)
    trainer = SAETrainer(trainer_cfg(0, lr=0.0), sae, batches_of(make_activations(BATCH)))
    coefficients, entropy_losses = [], []
    for _ in range(6):
        coefficients.append(trainer.get_coefficients())
        entropy_losses.append(trainer.step(next(trainer.data_provider)).losses["entropy_loss"])

    assert [c["entropy"] for c in coefficients] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert [c["covariance"] for c in coefficients] == pytest.approx([0, 5e-4] + 4 * [1e-3])
    assert {c["density"] for c in coefficients} == {3.0}
    # With a learning rate of 0 only the coefficient changes.
    ratios = torch.stack(entropy_losses) / entropy_losses[-1]
    torch.testing.assert_close(ratios, torch.tensor([0, 0.25, 0.5, 0.75, 1, 1]))


def test_coefficients_are_saelens_own():
    sae = make_training_bae(
        entropy_coefficient=0.4, entropy_warm_up_steps=7, covariance_warm_up_steps=9
    )

    coefficients = sae.get_coefficients()

    assert coefficients["entropy"] == TrainCoefficientConfig(0.4, 7)
    assert coefficients["covariance"] == TrainCoefficientConfig(sae.cfg.covariance_coefficient, 9)
    assert make_training_bae(max_density=None).get_coefficients()["density"] == 0
