from __future__ import annotations

import pytest
import torch

from bae_lens.nn import calibrated_weights


def start(d_in: int = 6, d_sae: int = 20, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, d_in, generator=generator)
    return W_dec.T.contiguous().to(dtype), W_dec.to(dtype)


def batch(n: int, d_in: int = 6, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(n, d_in, generator=generator) * torch.arange(1, d_in + 1)


def pre_activations(x, weights, apply_b_dec_to_input):
    x = x - weights["b_dec"] if apply_b_dec_to_input else x
    return x @ weights["W_enc"] + weights["b_enc"]


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize(
    ("n", "rate", "k"),
    [(100, 0.04, 4), (97, 0.04, 4), (100, 0.5, 50), (100, 0.996, 99), (100, 1e-4, 1), (2, 0.9, 1)],
)
def test_every_bit_fires_on_k_tokens(n, rate, k, apply_b_dec_to_input):
    x = batch(n)

    weights = calibrated_weights(x, *start(), rate, apply_b_dec_to_input)

    on = pre_activations(x, weights, apply_b_dec_to_input) > 0
    assert on.sum(0).tolist() == [k] * 20


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_the_threshold_is_halfway_between_two_tokens(apply_b_dec_to_input):
    x = batch(100)

    weights = calibrated_weights(x, *start(), 0.1, apply_b_dec_to_input)

    pre = pre_activations(x, weights, apply_b_dec_to_input).sort(0, descending=True).values
    torch.testing.assert_close(pre[9], -pre[10], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_pre_activations_have_unit_variance_and_b_dec_is_the_mean(apply_b_dec_to_input):
    x = batch(500)

    weights = calibrated_weights(x, *start(), 0.1, apply_b_dec_to_input)

    pre = pre_activations(x, weights, apply_b_dec_to_input)
    torch.testing.assert_close(pre.std(0), torch.ones(20), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights["b_dec"], x.mean(0))


def test_directions_are_kept_and_the_decoder_is_scaled_as_a_whole():
    W_enc, W_dec = start()

    weights = calibrated_weights(batch(100), W_enc, W_dec, 0.1, True)

    cosine = torch.cosine_similarity(weights["W_enc"], W_enc, dim=0)
    torch.testing.assert_close(cosine, torch.ones(20))
    factors = weights["W_dec"] / W_dec
    torch.testing.assert_close(factors, factors[:1, :1].expand_as(factors))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_no_other_scale_of_the_decoder_explains_more(apply_b_dec_to_input):
    x = batch(300).double()

    weights = calibrated_weights(x, *start(dtype=torch.float64), 0.2, apply_b_dec_to_input)

    bits = (pre_activations(x, weights, apply_b_dec_to_input) > 0).double()
    recons = bits @ weights["W_dec"]
    recons, target = recons - recons.mean(0), x - x.mean(0)
    # The residual of a least-squares fit is orthogonal to what was fitted.
    alignment = (recons * (target - recons)).sum() / recons.square().sum()
    assert abs(alignment.item()) < 1e-6
    assert (target - recons).square().sum() < 0.9 * target.square().sum()


def test_a_decoder_that_points_away_is_not_turned_round():
    W_enc, W_dec = start()

    weights = calibrated_weights(batch(100), W_enc, -W_dec, 0.2, True)

    assert (weights["W_dec"] / -W_dec).min() > 0


def test_a_latent_that_sees_nothing_stays_finite():
    W_enc, W_dec = start()
    W_enc[:, 3] = 0

    weights = calibrated_weights(batch(100), W_enc, W_dec, 0.1, True)

    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_keep_dtype_and_shape(dtype):
    W_enc, W_dec = start(dtype=dtype)

    weights = calibrated_weights(batch(50).to(dtype), W_enc, W_dec, 0.1, False)

    assert {name: (tuple(w.shape), w.dtype) for name, w in weights.items()} == {
        "W_enc": ((6, 20), dtype),
        "b_enc": ((20,), dtype),
        "W_dec": ((20, 6), dtype),
        "b_dec": ((6,), dtype),
    }


def test_what_it_is_given_is_left_as_it_is():
    W_enc, W_dec = start()
    x = batch(50)
    before = [t.clone() for t in (x, W_enc, W_dec)]

    calibrated_weights(x, W_enc, W_dec, 0.1, True)

    assert all(torch.equal(a, b) for a, b in zip((x, W_enc, W_dec), before, strict=True))


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_tokens_are_refused(n):
    with pytest.raises(ValueError, match=f"at least two tokens in the first batch; got {n}"):
        calibrated_weights(batch(n), *start(), 0.1, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(bad):
    x = batch(10)
    x[2, 3] = bad

    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrated_weights(x, *start(), 0.1, True)
