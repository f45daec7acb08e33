"""Probes, folds and intervals."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, norm
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bae_lens import stats
from bae_lens.concept_ablation import probes
from bae_lens.concept_ablation.probes import fit_probe, stratified_folds
from bae_lens.stats import Interval, paired_bootstrap

N, D = 240, 12
KINDS = ["logistic", "mlp"]


def make_data(n_classes: int = 2, signal: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian clusters ``signal`` from the origin, their columns of very different units."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(N) % n_classes
    x = torch.randn(N, D, generator=generator)
    x[:, :n_classes] += signal * torch.eye(n_classes)[labels]
    return x * torch.logspace(-2, 3, D) + 50, labels


def accuracy(probe: probes.Probe, x: Tensor, labels: Tensor) -> float:
    return (probe.predict(x) == labels).float().mean().item()


# What it predicts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_what_was_planted_is_found(kind, n_classes):
    probe = fit_probe(*make_data(n_classes, signal=8), n_classes, kind)
    x, labels = make_data(n_classes, signal=8, seed=1)

    assert accuracy(probe, x, labels) == 1
    assert probe(x).shape == (N, n_classes)
    assert probe(x.reshape(2, -1, D)).shape == (2, N // 2, n_classes)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_predicted_by_chance_out_of_fold(kind):
    x, labels = make_data(signal=0)
    folds = stratified_folds(labels, 4)

    right = sum(
        accuracy(
            fit_probe(x[folds != i], labels[folds != i], 2, kind), x[folds == i], labels[folds == i]
        )
        for i in range(4)
    )

    assert abs(right / 4 - 0.5) < 4 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_logits_are_those_of_scikit_learn(monkeypatch, n_classes):
    monkeypatch.setattr(probes, "_STRENGTHS", (0.1,))
    x, labels = make_data(n_classes, signal=1)

    probe = fit_probe(x, labels, n_classes)

    z = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    expected = LogisticRegression(C=0.1, max_iter=2000).fit(z, labels.numpy())
    logits = probe(x)
    actual = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    np.testing.assert_allclose(actual.numpy(), expected.decision_function(z), atol=1e-4)
    np.testing.assert_allclose(logits.softmax(-1).numpy(), expected.predict_proba(z), atol=1e-4)


@pytest.mark.parametrize(("signal", "strength"), [(0.0, 1e-4), (10.0, 1.0)])
def test_the_penalty_is_strong_for_noise_and_weak_for_what_is_clear(monkeypatch, signal, strength):
    x, labels = make_data(signal=signal)
    chosen = fit_probe(x, labels, 2)
    monkeypatch.setattr(probes, "_STRENGTHS", (strength,))

    expected = fit_probe(x, labels, 2)

    torch.testing.assert_close(chosen(x), expected(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_never_changed_says_nothing(kind):
    x, labels = make_data()
    x[:, 3] = 0.1

    probe = fit_probe(x, labels, 2, kind)

    assert probe(x).isfinite().all()
    assert probe.std[3] == 1


# What it is


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_probe_is_float32_frozen_and_at_rest(kind, dtype):
    x, labels = make_data()

    probe = fit_probe(x.to(dtype), labels, 2, kind)

    assert probe(x.to(dtype)).dtype == torch.float32
    assert not probe.training
    assert not any(p.requires_grad for p in probe.parameters())
    assert torch.equal(probe(x), probe(x))  # no dropout


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_flow_to_what_it_reads(kind):
    x, labels = make_data()
    x.requires_grad_()
    probe = fit_probe(x, labels, 2, kind)

    (gradient,) = torch.autograd.grad((probe(x)[:, 1] - probe(x)[:, 0]).sum(), x)

    assert gradient.abs().sum(1).min() > 0
    if kind == "logistic":
        weight = probe.net.get_parameter("weight")
        expected = (weight[1] - weight[0]) / probe.std
        torch.testing.assert_close(gradient, expected.expand(N, D))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_one_probe_and_leaves_torchs_random_state(kind):
    x, labels = make_data(signal=1)

    first = fit_probe(x, labels, 2, kind, seed=3)
    torch.rand(5)
    state = torch.random.get_rng_state()
    again = fit_probe(x, labels, 2, kind, seed=3)

    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first(x), again(x))
    if kind == "mlp":
        assert not torch.equal(first(x), fit_probe(x, labels, 2, kind, seed=4)(x))


def test_training_stops_after_five_epochs_and_restores_the_best(monkeypatch):
    # The third is better than the second, but by too little to count.
    losses = iter([0.7, 0.5, 0.4995, 0.6, 0.6, 0.6, 0.6])
    seen = []

    def loss(net, z, y):
        assert not net.training  # no dropout in what it is chosen by
        seen.append(copy.deepcopy(net.state_dict()))
        return next(losses)

    monkeypatch.setattr(probes, "_loss", loss)
    probe = fit_probe(*make_data(), 2, "mlp")

    assert len(seen) == 7
    kept = probe.net.state_dict()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert not all(torch.equal(kept[name], seen[-1][name]) for name in kept)


def test_what_it_is_chosen_by_is_a_fifth_of_what_it_is_given(monkeypatch):
    x, labels = make_data(3)
    chosen_on = []
    plain = probes._loss
    monkeypatch.setattr(
        probes,
        "_loss",
        lambda net, z, y: chosen_on.append(y.bincount().tolist()) or plain(net, z, y),
    )

    fit_probe(x, labels, 3)

    assert chosen_on == [[N // 15] * 3] * len(probes._STRENGTHS)


@pytest.mark.parametrize("kind", KINDS)
def test_two_examples_of_each_class_suffice(kind):
    x, labels = make_data(3)

    assert fit_probe(x[:6], labels[:6], 3, kind)(x).isfinite().all()


# What it refuses


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, torch.zeros_like(y), 2), "240, 0 examples of 2 classes"),
        (lambda x, y: (x, y, 3), "120, 120, 0 examples of 3 classes"),
        (lambda x, y: (x[:3], y[:3], 2), "two examples of each.*2, 1 examples"),
        (lambda x, y: (x[:0], y[:0], 2), "got 0, 0 examples"),
        (lambda x, y: (x[1:], y, 2), r"shapes \(239, 12\) and \(240,\)"),
        (lambda x, y: (x[0], y, 2), r"shapes \(12,\)"),
        (lambda x, y: (x.index_fill(0, torch.tensor([4, 7]), math.nan), y, 2), "2 of 240 vectors"),
        (lambda x, y: (x, y + 1, 2), "labels have to be 0 … 1; got 1 … 2"),
    ],
)
def test_data_that_no_probe_fits_is_refused(change, message):
    x, labels, n_classes = change(*make_data())
    with pytest.raises(ValueError, match=message):
        fit_probe(x, labels, n_classes)


def test_there_are_two_kinds():
    with pytest.raises(ValueError, match="logistic, mlp; got 'svm'"):
        fit_probe(*make_data(), 2, "svm")  # pyright: ignore[reportArgumentType]


# Folds


def test_folds_have_the_classes_shares():
    labels = torch.tensor([0] * 50 + [1] * 25 + [2] * 10)

    folds = stratified_folds(labels, 5, seed=1)

    for i in range(5):
        assert labels[folds == i].bincount().tolist() == [10, 5, 2]
    assert torch.equal(folds, stratified_folds(labels, 5, seed=1))
    assert not torch.equal(folds, stratified_folds(labels, 5, seed=2))


@pytest.mark.parametrize("n_folds", [1, 4])
def test_every_fold_has_every_class(n_folds):
    with pytest.raises(ValueError, match=f"got {n_folds} folds and classes of 5, 3 examples"):
        stratified_folds(torch.tensor([0] * 5 + [1] * 3), n_folds)


# Intervals


def test_the_interval_is_that_of_scipy_and_of_the_normal_distribution():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)).exp()

    interval = paired_bootstrap(values, n_resamples=20_000)

    known = bootstrap(
        (values.double().numpy(),), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    error = values.std().item() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.double().mean().item())
    assert interval.low == pytest.approx(known.low, abs=0.05 * error)
    assert interval.high == pytest.approx(known.high, abs=0.05 * error)
    width = 2 * norm.ppf(0.975) * error
    assert interval.high - interval.low == pytest.approx(width, rel=0.05)


def test_a_level_sets_the_width():
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    wide, narrow = (paired_bootstrap(values, level=level) for level in (0.99, 0.5))

    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_the_interval_is_the_same_again_and_leaves_torchs_random_state(monkeypatch):
    values = torch.randn(30, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()

    interval = paired_bootstrap(values, seed=1)

    assert interval == paired_bootstrap(values, seed=1)
    assert interval != paired_bootstrap(values, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(stats, "_RESAMPLED_AT_ONCE", 1000)
    assert interval == paired_bootstrap(values, seed=1)


@pytest.mark.parametrize("values", [[0.1] * 2, [0.1] * 7, [0.0] * 3])
def test_what_does_not_vary_has_no_width(values):
    mean = torch.tensor(values)[0].item()

    assert paired_bootstrap(torch.tensor(values)) == Interval(mean, mean, mean)


def test_an_interval_needs_numbers():
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        paired_bootstrap(torch.zeros(0))
    with pytest.raises(ValueError, match="with 1 NaN"):
        paired_bootstrap(torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="level between 0 and 1; got 2000, 95"):
        paired_bootstrap(torch.zeros(3), level=95)
