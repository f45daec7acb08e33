"""A pruned BAE is a BAE with fewer bits that still explains what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bae_lens import BAE, TrainingBAE
from bae_lens.entropy.pruning import prune
from tests.helpers import D_IN, D_SAE, make_activations, make_bae, make_training_bae


def unexplained(sae: BAE | TrainingBAE, x: Tensor) -> float:
    with torch.no_grad():
        error = (sae.decode(sae.encode(x)) - x).square().sum()
    return (error / (x - x.mean(0)).square().sum()).item()


def kept_bits(sae: BAE | TrainingBAE, pruned: BAE) -> list[int]:
    """Which bits of a BAE are left, by their encoder directions."""
    same = (pruned.W_enc.T[:, None] == sae.W_enc.T).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1).tolist()


@pytest.mark.parametrize("make", [make_training_bae, make_bae])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_it_holds_the_fidelity_with_the_bits_that_stay(make, apply_b_dec_to_input):
    sae, x = make(apply_b_dec_to_input=apply_b_dec_to_input), make_activations(2000)

    pruned = prune(sae, x, 0.6)

    assert isinstance(pruned, BAE)
    assert 0 < pruned.cfg.d_sae < D_SAE
    assert unexplained(pruned, x) <= 0.6 * 1.0001
    kept = kept_bits(sae, pruned)
    assert kept == sorted(kept)
    with torch.no_grad():
        before, after = sae.encode(x)[:, kept] != 0, pruned.encode(x) != 0
    # Where b_dec is subtracted from the input, its change is made up for; rounding aside.
    assert (before != after).float().mean() < 1e-4


def test_the_autoencoder_itself_stays_as_it_was():
    sae, x = make_training_bae(), make_activations(500)
    before = {name: value.clone() for name, value in sae.state_dict().items()}

    prune(sae, x, 0.7)

    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_config_and_metadata_come_along_and_it_can_be_saved(tmp_path):
    sae, x = make_training_bae(), make_activations(500)
    sae.cfg.metadata.model_name = "tiny"

    pruned = prune(sae, x, 0.7)
    pruned.save_model(tmp_path)

    assert pruned.cfg.metadata.model_name == "tiny"
    assert sae.cfg.d_sae == D_SAE
    loaded = BAE.load_from_disk(tmp_path)
    torch.testing.assert_close(loaded(x), pruned(x))


def test_where_all_bits_leave_more_only_redundant_ones_go():
    sae, x = make_bae(), make_activations(2000)
    with torch.no_grad():
        sae.W_enc[:, 1], sae.b_enc[1] = sae.W_enc[:, 0], sae.b_enc[0]

    pruned = prune(sae, x, 0.0)

    assert pruned.cfg.d_sae == D_SAE - 1
    # A refitted decoder cannot be worse than the random one that there was.
    assert unexplained(pruned, x) < unexplained(sae, x)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match="from 0 to below 1; got"):
        prune(make_bae(), make_activations(500), share)


def test_too_few_activations_are_refused():
    with pytest.raises(ValueError, match=r"cannot be fitted to 30 activations; give at least \d\d"):
        prune(make_bae(), make_activations(30), 0.5)


def test_a_code_in_which_no_bit_varies_is_refused():
    with pytest.raises(ValueError, match="No bit varies"):
        prune(make_bae(), torch.zeros(500, D_IN), 0.5)


def test_activations_that_are_not_finite_are_refused():
    x = make_activations(500)
    x[3, 1] = float("nan")

    with pytest.raises(ValueError, match="NaN or infinite"):
        prune(make_bae(), x, 0.5)


@pytest.mark.parametrize("make", [make_training_bae, make_bae])
@pytest.mark.parametrize("overrides", [{"n_levels": 2}, {"feedback_steps": 1}])
def test_levels_and_feedback_are_refused(make, overrides):
    ((name, value),) = overrides.items()

    with pytest.raises(ValueError, match=f"one bit a latent and without feedback.*{name}={value}"):
        prune(make(**overrides), make_activations(500), 0.5)


@pytest.mark.parametrize("scale", ["layer_norm", "constant_norm_rescale"])
def test_a_decoder_that_scales_each_token_is_not_fitted(scale):
    with pytest.raises(ValueError, match=f"'{scale}' scales what it decodes by each token"):
        prune(make_bae(normalize_activations=scale), make_activations(500), 0.7)
