"""Tests of ``bae_lens.architectures.bae_config``: values refused, targets, the paper's preset."""

from __future__ import annotations

import pytest
import torch

from bae_lens import TrainingBAE, TrainingBAEConfig
from bae_lens.nn import marginal_entropy, off_diagonal_covariance
from tests.helpers import (
    D_IN,
    make_activations,
    train_step,
    training_cfg,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("surrogate", "tanh", "surrogate must be one of sigmoid, identity, paper; got 'tanh'"),
        ("temperature", 0.0, "temperature must be a positive number or 'auto'; got 0.0"),
        (
            "initial_firing_rate",
            0.0,
            "initial_firing_rate must be a number above 0 and below 1 or None",
        ),
        (
            "initial_firing_rate",
            1.0,
            "initial_firing_rate must be a number above 0 and below 1 or None",
        ),
        ("max_density", 0.0, "max_density must be a number above 0 and at most 1 or None"),
        ("max_density", 1.5, "max_density must be a number above 0 and at most 1 or None"),
        (
            "target_entropy",
            0.0,
            "target_entropy must be a positive number, 'd_in/16', 'd_in' or None",
        ),
        (
            "target_entropy",
            -3,
            "target_entropy must be a positive number, 'd_in/16', 'd_in' or None",
        ),
        ("target_entropy", "d_sae", "target_entropy must be a positive number.*; got 'd_sae'"),
        (
            "target_unexplained_variance",
            0.0,
            "target_unexplained_variance must be a number above 0 and below 1",
        ),
        (
            "target_unexplained_variance",
            1.0,
            "target_unexplained_variance must be a number above 0 and below 1",
        ),
        (
            "target_unexplained_variance",
            0.3,
            "can follow one target only: set target_entropy to None",
        ),
        ("entropy_coefficient", -0.1, "entropy_coefficient must be a .*number of at least 0"),
        ("entropy_warm_up_steps", -1, "entropy_warm_up_steps must be a .*number of at least 0"),
        ("entropy_start_step", -1, "entropy_start_step must be a .*number of at least 0"),
        ("entropy_floor", -1.0, "entropy_floor must be a .*number of at least 0"),
        (
            "covariance_coefficient",
            -1e-4,
            "covariance_coefficient must be a .*number of at least 0",
        ),
        (
            "covariance_warm_up_steps",
            -1,
            "covariance_warm_up_steps must be a .*number of at least 0",
        ),
        ("density_coefficient", -1.0, "density_coefficient must be a .*number of at least 0"),
        ("normalize_activations", "batch_norm", "normalize_activations must be"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        training_cfg(**{field: value})


@pytest.mark.parametrize(
    "field", ["initial_firing_rate", "max_density", "target_entropy", "decoder_init_norm"]
)
def test_none_switches_a_part_off(field):
    assert getattr(training_cfg(**{field: None}), field) is None


@pytest.mark.parametrize(
    ("target", "bits"),
    [("d_in", float(D_IN)), ("d_in/16", D_IN / 16), (7, 7.0), (2.5, 2.5), (None, None)],
)
def test_target_entropy_in_bits(target, bits):
    assert training_cfg(target_entropy=target).target_entropy_bits == bits


def test_the_default_target_is_to_read():
    cfg = TrainingBAEConfig(d_in=576, d_sae=1152)

    assert (cfg.target_entropy, cfg.target_entropy_bits) == ("d_in/16", 36)
    # What was the default before means what it did, in files that have it.
    assert (
        TrainingBAEConfig.from_dict(cfg.to_dict() | {"target_entropy": "d_in"}).target_entropy_bits
        == 576
    )


@pytest.mark.parametrize(("target", "share"), [("d_in/16", 1 / 16), ("d_in", 1)])
def test_a_target_in_words_follows_a_later_change_of_d_in(target, share):
    # SAELens' SyntheticSAERunner corrects d_in after the config was made.
    cfg = training_cfg(target_entropy=target)
    cfg.d_in = 99

    assert cfg.target_entropy_bits == 99 * share


def test_paper_preset_is_the_released_recipe_in_saelens_units():
    cfg = TrainingBAEConfig.paper(768)

    assert (cfg.d_in, cfg.d_sae) == (768, 4 * 768)
    assert cfg.surrogate == "identity"
    assert cfg.initial_firing_rate is None
    assert cfg.target_entropy is None
    assert cfg.max_density is None
    assert cfg.apply_b_dec_to_input is False
    assert cfg.decoder_init_norm is None
    assert cfg.entropy_start_step == 0
    assert cfg.entropy_floor == 0
    assert cfg.entropy_coefficient == pytest.approx(1e-7 * 768)
    assert cfg.covariance_coefficient == pytest.approx(1e-7 * 768)
    assert cfg.entropy_warm_up_steps == cfg.covariance_warm_up_steps == 0


def test_paper_preset_takes_expansion_start_step_and_any_field():
    cfg = TrainingBAEConfig.paper(
        64, expansion=2, entropy_start_step=500, entropy_coefficient=0.5, device="cpu"
    )

    assert (cfg.d_sae, cfg.entropy_start_step, cfg.entropy_coefficient) == (128, 500, 0.5)
    assert cfg.surrogate == "identity"


def test_paper_preset_is_the_papers_objective():
    # Element-mean reconstruction error, α_e·H and α_c·Σ|C|, all times d_in, and nothing else.
    cfg = TrainingBAEConfig.paper(
        D_IN, entropy_coefficient=1e-2 * D_IN, covariance_coefficient=1e-3 * D_IN
    )
    sae = TrainingBAE(cfg)
    x = make_activations(61)

    output = train_step(sae, x)

    bits = (x @ sae.W_enc + sae.b_enc > 0).float()
    recons = bits @ sae.W_dec + sae.b_dec
    objective = (
        (recons - x).square().mean()
        + 1e-2 * marginal_entropy(bits)
        + 1e-3 * off_diagonal_covariance(bits)
    )
    assert output.loss.item() == pytest.approx(D_IN * objective.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("code", "temperature", "curvature"),
    [
        ({}, 0.5, 0.0),
        ({"feedback_steps": 2}, 0.5, 0.0),
        ({"n_levels": 7}, 0.7, 0.5),
        ({"n_levels": 7, "normalize_activations": "layer_norm"}, 0.7, 0.0),
        ({"n_levels": 7, "temperature": 0.3, "curvature_coefficient": 1.0}, 0.3, 1.0),
    ],
)
def test_what_auto_is_depends_on_the_code(code, temperature, curvature):
    cfg = TrainingBAEConfig(d_in=8, d_sae=16, **code)

    assert (cfg.step_temperature, cfg.step_curvature) == (temperature, curvature)
