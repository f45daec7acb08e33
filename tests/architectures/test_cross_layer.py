"""What architectures of two hook points share: units, mask, refused options, what is logged."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from sae_lens import SAE, SAEConfig, TrainingSAE
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import (
    TrainingCLVQVAE,
    TrainingCLVQVAEConfig,
    TrainingTopKTranscoder,
    TrainingTopKTranscoderConfig,
)
from bae_lens.architectures.cross_layer import count_and_mean, masked, target_and_output
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.helpers import (
    BATCH,
    D_IN,
    D_OUT,
    D_SAE,
    clvq_cfg,
    make_activations,
    make_pairs,
    make_rows,
    make_valid,
    trainer_cfg,
)

CONFIGS: list[type[Any]] = [TrainingCLVQVAEConfig, TrainingTopKTranscoderConfig]
UNITS = ("input_mean", "input_scale", "target_mean", "target_scale")


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def make_clvq_sae(**overrides: Any) -> TrainingCLVQVAE:
    return TrainingCLVQVAE(clvq_cfg(**overrides))


def make_topk_sae(**overrides: Any) -> TrainingTopKTranscoder:
    cfg = {"d_in": D_IN, "d_sae": D_SAE, "d_out": D_OUT, "k": 5, **overrides}
    return TrainingTopKTranscoder(TrainingTopKTranscoderConfig(**cfg))


MAKERS = [make_clvq_sae, make_topk_sae]


def far_rows(n: int = 4 * BATCH, masked: bool = False) -> Tensor:
    """Two hook points that are far off the origin and of very different length."""
    lower, upper = make_pairs(n, seed=3)
    return pack_rows(40 * lower + 7, 0.01 * upper - 3, make_valid(n) if masked else None)


def units(sae: Any) -> dict[str, Tensor]:
    return {name: getattr(sae, name) for name in UNITS}


# Units


@pytest.mark.parametrize("make", MAKERS)
def test_the_units_center_and_scale_both_hook_points(make):
    sae = make()
    rows = far_rows()
    lower, upper, _ = unpack_rows(rows, D_IN, D_OUT)
    sae.fit_units(rows)
    x = sae.process_sae_in(lower)
    torch.testing.assert_close(x.mean(0), torch.zeros(D_IN), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.norm(dim=1).mean(), torch.tensor(D_IN**0.5))
    y = (upper - sae.target_mean) / sae.target_scale
    torch.testing.assert_close(y.mean(0), torch.zeros(D_OUT), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(sae.to_target(y), upper)


def test_before_that_they_are_those_of_the_activations():
    sae = make_topk_sae()
    x, y = make_pairs(5)
    assert torch.equal(sae.process_sae_in(x), x)
    assert torch.equal(sae.to_target(y), y)
    assert not sae.is_calibrated


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e6, 0.0])
def test_what_the_mask_excludes_is_not_measured(make, junk):
    rows = far_rows(masked=True)
    valid = rows[:, -1] > 0
    expected = make()
    known = expected.fit_units(rows[valid])
    spoilt = rows.clone()
    spoilt[~valid, :-1] = junk
    sae = make()
    tokens = sae.fit_units(spoilt)
    assert all(torch.equal(a, b) for a, b in zip(tokens, known, strict=True))
    assert tokens.valid.all()
    torch.testing.assert_close(units(sae), units(expected))


def test_of_one_hook_point_both_are_the_same():
    sae = make_topk_sae(d_out=D_IN)
    x = make_activations(100, offset=2.0)
    sae.fit_units(x)
    assert torch.equal(sae.input_mean, sae.target_mean)
    torch.testing.assert_close(sae.input_mean, x.mean(0))


def test_constant_activations_keep_their_scale():
    sae = make_topk_sae()
    sae.fit_units(pack_rows(torch.full((9, D_IN), 2.0), torch.full((9, D_OUT), -1.0)))
    assert (sae.input_scale, sae.target_scale) == (1, 1)
    assert sae.process_sae_in(torch.full((2, D_IN), 2.0)).abs().max() == 0


@pytest.mark.parametrize("n_valid", [0, 1])
def test_units_need_two_tokens(n_valid):
    lower, upper = make_pairs(8)
    rows = pack_rows(lower, upper, torch.arange(8) < n_valid)
    sae = make_topk_sae()
    with pytest.raises(ValueError, match=f"at least two valid tokens; the batch has {n_valid}"):
        sae.calibrate(rows)
    assert not sae.is_calibrated


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, D_IN])
def test_activations_that_are_no_numbers_are_refused(value, column):
    rows = make_rows(masked=False)
    rows[3, column] = value
    sae = make_topk_sae()
    with pytest.raises(ValueError, match="NaN or infinite"):
        sae.fit_units(rows)
    assert torch.equal(sae.input_mean, torch.zeros(D_IN))


@pytest.mark.parametrize("make", MAKERS)
def test_an_input_of_another_width_is_refused(make):
    with pytest.raises(ValueError, match=rf"d_in = {D_IN}\]; got shape \(3, {D_OUT}\)"):
        make().encode(torch.zeros(3, D_OUT))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float64])
def test_a_cast_leaves_the_units_in_float32_to_the_last_bit(make, cast):
    sae = make()
    sae.fit_units(far_rows())
    before = copy.deepcopy(units(sae))
    sae.to(cast)
    after = units(sae)
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(after[name], before[name]) for name in UNITS)
    assert sae(far_rows()[:5, :D_IN]).dtype == cast
    assert set(UNITS) <= sae.state_dict().keys()


@pytest.mark.parametrize("make", MAKERS)
def test_units_can_be_moved_and_made_without_memory(make):
    sae = make(device="meta")
    assert all(value.is_meta for value in units(sae).values())
    moved = make().to("meta")
    assert all(value.is_meta and value.dtype == torch.float32 for value in units(moved).values())


# Folding


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("factor", [0.03, 3.7])
def test_folding_the_activation_norm_scaling_factor_is_exact(make, factor):
    sae = make(normalize_activations="expected_average_only_in").eval()
    sae.calibrate(far_rows())
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    x = far_rows()[:100, :D_IN]
    assert folded.cfg.normalize_activations == "none"
    torch.testing.assert_close(folded.encode(x / factor), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded(x / factor) * factor, sae(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(folded(x), sae(x))


@pytest.mark.parametrize("make", MAKERS)
def test_a_whitening_is_refused(make):
    sae = make()
    with pytest.raises(NotImplementedError, match=f"{sae.cfg.architecture()} centers and scales"):
        sae.fold_activation_whitening(torch.zeros(D_IN), torch.eye(D_IN), torch.eye(D_IN))


# Options


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("apply_b_dec_to_input", True, "apply_b_dec_to_input must be False"),
        ("normalize_activations", "layer_norm", "'none' .*; got 'layer_norm'"),
        ("normalize_activations", "constant_norm_rescale", "got 'constant_norm_rescale'"),
        ("normalize_activations", "covariance_whitening", "got 'covariance_whitening'"),
        ("reshape_activations", "hook_z", "cannot reshape heads.*got 'hook_z'"),
        ("d_out", 0, "d_out must be a whole number of at least 1 or None; got 0"),
    ],
)
def test_options_without_a_meaning_between_two_hook_points_are_refused(
    config, field, value, message
):
    with pytest.raises(ValueError, match=message):
        config(**{"d_in": 4, "d_sae": 200, field: value})


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("d_out", "width"), [(None, 4), (4, 4), (1, 1), (9, 9)])
def test_the_higher_hook_point_is_as_wide_as_the_lower_unless_told(config, d_out, width):
    cfg = config(d_in=4, d_sae=200, d_out=d_out)
    assert config.from_dict(cfg.to_dict()) == cfg
    sae: Any = TrainingSAE.from_dict(cfg.to_dict())
    assert sae.d_out == width
    assert sae(torch.zeros(2, 4)).shape == (2, width)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("d_out", "width"), [(None, 4), (9, 9)])
def test_files_have_the_width_as_a_number(tmp_path, config, d_out, width):
    cfg = config(d_in=4, d_sae=200, d_out=d_out)
    for_inference = cfg.get_inference_sae_cfg_dict()
    assert for_inference["d_out"] == width
    assert SAEConfig.from_dict(for_inference).to_dict() == for_inference

    sae: Any = TrainingSAE.from_dict(cfg.to_dict())
    expected, path = sae(torch.ones(2, 4)), tmp_path / "cfg.json"
    for save in (sae.save_model, sae.save_inference_model):
        save(tmp_path)
        written = json.loads(path.read_text())
        assert written["d_out"] == width
        # As the files of versions before.
        path.write_text(json.dumps(written | {"d_out": d_out}))
        torch.testing.assert_close(SAE.load_from_disk(tmp_path)(torch.ones(2, 4)), expected)
    # The live one stays open, for a d_in that is set later.
    assert sae.cfg.d_out == d_out


# Masks


@pytest.mark.parametrize("junk", [float("nan"), float("-inf"), 3.0])
@pytest.mark.parametrize(
    ("other", "expected"),
    [(0.0, [0.0, 0.0]), (-2.0, [-2.0, -2.0]), (torch.tensor([5.0, 6.0]), [5.0, 6.0])],
)
def test_masked_rows_are_replaced_whatever_stood_there(junk, other, expected):
    x = torch.tensor([[1.0, 2.0], [junk, junk], [3.0, 4.0]])
    valid = torch.tensor([True, False, True])
    assert masked(x, valid, other).tolist() == [[1.0, 2.0], expected, [3.0, 4.0]]


def test_no_gradient_comes_from_masked_rows():
    x = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]], requires_grad=True)
    masked(x, torch.tensor([True, False])).square().sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_a_mask_keeps_the_dtype():
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    assert masked(x, torch.tensor([True, False]), torch.zeros(3)).dtype == torch.bfloat16


# What SAELens logs


def logged(sae_in: Tensor, sae_out: Tensor) -> dict[str, Any]:
    """SAELens' own log of a step with this target and output."""
    trainer = SAETrainer(trainer_cfg(1), make_topk_sae(), iter([]))
    output = TrainStepOutput(
        sae_in=sae_in,
        sae_out=sae_out,
        feature_acts=torch.zeros(len(sae_in), D_SAE),
        hidden_pre=torch.zeros(len(sae_in), D_SAE),
        loss=torch.zeros(()),
        losses={},
    )
    return trainer.build_train_step_log_dict(output, 1)


def described(upper: Tensor, error: Tensor, valid: Tensor):
    return target_and_output(upper, error, valid, *count_and_mean(upper, valid))


@pytest.mark.parametrize("masks", [True, False])
def test_the_explained_variance_is_that_of_the_tokens_that_count(masks):
    _, upper = make_pairs(BATCH)
    valid = make_valid(BATCH) if masks else torch.ones(BATCH, dtype=torch.bool)
    error = 0.3 * make_activations(BATCH, D_OUT, seed=5) * valid[:, None]
    spoilt = upper.clone()
    spoilt[~valid] = float("nan")
    upper = masked(spoilt, valid, 7.0)
    target, out, metrics = described(upper, error, valid)

    y, e = upper[valid], error[valid]
    explained = 1 - e.square().sum() / (y - y.mean(0)).square().sum()
    relative = (e.square().sum(1) / y.square().sum(1)).mean()
    assert logged(target, out)["metrics/explained_variance"] == pytest.approx(explained.item())
    torch.testing.assert_close(metrics["relative_squared_error"](), relative)
    torch.testing.assert_close(target[valid], y)
    torch.testing.assert_close(out[valid], y + e)
    assert torch.equal(target[~valid], out[~valid])


def test_the_log_is_finite_without_any_token_that_counts():
    nothing = torch.zeros(4, D_OUT)
    target, out, metrics = described(nothing, nothing, torch.zeros(4, dtype=torch.bool))
    assert not target.any()
    assert not out.any()
    assert metrics["relative_squared_error"]() == 0


def test_a_target_that_is_zero_is_no_division_by_zero():
    target = torch.zeros(3, D_OUT)
    _, _, metrics = described(target, target, torch.ones(3, dtype=torch.bool))
    assert metrics["relative_squared_error"]() == 0


def test_what_is_logged_has_float32_whatever_the_rows():
    half = make_pairs(8)[1].bfloat16()
    target, out, metrics = described(half, half, torch.ones(8, dtype=torch.bool))
    assert target.dtype == out.dtype == metrics["relative_squared_error"]().dtype == torch.float32
    assert not out.requires_grad
