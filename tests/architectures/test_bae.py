"""Tests of a TrainingBAE: losses, density cap, calibration, firing rates, and training as a whole.

What SAELens asks of an architecture is in tests/conformance.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import TrainingBAE, TrainingBAEConfig
from bae_lens.nn import SURROGATES, marginal_entropy, off_diagonal_covariance
from tests.helpers import (
    D_IN,
    D_SAE,
    batches_of,
    calibrate,
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


# One training step


def smooth_step(pre: Tensor, surrogate: str, temperature: float) -> Tensor:
    """A function whose derivative is the surrogate gradient."""
    if surrogate == "sigmoid":
        return torch.sigmoid(pre / temperature)
    return pre if surrogate == "identity" else pre**2 / 2 - pre**3 / 3


def plain_loss(
    weights: dict[str, Tensor],
    x: Tensor,
    cfg: TrainingBAEConfig,
    multiplier: float,
    coefficients: dict[str, float],
) -> dict[str, Tensor]:
    """The losses in a few lines of plain PyTorch, with nothing of bae_lens in them."""
    shifted = x - weights["b_dec"] if cfg.apply_b_dec_to_input else x
    pre = shifted @ weights["W_enc"] + weights["b_enc"]
    smooth = smooth_step(pre, cfg.surrogate, cfg.step_temperature)
    bits = (pre > 0).to(pre.dtype) + smooth - smooth.detach()
    recons = bits @ weights["W_dec"] + weights["b_dec"]
    p = bits.mean(0)
    cov = torch.cov(bits.T)
    losses = {
        "mse_loss": (recons - x).square().sum(1).mean(),
        "entropy_loss": coefficients["entropy"]
        * multiplier
        * -(p * p.log2() + (1 - p) * (1 - p).log2()).sum(),
        "covariance_loss": coefficients["covariance"]
        * (cov - torch.diag(cov.diagonal())).abs().sum(),
    }
    if cfg.max_density is not None:
        losses["density_loss"] = (
            coefficients["density"] * (p - 0.8 * cfg.max_density).clamp(min=0).sum()
        )
    return losses


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize(
    ("surrogate", "temperature"),
    [("sigmoid", 1.0), ("sigmoid", 0.4), ("identity", 1), ("paper", 1)],
)
def test_a_step_equals_a_plain_reference_in_losses_and_gradients(
    surrogate, temperature, apply_b_dec_to_input
):
    sae = make_training_bae(
        surrogate=surrogate,
        temperature=temperature,
        apply_b_dec_to_input=apply_b_dec_to_input,
        dtype="float64",
        max_density=0.4,
    )
    sae.log_entropy_multiplier.fill_(0.5)
    coefficients = {"entropy": 0.3, "covariance": 0.02, "density": 1.7}
    # A prime number of rows, so that no covariance is exactly zero.
    x = 2 * make_activations(127).double()
    weights = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    expected = plain_loss(weights, x, sae.cfg, math.exp(0.5), coefficients)
    total = torch.stack(list(expected.values())).sum()
    total.backward()

    output = train_step(sae, x, **coefficients)
    output.loss.backward()

    density = output.feature_acts.mean(0)
    assert 0 < density.min() < density.max() < 1  # so that the plain entropy has no log(0)

    assert output.losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(
            output.losses[name].double(), loss.detach(), rtol=1e-6, atol=0, msg=name
        )
    torch.testing.assert_close(output.loss.double(), total.detach(), rtol=1e-6, atol=0)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-7, msg=name
        )


def test_output_holds_what_the_trainer_reads():
    sae = make_training_bae()
    x = make_activations(61)

    output = train_step(sae, x)

    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    assert torch.equal(output.sae_in, x)
    torch.testing.assert_close(output.hidden_pre, pre)
    assert torch.equal(output.feature_acts, (output.hidden_pre > 0).float())
    torch.testing.assert_close(output.sae_out, output.feature_acts @ sae.W_dec + sae.b_dec)


def test_metrics_are_those_of_the_batch():
    sae = make_training_bae(max_density=0.3, target_entropy=20)
    x = make_activations(61)

    output = train_step(sae, x, covariance=0.5)

    bits = output.feature_acts.detach()
    torch.testing.assert_close(metric(output, "entropy"), marginal_entropy(bits))
    torch.testing.assert_close(metric(output, "covariance"), off_diagonal_covariance(bits))
    # The first step's running mean is the batch's own.
    expected = (bits.mean(0) > 0.3).float().mean().item()
    assert 0 < expected < 1
    assert metric(output, "dense_rate").item() == pytest.approx(expected)
    assert metric(output, "entropy_multiplier").item() == pytest.approx(
        sae.log_entropy_multiplier.exp().item()
    )


def test_metrics_carry_no_graph():
    output = train_step(make_training_bae(), make_activations(61))

    assert not any(isinstance(m, Tensor) and m.requires_grad for m in output.metrics.values())


def test_the_covariance_is_not_computed_where_it_weighs_nothing(monkeypatch):
    def refuse(codes):
        raise AssertionError("computed")

    monkeypatch.setattr("bae_lens.architectures.bae_penalties.covariance_on_ranks", refuse)

    output = train_step(make_training_bae(covariance_coefficient=0), make_activations(61))

    assert output.losses["covariance_loss"].item() == 0


def test_three_dimensional_batches_train_like_flat_ones():
    x = make_activations(60)
    flat, deep = (make_training_bae(covariance_coefficient=1e-3, max_density=0.3) for _ in range(2))

    expected = train_step(flat, x)
    output = train_step(deep, x.reshape(4, 15, D_IN))
    expected.loss.backward()
    output.loss.backward()

    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name], loss, msg=name)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(deep.W_enc.grad, flat.W_enc.grad)
    torch.testing.assert_close(deep.firing_rate, flat.firing_rate)


# Density


def test_density_loss_begins_at_four_fifths_of_the_cap():
    sae = make_training_bae(max_density=0.5)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[0] = 1
        sae.b_dec.zero_()
        sae.b_enc.copy_(torch.linspace(-0.5, 0.5, D_SAE))
    x = torch.zeros(100, D_IN)
    x[:, 0] = torch.linspace(-1, 1, 100)

    output = train_step(sae, x, density=3.0)

    density = output.feature_acts.mean(0)
    assert density.min() < 0.4 < density.max()
    expected = 3.0 * (density[density > 0.4] - 0.4).sum()
    torch.testing.assert_close(output.losses["density_loss"], expected)


def test_without_a_cap_there_is_no_density_loss():
    output = train_step(make_training_bae(max_density=None), make_activations(61))

    assert "density_loss" not in output.losses


def test_what_is_dense_is_logged_with_a_cap_and_without():
    for max_density, limit in ((0.4, 0.4), (None, 0.1)):
        sae = make_training_bae(max_density=max_density)
        rate: Any = train_step(sae, make_activations(61)).metrics["dense_rate"]
        assert rate == (sae.firing_rate > limit).float().mean()
        assert 0 < rate < 1


def test_the_cap_keeps_the_densest_bits_below_it():
    activations = make_sparse_activations(4096, n_features=8, density=0.3)

    def densest(max_density):
        torch.manual_seed(0)
        cfg = training_cfg(max_density=max_density, target_entropy=None, entropy_coefficient=0)
        sae = TrainingBAE(cfg)
        SAETrainer(trainer_cfg(300, lr=3e-3), sae, batches_of(activations)).fit()
        return (sae.encode(activations) != 0).float().mean(0).max().item()

    assert densest(None) > 0.2
    assert densest(0.15) < 0.15


# Calibration


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize(
    ("n", "rate", "k"), [(200, 0.04, 8), (200, 0.5, 100), (97, 0.04, 4), (50, 0.001, 1), (50, 0.999, 49), (2, 0.5, 1)]
)  # fmt: skip
def test_calibration_makes_every_bit_fire_on_k_tokens_of_the_first_batch(
    n, rate, k, normalize, apply_b_dec_to_input
):
    torch.manual_seed(0)
    sae = TrainingBAE(
        training_cfg(
            initial_firing_rate=rate,
            normalize_activations=normalize,
            apply_b_dec_to_input=apply_b_dec_to_input,
        )
    )

    output = train_step(sae, make_activations(n, offset=2.0))

    assert output.feature_acts.sum(0).tolist() == [k] * D_SAE


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_calibration_centers_and_scales_to_unit_variance(apply_b_dec_to_input):
    sae = TrainingBAE(training_cfg(apply_b_dec_to_input=apply_b_dec_to_input))
    x = make_activations(500, offset=3.0)

    output = train_step(sae, x)

    torch.testing.assert_close(output.hidden_pre.std(0), torch.ones(D_SAE), rtol=1e-4, atol=0)
    torch.testing.assert_close(sae.b_dec.data, x.mean(0), rtol=1e-4, atol=1e-5)


def test_calibration_keeps_the_encoders_directions():
    sae = TrainingBAE(training_cfg())
    before = sae.W_enc.detach().clone()

    calibrate(sae, make_activations(100))

    cosine = torch.cosine_similarity(before, sae.W_enc, dim=0)
    torch.testing.assert_close(cosine, torch.ones(D_SAE))


def test_calibration_scales_the_decoder_to_the_least_squares_fit():
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(initial_firing_rate=0.2))
    directions = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)
    x = make_activations(400, offset=1.0)
    calibrate(sae, x)

    torch.testing.assert_close(sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True), directions)
    recons = sae.encode(x) @ sae.W_dec
    recons, target = recons - recons.mean(0), x - x.mean(0)

    def error(factor):
        return (factor * recons - target).square().sum().item()

    assert error(1.0) < error(0.99)
    assert error(1.0) < error(1.01)
    assert error(1.0) < target.square().sum().item()


def test_calibration_does_not_depend_on_the_biases_it_finds():
    sae, other = TrainingBAE(training_cfg()), TrainingBAE(training_cfg())
    other.load_state_dict(sae.state_dict())
    with torch.no_grad():
        other.b_dec.fill_(3.0)
        other.b_enc.fill_(-2.0)
    x = make_activations(100)

    calibrate(sae, x)
    calibrate(other, x)

    for name, parameter in sae.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


def test_calibration_happens_once():
    sae = TrainingBAE(training_cfg())
    train_step(sae, make_activations(100))
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}

    train_step(sae, make_activations(100, seed=1, offset=5.0))

    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


def test_calibration_survives_a_batch_in_which_an_input_dimension_is_constant():
    sae = TrainingBAE(training_cfg())
    x = make_activations(100)
    x[:, 3] = 2.0

    output = train_step(sae, x)

    assert output.feature_acts.sum(0).tolist() == [4] * D_SAE
    assert all(p.isfinite().all() for p in sae.parameters())


def test_calibration_accepts_three_dimensional_batches():
    flat, deep = TrainingBAE(training_cfg()), TrainingBAE(training_cfg())
    deep.load_state_dict(flat.state_dict())
    x = make_activations(100)

    calibrate(flat, x)
    calibrate(deep, x.reshape(4, 25, D_IN))

    for name, parameter in flat.named_parameters():
        torch.testing.assert_close(deep.get_parameter(name), parameter)


def test_calibration_needs_two_tokens():
    with pytest.raises(ValueError, match="at least two tokens in the first batch; got 1"):
        train_step(TrainingBAE(training_cfg()), make_activations(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_refuses_activations_that_are_not_finite(bad):
    sae = TrainingBAE(training_cfg())
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    x = make_activations(10)
    x[3, 5] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        train_step(sae, x)

    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())


def test_without_a_firing_rate_training_starts_as_saelens_initializes():
    sae = TrainingBAE(training_cfg(initial_firing_rate=None, decoder_init_norm=0.3))
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}

    train_step(sae, make_activations(61))

    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((D_SAE,), 0.3))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    with pytest.raises(ValueError, match="initial_firing_rate to be a number"):
        calibrate(sae, make_activations(61))


def test_saved_state_says_whether_it_was_calibrated():
    fresh, trained = TrainingBAE(training_cfg()), TrainingBAE(training_cfg())
    train_step(trained, make_activations(100))
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    resumed = TrainingBAE(training_cfg())
    resumed.load_state_dict(state)

    train_step(resumed, make_activations(100, seed=1, offset=5.0))

    assert torch.equal(resumed.b_dec, trained.b_dec)
    # and a state from before calibration is calibrated
    resumed.load_state_dict(fresh.state_dict())
    output = train_step(resumed, make_activations(100, seed=1, offset=5.0))
    assert output.feature_acts.sum(0).tolist() == [4] * D_SAE


def test_a_state_loaded_without_a_firing_rate_is_not_calibrated():
    fresh, sae = (TrainingBAE(training_cfg(initial_firing_rate=None)) for _ in range(2))
    sae.load_state_dict(fresh.state_dict())

    train_step(sae, make_activations(61))

    for name, parameter in fresh.named_parameters():
        assert torch.equal(sae.get_parameter(name), parameter), name


# Firing rates


def test_firing_rate_is_at_first_the_plain_mean_over_steps():
    sae = make_training_bae()
    rates = []
    for seed in range(5):
        rates.append(train_step(sae, make_activations(61, seed=seed)).feature_acts.mean(0))

        torch.testing.assert_close(sae.firing_rate, torch.stack(rates).mean(0).detach())
        assert sae.n_updates.item() == seed + 1


def test_firing_rate_later_forgets_over_a_hundred_steps():
    sae = make_training_bae()
    sae.n_updates.fill_(5000)
    sae.firing_rate.fill_(0.25)

    rate = train_step(sae, make_activations(61)).feature_acts.mean(0)

    torch.testing.assert_close(sae.firing_rate, 0.99 * 0.25 + 0.01 * rate.detach())


def test_penalties_and_statistics_do_not_depend_on_scale():
    plain, folded = (make_training_bae(covariance_coefficient=1e-3) for _ in range(2))
    folded.fold_W_dec_norm()
    x = make_activations(61)

    expected = train_step(plain, x)
    output = train_step(folded, x)

    assert not torch.equal(folded.scale, torch.ones(D_SAE))
    assert torch.equal(folded.firing_rate, plain.firing_rate)
    assert output.losses.keys() > {"entropy_loss", "covariance_loss", "density_loss"}
    for name, loss in expected.losses.items():
        torch.testing.assert_close(output.losses[name], loss, rtol=1e-5, atol=0)
    assert torch.equal(metric(output, "entropy"), metric(expected, "entropy"))


def test_scale_stays_one_in_training():
    sae = TrainingBAE(training_cfg())

    SAETrainer(trainer_cfg(5), sae, batches_of(make_activations(640))).fit()

    assert torch.equal(sae.scale, torch.ones(D_SAE))


# A whole training


def test_training_finds_a_code_that_explains_sparse_data():
    activations = make_sparse_activations(8192, n_features=24, density=0.05)
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(d_sae=64, target_entropy=10.0))

    SAETrainer(
        trainer_cfg(1200, lr=5e-3, lr_decay_steps=300), sae, batches_of(activations[:4096])
    ).fit()

    held_out = activations[4096:]
    with torch.no_grad():
        error = (sae(held_out) - held_out).square().sum()
        variance = (held_out - held_out.mean(0)).square().sum()
        density = (sae.encode(held_out) != 0).float().mean(0)
    assert 1 - (error / variance).item() > 0.8
    assert density.max() < 0.1


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_trains_with_finite_losses(surrogate):
    torch.manual_seed(0)
    sae = TrainingBAE(training_cfg(surrogate=surrogate))
    trainer = SAETrainer(trainer_cfg(0), sae, batches_of(make_sparse_activations(1024)))
    trainer.step(next(trainer.data_provider))
    before = sae.W_enc.detach().clone()
    for _ in range(20):
        assert trainer.step(next(trainer.data_provider)).loss.isfinite()

    assert not torch.equal(before, sae.W_enc)
    assert all(p.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("is_training_folder", [True, False])
def test_a_saved_code_can_be_trained_further(tmp_path, is_training_folder):
    sae = make_training_bae()
    sae.firing_rate.fill_(0.9)  # everything is inverted on the way
    sae.n_updates.fill_(10)
    save = sae.save_model if is_training_folder else sae.save_inference_model
    save(tmp_path)
    x = make_activations(61)

    further = TrainingSAE.load_from_disk(tmp_path)

    assert isinstance(further, TrainingBAE)
    torch.testing.assert_close(further(x), sae(x))
    before = further.b_enc.clone()
    assert train_step(further, x).loss.isfinite()
    # It goes on from where it was: no second calibration.
    assert torch.equal(further.b_enc, before)


@pytest.mark.parametrize("bring_in", ["input", "hook"])
def test_a_gradient_of_the_input_is_there_for_who_wants_it(bring_in):
    sae = make_training_bae(apply_b_dec_to_input=True, dtype="float64")
    x = make_activations(31).double()
    leaf = x.clone().requires_grad_()
    if bring_in == "hook":
        sae.hook_sae_input.add_hook(lambda tensor, hook: leaf)

    pre = sae.encode_with_hidden_pre(leaf if bring_in == "input" else x)[1]
    pre.square().sum().backward()

    expected = x - sae.b_dec.detach()
    expected = 2 * (expected @ sae.W_enc + sae.b_enc) @ sae.W_enc.T
    torch.testing.assert_close(leaf.grad, expected.detach())
    torch.testing.assert_close(sae.b_dec.grad, -expected.sum(0).detach())
