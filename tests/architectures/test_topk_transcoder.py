"""The TopK transcoder: its training step, and what SAELens asks of an architecture."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TrainingSAE, registry
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.saes.transcoder import Transcoder
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from torch import Tensor

from bae_lens import (
    TopKTranscoder,
    TopKTranscoderConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
    attached,
)
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    D_SAE,
    HOOK,
    HOOK_OUT,
    batches_of,
    grad_of,
    make_bridge,
    make_model,
    make_pairs,
    make_rows,
    make_tokens,
    metric,
    step_input,
    train_step,
    trainer_cfg,
)

K = 5
UNITS = ("input_mean", "input_scale", "target_mean", "target_scale")
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
WIDTHS = [D_IN, D_OUT]
RESCALE = [True, False]
# Rescaling and sparse activations: SAELens' own TopK cannot have both (torch 2.13, on the CPU).
STEPS = [(True, False), (False, False), (False, True)]
BOS = 0


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def topk_cfg(**overrides: Any) -> TrainingTopKTranscoderConfig:
    return TrainingTopKTranscoderConfig(
        **{"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "k": K, **overrides}
    )


def make_sae(**overrides: Any) -> TrainingTopKTranscoder:
    """Every weight random, decoder norms and units far from one."""
    sae = TrainingTopKTranscoder(topk_cfg(**overrides))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight, scale in ((sae.W_enc, 0.3), (sae.b_enc, 0.5), (sae.b_dec, 0.4)):
            weight.copy_(scale * torch.randn(weight.shape, generator=generator))
        W_dec = torch.randn(sae.W_dec.shape, generator=generator)
        sae.W_dec.copy_(W_dec * torch.linspace(0.05, 2.0, D_SAE)[:, None])
    lower, upper = make_pairs(300, d_out=sae.d_out, seed=4)
    sae.calibrate(pack_rows(5 * lower + 1, 20 * upper - 3))
    return sae


def inputs(n: int = 200) -> Tensor:
    return 5 * make_pairs(n)[0] + 1


def rows_for(sae: TrainingTopKTranscoder, masked: bool = False) -> Tensor:
    rows = make_rows(d_out=sae.d_out, masked=masked)
    lower, upper, valid = unpack_rows(rows, D_IN, sae.d_out)
    return pack_rows(5 * lower + 1, 20 * upper - 3, valid)


def plain(sae: TrainingTopKTranscoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations, activations and output in the model's units, written out."""
    norm = sae.W_dec.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones(D_SAE)
    pre = ((x - sae.input_mean) * sae.input_scale @ sae.W_enc + sae.b_enc) * norm
    kth = pre.sort(dim=-1, descending=True).values[..., K - 1 : K]
    acts = torch.where(pre >= kth, pre.clamp(min=0), 0)
    return pre, acts, acts / norm @ sae.W_dec + sae.b_dec


def with_dead(sae: TrainingTopKTranscoder, rows: Tensor, dead: Tensor | None) -> TrainStepOutput:
    return sae.training_forward_pass(replace(step_input(sae, rows), dead_neuron_mask=dead))


def dead_latents(n: int) -> Tensor:
    return torch.arange(D_SAE) % (D_SAE // n) == 0


def gradients(sae: TrainingTopKTranscoder) -> dict[str, Tensor]:
    return {name: grad_of(getattr(sae, name)) for name in WEIGHTS}


def close(actual: Tensor, expected: Tensor, rel: float = 1e-5) -> None:
    """Equal but for rounding, in terms of the largest value."""
    tolerance = rel * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


# Configuration


def test_both_classes_are_registered():
    expected = (TopKTranscoder, TopKTranscoderConfig)
    training = (TrainingTopKTranscoder, TrainingTopKTranscoderConfig)
    assert registry.SAE_CLASS_REGISTRY["topk_transcoder"] == expected
    assert registry.SAE_TRAINING_CLASS_REGISTRY["topk_transcoder"] == training
    assert issubclass(TopKTranscoder, Transcoder)


def test_a_config_comes_back_from_its_dict():
    cfg = topk_cfg(aux_loss_coefficient=0.5, rescale_acts_by_decoder_norm=False, dtype="bfloat16")
    as_dict = json.loads(json.dumps(cfg.to_dict()))
    assert TrainingTopKTranscoderConfig.from_dict(as_dict) == cfg
    assert type(TrainingSAE.from_dict(as_dict)) is TrainingTopKTranscoder
    own = TopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=7)
    as_dict = json.loads(json.dumps(own.to_dict()))
    assert TopKTranscoderConfig.from_dict(as_dict) == own
    assert type(SAE.from_dict(as_dict)) is TopKTranscoder


def test_the_inference_class_can_be_made_from_a_dict():
    cfg = TopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=7)
    sae = TopKTranscoder.from_dict(cfg.to_dict())
    assert type(sae) is TopKTranscoder
    assert sae.cfg == cfg


@pytest.mark.parametrize(
    ("k", "expected"),
    [(0, "a whole number of at least 1; got 0"), (D_SAE + 1, f"at most d_sae = {D_SAE}; got 41")],
)
def test_k_is_between_one_and_all_latents(k, expected):
    with pytest.raises(ValueError, match=f"k must be {expected}"):
        topk_cfg(k=k)
    with pytest.raises(ValueError, match=f"k must be {expected}"):
        TopKTranscoderConfig(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=k)


def test_without_d_out_both_hook_points_are_of_a_width():
    sae = TrainingTopKTranscoder(topk_cfg(d_out=None))
    assert sae.d_out == D_IN
    assert sae(torch.zeros(3, D_IN)).shape == (3, D_IN)


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("norm", [0.1, 2.0])
def test_decoder_rows_begin_with_the_norm_asked_for(d_out, norm):
    sae = TrainingTopKTranscoder(topk_cfg(d_out=d_out, decoder_init_norm=norm))
    assert {name: tuple(weight.shape) for name, weight in sae.named_parameters()} == {
        "W_enc": (D_IN, D_SAE),
        "b_enc": (D_SAE,),
        "W_dec": (D_SAE, d_out),
        "b_dec": (d_out,),
    }
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((D_SAE,), norm))
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.full((D_SAE,), norm))
    # As SAELens ties them, where that can be.
    assert torch.equal(sae.W_enc, sae.W_dec.T) == (d_out == D_IN)
    assert all(weight.requires_grad and weight.is_leaf for weight in sae.parameters())


# The training step


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize(("rescale", "sparse"), STEPS)
@pytest.mark.parametrize("n_dead", [0, 2, 20])
def test_a_step_is_that_of_a_plain_reference(d_out, rescale, n_dead, sparse):
    options = {"d_out": d_out, "rescale_acts_by_decoder_norm": rescale}
    sae = make_sae(**options, use_sparse_activations=sparse, aux_loss_coefficient=0.7)
    rows = rows_for(sae)
    dead = dead_latents(n_dead) if n_dead else None
    step = with_dead(sae, rows, dead)
    step.loss.backward()

    other = make_sae(**options)
    lower, upper, _ = unpack_rows(rows, D_IN, d_out)
    pre, acts, out = plain(other, lower)
    target = (upper - other.target_mean) / other.target_scale
    expected = (out - target).square().sum(1).mean()
    auxiliary = torch.tensor(0.0)
    if dead is not None:
        # What the living have left over, from the largest of the dead: at most half of the width.
        n = min(d_out // 2, n_dead)
        norm = other.W_dec.norm(dim=1) if rescale else torch.ones(D_SAE)
        dead_pre = pre.masked_fill(~dead, -torch.inf)
        kth = dead_pre.sort(dim=1, descending=True).values[:, n - 1 : n]
        dead_acts = torch.where(dead_pre >= kth, pre, 0)
        residual = (target - out).detach()
        error = (dead_acts / norm @ other.W_dec - residual).square().sum(1).mean()
        auxiliary = 0.7 * min(n_dead / (d_out // 2), 1) * error
        assert error > 0
    (expected + auxiliary).backward()

    assert step.losses.keys() == {"mse_loss", "auxiliary_reconstruction_loss"}
    close(step.losses["mse_loss"], expected)
    close(step.losses["auxiliary_reconstruction_loss"], auxiliary)
    close(step.loss, expected + auxiliary)
    for name, value in gradients(sae).items():
        close(value, gradients(other)[name], 1e-4)
    assert not step.feature_acts.is_sparse
    close(step.feature_acts, acts)
    close(step.sae_in, upper)
    close(step.sae_out, other.to_target(out))
    relative = ((step.sae_out - upper).square().sum(1) / upper.square().sum(1)).mean()
    close(metric(step, "relative_squared_error"), relative)


@pytest.mark.parametrize("n_dead", [0, 4])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e4])
def test_masked_tokens_contribute_nothing(n_dead, junk):
    dead = dead_latents(n_dead) if n_dead else None
    sae, other = make_sae(), make_sae()
    rows = rows_for(sae, masked=True)
    valid = rows[:, -1] > 0
    spoilt = rows.clone()
    spoilt[~valid, :-1] = junk
    step, expected = with_dead(sae, spoilt, dead), with_dead(other, rows[valid], dead)
    step.loss.backward()
    expected.loss.backward()

    for name, value in expected.losses.items():
        close(step.losses[name], value)
    for name, value in gradients(sae).items():
        close(value, gradients(other)[name])
    assert not step.feature_acts[~valid].any()
    close(step.feature_acts[valid], expected.feature_acts)
    close(step.sae_in[valid], expected.sae_in)
    close(step.sae_out[valid], expected.sae_out)
    close(metric(step, "relative_squared_error"), metric(expected, "relative_squared_error"))


def test_a_batch_without_valid_tokens_moves_nothing():
    sae = make_sae()
    lower, upper = make_pairs(16)
    step = with_dead(sae, pack_rows(lower, upper, torch.zeros(16) > 0), dead_latents(4))
    step.loss.backward()
    assert step.loss == 0
    assert not any(grad.any() for grad in gradients(sae).values())


def test_one_hook_point_is_reconstructed_from_itself():
    sae = make_sae(d_out=D_IN)
    x = inputs(BATCH)
    alone, both = train_step(sae, x), train_step(sae, pack_rows(x, x))
    assert torch.equal(alone.loss, both.loss)
    assert torch.equal(alone.sae_in, x)


def test_a_batch_of_another_width_is_refused():
    with pytest.raises(ValueError, match=rf"d_in \+ d_out \+ 1 = {D_IN + D_OUT + 1}\]"):
        train_step(make_sae(), torch.zeros(4, D_IN))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("k", [1, K, D_SAE])
def test_exactly_k_latents_fire(tmp_path, is_training, k):
    sae: SAE[Any] = make_sae(k=k)
    with torch.no_grad():
        sae.b_enc.add_(1000)  # every pre-activation is positive
    if not is_training:
        sae.save_inference_model(tmp_path)  # pyright: ignore[reportCallIssue]
        sae = SAE.load_from_disk(tmp_path)
    assert ((sae.encode(inputs()) > 0).sum(-1) == k).all()


def test_of_the_k_largest_only_positive_ones_fire():
    sae = make_sae()
    with torch.no_grad():
        sae.b_enc.sub_(1000)
    assert not sae.encode(inputs()).any()


@pytest.mark.parametrize(("rescale", "sparse"), STEPS)
def test_it_trains_on_saelens_trainer(rescale, sparse):
    # Few directions at the lower hook point, each with one of its own at the upper.
    directions = torch.randn(2 * D_IN, D_OUT)
    on = (torch.rand(40 * BATCH, 2 * D_IN) < 0.06).float()
    lower = 3 * on @ torch.nn.functional.normalize(torch.randn(2 * D_IN, D_IN), dim=1) + 4
    rows = pack_rows(lower, 50 * on @ directions - 9)
    sae = TrainingTopKTranscoder(
        topk_cfg(use_sparse_activations=sparse, rescale_acts_by_decoder_norm=rescale)
    )
    sae.calibrate(rows)
    cfg = trainer_cfg(300, lr=1e-2, dead_feature_window=20)
    losses: list[float] = []
    trainer = SAETrainer(cfg, sae, batches_of(rows))
    take_step = trainer.step

    def step(batch: Tensor) -> TrainStepOutput:
        output = take_step(batch)
        losses.append(output.losses["mse_loss"].item())
        return output

    trainer.step = step
    trainer.fit()
    assert losses[0] > 0.8 * D_OUT
    assert sum(losses[-20:]) / 20 < 0.25 * D_OUT


def test_dead_latents_are_brought_back_by_the_auxiliary_loss():
    rows = rows_for(make_sae())
    fired = {}
    for coefficient in (0.0, 1.0):
        sae = make_sae(aux_loss_coefficient=coefficient)
        with torch.no_grad():
            sae.b_enc[::2] -= 4
        cfg = trainer_cfg(150, lr=1e-2, dead_feature_window=10)
        SAETrainer(cfg, sae, batches_of(rows)).fit()
        fired[coefficient] = int((sae.encode(rows[:, :D_IN])[:, ::2] > 0).any(0).sum())
    assert fired[1.0] > fired[0.0] + 3


# Units


def test_calibration_sets_the_units_and_leaves_the_weights_alone():
    sae = TrainingTopKTranscoder(topk_cfg())
    before = {name: getattr(sae, name).detach().clone() for name in WEIGHTS}
    rows = rows_for(sae)
    sae.calibrate(rows)
    lower, upper, _ = unpack_rows(rows, D_IN, D_OUT)
    assert sae.is_calibrated
    torch.testing.assert_close(sae.input_mean, lower.mean(0))
    torch.testing.assert_close(sae.target_mean, upper.mean(0))
    torch.testing.assert_close(
        sae.input_scale, D_IN**0.5 / (lower - lower.mean(0)).norm(dim=1).mean()
    )
    torch.testing.assert_close(sae.target_scale, (upper - upper.mean(0)).square().mean().sqrt())
    assert all(torch.equal(getattr(sae, name), before[name]) for name in WEIGHTS)


def test_a_step_does_not_know_the_units_of_its_data():
    # The same tokens in other units, and calibrated on them, give the same step.
    lower, upper = make_pairs(BATCH)
    steps = []
    for a, b in ((1.0, 0.0), (30.0, -7.0), (0.01, 2.0)):
        torch.manual_seed(0)
        sae = TrainingTopKTranscoder(topk_cfg())
        rows = pack_rows(a * lower + b, upper / a - b)
        sae.calibrate(rows)
        steps.append(train_step(sae, rows).loss)
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(steps[2], steps[0], rtol=1e-3, atol=0)


# Files


def save(sae: TrainingTopKTranscoder, folder: Path, kind: str) -> Path:
    """An inference file, or a checkpoint that is then loaded as one."""
    (sae.save_inference_model if kind == "inference" else sae.save_model)(folder)
    return folder


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("kind", ["inference", "checkpoint"])
def test_inference_gives_what_training_gave(tmp_path, d_out, rescale, kind):
    sae = make_sae(d_out=d_out, rescale_acts_by_decoder_norm=rescale)
    loaded = SAE.load_from_disk(save(sae, tmp_path, kind))
    assert type(loaded) is TopKTranscoder
    assert (loaded.d_out, loaded.cfg.k) == (d_out, K)
    assert loaded.state_dict().keys() == set(WEIGHTS)
    x = inputs()
    acts = sae.encode(x)
    assert not torch.allclose(sae(x[:1]), sae(x[1:2]), rtol=0.1)
    close(loaded.encode(x), acts)
    close(loaded(x), sae(x))
    close(loaded.decode(acts), sae.decode(acts))
    close(loaded(x.reshape(4, -1, D_IN)), sae(x).reshape(4, -1, d_out))
    close(loaded(x[0]), sae(x)[0])


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("kind", ["inference", "checkpoint"])
def test_in_bfloat16_inference_is_no_worse_than_training(tmp_path, d_out, rescale, kind):
    options = {"d_out": d_out, "rescale_acts_by_decoder_norm": rescale}
    half = make_sae(**options, dtype="bfloat16")
    exact = make_sae(**options)
    with torch.no_grad():
        for name in WEIGHTS:
            getattr(exact, name).copy_(getattr(half, name))
    loaded = SAE.load_from_disk(save(half, tmp_path, kind))
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
    x = inputs()
    expected = exact(x)
    assert loaded(x).dtype == half(x).dtype == torch.bfloat16
    of_training = relative_error(half(x), expected)
    assert of_training < 0.1
    # Its units are in weights that were rounded once more.
    assert relative_error(loaded(x), expected) < 0.1


@pytest.mark.parametrize("kind", ["inference", "checkpoint"])
def test_a_file_can_be_loaded_in_another_dtype(tmp_path, kind):
    sae = make_sae()
    loaded = SAE.load_from_disk(save(sae, tmp_path, kind), dtype="float64")
    assert loaded(inputs()).dtype == torch.float64
    close(loaded(inputs()).float(), sae(inputs()))


def test_an_inference_file_is_a_transcoders_and_holds_nothing_of_training(tmp_path):
    weights, cfg_path = make_sae().save_inference_model(tmp_path)
    assert load_file(weights).keys() == set(WEIGHTS)
    cfg = json.loads(cfg_path.read_text())
    names = {field.name for field in fields(TopKTranscoderConfig)}
    assert cfg.keys() == names | {"architecture"}
    assert (cfg["architecture"], cfg["d_out"], cfg["k"]) == ("topk_transcoder", D_OUT, K)
    details = cfg["metadata"]["training_architecture_details"]
    assert details["rescale_acts_by_decoder_norm"]


def test_saving_for_inference_leaves_the_training_sae_as_it_was(tmp_path):
    sae = make_sae()
    before = copy.deepcopy(sae.state_dict())
    sae.save_inference_model(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


@pytest.mark.parametrize("rescale", RESCALE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_is_whole(tmp_path, rescale, dtype):
    sae = make_sae(rescale_acts_by_decoder_norm=rescale, dtype=dtype)
    sae.save_model(tmp_path)
    resumed = TrainingTopKTranscoder(sae.cfg)
    resumed.load_weights_from_checkpoint(tmp_path)
    state = resumed.state_dict()
    assert state.keys() == sae.state_dict().keys() == {*WEIGHTS, *UNITS}
    assert all(torch.equal(state[name], value) for name, value in sae.state_dict().items())
    assert {state[name].dtype for name in UNITS} == {torch.float32}


@pytest.mark.parametrize("rescale", RESCALE)
def test_a_checkpoint_can_be_trained_on(tmp_path, rescale):
    sae = make_sae(rescale_acts_by_decoder_norm=rescale)
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path)
    assert type(loaded) is TrainingTopKTranscoder
    assert loaded.cfg == sae.cfg
    rows = rows_for(sae)
    assert torch.equal(train_step(loaded, rows).loss, train_step(sae, rows).loss)


def test_a_loaded_checkpoint_knows_that_its_units_are_set(tmp_path):
    # Else CrossLayerTrainingRunner would set them once more under trained weights.
    make_sae().save_model(tmp_path)
    loaded: Any = TrainingSAE.load_from_disk(tmp_path)
    assert loaded.is_calibrated
    fresh = TrainingTopKTranscoder(topk_cfg())
    fresh.load_weights_from_checkpoint(tmp_path)
    assert fresh.is_calibrated


def assert_trains_on_from(sae: TrainingTopKTranscoder, loaded: Any) -> None:
    """Outputs are the same, and a step is taken from there: in the activations' own units."""
    assert type(loaded) is TrainingTopKTranscoder
    x, rows = inputs(), rows_for(sae)
    close(loaded(x), sae(x))
    assert torch.equal(loaded.encode(x) > 0, sae.encode(x) > 0)
    step = train_step(loaded, rows)
    close(step.sae_out, train_step(sae, rows).sae_out)
    close(step.losses["mse_loss"], (step.sae_out - step.sae_in).square().sum(1).mean())
    step.loss.backward()
    assert all(grad.isfinite().all() and grad.any() for grad in gradients(loaded).values())


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("rescale", RESCALE)
def test_an_inference_file_can_be_trained_on(tmp_path, d_out, rescale):
    sae = make_sae(d_out=d_out, rescale_acts_by_decoder_norm=rescale)
    sae.save_inference_model(tmp_path)
    assert_trains_on_from(sae, TrainingSAE.load_from_disk(tmp_path))


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("rescale", RESCALE)
def test_weights_of_an_inference_file_can_be_trained_on(tmp_path, d_out, rescale):
    sae = make_sae(d_out=d_out, rescale_acts_by_decoder_norm=rescale)
    sae.save_inference_model(tmp_path)
    # Its own units are replaced, too.
    fresh = make_sae(d_out=d_out, rescale_acts_by_decoder_norm=rescale)
    fresh.load_weights_from_checkpoint(tmp_path)
    assert_trains_on_from(sae, fresh)


# Folding


@pytest.mark.parametrize("d_out", WIDTHS)
@pytest.mark.parametrize("factor", [0.1, 3.7])
@pytest.mark.parametrize("kind", ["training", "inference"])
def test_folding_the_activation_norm_scaling_factor_is_exact(tmp_path, d_out, factor, kind):
    options = {"normalize_activations": "expected_average_only_in"}
    sae: SAE[Any] = make_sae(d_out=d_out, **options)
    if kind == "inference":
        sae.save_inference_model(tmp_path)  # pyright: ignore[reportCallIssue]
        sae = SAE.load_from_disk(tmp_path)
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    x = inputs()
    assert folded.cfg.normalize_activations == "none"
    close(folded.encode(x / factor), sae.encode(x))
    close(folded(x / factor) * factor, sae(x))


def test_folding_decoder_norms_is_exact_where_they_are_rescaled_anyway():
    sae = make_sae()
    folded = copy.deepcopy(sae)
    folded.fold_W_dec_norm()
    close(folded.W_dec.norm(dim=1), torch.ones(D_SAE))
    close(folded.encode(inputs()), sae.encode(inputs()))
    close(folded(inputs()), sae(inputs()))


def test_folding_decoder_norms_is_refused_where_it_would_change_the_choice(tmp_path):
    sae = make_sae(rescale_acts_by_decoder_norm=False)
    for fold in (sae.fold_W_dec_norm, sae.fold_and_get_W_dec_norm):
        with pytest.raises(NotImplementedError, match="which latents are among the k largest"):
            fold()
    sae.save_inference_model(tmp_path)
    with pytest.raises(NotImplementedError, match="which latents are among the k largest"):
        SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)


@pytest.mark.parametrize("d_out", [D_OUT, D_IN])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_that_saved_decoder_rows_share_is_folded_exactly(tmp_path, d_out, dtype):
    sae = make_sae(d_out=d_out)
    sae.save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path, dtype=str(dtype).removeprefix("torch."))
    norm = sae.W_dec.norm(dim=1).mean()
    assert norm > 5  # target_scale
    folded = copy.deepcopy(sae)
    norms = folded.fold_and_get_W_dec_norm()
    # That of the file is float32's.
    rounding = 10 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(norms, norm.expand(D_SAE), rtol=rounding, atol=0)
    torch.testing.assert_close(
        folded.W_dec.norm(dim=1), torch.ones(D_SAE, dtype=dtype), rtol=rounding, atol=0
    )
    x = inputs().to(dtype)
    if dtype is not torch.bfloat16:
        assert torch.equal(folded.encode(x) > 0, sae.encode(x) > 0)
        close(folded.encode(x), sae.encode(x) * norm)
    assert relative_error(folded(x), sae(x)) < 2 * rounding
    loaded = SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)
    close(loaded.W_dec.norm(dim=1), torch.ones(D_SAE))


@torch.no_grad()
def test_a_decoder_row_of_zeros_keeps_no_other_from_being_folded(tmp_path):
    make_sae().save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    sae.W_dec[3] = 0
    expected = sae(inputs())
    sae.fold_W_dec_norm()
    close(sae(inputs()), expected)
    assert all(weight.isfinite().all() for weight in sae.parameters())
    close(sae.W_dec.norm(dim=1), (torch.arange(D_SAE) != 3).float())


# Use


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_hooks_have_the_values_they_are_named_after(tmp_path, kind):
    sae: Any = make_sae()
    if kind == "inference":
        sae.save_inference_model(tmp_path)
        sae = SAE.load_from_disk(tmp_path)
    x = inputs()
    out, cache = sae.run_with_cache(x)
    assert torch.equal(cache["hook_sae_input"], x)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    close(cache["hook_sae_recons"], out)
    assert torch.equal(cache["hook_sae_output"], out)


def test_a_latent_can_be_ablated_by_its_hook(tmp_path):
    make_sae().save_inference_model(tmp_path)
    sae = SAE.load_from_disk(tmp_path)
    x = inputs()
    acts = sae.encode(x)
    latent = int((acts > 0).sum(0).argmax())

    def ablate(value: Tensor, hook: Any) -> Tensor:
        value[..., latent] = 0
        return value

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", ablate)])
    close(out, sae(x) - acts[:, [latent]] * sae.W_dec[latent])


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_alone_it_does_not_know_what_it_missed(tmp_path, kind):
    # The error is of the upper hook point, and there is only the lower here.
    sae: Any = make_sae(d_out=D_IN)
    if kind == "inference":
        sae.save_inference_model(tmp_path)
        sae = SAE.load_from_disk(tmp_path)
    sae.use_error_term = True
    with pytest.raises(ValueError, match="attached"):
        sae(inputs())


@pytest.mark.parametrize(
    "option", [{"reshape_activations": "hook_z"}, {"normalize_activations": "layer_norm"}]
)
def test_what_it_would_ignore_is_refused_for_inference_too(option):
    for kind in (TopKTranscoderConfig, TrainingTopKTranscoderConfig):
        with pytest.raises(ValueError, match=f"set {next(iter(option))}"):
            kind(d_in=D_IN, d_sae=D_SAE, d_out=D_OUT, k=3, **option)


def at_hooks(sae: TrainingTopKTranscoder, hook: str, hook_out: str, folder: Path) -> SAE[Any]:
    """The inference SAE with these hook points."""
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = hook, hook_out
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


@pytest.mark.parametrize(
    ("hook_out", "d_out"), [(HOOK_OUT, D_IN), ("blocks.1.mlp.hook_post", 2 * D_IN)]
)
@pytest.mark.parametrize("use_error_term", [True, False])
def test_saelens_runs_it_in_a_model(tmp_path, hook_out, d_out, use_error_term):
    model: Any = make_model()
    tokens = make_tokens()
    logits, cache = model.run_with_cache(tokens)
    sae = at_hooks(make_sae(d_out=d_out), HOOK, hook_out, tmp_path)
    expected = sae(cache[HOOK])
    model.add_sae(sae, use_error_term=use_error_term)
    with_sae, spliced = model.run_with_cache(tokens)
    model.reset_saes()
    name = f"{hook_out}.hook_sae_output"
    if use_error_term:
        close(with_sae, logits, 1e-4)
        close(spliced[name], cache[hook_out])
        close(spliced[f"{hook_out}.hook_sae_error"], cache[hook_out] - expected)
    else:
        assert relative_error(with_sae, logits) > 0.05
        close(spliced[name], expected)
    assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("kind", ["HookedSAETransformer", "SAETransformerBridge"])
@pytest.mark.parametrize("use_error_term", [True, False])
def test_attached_it_leaves_special_tokens_alone(tmp_path, kind, use_error_term):
    model: Any
    if kind == "HookedSAETransformer":
        model, hooks = make_model(), (HOOK, HOOK_OUT)
    else:
        model, hooks = make_bridge(tmp_path / "gpt2"), ("blocks.0.hook_out", "blocks.1.hook_out")
    tokens = make_tokens()
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
        sae = at_hooks(make_sae(d_out=D_IN), *hooks, tmp_path / "sae")
        expected = torch.where((tokens == BOS)[..., None], cache[hooks[1]], sae(cache[hooks[0]]))
        with attached(model, sae, use_error_term=use_error_term):
            with_sae, spliced = model.run_with_cache(tokens)
    out = spliced[f"{hooks[1]}.hook_sae_output"]
    close(out, cache[hooks[1]] if use_error_term else expected)
    if use_error_term:
        close(with_sae, logits, 1e-4)
    else:
        assert relative_error(with_sae, logits) > 0.05
    close(model(tokens), logits, 1e-4)
