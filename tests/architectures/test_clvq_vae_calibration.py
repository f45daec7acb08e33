"""What a CLVQ-VAE measures of its activations before it begins."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bae_lens import TrainingCLVQVAE
from bae_lens.architectures.codebook_init import CODEBOOK_INITS, initial_codebook
from bae_lens.architectures.packed_rows import pack_rows
from tests.architectures.clvq_vae_parts import (
    assert_same_state,
    distances,
    encoded,
    parts,
    planted_rows,
    state,
)
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    N_CODES,
    clvq_cfg,
    make_pairs,
    make_rows,
    make_valid,
    train_step,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


# Calibration


@pytest.mark.parametrize("d_out", [D_OUT, D_IN, 3])
def test_calibration_centers_and_scales_both_hook_points(d_out):
    sae = TrainingCLVQVAE(clvq_cfg(d_out=d_out))
    lower, upper = make_pairs(BATCH, d_out=d_out, offset=5.0)
    lower, valid = 40 * lower, make_valid(BATCH)

    sae.calibrate(pack_rows(lower, upper, valid))

    x = sae.process_sae_in(lower[valid])
    torch.testing.assert_close(x.mean(0), torch.zeros(D_IN), rtol=0, atol=1e-4)
    assert x.norm(dim=1).mean().item() == pytest.approx(math.sqrt(D_IN), rel=1e-4)
    target = (upper[valid] - sae.target_mean) / sae.target_scale
    torch.testing.assert_close(target.mean(0), torch.zeros(d_out), rtol=0, atol=1e-4)
    assert target.square().mean().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("method", CODEBOOK_INITS)
def test_calibration_takes_the_codebook_from_activations(method):
    sae = TrainingCLVQVAE(clvq_cfg(codebook_init=method, codebook_init_seed=5))
    rows = make_rows()
    lower, _, valid = parts(rows)

    sae.calibrate(rows)

    z = encoded(sae, lower[valid])
    codebook, counts = initial_codebook(z, N_CODES, method, seed=5)
    torch.testing.assert_close(sae.codebook, codebook)
    torch.testing.assert_close(sae.quantizer.ema_count, counts)
    torch.testing.assert_close(sae.quantizer.ema_sum, codebook * counts[:, None])
    distance = distances(z, codebook).amin(1).square().mean()
    torch.testing.assert_close(sae.quantizer.nearest_distance, distance, rtol=1e-4, atol=0)
    if method == "random":
        assert distances(sae.codebook, z).amin(1).max() < 1e-5


@pytest.mark.parametrize("method", ["kmeans++", "scaled_spherical_kmeans++"])
def test_kmeans_begins_nearer_to_the_activations_than_random(method):
    def first_commitment(method, seed):
        cfg = clvq_cfg(codebook_init=method, codebook_init_seed=seed, top_k=1)
        sae = TrainingCLVQVAE(cfg)
        return train_step(sae, planted_rows(1024, seed=seed)[0]).losses["commitment_loss"].item()

    for seed in range(3):
        assert first_commitment(method, seed) < 0.8 * first_commitment("random", seed)


@pytest.mark.parametrize("batch_size", [None, 8, 4 * BATCH])
def test_counts_are_those_of_a_training_batch(batch_size):
    sae = TrainingCLVQVAE(clvq_cfg())
    rows = make_rows()
    share = parts(rows)[2].float().mean().item()

    sae.calibrate(rows, batch_size)

    expected = share * (batch_size or BATCH)
    assert sae.quantizer.ema_count.sum().item() == pytest.approx(expected, rel=1e-4)


def test_calibration_is_done_once_by_the_first_step_unless_it_was_before():
    rows = make_rows()
    sae = TrainingCLVQVAE(clvq_cfg())
    by_hand = copy.deepcopy(sae)
    by_hand.calibrate(rows)
    units = [by_hand.input_mean.clone(), by_hand.target_scale.clone()]

    torch.manual_seed(1)
    train_step(sae, rows)
    torch.manual_seed(1)
    train_step(by_hand, rows)

    assert_same_state(state(sae), state(by_hand))
    train_step(sae, make_rows(seed=5))
    assert torch.equal(sae.input_mean, units[0])
    assert torch.equal(sae.target_scale, units[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, D_IN])
def test_calibration_refuses_values_that_are_not_finite(bad, column):
    rows = make_rows(masked=False)
    rows[7, column] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        train_step(TrainingCLVQVAE(clvq_cfg()), rows)


def test_calibration_refuses_fewer_distinct_tokens_than_codes():
    rows = make_rows(N_CODES - 1, masked=False).repeat(8, 1)

    with pytest.raises(ValueError, match=r"10 codes need .* have 9"):
        train_step(TrainingCLVQVAE(clvq_cfg()), rows)


def test_a_calibration_that_failed_is_done_by_the_next_step():
    sae = TrainingCLVQVAE(clvq_cfg(top_k=1))
    fresh = copy.deepcopy(sae)
    with pytest.raises(ValueError, match="10 codes need"):
        train_step(sae, make_rows(N_CODES - 2, masked=False).repeat(4, 1))

    for each in (sae, fresh):
        torch.manual_seed(0)
        train_step(each, make_rows())

    assert_same_state(state(sae), state(fresh))


@pytest.mark.parametrize("n_valid", [0, 1])
def test_calibration_refuses_fewer_than_two_tokens(n_valid):
    rows = make_rows()
    rows[:, -1] = torch.arange(BATCH) < n_valid

    with pytest.raises(ValueError, match="at least two"):
        train_step(TrainingCLVQVAE(clvq_cfg(d_sae=1)), rows)


def test_hook_points_that_are_constant_are_left_at_their_scale():
    sae = TrainingCLVQVAE(clvq_cfg(d_sae=1, codebook_init="kmeans++"))

    output = train_step(sae, pack_rows(torch.full((16, D_IN), 3.0), torch.full((16, D_OUT), 2.0)))
    output.loss.backward()

    assert sae.input_scale == sae.target_scale == 1
    assert output.loss.isfinite()
    assert all(buffer.isfinite().all() for buffer in sae.buffers())
