"""The hook points of a training step: those that SAELens' architectures fire, and that do what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor

from bae_lens import TrainingTopKTranscoder, TrainingTopKTranscoderConfig
from bae_lens.architectures.packed_rows import unpack_rows
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    D_SAE,
    LENGTH,
    N_CODES,
    grad_of,
    make_activations,
    make_pairs,
    make_rows,
    make_training_bae,
    make_training_clvq,
    metric,
    train_step,
)

ACTS, RECONS = "hook_sae_acts_post", "hook_sae_recons"
HOOKS = ("hook_sae_input", "hook_sae_acts_pre", ACTS, RECONS)


def make_topk(**overrides: Any) -> TrainingTopKTranscoder:
    cfg = TrainingTopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=5, **overrides)
    torch.manual_seed(0)
    sae = TrainingTopKTranscoder(cfg)
    sae.calibrate(make_rows(300 // LENGTH * LENGTH, seed=4, masked=False))
    return sae


MAKE: dict[str, Callable[[], Any]] = {
    "bae": make_training_bae,
    "topk": make_topk,
    "topk_sparse": lambda: make_topk(
        use_sparse_activations=True, rescale_acts_by_decoder_norm=False
    ),
    "clvq_token": lambda: make_training_clvq(decoder="token", top_k=5, temperature=1.0),
    "clvq_transformer": lambda: make_training_clvq(decoder="transformer", top_k=5, temperature=1.0),
    "clvq_predictive": lambda: make_training_clvq(
        decoder="token", encoder="predictive", predictor_hidden=20, top_k=5, temperature=1.0
    ),
    "clvq_leaky": lambda: make_training_clvq(decoder="transformer", decoder_memory="encoder"),
}
ACROSS = [name for name in MAKE if name != "bae"]


def rows_for(name: str) -> Tensor:
    return make_activations(BATCH) if name == "bae" else make_rows()


def step(sae: TrainingSAE[Any], rows: Tensor) -> TrainStepOutput:
    """With the same draws each time."""
    torch.manual_seed(1)
    return train_step(sae, rows)


def state_after(sae: TrainingSAE[Any], output: TrainStepOutput) -> dict[str, Tensor]:
    """Everything that a step leaves: what it returns, gradients, buffers."""
    output.loss.backward()
    left = {name: getattr(output, name) for name in ("sae_in", "sae_out", "feature_acts", "loss")}
    left |= {f"grad {name}": grad_of(weight) for name, weight in sae.named_parameters()}
    left |= {f"loss {name}": loss for name, loss in output.losses.items()}
    return left | dict(sae.named_buffers())


@pytest.mark.parametrize("name", MAKE)
def test_they_fire_in_saelens_order_with_its_shapes(name):
    sae, seen = MAKE[name](), []
    hooks = [
        (point, lambda value, hook: seen.append((hook.name, tuple(value.shape))))
        for point in sae.hook_dict
    ]
    with sae.hooks(fwd_hooks=hooks):
        step(sae, rows_for(name))
    widths = (D_IN, sae.cfg.d_sae, sae.cfg.d_sae, D_IN if name == "bae" else D_OUT)
    assert seen == [(hook, (BATCH, width)) for hook, width in zip(HOOKS, widths, strict=True)]


# SAELens makes sparse activations dense for a hook, which sums in another order.
@pytest.mark.parametrize("name", [name for name in MAKE if name != "topk_sparse"])
def test_who_looks_changes_nothing(name):
    plain, watched = MAKE[name](), MAKE[name]()
    expected = state_after(plain, step(plain, rows_for(name)))
    cache, fwd, _ = watched.get_caching_hooks()
    with watched.hooks(fwd_hooks=fwd):
        actual = state_after(watched, step(watched, rows_for(name)))
    assert cache.keys() == set(HOOKS)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if (name, key) == ("bae", "grad b_dec"):
            # Summed in another order where a hook at the input might bring in a gradient.
            torch.testing.assert_close(actual[key], value)
        else:
            assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("name", ["topk", "clvq_token", "clvq_transformer", "clvq_predictive"])
def test_who_looks_under_autocast_changes_nothing(name):
    outputs = []
    for looks in (False, True):
        sae = MAKE[name]()
        _, fwd, _ = sae.get_caching_hooks()
        with torch.autocast("cpu", torch.bfloat16), sae.hooks(fwd_hooks=fwd if looks else []):
            outputs.append(step(sae, rows_for(name)))
    plain, watched = outputs
    assert torch.equal(watched.sae_out, plain.sae_out)
    assert torch.equal(watched.loss, plain.loss)


# SAELens' hook point cannot hand a sparse tensor to a backward hook.
@pytest.mark.parametrize("name", [name for name in MAKE if name != "topk_sparse"])
def test_looking_at_gradients_changes_none(name):
    plain, watched = MAKE[name](), MAKE[name]()
    expected = state_after(plain, step(plain, rows_for(name)))
    cache, fwd, bwd = watched.get_caching_hooks(incl_bwd=True)
    with watched.hooks(fwd_hooks=fwd, bwd_hooks=bwd):
        actual = state_after(watched, step(watched, rows_for(name)))
    # The input of the step has no gradient, in SAELens' architectures neither.
    assert cache.keys() == set(HOOKS) | {f"{hook}_grad" for hook in HOOKS[1:]}
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-5, msg=key)


def decode(sae: Any, acts: Tensor) -> Tensor:
    """By the class itself, whole sequences for those that decode them."""
    if getattr(sae.cfg, "decoder", None) == "transformer":
        return sae.decode(acts.reshape(-1, LENGTH, acts.shape[-1])).reshape(len(acts), -1)
    return sae.decode(acts)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", [name for name in MAKE if name != "clvq_leaky"])
def test_what_a_hook_makes_of_the_activations_is_decoded(name, in_place):
    sae, rows, put = MAKE[name](), rows_for(name), []
    latent = int((step(sae, rows).feature_acts != 0).sum(0).argmax())
    sae = MAKE[name]()

    def ablate(acts: Tensor, hook: Any) -> Tensor:
        changed = acts if in_place else acts.clone()
        changed[:, latent] = 0
        put.append(changed.detach().clone())
        return changed

    with sae.hooks(fwd_hooks=[(ACTS, ablate)]):
        output = step(sae, rows)
    valid = torch.ones(BATCH, dtype=torch.bool)
    if name != "bae":
        valid = unpack_rows(rows, D_IN, D_OUT).valid
    expected = decode(MAKE[name](), put[0])
    torch.testing.assert_close(output.sae_out[valid], expected[valid], rtol=1e-4, atol=1e-4)
    assert not output.feature_acts[:, latent].any()
    assert output.feature_acts.any()
    assert not torch.allclose(output.sae_out, step(MAKE[name](), rows).sae_out)


@pytest.mark.parametrize("name", ACROSS)
def test_what_a_hook_makes_of_the_reconstruction_is_scored(name):
    sae, rows = MAKE[name](), rows_for(name)
    _, upper, valid = unpack_rows(rows, D_IN, D_OUT)
    seen = []

    def halve(recons: Tensor, hook: Any) -> Tensor:
        seen.append(recons)
        return recons / 2

    with sae.hooks(fwd_hooks=[(RECONS, halve)]):
        output = step(sae, rows)
    assert not seen[0][~valid].any()
    half = seen[0][valid] / 2
    torch.testing.assert_close(output.sae_out[valid], half, rtol=1e-5, atol=1e-5)
    expected = ((half - upper[valid]) / sae.target_scale).square().sum() / valid.sum()
    torch.testing.assert_close(output.losses["mse_loss"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["clvq_token", "clvq_transformer", "clvq_predictive"])
def test_a_code_can_be_forbidden_by_its_distance(name):
    sae, rows = MAKE[name](), rows_for(name)
    code = int(step(sae, rows).feature_acts.sum(0).argmax())
    sae = MAKE[name]()

    def forbid(pre: Tensor, hook: Any) -> Tensor:
        pre[:, code] = -torch.inf
        return pre

    cache, fwd, _ = sae.get_caching_hooks([ACTS])
    with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", forbid), *fwd]):
        output = step(sae, rows)
    assert not output.feature_acts[:, code].any()
    assert not cache[ACTS][:, code].any()
    assert output.loss.isfinite()
    valid = unpack_rows(rows, D_IN, D_OUT).valid
    assert torch.equal(output.feature_acts.sum(1), valid.float())


@pytest.mark.parametrize("name", ["topk", "clvq_token", "clvq_transformer", "clvq_predictive"])
def test_the_gradient_at_the_activations_is_that_of_the_loss(name):
    sae, rows = MAKE[name](), rows_for(name)
    cache, fwd, bwd = sae.get_caching_hooks([ACTS, RECONS], incl_bwd=True)
    with sae.hooks(fwd_hooks=fwd, bwd_hooks=bwd):
        output = step(sae, rows)
        output.losses["mse_loss"].backward()
    _, upper, valid = unpack_rows(rows, D_IN, D_OUT)
    acts = cache[ACTS].detach().requires_grad_()
    # With the codes before the step, which moved them.
    recons = decode(MAKE[name](), acts)
    recons.retain_grad()
    error = (recons - upper)[valid] / sae.target_scale
    (error.square().sum() / valid.sum()).backward()
    for key, expected in ((f"{RECONS}_grad", recons.grad), (f"{ACTS}_grad", acts.grad)):
        assert expected is not None
        torch.testing.assert_close(cache[key][valid], expected[valid], rtol=1e-3, atol=1e-5)
    assert (cache[f"{ACTS}_grad"][valid] != 0).float().mean() > 0.99


def test_a_token_that_a_hook_leaves_without_a_code_decodes_to_zero():
    sae, rows = MAKE["clvq_transformer"](), make_rows(masked=False)

    def drop(acts: Tensor, hook: Any) -> Tensor:
        acts[3] = 0
        return acts

    with sae.hooks(fwd_hooks=[(ACTS, drop)]):
        output = step(sae, rows)
    assert output.sae_out[3].abs().max() < 1e-5
    assert output.sae_out[2].abs().max() > 1e-2
    assert not output.feature_acts[3].any()


def test_drawn_codes_pass_the_hook_and_nearest_ones_are_counted():
    sae, rows = MAKE["clvq_token"](), make_rows(masked=False)
    cache, fwd, _ = sae.get_caching_hooks([ACTS])
    with sae.hooks(fwd_hooks=fwd):
        output = step(sae, rows)
    lower, _ = make_pairs(BATCH)
    nearest = MAKE["clvq_token"]().code_indices(lower)
    assert torch.equal(output.feature_acts.argmax(1), nearest)
    differs = (cache[ACTS].argmax(1) != nearest).float().mean()
    assert differs == metric(output, "drawn_off_nearest") > 0.1
    assert torch.equal(cache[ACTS].sum(1), torch.ones(BATCH))
    assert cache[ACTS].shape == (BATCH, N_CODES)
