"""Tests of a BAE of several levels, with feedback: its training step against plain PyTorch, and what it starts from."""

from __future__ import annotations

import math

import pytest
import torch
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import BAEConfig, TrainingBAE, TrainingBAEConfig
from bae_lens.architectures.bae_penalties import BatchRates
from bae_lens.nn import binary_entropy, level_indices, marginal_entropy
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    batches_of,
    calibrate,
    grad_of,
    levels_of,
    make_activations,
    make_sparse_activations,
    make_training_bae,
    metric,
    record_firing_rates,
    train_step,
    trainer_cfg,
    training_cfg,
)

L = 3


def plain_losses(
    sae: TrainingBAE, weights: dict[str, Tensor], x: Tensor, n_before: float, **coefficients: float
) -> dict[str, Tensor]:
    """The losses step by step, with a bit for each threshold, by autograd."""
    cfg = sae.cfg

    def smooth(pre: Tensor) -> Tensor:
        soft = torch.sigmoid(pre / cfg.step_temperature)
        return (pre > 0).to(pre.dtype) + soft - soft.detach()

    softplus = torch.nn.functional.softplus
    gaps, raw = weights["threshold_gaps"], weights["level_heights"]
    thresholds = torch.cat([torch.zeros(D_SAE, 1).double(), softplus(gaps).cumsum(1)], 1)
    heights = torch.cat([torch.ones(D_SAE, 1).double(), softplus(raw)], 1)
    shifted = x - weights["b_dec"] if cfg.apply_b_dec_to_input else x
    pre = shifted @ weights["W_enc"] + weights["b_enc"]

    def residual_of(pre: Tensor) -> Tensor:
        code = ((pre[..., None] > thresholds) * heights).sum(-1)
        return (x - weights["b_dec"] - code @ weights["W_dec"]).detach()

    best, current = pre, pre
    for _ in range(cfg.feedback_steps):
        current = current + weights["feedback_gain"] * (residual_of(current) @ weights["W_enc"])
        left = [residual_of(p).norm(dim=1, keepdim=True) for p in (current, best)]
        best = torch.where(left[0] <= left[1], current, best)
    pre = best
    bits = smooth(pre[..., None] - thresholds)
    recons = (bits * heights).sum(-1) @ weights["W_dec"] + weights["b_dec"]
    passed = bits.mean(0)
    p = passed[:, 0]
    shares = torch.stack(
        [passed[:, i] - (passed[:, i + 1] if i < L - 1 else 0) for i in range(L)], 1
    )
    seen = sae.level_shares.double() * n_before + 0.5
    price = -(seen / seen.sum(1, keepdim=True)).log2()
    entropy = -(p * p.log2() + (1 - p) * (1 - p).log2()).sum() + (shares * price).sum()
    first = bits[..., 0]
    cov = torch.cov(first.T)
    return {
        "mse_loss": (recons - x).square().sum(1).mean(),
        "entropy_loss": coefficients["entropy"] * entropy,
        "covariance_loss": coefficients["covariance"]
        * (cov - torch.diag(cov.diagonal())).abs().sum(),
        "density_loss": coefficients["density"]
        * (p - 0.8 * (cfg.max_density or 1)).clamp(min=0).sum(),
    }


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("feedback_steps", [0, 2])
def test_a_step_equals_a_plain_reference_in_losses_and_gradients(
    feedback_steps, apply_b_dec_to_input
):
    sae = make_training_bae(
        n_levels=L,
        feedback_steps=feedback_steps,
        apply_b_dec_to_input=apply_b_dec_to_input,
        dtype="float64",
        max_density=0.4,
        temperature=0.7,
        curvature_coefficient=0.0,
    )
    x = 2 * make_activations(127).double()
    record_firing_rates(sae, x.flip(0)[:50])
    sae.n_updates.fill_(7)
    coefficients = {"entropy": 0.3, "covariance": 0.02, "density": 1.7}
    weights = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    expected = plain_losses(sae, weights, x, n_before=7 * 127, **coefficients)
    total = torch.stack(list(expected.values())).sum()
    total.backward()

    output = train_step(sae, x, **coefficients)
    output.loss.backward()

    density = (output.feature_acts != 0).double().mean(0)
    assert 0 < density.min() < density.max() < 1
    assert output.losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(
            output.losses[name].double(), loss.detach(), rtol=1e-6, atol=0, msg=name
        )
    for name, parameter in sae.named_parameters():
        # A residual is a constant for the gradient, which b_dec's plain reference is not asked for.
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-7, msg=name
        )


def test_the_curvature_is_that_of_the_reconstruction_error():
    """With one latent moved by its next height the error changes as its gradient says with the curvature."""
    sae = make_training_bae(n_levels=L, dtype="float64", curvature_coefficient=1.0)
    x = make_activations(37).double()
    curvature = sae._curvature(x, 1.0)
    assert curvature is not None
    acts = sae.encode(x).detach().requires_grad_()

    def error(acts: Tensor) -> Tensor:
        return (sae.decode(acts) - x).square().sum(-1).mean()

    def moved(j: int, by: float) -> float:
        other = acts.detach().clone()
        other[:, j] += by
        return error(other).item()

    # Of a parabola, by three of its points; all 37 rows move together.
    second = torch.tensor(
        [moved(j, 1) - 2 * moved(j, 0) + moved(j, -1) for j in range(5)], dtype=torch.float64
    )
    torch.testing.assert_close(curvature[:5], second / 37)
    half = sae._curvature(x, 0.5)
    assert half is not None
    torch.testing.assert_close(half, curvature / 2)
    assert sae._curvature(x, None) is None


def test_curvature_changes_the_gradient_and_not_the_losses():
    plain, curved = (make_training_bae(n_levels=L, curvature_coefficient=c) for c in (0.0, 1.0))
    x = make_activations(61)

    outputs = [train_step(sae, x) for sae in (plain, curved)]
    for output in outputs:
        output.loss.backward()

    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    torch.testing.assert_close(grad_of(plain.W_dec), grad_of(curved.W_dec))
    assert not torch.allclose(grad_of(plain.b_enc), grad_of(curved.b_enc), rtol=1e-2)


def test_curvature_holds_for_one_bit_too():
    sae = make_training_bae(curvature_coefficient=1.0)
    x = make_activations(61)
    output = train_step(sae, x)
    output.loss.backward()

    other = make_training_bae()
    train_step(other, x).loss.backward()

    assert torch.equal(output.feature_acts, other.encode(x))
    assert not torch.allclose(grad_of(sae.b_enc), grad_of(other.b_enc), rtol=1e-2)


@pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
def test_curvature_is_refused_where_tokens_differ_in_it(normalize):
    with pytest.raises(ValueError, match="curvature_coefficient to 0"):
        training_cfg(curvature_coefficient=0.5, normalize_activations=normalize)


# The rate


def test_the_rate_is_the_entropy_of_the_level_where_what_was_seen_is_what_comes():
    """Of shares that the running mean knows, and very many rows, cross-entropy is entropy."""
    counts = torch.tensor([[600.0, 300.0, 100.0], [50.0, 50.0, 0.0]])
    shares = torch.tensor([[0.3, 0.2, 0.1], [0.0, 0.05, 0.0]])

    rates = BatchRates.of_levels(counts, 1000, shares, torch.tensor(1e7))

    levels = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.95, 0.0, 0.05, 0.0]])
    expected = -torch.special.xlogy(levels, levels).sum() / math.log(2)
    torch.testing.assert_close(rates.entropy, expected, rtol=1e-4, atol=0)
    assert rates.level_shares is not None
    torch.testing.assert_close(rates.level_shares, shares)
    assert rates.firing_rate.tolist() == pytest.approx([0.6, 0.05])
    assert rates.level_entropy is not None
    by_firing = binary_entropy(torch.tensor([0.6, 0.05])).sum()
    torch.testing.assert_close(rates.entropy - rates.level_entropy, by_firing)


def test_before_anything_was_seen_each_level_costs_the_same():
    counts = torch.tensor([[10.0, 10.0, 10.0, 10.0]])

    rates = BatchRates.of_levels(counts, 20, torch.zeros(1, 4), torch.tensor(0.0))

    # A firing is at the highest level, one of four.
    assert rates.level_entropy is not None
    assert rates.level_entropy.item() == pytest.approx(0.5 * 2)


def test_the_gradient_of_a_level_is_the_price_of_a_step_up_and_never_infinite():
    counts = torch.tensor([[8.0, 2.0, 0.0]], requires_grad=True)
    shares = torch.tensor([[0.3, 0.1, 0.0]])

    BatchRates.of_levels(counts, 20, shares, torch.tensor(100.0)).entropy.backward()

    r = torch.tensor([30.5, 10.5, 0.5]) / 41.5
    price = -r.log2()
    p = torch.tensor(0.4)
    expected = torch.stack(
        [((1 - p) / p).log2() + price[0], price[1] - price[0], price[2] - price[1]]
    )
    torch.testing.assert_close(grad_of(counts), expected[None] / 20)


def test_the_trained_rate_is_that_of_held_out_tokens():
    """Within 5 %, also where few latents fire; a minibatch's own shares are biased low."""
    torch.manual_seed(0)
    cfg = training_cfg(n_levels=7, feedback_steps=1, target_entropy=6.0, max_density=None)
    sae = TrainingBAE(cfg)
    activations = make_sparse_activations(60 * BATCH)
    trainer = SAETrainer(trainer_cfg(400, lr=5e-3), sae, batches_of(activations))
    trainer.fit()
    measured = []
    x = make_sparse_activations(60 * BATCH, seed=5) * (
        trainer.activation_scaler.scaling_factor or 1
    )
    for batch in x.split(BATCH):
        output = train_step(sae, batch)
        measured.append(metric(output, "entropy").item())
    levels = levels_of(sae, x)

    held_out = marginal_entropy((levels > 0).float()).item()
    for j in range(D_SAE):
        q = torch.bincount(levels[levels[:, j] > 0, j], minlength=8)[1:].double()
        held_out -= (
            torch.special.xlogy(q, q / q.sum().clamp(min=1)).sum() / len(x)
        ).item() / math.log(2)
    assert sum(measured) / len(measured) == pytest.approx(held_out, rel=0.05)


# The start


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_calibration_sets_levels_apart_and_the_first_as_of_a_bit(apply_b_dec_to_input):
    cfg = training_cfg(
        n_levels=L, apply_b_dec_to_input=apply_b_dec_to_input, initial_firing_rate=0.2
    )
    torch.manual_seed(0)
    sae = TrainingBAE(cfg)
    torch.manual_seed(0)
    bit = TrainingBAE(
        training_cfg(apply_b_dec_to_input=apply_b_dec_to_input, initial_firing_rate=0.2)
    )
    x = make_activations(400)
    calibrate(sae, x)
    calibrate(bit, x)

    torch.testing.assert_close(sae.W_enc, bit.W_enc)
    torch.testing.assert_close(sae.b_enc, bit.b_enc)
    gaps = sae.thresholds.diff(dim=1)
    torch.testing.assert_close(gaps, torch.full_like(gaps, 0.75))
    assert (levels_of(sae, x) > 0).float().mean(0).tolist() == pytest.approx([0.2] * D_SAE)
    # A level is worth the middle of its thresholds, counted from the mean as the first is.
    heights = sae.heights
    assert (heights[:, 1:] == heights[0, 1]).all()
    assert 0 < heights[0, 1] < 1
    # The scale of the decoder is the least squares fit to this code.
    acts = sae.encode(x)
    recons, centered = acts @ sae.W_dec, x - x.mean(0)
    recons = recons - recons.mean(0)
    scale = (recons * centered).sum() / recons.square().sum()
    assert scale.item() == pytest.approx(1, rel=1e-4)


def test_without_a_calibration_levels_are_apart_too():
    sae = TrainingBAE(training_cfg(n_levels=L, initial_firing_rate=None))

    assert (sae.thresholds.diff(dim=1) > 0.1).all()
    assert (sae.heights > 0.1).all()


def test_statistics_are_those_of_the_levels():
    sae = make_training_bae(n_levels=L)
    x = make_activations(64)

    train_step(sae, x)

    levels = levels_of(sae, x)
    for level in range(L):
        share = (levels == level + 1).float().mean(0)
        torch.testing.assert_close(sae.level_shares[:, level], share)
    torch.testing.assert_close(sae.level_shares.sum(1), sae.firing_rate)


def test_there_is_nothing_of_levels_where_there_is_one_bit():
    names = set(TrainingBAE(training_cfg()).state_dict())

    assert names == {
        *("W_enc", "b_enc", "W_dec", "b_dec", "scale"),
        *("firing_rate", "n_updates", "log_entropy_multiplier"),
    }


def test_training_uses_levels_and_explains_more_than_bits_do():
    # Features whose magnitudes are exponential, which a bit cannot tell.
    generator = torch.Generator().manual_seed(0)
    fires = torch.rand(40 * BATCH, D_IN, generator=generator) < 0.15
    magnitudes = torch.empty(40 * BATCH, D_IN).exponential_(generator=generator)
    activations = 2 * fires * magnitudes
    explained, used = {}, torch.zeros(0)
    for name, code in {"bits": {}, "levels": {"n_levels": 7, "feedback_steps": 2}}.items():
        torch.manual_seed(0)
        sae = TrainingBAE(
            training_cfg(
                target_entropy=12.0, max_density=None, normalize_activations="none", **code
            )
        )
        SAETrainer(trainer_cfg(400, lr=4e-3), sae, batches_of(activations)).fit()
        with torch.no_grad():
            acts = sae.encode(activations)
            error = (sae.decode(acts) - activations).square().sum()
            explained[name] = (
                1 - (error / (activations - activations.mean(0)).square().sum()).item()
            )
            used = level_indices(acts, sae.level_values).unique()
    assert len(used) > 3
    assert explained["levels"] > explained["bits"] + 0.03


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_levels", 0),
        ("n_levels", 1.5),
        ("n_levels", True),
        ("n_levels", 10**9),
        ("feedback_steps", -1),
        ("feedback_steps", 10**9),
    ],
)
@pytest.mark.parametrize("config", [TrainingBAEConfig, BAEConfig])
def test_a_code_that_cannot_be_is_refused(config, field, value):
    with pytest.raises(ValueError, match=f"{field} must be a whole number from"):
        config(d_in=D_IN, d_sae=D_SAE, **{field: value})


def test_feedback_chooses_as_in_training_where_a_whitening_was_folded_in(tmp_path):
    """Raw residuals have other lengths, by which other steps would be the best."""
    sae = make_training_bae(
        n_levels=L, feedback_steps=2, normalize_activations="covariance_whitening"
    )
    with torch.no_grad():
        sae.feedback_gain.fill_(1.5)
    x = make_activations(300)
    stretch = torch.linspace(0.1, 3, x.shape[1])
    matrix = torch.diag(stretch) @ torch.linalg.qr(torch.randn(len(stretch), len(stretch)))[0]
    mean = x.mean(0)
    expected = sae.encode((x - mean) @ matrix)
    sae.fold_activation_whitening(mean, matrix, matrix.inverse())
    sae.save_model(tmp_path)

    loaded = TrainingBAE.load_from_disk(tmp_path)

    same = (sae.encode(x) == expected).all(1).float().mean()
    assert same > 0.99
    assert torch.equal(loaded.encode(x), sae.encode(x))
    sae.residual_whitening = None
    assert (sae.encode(x) == expected).all(1).float().mean() < 0.9


def test_a_batch_without_tokens_is_no_error_of_arithmetic():
    """As without levels: its losses are means of nothing, which the trainer sees and skips."""
    sae = make_training_bae(n_levels=L)
    record_firing_rates(sae, make_activations(50))

    output = train_step(sae, make_activations(50)[:0])

    assert output.sae_out.shape == (0, sae.cfg.d_in)
    assert output.loss.isnan()
