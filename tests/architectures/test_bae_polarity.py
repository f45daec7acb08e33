"""Tests of ``bae_lens.architectures.bae_polarity``: bits that are mostly on are inverted where the SAE is saved."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sae_lens import SAE

from bae_lens import BAE, TrainingBAE
from bae_lens.nn import marginal_entropy, off_diagonal_covariance
from tests.helpers import (
    D_SAE,
    assert_same_code,
    make_activations,
    make_training_bae,
    record_firing_rates,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def saved_and_loaded(sae: TrainingBAE, folder: Any) -> BAE:
    sae.save_inference_model(folder)
    loaded = SAE.load_from_disk(folder)
    assert isinstance(loaded, BAE)
    return loaded


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("is_folded", [False, True])
def test_inverting_bits_is_an_exact_reparametrisation(
    tmp_path, apply_b_dec_to_input, normalize, is_folded
):
    sae = make_training_bae(
        apply_b_dec_to_input=apply_b_dec_to_input, normalize_activations=normalize
    )
    if is_folded:
        sae.fold_W_dec_norm()
    x = make_activations(2000, offset=2.0)
    rate = record_firing_rates(sae, x)
    flipped = rate > 0.5
    assert 5 < flipped.sum() < D_SAE - 5

    loaded = saved_and_loaded(sae, tmp_path)

    with torch.no_grad():
        acts, pre = sae.encode_with_hidden_pre(x)
        out = sae.decode(acts)
        assert_same_code(((acts != 0) ^ flipped, out, pre), (loaded.encode(x) != 0, loaded(x)))
        density = (loaded.encode(x) != 0).float().mean(0)
    assert density.max() <= 0.5 + 1e-3
    torch.testing.assert_close(density, torch.where(flipped, 1 - rate, rate), rtol=0, atol=1e-3)
    assert torch.equal(loaded.flipped, flipped)


def test_flipped_is_a_saved_bool_buffer_and_restores_the_raw_densities(tmp_path):
    sae = make_training_bae()
    x = make_activations(500)
    rate = record_firing_rates(sae, x)

    loaded = saved_and_loaded(sae, tmp_path)

    assert loaded.flipped.dtype == torch.bool
    assert "flipped" in loaded.state_dict()
    density = (loaded.encode(x) != 0).float().mean(0)
    raw = torch.where(loaded.flipped, 1 - density, density)
    torch.testing.assert_close(raw, rate, rtol=0, atol=3e-3)


def test_inverting_leaves_entropy_and_covariance_as_they_were(tmp_path):
    sae = make_training_bae()
    x = make_activations(503)
    record_firing_rates(sae, x)

    loaded = saved_and_loaded(sae, tmp_path)

    before, after = (sae.encode(x) != 0).double(), (loaded.encode(x) != 0).double()
    assert not torch.equal(before, after)
    torch.testing.assert_close(marginal_entropy(after), marginal_entropy(before))
    torch.testing.assert_close(off_diagonal_covariance(after), off_diagonal_covariance(before))


def test_nothing_is_inverted_where_every_bit_is_mostly_off(tmp_path):
    sae = make_training_bae()
    with torch.no_grad():
        sae.b_enc.fill_(-3.0)
    assert record_firing_rates(sae, make_activations(500)).max() < 0.5

    loaded = saved_and_loaded(sae, tmp_path)

    assert not loaded.flipped.any()
    for name, parameter in sae.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


def test_saving_leaves_the_live_autoencoder_untouched(tmp_path):
    sae = make_training_bae()
    sae.cfg.metadata.l0 = 12.0
    x = make_activations(500)
    record_firing_rates(sae, x)
    state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    out = sae(x)

    sae.save_inference_model(tmp_path)

    assert sae.state_dict().keys() == state.keys()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert torch.equal(sae(x), out)
    assert sae.cfg.metadata.l0 == 12.0


def test_saving_twice_writes_the_same_file(tmp_path):
    sae = make_training_bae()
    record_firing_rates(sae, make_activations(500))

    first, _ = sae.save_inference_model(tmp_path / "a")
    second, _ = sae.save_inference_model(tmp_path / "b")

    assert first.read_bytes() == second.read_bytes()


def test_saved_l0_is_that_of_the_inverted_bits(tmp_path):
    sae = make_training_bae()
    x = make_activations(2000)
    rate = record_firing_rates(sae, x)
    sae.cfg.metadata.l0 = rate.sum().item()

    loaded = saved_and_loaded(sae, tmp_path)

    l0 = (loaded.encode(x) != 0).float().sum(1).mean().item()
    assert l0 < rate.sum().item() - 1
    assert loaded.cfg.metadata.l0 == pytest.approx(l0, abs=1e-2)


def test_saved_config_has_no_l0_where_training_recorded_none(tmp_path):
    sae = make_training_bae()
    record_firing_rates(sae, make_activations(500))

    _, cfg_path = sae.save_inference_model(tmp_path)

    assert json.loads(cfg_path.read_text())["metadata"].get("l0") is None


def test_log_sparsity_is_folded_where_bits_are():
    sae = make_training_bae()
    rate = torch.rand(D_SAE, generator=torch.Generator().manual_seed(0))
    rate[:4] = torch.tensor([1.0, 0.0, 0.75, 0.25])
    sae.firing_rate.copy_(rate)

    folded = sae.fold_log_sparsity(torch.log10(rate + 1e-10))

    assert folded.dtype == torch.float32
    density = torch.where(rate > 0.5, 1 - rate, rate)
    torch.testing.assert_close(folded, torch.log10(density + 1e-10), rtol=1e-3, atol=1e-3)
    assert folded[0].item() == pytest.approx(-10, abs=1e-3)
