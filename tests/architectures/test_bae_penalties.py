"""Tests of ``bae_lens.architectures.bae_penalties``: rates and entropy once a step, as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bae_lens.architectures import TrainingBAE, bae_penalties
from bae_lens.architectures.bae_penalties import BatchRates
from bae_lens.nn import entropy_of_rates
from tests.helpers import (
    D_IN,
    grad_of,
    make_activations,
    make_training_bae,
    metric,
    step_input,
    train_step,
)

# Settings with which each reader of rates and entropy has something to do.
STEPS: dict[str, dict[str, Any]] = {
    "budget": {"target_entropy": 8.0},
    "fidelity": {"target_entropy": None, "target_unexplained_variance": 0.3},
    "no budget": {"target_entropy": None},
    "no cap": {"max_density": None},
    "all": {"entropy_floor": 1.0, "covariance_coefficient": 1e-2, "max_density": 0.2},
    "bfloat16": {"dtype": "bfloat16"},
}


def rates_by_formula(feature_acts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Firing rates and entropy as each reader once computed them for itself."""
    acts = feature_acts.flatten(0, -2)
    counts = acts.sum(0, dtype=torch.float32) / scale
    rate = (counts + (counts.round() - counts).detach()) / len(acts)
    return rate, entropy_of_rates(rate)


@pytest.mark.parametrize("settings", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("shape", [(61,), (4, 15)])
def test_every_reader_has_the_numbers_of_the_old_formulas_to_the_last_bit(
    settings, is_scaled, shape
):
    sae, other = (make_training_bae(**settings) for _ in range(2))
    for each in (sae, other):
        if is_scaled:
            each.fold_W_dec_norm()
        each.firing_rate.uniform_(generator=torch.Generator().manual_seed(0))
        each.n_updates.fill_(250)
        each.log_entropy_multiplier.fill_(0.25)
    x = make_activations(61 if len(shape) == 1 else 60).reshape(*shape, D_IN).to(sae.dtype)
    coefficients = step_input(other, x).coefficients

    output = train_step(sae, x)

    # As they were computed: for the losses, with a graph, and once more for the rest, without.
    acts, _ = other.encode_with_hidden_pre(x)
    out = other.decode(acts)
    rate, entropy = rates_by_formula(acts, other.scale)
    expected = {
        "mse_loss": (out - x).square().sum(-1).mean(),
        "entropy_loss": coefficients["entropy"]
        * other.log_entropy_multiplier.exp()
        * (entropy.detach() > other.cfg.entropy_floor)
        * entropy,
    }
    if other.cfg.max_density is not None:
        excess = (rate - 0.8 * other.cfg.max_density).relu()
        expected["density_loss"] = coefficients["density"] * excess.sum()
    for name, value in expected.items():
        assert torch.equal(output.losses[name], value), name
    with torch.no_grad():
        rate, entropy = rates_by_formula(output.feature_acts, other.scale)
    assert torch.equal(metric(output, "entropy"), entropy)
    assert torch.equal(sae.firing_rate, other.firing_rate.lerp(rate.float(), torch.tensor(0.01)))
    if other.cfg.target_entropy_bits is not None:
        off = 3 * (entropy / other.cfg.target_entropy_bits - 1)
        moved = other.log_entropy_multiplier + 0.02 * off.clamp(-1, 1)
        assert torch.equal(sae.log_entropy_multiplier, moved)


def test_rates_and_entropy_are_computed_once_a_step(monkeypatch):
    seen = {"entropy": 0, "rates": 0}
    of_rates, of_batch = bae_penalties.entropy_of_rates, BatchRates.of

    def count_entropy(rates):
        seen["entropy"] += 1
        return of_rates(rates)

    def count_rates(*args):
        seen["rates"] += 1
        return of_batch(*args)

    monkeypatch.setattr(bae_penalties, "entropy_of_rates", count_entropy)
    monkeypatch.setattr(BatchRates, "of", count_rates)

    train_step(make_training_bae(target_entropy=8.0, max_density=0.1), make_activations(61))

    assert seen == {"entropy": 1, "rates": 1}


def test_the_auxiliary_losses_are_the_same_for_who_has_the_activations_only():
    sae, x = make_training_bae(covariance_coefficient=1e-2), make_activations(61)
    acts, pre = sae.encode_with_hidden_pre(x)

    losses = sae.calculate_aux_loss(step_input(sae, x), acts, pre, sae.decode(acts))

    expected = train_step(sae, x).losses
    assert losses.keys() == expected.keys() - {"mse_loss"}
    for name, value in losses.items():
        assert torch.equal(value, expected[name]), name


def test_rates_have_the_gradient_of_a_mean():
    acts = (torch.rand(61, 5) < 0.4).float().requires_grad_()

    BatchRates.of(acts, torch.ones(5)).firing_rate.sum().backward()

    torch.testing.assert_close(grad_of(acts), torch.full((61, 5), 1 / 61))


def test_a_subclass_has_its_own_auxiliary_losses():
    class WithAnother(TrainingBAE):
        def calculate_aux_loss(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
            return super().calculate_aux_loss(*args, **kwargs) | {"other": self.W_dec.sum()}

    plain, sae, x = make_training_bae(), make_training_bae(), make_activations(61)
    sae.__class__ = WithAnother

    output, expected = train_step(sae, x), train_step(plain, x)

    torch.testing.assert_close(output.loss, expected.loss + output.losses["other"])
    assert output.losses.keys() == expected.losses.keys() | {"other"}
