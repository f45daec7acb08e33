"""An SAE's code and what it explains, against plain references."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.training.activation_scaler import ActivationScaler
from torch import Tensor

from bae_lens import BAE
from bae_lens.evals import CodeStatistics, MagnitudeQuantizer, summarize_code
from tests.helpers import (
    D_IN,
    D_SAE,
    about,
    known,
    make_activations,
    make_bae,
    make_training_bae,
    record_firing_rates,
)

K = 5


def entropy_bits(p: float) -> float:
    return sum(-q * math.log2(q) for q in (p, 1 - p) if q > 0)


def with_random_weights(sae: SAE[Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def make_topk(**overrides: Any) -> TopKSAE:
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, **overrides))
    with_random_weights(sae)
    return sae


def explained(x: Tensor, recons: Tensor) -> float:
    unexplained = (x - recons).square().sum() / (x - x.mean(0)).square().sum()
    return 1 - unexplained.item()


# A BAE


def test_summarize_code_equals_a_plain_reference():
    sae = make_bae()
    x = make_activations(101)

    code, explained_variance, _ = summarize_code(sae, x.split(40))

    with torch.no_grad():
        shifted = x - sae.b_dec
        bits = (shifted @ sae.W_enc + sae.b_enc > 0).double()
        recons = bits @ (sae.W_dec * sae.scale.unsqueeze(1)).double() + sae.b_dec
    p = bits.mean(0)
    assert code.n_tokens == 101
    assert code.l0 == pytest.approx(bits.sum(1).mean().item())
    assert code.marginal_entropy == pytest.approx(sum(entropy_bits(q) for q in p.tolist()))
    torch.testing.assert_close(code.firing_rates, p.float())
    # Over all rows at once, batches being of different sizes.
    assert explained_variance == pytest.approx(explained(x, recons), rel=1e-5)


def test_summarize_code_takes_an_iterator_and_leaves_no_gradients():
    sae = make_bae()

    code, _, _ = summarize_code(sae, iter([make_activations(10)]))

    assert code.n_tokens == 10
    assert all(p.grad is None for p in sae.parameters())


def test_summarize_code_of_a_sae_that_reshapes_heads():
    # The rows of a store are flat at hook_z, where a loaded SAE expects heads.
    sae, x = make_bae(), make_activations(50)
    reshaping = make_bae(reshape_activations="hook_z")
    reshaping.cfg.metadata.hook_name = "blocks.0.attn.hook_z"

    code, explained_variance, _ = summarize_code(reshaping, [x])

    expected, expected_variance, _ = summarize_code(sae, [x])
    assert code.to_dict() == expected.to_dict()
    assert explained_variance == expected_variance
    assert reshaping.hook_z_reshaping_mode


def test_raw_densities_of_a_saved_bae_are_those_of_its_training(tmp_path):
    # float64, so that no pre-activation is near enough to its threshold to differ.
    training = make_training_bae(dtype="float64")
    with torch.no_grad():
        training.b_enc.add_(0.6)
    x = make_activations(2000).double()
    rates = record_firing_rates(training, x)
    n_mostly_on = int((rates > 0.5).sum())
    assert 5 < n_mostly_on < D_SAE
    training.save_inference_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)
    code, _, _ = summarize_code(sae, [x])

    assert isinstance(sae, BAE)
    assert int(sae.flipped.sum()) == n_mostly_on
    raw = torch.where(sae.flipped, 1 - code.firing_rates, code.firing_rates)
    torch.testing.assert_close(raw, rates.float())
    assert code.dense_share_10 == pytest.approx((rates > 0.1).double().mean().item())
    assert code.dense_share_1 == pytest.approx((rates > 0.01).double().mean().item())
    assert code.max_density == pytest.approx(rates.max().item())
    # The folded ones are those of the code as it is, where no bit is mostly on.
    assert code.firing_rates.max() <= 0.5
    assert code.dense_share_10_folded == (code.firing_rates > 0.1).double().mean().item()
    assert code.dense_share_10_folded < code.dense_share_10


def test_a_training_bae_counts_with_the_polarity_it_has():
    training = make_training_bae()
    x = make_activations(500)

    code, _, _ = summarize_code(training, [x])

    torch.testing.assert_close(code.firing_rates, record_firing_rates(training, x))
    assert code.max_density == pytest.approx(code.firing_rates.max().item())


def test_pairs_of_dense_latents_of_a_saved_bae_are_those_of_its_training(tmp_path):
    training, x = make_training_bae(dtype="float64"), make_activations(2000).double()
    with torch.no_grad():
        # A bit and its complement, which write opposite directions; a mostly-on bit with one that
        # writes the opposite direction, and one with one that writes the same.
        training.W_enc[:, :6] = 0.3 * training.W_enc[:, :6]
        training.b_enc[:6] = (
            training.b_dec @ training.W_enc[:, :6] - x.mean(0) @ training.W_enc[:, :6]
        )
        training.b_enc[[2, 4]] += 0.5
        training.W_enc[:, 1], training.b_enc[1] = -training.W_enc[:, 0], -training.b_enc[0]
        training.W_dec[1] = -2 * training.W_dec[0]
        training.W_dec[3] = -training.W_dec[2]
        training.W_dec[5] = training.W_dec[4]
    record_firing_rates(training, x)
    training.save_inference_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)
    before, after = (summarize_code(s, [x], pair_counts=True).code for s in (training, sae))

    assert isinstance(sae, BAE)
    assert sae.flipped[[2, 4]].all()
    assert before.antipodal_dense_pairs == after.antipodal_dense_pairs == 2
    assert before.exclusive_dense_pairs == after.exclusive_dense_pairs
    assert known(before.exclusive_dense_pairs) >= 1
    for name in ("marginal_entropy", "minibatch_entropy", "chow_liu_entropy", "plug_in_entropy"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-6)
    assert (before.always_on_share, before.max_density) == pytest.approx(
        (after.always_on_share, after.max_density)
    )


@pytest.mark.parametrize("make_sae", [make_bae, make_training_bae])
def test_a_one_bit_code_ignores_the_resolution_of_magnitudes(make_sae):
    sae, x = make_sae(), make_activations(100)

    evaluation = summarize_code(sae, [x], magnitude_bits=3)

    without = summarize_code(sae, [x])
    assert evaluation.quantized_explained_variance is None
    assert evaluation.code.to_dict() == without.code.to_dict()
    assert evaluation.code.is_one_bit
    assert evaluation.code.magnitude_bits is None
    assert evaluation.code.description_length == evaluation.code.marginal_entropy


# A BAE with several levels


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make_sae", [make_bae, make_training_bae])
def test_levels_are_counted_as_a_plain_reference_has_them(make_sae, dtype):
    sae, x = make_sae(n_levels=3, feedback_steps=1, dtype=dtype), make_activations(600)

    evaluation = summarize_code(sae, x.split(250), pair_counts=True, magnitude_bits=3)

    code = evaluation.code
    with torch.no_grad():
        acts = torch.cat([sae.encode(part) for part in x.split(250)]).double()
    cost = 0.0
    for column in acts.T:
        n_each = column[column != 0].unique(return_counts=True)[1].tolist()
        cost -= sum(n * math.log2(n / sum(n_each)) for n in n_each) / 600
    assert len({len(column.unique()) for column in acts.T} & {3, 4}) > 0
    assert code.magnitude_entropy == pytest.approx(cost)
    assert code.description_length == code.support_entropy + known(code.magnitude_entropy)
    assert (code.is_one_bit, code.magnitude_bits) == (False, None)
    assert evaluation.quantized_explained_variance is None


def test_a_saved_bae_of_levels_has_the_densities_and_the_entropy_of_its_training(tmp_path):
    training = make_training_bae(dtype="float64", n_levels=3)
    with torch.no_grad():
        training.b_enc.add_(1.5)
    x = make_activations(2000).double()
    with torch.no_grad():
        levels = (training.encode(x)[..., None] >= training.level_values - 1e-9).double().mean(0)
        training.firing_rate.copy_(levels[:, 0])
        training.level_shares.copy_(levels - torch.nn.functional.pad(levels[:, 1:], (0, 1)))
    training.save_inference_model(tmp_path)

    sae = SAE.load_from_disk(tmp_path)
    before, after = (summarize_code(s, [x], pair_counts=True).code for s in (training, sae))

    assert isinstance(sae, BAE)
    assert 5 < int(sae.flipped.sum()) < D_SAE
    raw = ("l0_raw", "dense_share_10", "dense_share_1", "max_density", "always_on_share")
    folded = ("l0_folded", "dense_share_10_folded", "dense_share_1_folded")
    for name in (*raw, *folded):
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert after.l0 < before.l0 - 1
    # Which end a latent is counted from moves bits between the two, and changes nothing in all.
    assert after.marginal_entropy + known(after.magnitude_entropy) == pytest.approx(
        before.marginal_entropy + known(before.magnitude_entropy)
    )
    assert after.marginal_entropy != pytest.approx(before.marginal_entropy)


# An SAE with magnitudes


def test_quantized_magnitudes_of_a_topk_equal_a_plain_reference():
    sae, x, bits = make_topk(), make_activations(120), 1.5

    code, explained_variance, quantized = summarize_code(sae, x.split(50), magnitude_bits=bits)

    with torch.no_grad():
        acts = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
        acts = acts * (acts >= acts.topk(K).values[:, -1:])
        norms = sae.W_dec.norm(dim=1)
        first = (acts * norms)[:50]
        step = 4 * first[first != 0].square().mean().sqrt() / 2**bits
        cells = (acts * norms / step).floor().minimum((first.max() / step).floor())
        restored, cost = torch.zeros_like(acts), 0.0
        for j in range(D_SAE):
            on = acts[:, j] != 0
            for cell in cells[on, j].unique():
                here = on & (cells[:, j] == cell)
                fitted = acts[:50, j][here[:50]]
                middle = (cell + 0.5) * step / norms[j]
                restored[here, j] = fitted.mean() if len(fitted) > 0 else middle
                share = here.sum().item() / on.sum().item()
                cost -= here.sum().item() / len(x) * math.log2(share)
    assert explained_variance == pytest.approx(
        explained(x, acts @ sae.W_dec.detach() + sae.b_dec.detach()), rel=1e-5
    )
    assert quantized == pytest.approx(
        explained(x, restored @ sae.W_dec.detach() + sae.b_dec.detach()), rel=1e-4
    )
    assert code.magnitude_bits == bits
    assert code.magnitude_entropy == pytest.approx(cost, rel=1e-9)
    assert code.description_length == pytest.approx(code.marginal_entropy + cost)
    assert quantized != pytest.approx(explained_variance, rel=1e-3)


def test_finely_quantized_magnitudes_explain_what_unquantized_ones_do():
    sae, x = make_topk(), make_activations(100)

    coarse, fine = (summarize_code(sae, [x], magnitude_bits=bits) for bits in (2, 12))

    assert fine.quantized_explained_variance == pytest.approx(fine.explained_variance, abs=1e-4)
    assert coarse.explained_variance == fine.explained_variance
    assert known(coarse.code.magnitude_entropy) < known(fine.code.magnitude_entropy)


def test_without_a_resolution_magnitudes_have_no_length():
    evaluation = summarize_code(make_topk(), [make_activations(100)])

    assert evaluation.quantized_explained_variance is None
    assert evaluation.code.magnitude_entropy is None
    assert evaluation.code.description_length is None
    assert not evaluation.code.is_one_bit


def test_magnitudes_that_already_include_the_norm_of_the_decoder():
    # With rescale_acts_by_decoder_norm, decoding divides by the norms; folded, they are all 1.
    sae, folded = (make_topk(rescale_acts_by_decoder_norm=True) for _ in range(2))
    with torch.no_grad():
        for each in (sae, folded):
            each.W_dec.mul_(torch.logspace(-1, 1, D_SAE).unsqueeze(1))
    folded.fold_W_dec_norm()
    folded.cfg.rescale_acts_by_decoder_norm = False
    x = make_activations(200)

    one, other = (summarize_code(s, [x], magnitude_bits=3) for s in (sae, folded))

    assert one.code.to_dict() == about(other.code.to_dict(), 1e-2)
    assert one.quantized_explained_variance == pytest.approx(
        other.quantized_explained_variance, rel=1e-3
    )


def test_a_sae_whose_activations_are_sparse_tensors():
    sparse, dense = (
        TopKTrainingSAE(
            TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, use_sparse_activations=on)
        )
        for on in (True, False)
    )
    for sae in (sparse, dense):
        with_random_weights(sae)
    x = make_activations(100)
    assert sparse.encode(x).is_sparse

    evaluation, expected = (summarize_code(s, [x], magnitude_bits=3) for s in (sparse, dense))

    assert evaluation.code.to_dict() == expected.code.to_dict()
    assert evaluation[1:] == pytest.approx(expected[1:], rel=1e-6)


def test_a_dead_sae_is_counted_as_one():
    sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)

    evaluation = summarize_code(sae, [make_activations(50)], magnitude_bits=3)

    assert evaluation.code.dead_share == 1
    assert evaluation.code.description_length == 0
    assert evaluation.quantized_explained_variance is None


@pytest.mark.parametrize("make_sae", [make_bae, make_topk])
def test_a_scaling_factor_that_is_not_folded_in_yet(make_sae):
    sae, folded, x = make_sae(), make_sae(), make_activations(100)
    folded.fold_activation_norm_scaling_factor(2.0)

    one = summarize_code(sae, [x], ActivationScaler(2.0), magnitude_bits=4)

    other = summarize_code(folded, [x], magnitude_bits=4)
    assert one.code.to_dict() == about(other.code.to_dict(), 1e-9)
    assert one.explained_variance == pytest.approx(other.explained_variance, rel=1e-5)
    quantized = (one.quantized_explained_variance, other.quantized_explained_variance)
    assert quantized == (None, None) or quantized[0] == pytest.approx(quantized[1], rel=1e-4)


# Settings and errors


@pytest.mark.parametrize("make_sae", [make_bae, make_topk])
def test_settings_of_the_statistics_are_passed_on(make_sae):
    sae, x = make_sae(), make_activations(100)

    code, _, _ = summarize_code(
        sae, x.split(30), pair_counts=True, minibatch_size=16, magnitude_bits=2
    )

    with torch.no_grad():
        acts = sae.encode(x)
        quantizer = None
        if make_sae is make_topk:
            quantizer = MagnitudeQuantizer.fit(acts[:30], sae.W_dec, 2)
    expected = CodeStatistics(D_SAE, True, None, 16, quantizer)
    expected.update(acts)
    assert code.to_dict() == about(expected.compute(sae.W_dec).to_dict(), 1e-12)
    assert code.n_distinct_codes is not None
    assert code.n_minibatches == 6


def test_pairs_are_not_counted_unless_asked_for():
    code, _, _ = summarize_code(make_bae(), [make_activations(50)])

    assert code.chow_liu_entropy is None
    assert code.minibatch_size == 1024
    assert code.antipodal_dense_pairs is not None


def test_no_activations_are_refused():
    with pytest.raises(ValueError, match="no activations"):
        summarize_code(make_bae(), [])


def test_a_negative_resolution_is_refused():
    with pytest.raises(ValueError, match="magnitude_bits must be a number from 0 to 16"):
        summarize_code(make_topk(), [make_activations(50)], magnitude_bits=-1)


def test_heads_are_reshaped_again_after_an_error():
    sae = make_bae(reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.turn_on_forward_pass_hook_z_reshaping()

    with pytest.raises(RuntimeError):
        summarize_code(sae, [torch.ones(3, D_IN + 1)])

    assert sae.hook_z_reshaping_mode
