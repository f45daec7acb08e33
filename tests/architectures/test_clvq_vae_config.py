"""What values the CLVQ-VAE's configs refuse, and which they fill in."""

from __future__ import annotations

import pytest

from bae_lens import CLVQVAE, CLVQVAEConfig, TrainingCLVQVAE, TrainingCLVQVAEConfig
from tests.helpers import D_IN, clvq_cfg


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decoder", "mlp", "decoder must be one of transformer, token; got 'mlp'"),
        ("decoder_memory", "both", "decoder_memory must be one of codes, encoder; got 'both'"),
        ("encoder", "mlp", "encoder must be one of residual, predictive; got 'mlp'"),
        ("encoder", "predictive", "set decoder to 'token'; got 'transformer'"),
        ("predictor_hidden", 0, "predictor_hidden must be a whole number of at least 1 or None"),
        ("predictor_hidden", 8, "predictor_hidden = 8 is a width of the predictive encoder"),
        ("decoder_layers", -1, "decoder_layers must be a whole number from 0 to 1000"),
        ("decoder_layers", 10**7, "decoder_layers must be a whole number from 0 to 1000"),
        ("decoder_width", 0, "decoder_width must be a whole number of at least 1 or None"),
        ("decoder_heads", 0, "decoder_heads must be a whole number of at least 1 or None"),
        ("decoder_mlp_width", 0, "decoder_mlp_width must be a whole number of at least 1 or None"),
        ("d_out", 0, "d_out must be a whole number of at least 1 or None"),
        ("top_k", 0, "top_k must be a whole number of at least 1"),
        ("temperature", 0.0, "temperature must be a positive number .*set top_k to 1"),
        ("ema_decay", 1.0, "ema_decay must be a number from 0 to below 1"),
        ("ema_decay", -0.1, "ema_decay must be a number from 0 to below 1"),
        ("laplace_epsilon", 0.0, "laplace_epsilon must be a positive number"),
        ("revive_after", 0, "revive_after must be a whole number of at least 1 or None"),
        ("max_revived", -1, "max_revived must be a .*number of at least 0"),
        ("commitment_coefficient", -0.1, "commitment_coefficient must be a .*number of at least 0"),
        ("codebook_init", "kmeans", r"codebook_init must be one of random, .*; got 'kmeans'"),
        ("sequence_length", 0, "sequence_length must be a whole number of at least 1 or None"),
        ("apply_b_dec_to_input", True, "apply_b_dec_to_input must be False"),
        ("normalize_activations", "layer_norm", "set normalize_activations to 'none'"),
        ("normalize_activations", "covariance_whitening", "set normalize_activations to 'none'"),
        ("reshape_activations", "hook_z", "set reshape_activations to 'none'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        clvq_cfg(**{field: value})


def test_a_leak_needs_attention():
    with pytest.raises(ValueError, match="set decoder to 'transformer'"):
        clvq_cfg(decoder="token", decoder_memory="encoder")


def test_the_recipe_of_the_predictive_encoder_takes_overrides():
    cfg = TrainingCLVQVAEConfig.predictive(16, d_out=24, n_codes=10, ema_decay=0.9)

    assert (cfg.encoder, cfg.predictor_hidden, cfg.d_sae) == ("predictive", 32, 10)
    assert (cfg.ema_decay, cfg.decoder) == (0.9, "token")
    assert TrainingCLVQVAE(cfg).codebook.shape == (10, 24)


def test_the_papers_recipe_is_the_releases_encoder_and_codebook():
    cfg = TrainingCLVQVAEConfig.paper(16, d_out=24, top_k=3)

    assert (cfg.encoder, cfg.d_sae, cfg.d_out, cfg.top_k) == ("residual", 400, 24, 3)
    assert (cfg.ema_decay, cfg.commitment_coefficient, cfg.revive_after) == (0.99, 0.1, None)
    assert (cfg.decoder_layers, cfg.decoder_heads, cfg.decoder_mlp_width) == (6, 8, 2048)
    assert TrainingCLVQVAE(cfg).codebook.shape == (400, 16)
    with pytest.raises(ValueError, match="n_codes must be a whole number of at least 1"):
        TrainingCLVQVAEConfig.paper(16, n_codes=0)


@pytest.mark.parametrize("make", [clvq_cfg, lambda **k: CLVQVAEConfig(d_in=D_IN, d_sae=5, **k)])
@pytest.mark.parametrize(("d_out", "expected"), [(None, D_IN), (7, 7)])
def test_the_target_is_as_wide_as_the_input_unless_said(make, d_out, expected):
    cfg = make(d_out=d_out)
    kind = CLVQVAE if isinstance(cfg, CLVQVAEConfig) else TrainingCLVQVAE

    assert kind(cfg).d_out == expected  # pyright: ignore[reportArgumentType]
