"""Training on activations in memory is SAELens' own, repeatable, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from sae_lens import TopKTrainingSAEConfig

from bae_lens import TrainingBAE
from bae_lens.training.fit import fit_activations, trainer_config
from tests.helpers import D_IN, D_SAE, make_sparse_activations, training_cfg


def unexplained(sae, x: torch.Tensor) -> float:
    with torch.no_grad():
        return ((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()).item()


def test_it_trains_and_folds_the_scale_in():
    # Far from the mean norm √d_in that the coefficients refer to.
    x = 50 * make_sparse_activations(2048)

    few, many = (fit_activations(training_cfg(), x, steps, 256, lr=5e-3) for steps in (2, 150))

    assert isinstance(many, TrainingBAE)
    assert many.n_updates == 150
    assert unexplained(many, x) < 0.5
    assert unexplained(many, x) < unexplained(few, x)
    assert many.cfg.normalize_activations == "none"


def test_it_repeats_itself_and_leaves_the_config_alone():
    x, cfg = make_sparse_activations(512), training_cfg()

    one, same, other = (fit_activations(cfg, x, 5, 64, seed=seed) for seed in (0, 0, 1))

    assert torch.equal(one.W_enc, same.W_enc)
    assert not torch.equal(one.W_enc, other.W_enc)
    assert cfg.normalize_activations == "expected_average_only_in"


def test_any_registered_architecture_is_trained():
    x = make_sparse_activations(512)

    sae = fit_activations(TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4), x, 5, 64)

    assert sae.cfg.architecture() == "topk"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((512, D_IN + 1), rf"cfg.d_in is {D_IN}, but the activations have shape \(512, 17\)"),
        ((8, 64, D_IN), r"must have shape \[n_tokens, d_in\]; got \(8, 64, 16\)"),
        ((63, D_IN), "One batch needs 64 tokens, but only 63"),
    ],
)
def test_activations_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        fit_activations(training_cfg(), torch.randn(shape), 5, 64)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("steps", 0, "steps must be a whole number of at least 1; got 0"),
        ("steps", -1, "steps must be a whole number of at least 1; got -1"),
        ("steps", 2.5, "steps must be a whole number"),
        ("batch_size", -1, "batch_size must be a whole number of at least 1; got -1"),
        ("batch_size", "64", "batch_size must be a whole number of at least 1; got '64'"),
        ("lr", float("nan"), "lr must be a positive finite number; got nan"),
        ("lr", 0, "lr must be a positive number; got 0"),
        ("lr", None, "lr must be a positive number; got None"),
        ("seed", -1, "seed must be a whole number of at least 0; got -1"),
        ("seed", True, "seed must be a whole number of at least 0; got True"),
        ("device", "gpu", "device must be the name of a device"),
        ("cfg", {"d_in": D_IN}, "cfg must be a config for training"),
        ("activations", [[0.0] * D_IN] * 64, "activations must be a tensor of floats"),
        ("activations", torch.ones(64, D_IN, dtype=torch.int64), "activations must be a tensor of"),
        ("activations", torch.tensor(1.0), rf"cfg.d_in is {D_IN}, but .* shape \(\)"),
        ("activations", torch.full((64, D_IN), torch.nan), "finite; 1024 of their values are NaN"),
    ],
)
def test_arguments_that_are_none_are_refused_by_name(argument, value, message):
    arguments = {"cfg": training_cfg(), "activations": torch.randn(64, D_IN), "steps": 2}
    with pytest.raises(ValueError, match=message):
        fit_activations(**arguments | {"batch_size": 32, argument: value})


def test_the_schedule_is_in_shares_of_the_steps():
    plain, other = trainer_config(50, 8, 1e-3), trainer_config(50, 8, 1e-3, "cpu", 0.1, 0.5)

    assert (plain.lr_warm_up_steps, plain.lr_decay_steps) == (0, 10)
    assert (other.lr_warm_up_steps, other.lr_decay_steps) == (5, 25)
    x, cfg = make_sparse_activations(512), training_cfg()
    one, same = fit_activations(cfg, x, 6, 64), fit_activations(cfg, x, 6, 64, decay=0.2)
    slower = fit_activations(cfg, x, 6, 64, warm_up=0.5)
    assert torch.equal(one.W_enc, same.W_enc)
    assert not torch.equal(one.W_enc, slower.W_enc)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"warm_up": -0.1}, "warm_up must be"),
        ({"decay": 1.5}, "decay must be"),
        ({"warm_up": 0.6, "decay": 0.5}, "make up more than all: 0.6 and 0.5"),
    ],
)
def test_a_schedule_that_cannot_be(shares, message):
    with pytest.raises(ValueError, match=message):
        fit_activations(training_cfg(), make_sparse_activations(512), 5, 64, **shares)
