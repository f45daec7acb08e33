"""What SAELens asks of an architecture, row by row: what is said of the BAE, alone.

README.md has the rows; test_shared.py has what all architectures answer in the same way.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
    registry,
)
from sae_lens.config import LoggingConfig
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner, _parse_cfg_args
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunner, MultiSAETrainingRunnerConfig
from sae_lens.saes.sae import SAEMetadata, TrainCoefficientConfig
from sae_lens.synthetic.synthetic_model import SyntheticModelConfig
from sae_lens.synthetic.synthetic_sae_runner import SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.training import upload_saes_to_huggingface as hf_upload
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import bae_lens
from bae_lens import BAE, BAEConfig, TrainingBAE, TrainingBAEConfig
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.nn import marginal_entropy, off_diagonal_covariance
from tests.conformance.cases import BAE_STATISTICS as STATISTICS
from tests.conformance.cases import trained_bae as trained
from tests.helpers import (
    BATCH,
    CODE,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    HOOK,
    assert_same_code,
    batches_of,
    grad_of,
    levels_of,
    make_activations,
    make_bae,
    make_bridge,
    make_model,
    make_sparse_activations,
    make_text,
    make_tokens,
    make_training_bae,
    metric,
    record_firing_rates,
    runner_cfg,
    step_input,
    train_step,
    trainer_cfg,
    training_cfg,
)

CODE_PARAMETERS = ("threshold_gaps", "level_heights", "feedback_gain")
DTYPES = [torch.float32, torch.int64, torch.float32]
HOOKS = (
    "hook_sae_input",
    "hook_sae_acts_pre",
    "hook_sae_acts_post",
    "hook_sae_recons",
    "hook_sae_error",
    "hook_sae_output",
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(
    autouse=True,
    params=[{}, {"n_levels": 3, "feedback_steps": 2}],
    ids=["one bit", "levels and feedback"],
)
def code(request, monkeypatch):
    """Every row holds for the code that a BAE has by default, and for one of levels with feedback."""
    for name, value in request.param.items():
        monkeypatch.setitem(CODE, name, value)
    return request.param


def assert_exact(sae: SAE[Any], folded: SAE[Any], x: Tensor, to_input=None, to_output=None) -> None:
    """``folded`` on raw ``x`` does what ``sae`` does between ``to_input`` and ``to_output``."""
    with torch.no_grad():
        z = x if to_input is None else to_input(x)
        acts = sae.encode(z)
        pre: Tensor = sae.run_with_cache(z)[1]["hook_sae_acts_pre"]  # type: ignore[assignment]
        out = sae(z) if to_output is None else to_output(sae(z))
        assert 0.1 < (acts != 0).float().mean() < 0.9
        assert_same_code((acts != 0, out, pre), (folded.encode(x) != 0, folded(x)))


def plain_acts(sae: BAE | TrainingBAE, pre: Tensor) -> Tensor:
    """The code of pre-activations, by its definition."""
    return ((pre[..., None] > sae.thresholds) * sae.heights).sum(-1) * sae.scale


def plain_pre(sae: BAE | TrainingBAE, x: Tensor) -> Tensor:
    """Pre-activations after feedback, by their definition: of all steps those that leave the least."""

    def residual_of(pre: Tensor) -> Tensor:
        return x - sae.b_dec - plain_acts(sae, pre) @ sae.W_dec

    best = pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    for _ in range(sae.cfg.feedback_steps):
        pre = pre + sae.feedback_gain * (residual_of(pre) @ sae.W_enc)
        left, least = (residual_of(p).norm(dim=-1, keepdim=True) for p in (pre, best))
        best = torch.where(left <= least, pre, best)
    return best


# 1: registration


@pytest.fixture
def fresh_import(monkeypatch):
    """Import bae_lens again from nothing, as a notebook's autoreload does; undone afterwards."""
    for known in (registry.SAE_CLASS_REGISTRY, registry.SAE_TRAINING_CLASS_REGISTRY):
        for name in ("bae", "clvq_vae", "topk_transcoder"):
            monkeypatch.setitem(known, name, known[name])
    modules = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "bae_lens"}

    def forget_and_import():
        for name in modules:
            sys.modules.pop(name, None)
        import bae_lens as again

        return again

    yield forget_and_import
    for name in [name for name in sys.modules if name.split(".")[0] == "bae_lens"]:
        del sys.modules[name]
    sys.modules.update(modules)


def test_row01_registration_takes_the_newest_of_our_own_classes(fresh_import):
    again = fresh_import()

    assert again is not bae_lens
    assert again.BAE is not BAE
    assert registry.SAE_CLASS_REGISTRY["bae"] == (again.BAE, again.BAEConfig)
    assert registry.SAE_TRAINING_CLASS_REGISTRY["bae"] == (
        again.TrainingBAE,
        again.TrainingBAEConfig,
    )


def test_row01_operators_outlive_a_fresh_import_that_is_forgotten(fresh_import):
    codes = (torch.rand(16, 8) < 0.3).float()
    weight = torch.randn(8, 4, requires_grad=True)

    def results():
        nn = importlib.import_module("bae_lens.nn")
        code = codes.clone().requires_grad_()
        value = nn.off_diagonal_covariance(code) + nn.decode_sparse(code, weight).square().sum()
        return [value.detach(), *torch.autograd.grad(value, [code, weight])]

    old = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "bae_lens"}
    expected = results()
    fresh_import()
    found = [results()]
    # As when what was imported again is dropped: its definitions go with it.
    for name in [name for name in sys.modules if name.split(".")[0] == "bae_lens"]:
        del sys.modules[name]
    gc.collect()
    sys.modules.update(old)
    found.append(results())
    for own in found:
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("known", ["SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"])
def test_row01_another_plug_ins_architecture_is_not_overwritten(fresh_import, monkeypatch, known):
    theirs = type("TheirBAE", (), {"__module__": "another_plug_in"})
    monkeypatch.setitem(getattr(registry, known), "bae", (theirs, theirs))

    with pytest.raises(
        ValueError, match=r"already has an architecture 'bae', from another_plug_in"
    ):
        fresh_import()

    assert getattr(registry, known)["bae"] == (theirs, theirs)


# 2, 3: configuration


# 4, 5, 6: files


def test_row05_training_to_inference_conversion(tmp_path):
    sae = trained()
    with torch.no_grad():
        sae.b_enc.add_(torch.linspace(-1, 3, D_SAE))  # some bits mostly on
    x = make_activations(2000)
    record_firing_rates(sae, x)
    flipped = sae.mostly_on
    assert flipped.any()
    sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert type(loaded) is BAE
    with torch.no_grad():
        levels, pre = levels_of(sae, x), sae.encode_with_hidden_pre(x)[1]
        levels = torch.where(flipped, sae.cfg.n_levels - levels, levels)
        # Of a level above the first, rounding noise is about a threshold other than 0.
        nearest = (pre[..., None] - sae.thresholds).abs().amin(-1)
        assert_same_code((levels, sae(x), nearest), (levels_of(loaded, x), loaded(x)))


def test_row05_inference_files_hold_no_training_state(tmp_path, code):
    weights, cfg_path = trained(surrogate="identity").save_inference_model(tmp_path)

    names = {"W_enc", "W_dec", "b_enc", "b_dec", "scale", "flipped"}
    assert set(load_file(weights)) == names | (set(CODE_PARAMETERS) if code else set())
    cfg = json.loads(cfg_path.read_text())
    assert cfg["architecture"] == "bae"
    assert set(cfg) == {field.name for field in dataclasses.fields(BAEConfig)} | {"architecture"}
    assert cfg["metadata"]["training_architecture"] == "bae"
    details = cfg["metadata"]["training_architecture_details"]
    assert details["surrogate"] == "identity"
    assert details["target_entropy"] == 4.0
    own = {field.name for field in dataclasses.fields(TrainingBAEConfig)}
    assert set(details) == own - {field.name for field in dataclasses.fields(BAEConfig)}


# 7, 8, 9: folds. A training SAE's fold is what the trainer calls at its end.


def make_either(is_training: bool, **overrides: Any) -> BAE | TrainingBAE:
    return make_training_bae(**overrides) if is_training else make_bae(**overrides)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("factor", [0.1, 3.7])
def test_row07_folding_the_activation_norm_scaling_factor_is_exact(
    is_training, apply_b_dec_to_input, factor
):
    sae = make_either(
        is_training,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations="expected_average_only_in",
    )
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    x = make_activations(2000) / factor

    assert folded.cfg.normalize_activations == "none"
    assert_exact(sae, folded, x, lambda x: x * factor, lambda out: out / factor)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_row08_folding_the_whitening_is_exact(is_training, apply_b_dec_to_input):
    sae = make_either(
        is_training,
        apply_b_dec_to_input=apply_b_dec_to_input,
        normalize_activations="covariance_whitening",
    )
    x = make_activations(2000, offset=2.0) @ torch.randn(D_IN, D_IN)
    scaler = ActivationScaler()
    scaler.estimate_whitening(D_IN, iter([x]), n_batches_for_norm_estimate=1)
    whitening = scaler.whitening
    assert whitening is not None
    folded = copy.deepcopy(sae)
    folded.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)

    assert folded.cfg.normalize_activations == "none"
    # The yardstick in float64: in float32 the unfolded path has the larger rounding error.
    assert_exact(
        copy.deepcopy(sae).to(torch.float64),
        folded,
        x,
        lambda x: scaler.scale(x.double()),
        scaler.unscale,
    )


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
def test_row09_folding_the_decoder_norm_is_exact(is_training, apply_b_dec_to_input, normalize):
    sae = make_either(
        is_training, apply_b_dec_to_input=apply_b_dec_to_input, normalize_activations=normalize
    )
    folded = copy.deepcopy(sae)
    norms = folded.fold_and_get_W_dec_norm()

    torch.testing.assert_close(norms, sae.W_dec.norm(dim=1))
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert_exact(sae, folded, make_activations(2000))
    # Activations carry the norm, as they do in SAELens' own architectures.
    x = make_activations(50)
    torch.testing.assert_close(folded.encode(x), sae.encode(x) * norms)


def test_row09_folding_the_decoder_norm_twice_changes_nothing_more():
    sae = make_bae()
    once = copy.deepcopy(sae)
    once.fold_W_dec_norm()
    twice = copy.deepcopy(once)
    twice.fold_W_dec_norm()

    torch.testing.assert_close(twice.scale, once.scale)
    assert_exact(sae, twice, make_activations(2000))


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_row09_loading_with_fold_W_dec_norm_is_exact(tmp_path, apply_b_dec_to_input):
    sae = make_training_bae(apply_b_dec_to_input=apply_b_dec_to_input)
    x = make_activations(2000)
    record_firing_rates(sae, x)
    sae.save_inference_model(tmp_path)

    plain = SAE.load_from_disk(tmp_path)
    folded = SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)

    assert isinstance(plain, BAE)
    assert plain.flipped.any()
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert_exact(plain, folded, x)


@pytest.mark.parametrize("normalize", ["expected_average_only_in", "covariance_whitening"])
def test_row07_row08_the_trainer_folds_its_own_normalization_away(tmp_path, normalize):
    sae = TrainingBAE(training_cfg(normalize_activations=normalize, target_entropy=8.0))
    activations = 5 * make_sparse_activations(40 * BATCH)
    trainer = SAETrainer(trainer_cfg(40, lr=3e-3), sae, batches_of(activations))
    before = {}

    def keep(*args, **kwargs):
        before["sae"], before["scaler"] = (
            copy.deepcopy(sae),
            copy.deepcopy(trainer.activation_scaler),
        )
        return original(*args, **kwargs)

    name = f"fold_activation_{'whitening' if 'white' in normalize else 'norm_scaling_factor'}"
    original = getattr(sae, name)
    setattr(sae, name, keep)
    trainer.fit()

    assert sae.cfg.normalize_activations == "none"
    with torch.no_grad():
        acts, pre = before["sae"].encode_with_hidden_pre(before["scaler"].scale(activations))
        out = before["scaler"].unscale(before["sae"].decode(acts))
        assert acts.any()
        assert_same_code((acts != 0, out, pre), (sae.encode(activations) != 0, sae(activations)))


# 10, 11, 12: hooks, shapes, names


@pytest.mark.parametrize("is_training", [True, False])
def test_row10_all_six_hooks_fire_with_their_values(is_training):
    sae = make_either(is_training)
    sae.use_error_term = True
    x = make_activations(20)

    out, cache = sae.run_with_cache(x)

    assert set(cache) == set(HOOKS)
    pre = plain_pre(sae, x)
    acts = plain_acts(sae, cache["hook_sae_acts_pre"])
    torch.testing.assert_close(cache["hook_sae_input"], x)
    torch.testing.assert_close(cache["hook_sae_acts_pre"], pre)
    torch.testing.assert_close(cache["hook_sae_acts_post"], acts)
    torch.testing.assert_close(cache["hook_sae_recons"], acts @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(cache["hook_sae_error"], x - cache["hook_sae_recons"])
    torch.testing.assert_close(cache["hook_sae_output"], x)
    assert torch.equal(cache["hook_sae_output"], out)


@pytest.mark.parametrize("is_training", [True, False])
def test_row10_a_feature_can_be_ablated_by_its_hook(is_training):
    sae = make_either(is_training)
    x = make_activations(20)
    acts = sae.encode(x)
    feature = int((acts != 0).float().mean(0).argmax())

    def ablate(value, hook):
        value[..., feature] = 0
        return value

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", ablate)])

    expected = sae(x) - acts[:, [feature]] * sae.W_dec[feature]
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out, sae(x))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "normalize",
    ["none", "expected_average_only_in", "layer_norm", "constant_norm_rescale", "covariance_whitening"],
)  # fmt: skip
def test_row11_two_and_three_dimensional_inputs(is_training, normalize):
    sae = make_either(is_training, normalize_activations=normalize)
    x = make_activations(24)

    for shape in ((2, 12), (2, 3, 4), (24, 1)):
        deep = x.reshape(*shape, D_IN)
        assert sae.encode(deep).shape == (*shape, D_SAE)
        torch.testing.assert_close(sae(deep), sae(x).reshape(deep.shape))


def test_row11_a_single_vector():
    sae = make_bae()
    x = make_activations(3)

    torch.testing.assert_close(sae(x[1]), sae(x)[1])


@pytest.mark.parametrize("use_error_term", [True, False])
def test_row11_hook_z_is_flattened_and_restored(use_error_term):
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    sae = make_bae(reshape_activations="hook_z", metadata=metadata)
    flat = make_bae()
    sae.use_error_term = flat.use_error_term = use_error_term
    x = make_activations(12)
    heads = x.reshape(3, 4, 2, D_IN // 2)

    assert sae.encode(heads).shape == (3, 4, D_SAE)
    torch.testing.assert_close(sae(heads), flat(x).reshape(heads.shape))


def test_row11_a_training_sae_leaves_hook_z_to_the_store():
    metadata = SAEMetadata(hook_name="blocks.0.attn.hook_z")
    sae = make_training_bae(reshape_activations="hook_z", metadata=metadata)

    assert sae(make_activations(12)).shape == (12, D_IN)


@pytest.mark.parametrize("is_training", [True, False])
def test_row12_names_and_shapes(is_training, code):
    sae = make_either(is_training)

    shapes = {name: tuple(p.shape) for name, p in sae.named_parameters()}
    expected = {
        "W_enc": (D_IN, D_SAE),
        "W_dec": (D_SAE, D_IN),
        "b_enc": (D_SAE,),
        "b_dec": (D_IN,),
    }
    if code:
        expected |= {name: (D_SAE, code["n_levels"] - 1) for name in CODE_PARAMETERS[:2]}
        expected |= {"feedback_gain": (D_SAE,)}
    assert shapes == expected
    assert all(p.requires_grad for p in sae.parameters())
    assert sae.scale.shape == (D_SAE,)


# 13: dtype and device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cast", ["to", "method", "to_tensor"])
def test_row13_a_cast_keeps_our_statistics_in_float32(dtype, cast):
    sae = trained()
    sae.n_updates.fill_(2**24 + 1)  # neither a bfloat16 nor a float32 number
    expected = {name: getattr(sae, name).clone() for name in STATISTICS}

    if cast == "to":
        sae.to(dtype)
    elif cast == "to_tensor":
        sae.to(torch.zeros(1, dtype=dtype))
    else:
        {torch.bfloat16: sae.bfloat16, torch.float16: sae.half, torch.float64: sae.double}[dtype]()

    assert {p.dtype for p in sae.parameters()} == {dtype}
    for name, value in expected.items():
        is_whole = name == "n_updates"
        assert getattr(sae, name).dtype == (torch.int64 if is_whole else torch.float32), name
        assert torch.equal(getattr(sae, name), value), name
        assert sae.state_dict()[name] is not None


def test_row13_a_cast_model_computes_in_its_dtype_and_trains_on():
    sae = trained().to(torch.bfloat16)

    output = train_step(sae, make_activations(61))
    output.loss.backward()

    assert sae.cfg.dtype == "bfloat16"
    assert output.feature_acts.dtype == output.sae_out.dtype == torch.bfloat16
    assert metric(output, "entropy").dtype == torch.float32
    assert sae.n_updates.item() == 8
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sae.parameters())


def test_row13_scale_and_statistics_are_not_shared_between_copies():
    sae = trained()
    other = copy.deepcopy(sae).to(torch.bfloat16)
    before = {name: getattr(sae, name).clone() for name in STATISTICS}

    train_step(other, make_activations(61))

    assert all(torch.equal(getattr(sae, name), before[name]) for name in STATISTICS)


def test_row13_loading_a_checkpoint_in_bfloat16_keeps_our_statistics_in_float32(tmp_path):
    # SAELens' disk loader casts every tensor of the file before we see it, so the values are
    # rounded to eight bits; from then on they are float32 again, and can count.
    sae = trained()
    sae.n_updates.fill_(300)
    sae.save_model(tmp_path)

    loaded = TrainingBAE.load_from_disk(tmp_path, dtype="bfloat16")

    assert loaded.W_enc.dtype == torch.bfloat16
    for name, kept in zip(STATISTICS, DTYPES, strict=True):
        value = getattr(loaded, name)
        assert value.dtype == kept, name
        torch.testing.assert_close(value, getattr(sae, name), rtol=2**-8, atol=0)
    train_step(loaded, make_activations(61))
    assert loaded.n_updates.item() == 301


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_row13_loading_for_inference_in_another_dtype(tmp_path, dtype):
    sae = make_training_bae()
    record_firing_rates(sae, make_activations(500))
    flipped = sae.mostly_on
    sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path, dtype=dtype)

    assert isinstance(loaded, BAE)
    assert loaded.cfg.dtype == dtype
    assert loaded(make_activations(5)).dtype == getattr(torch, dtype)
    assert torch.equal(loaded.flipped, flipped)


def test_row13_resuming_a_bfloat16_run_keeps_every_bit_of_our_statistics(tmp_path):
    sae = trained(dtype="bfloat16")
    sae.n_updates.fill_(100_001)
    sae.save_model(tmp_path)
    resumed = TrainingBAE(sae.cfg)

    resumed.load_weights_from_checkpoint(tmp_path)

    assert [getattr(resumed, name).dtype for name in STATISTICS] == DTYPES
    for name in STATISTICS:
        assert torch.equal(getattr(resumed, name), getattr(sae, name))


@pytest.mark.parametrize("assign", [False, True])
def test_row13_a_state_with_a_float_number_of_updates_loads(assign):
    state = {name: value.clone() for name, value in trained().state_dict().items()}
    state["n_updates"] = torch.tensor(300.0)
    sae = make_training_bae()

    sae.load_state_dict(state, assign=assign)

    assert sae.n_updates.dtype == torch.int64
    train_step(sae, make_activations(61))
    assert sae.n_updates.item() == 301


# 14 to 20: the training step


def test_row14_coefficients_are_schedulable_by_name(code):
    sae = make_training_bae(entropy_warm_up_steps=5, covariance_warm_up_steps=6)

    trainer = SAETrainer(trainer_cfg(10), sae, batches_of(make_activations(BATCH)))

    names = {"entropy", "covariance", "density"}
    assert set(trainer.coefficient_schedulers) == names | ({"curvature"} if code else set())
    assert isinstance(sae.get_coefficients()["entropy"], TrainCoefficientConfig)
    assert trainer.coefficient_schedulers["entropy"].warm_up_steps == 5
    assert trainer.coefficient_schedulers["covariance"].warm_up_steps == 6


def test_row15_losses_are_a_dict_that_adds_up_and_metrics_are_loggable():
    sae = make_training_bae(covariance_coefficient=1e-3)
    trainer = SAETrainer(trainer_cfg(10), sae, batches_of(make_activations(BATCH)))

    output = trainer.step(next(trainer.data_provider))
    log = trainer.build_train_step_log_dict(output, n_training_samples=BATCH)

    assert set(output.losses) == {"mse_loss", "entropy_loss", "covariance_loss", "density_loss"}
    torch.testing.assert_close(output.loss, torch.stack(list(output.losses.values())).sum())
    for name in output.losses:
        assert f"losses/{name}" in log
    for name in ("entropy", "entropy_multiplier", "covariance", "dense_rate", "dead_rate"):
        assert isinstance(log[f"metrics/{name}"], float)
    for name in ("entropy", "covariance", "density"):
        assert f"details/{name}_coefficient" in log
    json.dumps(log)


@pytest.mark.parametrize("is_training", [True, False])
def test_row17_a_nonzero_activation_means_fired(is_training):
    sae = make_either(is_training)
    x = make_activations(100)
    pre = plain_pre(sae, x)

    acts = sae.encode(x)

    assert torch.equal(acts.bool(), pre > 0)
    assert set(acts.unique().tolist()) <= {0.0, *sae.level_values.flatten().tolist()}
    if isinstance(sae, TrainingBAE):
        assert torch.equal(train_step(sae, x).feature_acts, acts)


def test_row17_saved_for_inference_no_latent_is_mostly_at_its_highest_level(tmp_path):
    sae = make_training_bae()
    x = make_activations(500)
    assert record_firing_rates(sae, x).max() > 0.9
    sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)
    assert isinstance(loaded, BAE)
    levels = levels_of(loaded, x)
    highest, off = ((levels == level).float().mean(0) for level in (loaded.cfg.n_levels, 0))
    assert (highest <= off + 2e-3).all()


def test_row18_bfloat16_autocast_keeps_the_penalties_in_float32():
    sae = make_training_bae(target_entropy=20.0)
    x = make_activations(1021)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = train_step(sae, x, covariance=1.0)
    output.loss.backward()

    bits = (output.feature_acts != 0).double()
    entropy = marginal_entropy(bits)
    if sae.cfg.n_levels > 1:
        entropy = entropy + metric(output, "level_entropy")
        assert metric(output, "level_entropy").dtype == torch.float32
    assert metric(output, "entropy").dtype == torch.float32
    assert output.losses["covariance_loss"].dtype == torch.float32
    # In bfloat16 either would be off by a hundredth.
    torch.testing.assert_close(
        metric(output, "entropy").double(), entropy.double(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        output.losses["covariance_loss"].double(), off_diagonal_covariance(bits), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(sae.firing_rate.double(), bits.mean(0), rtol=1e-6, atol=0)
    for parameter in sae.parameters():
        assert parameter.dtype == grad_of(parameter).dtype == torch.float32
        assert grad_of(parameter).isfinite().all()


def test_row18_a_run_under_autocast_calibrates_and_trains():
    sae = TrainingBAE(training_cfg(target_entropy=8.0))
    activations = make_sparse_activations(20 * BATCH)
    trainer = SAETrainer(trainer_cfg(20, autocast=True), sae, batches_of(activations))

    first = trainer.step(next(trainer.data_provider))
    trainer.fit()

    if not sae.cfg.feedback_steps:
        # The target is 3 of 64 tokens; pre-activations in bfloat16 move some across the threshold.
        assert first.feature_acts.mean().item() == pytest.approx(0.04, rel=0.25)
    assert {p.dtype for p in sae.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in sae.parameters())
    assert sae.n_updates.item() == 20


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_row19_compiled_training_equals_eager_training(code):
    cfg = training_cfg(
        # Where a code feeds back, what rounding moves across a threshold moves others.
        dtype="float64" if code else "float32",
        curvature_coefficient=0.5 if code else 0,
        normalize_activations="none",
        target_entropy=8.0,
        entropy_start_step=1 if code else 2,
        covariance_coefficient=1e-3,
    )
    eager, compiled = TrainingBAE(cfg), TrainingBAE(cfg)
    compiled.load_state_dict(eager.state_dict())
    compiled.training_forward_pass = torch.compile(  # as SAELens' runner does
        compiled.training_forward_pass, backend="aot_eager"
    )
    activations = make_sparse_activations(8 * BATCH)
    trainers = [
        SAETrainer(trainer_cfg(8), sae, batches_of(activations)) for sae in (eager, compiled)
    ]

    n_steps = 3 if code else 8
    for _ in range(n_steps):
        outputs = [trainer.step(next(trainer.data_provider)) for trainer in trainers]

        torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            outputs[1].feature_acts, outputs[0].feature_acts, rtol=1e-5, atol=1e-6
        )
        assert outputs[1].losses.keys() == outputs[0].losses.keys()
        assert outputs[1].metrics.keys() == outputs[0].metrics.keys()
    for name, tensor in eager.state_dict().items():
        # Adam turns a rounding error of a small gradient into a part of its step of 1e-3; with levels,
        # gradients of what nothing comes near are small.
        atol = 2e-3 if code else 1e-4
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=atol)
    assert compiled.n_updates.item() == n_steps
    assert compiled.log_entropy_multiplier.item() != 0


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("preset", ["default", "everything", "paper"])
def test_row19_no_graph_break_once_calibrated(preset):
    cfg = {
        "default": training_cfg(),
        "everything": training_cfg(covariance_coefficient=1e-3, entropy_floor=1.0),
        "paper": TrainingBAEConfig.paper(D_IN),
    }[preset]
    sae = TrainingBAE(cfg)
    x = make_activations(BATCH)
    train_step(sae, x)
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager", fullgraph=True)

    output = compiled(step_input=step_input(sae, x))

    output.loss.backward()
    assert sae.n_updates.item() == 2


@pytest.mark.usefixtures("dynamo")
def test_row19_warm_up_of_the_coefficients_does_not_recompile_every_step():
    sae = TrainingBAE(
        training_cfg(
            normalize_activations="none",
            entropy_warm_up_steps=20,
            covariance_coefficient=1e-3,
            covariance_warm_up_steps=20,
        )
    )
    counter = CompileCounterWithBackend("aot_eager")
    trainer = SAETrainer(trainer_cfg(20), sae, batches_of(make_sparse_activations(20 * BATCH)))
    sae.training_forward_pass = torch.compile(sae.training_forward_pass, backend=counter)
    frames = []
    for _ in range(20):
        trainer.step(next(trainer.data_provider))
        frames.append(counter.frame_count)

    # Calibration, a coefficient of 0, a coefficient above 0, and that number made a variable.
    assert frames[-1] == frames[5]
    assert frames[-1] <= 8


# 21: SAELens' own command line


def parse(*flags: str) -> TrainingBAEConfig:
    cfg = _parse_cfg_args(["--architecture", "bae", *flags]).sae
    assert type(cfg) is TrainingBAEConfig
    return cfg


def test_row21_command_line_defaults_are_the_configs():
    assert parse() == TrainingBAEConfig(d_in=512, d_sae=1024)


def test_row21_command_line_flags():
    cfg = parse(
        *[
            "--d_in",
            "64",
            "--d_sae",
            "256",
            "--surrogate",
            "identity",
            "--temperature",
            "0.5",
            "--initial_firing_rate",
            "0.1",
        ],
        *[
            "--entropy_coefficient",
            "0.2",
            "--entropy_warm_up_steps",
            "10",
            "--entropy_start_step",
            "5",
        ],
        *["--entropy_floor", "3", "--covariance_coefficient", "1e-3", "--max_density", "0.2"],
        *[
            "--density_coefficient",
            "4",
            "--apply_b_dec_to_input",
            "false",
            "--normalize_activations",
            "none",
        ],
    )

    assert cfg == TrainingBAEConfig(
        d_in=64,
        d_sae=256,
        surrogate="identity",
        temperature=0.5,
        initial_firing_rate=0.1,
        entropy_coefficient=0.2,
        entropy_warm_up_steps=10,
        entropy_start_step=5,
        entropy_floor=3.0,
        covariance_coefficient=1e-3,
        max_density=0.2,
        density_coefficient=4.0,
        apply_b_dec_to_input=False,
        normalize_activations="none",
    )


@pytest.mark.parametrize(
    ("text", "value"), [("100", 100.0), ("62.5", 62.5), ("d_in", "d_in"), ("none", None), ("None", None)]
)  # fmt: skip
def test_row21_target_entropy_on_the_command_line(text, value):
    assert parse("--target_entropy", text).target_entropy == value


@pytest.mark.parametrize("field", ["initial_firing_rate", "max_density"])
@pytest.mark.parametrize("text", ["none", "None"])
def test_row21_none_on_the_command_line(field, text):
    assert getattr(parse(f"--{field}", text), field) is None


@pytest.mark.parametrize(
    "flags", [("--surrogate", "tanh"), ("--target_entropy", "d_sae"), ("--max_density", "dense")]
)
def test_row21_a_word_that_is_no_value_is_refused_with_the_flag(flags):
    with pytest.raises(argparse.ArgumentError, match=f"argument {flags[0]}.*{flags[1]}"):
        parse(*flags)


def test_row21_a_value_out_of_range_is_refused_with_its_name():
    with pytest.raises(
        ValueError, match="max_density must be a number above 0 and at most 1 or None; got 2"
    ):
        parse("--max_density", "2")


# 22, 23: in a model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def bridge(tmp_path):
    # One for each test: where an SAE was attached before, a bridge ignores later hooks (SAELens
    # 6.54 leaves the hook point under a name that run_with_hooks does not find).
    return make_bridge(tmp_path)


def attachable(hook: str = HOOK, **overrides: Any) -> BAE:
    return make_bae(
        metadata=SAEMetadata(
            hook_name=hook, model_name="tiny", context_size=CONTEXT_SIZE, prepend_bos=True
        ),
        **overrides,
    )


def test_row22_the_error_is_what_the_sae_misses(model):
    sae, tokens = attachable(), make_tokens()
    _, clean = model.run_with_cache(tokens)

    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)

    x = clean[HOOK]
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_input"], x)
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_acts_post"], sae.encode(x))
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_error"], x - sae(x))
    torch.testing.assert_close(cache[f"{HOOK}.hook_sae_output"], x)


def test_row22_attached_without_the_error_term_the_model_reads_the_reconstruction(model):
    sae, tokens = attachable(), make_tokens()

    logits = model.run_with_saes(tokens, saes=[sae], use_error_term=False)

    expected = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda x, hook: sae(x))])
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, model(tokens), atol=1e-2)


def test_row22_special_tokens_can_pass_by(model):
    sae, tokens = attachable(), make_tokens()
    tokens[:, 5] = model.tokenizer.eos_token_id
    is_special = torch.isin(tokens, torch.tensor(model.tokenizer.all_special_ids))
    assert is_special.sum() == 6

    logits = model.run_with_saes(tokens, saes=[sae], exclude_special_tokens=True)

    expected = model.run_with_hooks(
        tokens,
        fwd_hooks=[(HOOK, lambda x, hook: torch.where(is_special.unsqueeze(-1), x, sae(x)))],
    )
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, model.run_with_saes(tokens, saes=[sae]), atol=1e-2)


@pytest.mark.parametrize("use_error_term", [True, False])
def test_row22_attached_at_hook_z(model, use_error_term):
    hook = "blocks.0.attn.hook_z"
    sae = attachable(hook, reshape_activations="hook_z")
    tokens = make_tokens()

    logits, cache = model.run_with_cache_with_saes(
        tokens, saes=[sae], use_error_term=use_error_term
    )

    assert cache[f"{hook}.hook_sae_acts_post"].shape == (*tokens.shape, D_SAE)
    assert torch.allclose(logits, model(tokens), rtol=1e-4, atol=1e-5) == use_error_term


def test_row22_bridge_with_the_error_term_the_model_is_unchanged(bridge):
    tokens = make_tokens()

    clean, sae = bridge(tokens), attachable()

    logits, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)

    torch.testing.assert_close(logits, clean, rtol=1e-4, atol=1e-5)
    x = cache[bridge.get_sae_hook_name(sae, "hook_sae_input")]
    error = cache[bridge.get_sae_hook_name(sae, "hook_sae_error")]
    torch.testing.assert_close(error, x - sae(x))
    assert error.norm() > 0.1 * x.norm()


def test_row22_bridge_without_the_error_term_the_model_reads_the_reconstruction(bridge):
    sae, tokens = attachable(), make_tokens()
    expected = bridge.run_with_hooks(
        tokens, fwd_hooks=[(bridge._resolve_hook_name(HOOK), lambda x, hook: sae(x))]
    )

    logits, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=False)

    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, bridge(tokens), atol=1e-2)
    acts = cache[bridge.get_sae_hook_name(sae)]
    assert acts.shape == (*tokens.shape, D_SAE)
    assert set(acts.unique().tolist()) <= {0.0, *sae.level_values.flatten().tolist()}


@pytest.mark.parametrize("hook", [HOOK, "blocks.0.attn.hook_z"])
@pytest.mark.parametrize("is_training", [True, False])
def test_row23_run_evals_gives_finite_numbers(model, tmp_path, hook, is_training):
    reshape: dict[str, Any] = {"reshape_activations": "hook_z"} if hook.endswith("_z") else {}
    sae = attachable(hook, **reshape)
    if is_training:
        sae = make_training_bae(metadata=sae.cfg.metadata, **reshape)
    store = ActivationsStore.from_config(
        model, runner_cfg(tmp_path, hook_name=hook), override_dataset=make_text()
    )

    metrics, feature_metrics = run_evals(
        sae,
        store,
        model,
        ActivationScaler(),
        get_eval_everything_config(
            batch_size_prompts=4,
            n_eval_reconstruction_batches=2,
            n_eval_sparsity_variance_batches=2,
        ),
    )

    numbers = torch.tensor([value for group in metrics.values() for value in group.values()])
    assert len(metrics) == 6
    assert numbers.isfinite().all()
    density = torch.tensor(feature_metrics["feature_density"])
    assert density.shape == (D_SAE,)
    assert metrics["sparsity"]["l0"] > 1
    for name in ("encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim"):
        assert torch.tensor(feature_metrics[name]).isfinite().all()


def test_row23_run_evals_scores_a_perfect_code_as_perfect(model, tmp_path):
    # What run_evals decodes is what it encoded, so a decoder that remembers it is perfect.
    sae = attachable()
    sae.decode = lambda acts: sae.seen  # type: ignore[method-assign]
    encode = sae.encode

    def remember(x):
        sae.seen = x
        return encode(x)

    sae.encode = remember  # type: ignore[method-assign]
    store = ActivationsStore.from_config(model, runner_cfg(tmp_path), override_dataset=make_text())

    metrics, _ = run_evals(
        sae, store, model, ActivationScaler(), get_eval_everything_config(4, 1, 1)
    )

    assert metrics["reconstruction_quality"]["explained_variance"] == pytest.approx(1)
    assert metrics["model_performance_preservation"]["ce_loss_score"] == pytest.approx(1, abs=1e-4)


# 24: resume


class Observed(LanguageModelSAETrainingRunner):
    """SAELens' runner, unforked, that remembers its trainer and the state it began from."""

    def run_trainer_with_interruption_handling(self, trainer):
        self.trainer = trainer
        self.at_start = self.state()
        return super().run_trainer_with_interruption_handling(trainer)

    def save_checkpoint(self, checkpoint_path: Path | None) -> None:
        super().save_checkpoint(checkpoint_path)
        self.checkpoints = [*getattr(self, "checkpoints", []), (checkpoint_path, self.state())]

    def state(self) -> dict[str, Any]:
        trainer = self.trainer
        return copy.deepcopy(
            {
                "sae": dict(self.sae.state_dict()),
                "optimizer": trainer.optimizer.state_dict(),
                "lr_scheduler": trainer.lr_scheduler.state_dict(),
                "coefficients": {
                    name: scheduler.state_dict()
                    for name, scheduler in trainer.coefficient_schedulers.items()
                },
                "scaling_factor": trainer.activation_scaler.scaling_factor,
                "n_training_samples": trainer.n_training_samples,
                "act_freq_scores": trainer.act_freq_scores,
                "n_forward_passes_since_fired": trainer.n_forward_passes_since_fired,
                "n_frac_active_samples": trainer.n_frac_active_samples,
            }
        )


def assert_equal_states(actual: Any, expected: Any, at: str = "state") -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), at
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), at
        for key in expected:
            assert_equal_states(actual[key], expected[key], f"{at}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), at
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_equal_states(a, e, f"{at}[{i}]")
    else:
        assert actual == expected, at


RESUME_SAE: dict[str, Any] = {
    "target_entropy": 6.0,
    "entropy_warm_up_steps": 9,
    "covariance_coefficient": 1e-3,
    "covariance_warm_up_steps": 5,
}


def resume_cfg(folder: Path, **overrides: Any):
    return runner_cfg(
        folder,
        n_steps=12,
        sae=training_cfg(**RESUME_SAE),
        n_checkpoints=1,
        lr_warm_up_steps=4,
        lr_decay_steps=4,
        **overrides,
    )


def test_row24_resume_restores_saelens_state_and_ours(tmp_path, model):
    first = Observed(resume_cfg(tmp_path / "a"), make_text(), model)
    first.run()
    path, at_checkpoint = first.checkpoints[0]
    assert 0 < at_checkpoint["n_training_samples"] < 12 * BATCH
    assert all(at_checkpoint["sae"][name].any() for name in STATISTICS)

    resumed = Observed(
        resume_cfg(tmp_path / "b", resume_from_checkpoint=str(path)), make_text(), model
    )
    resumed.run()

    assert (path / TRAINER_STATE_FILENAME).exists()
    assert_equal_states(resumed.at_start, at_checkpoint)
    assert resumed.state()["sae"]["n_updates"].item() == 12
    assert resumed.trainer.n_training_samples == 12 * BATCH
    # not calibrated a second time
    steps = 12 - at_checkpoint["sae"]["n_updates"].item()
    scale = resumed.at_start["scaling_factor"]
    moved = (resumed.sae.b_dec * scale - at_checkpoint["sae"]["b_dec"]).abs().max().item()
    assert 0 < moved < 2 * steps * 1e-3


def test_row24_resumed_on_replayed_activations_it_is_the_run_that_never_stopped(tmp_path, model):
    def observed(folder, **overrides):
        runner = Observed(resume_cfg(folder, **overrides), make_text(), model)
        runner.activations_store = ReplayedActivations.collect(  # type: ignore[assignment]
            runner.activations_store, 5 * BATCH
        )
        return runner

    whole = observed(tmp_path / "a")
    whole.run()
    path, _ = whole.checkpoints[0]
    resumed = observed(tmp_path / "b", resume_from_checkpoint=str(path))
    torch.rand(7)  # the random state is not saved
    resumed.run()

    assert_equal_states(resumed.state(), whole.state())
    served = [runner.activations_store.n_batches_served for runner in (resumed, whole)]  # pyright: ignore[reportAttributeAccessIssue]
    assert served[0] == served[1]


# 25, 28: SAELens' other runners


def test_row25_multi_sae_runner_trains_a_bae_beside_a_topk(tmp_path, model):
    other_hook = "blocks.1.hook_resid_post"
    cfg = MultiSAETrainingRunnerConfig(
        saes={
            "ours": training_cfg(target_entropy=6.0),
            "theirs": TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4),
        },
        hook_names={"ours": HOOK, "theirs": other_hook},
        model_name="tiny",
        dataset_path="tiny-text",
        context_size=CONTEXT_SIZE,
        training_tokens=8 * BATCH,
        train_batch_size_tokens=BATCH,
        store_batch_size_prompts=8,
        n_batches_in_buffer=16,
        n_batches_for_norm_estimate=2,
        exclude_special_tokens=True,
        checkpoint_path=str(tmp_path / "checkpoints"),
        output_path=str(tmp_path / "output"),
        n_checkpoints=1,
        logger=LoggingConfig(log_to_wandb=False),
    )

    saes = MultiSAETrainingRunner(cfg, make_text(), model).run()

    ours = saes["ours"]
    assert type(ours) is TrainingBAE
    assert ours.n_updates.item() == 8
    x = model.run_with_cache(make_tokens(8))[1][HOOK][:, 1:].reshape(-1, D_IN)
    loaded = SAE.load_from_disk(tmp_path / "output" / "ours")
    assert type(loaded) is BAE
    assert loaded.cfg.metadata.hook_name == HOOK
    with torch.no_grad():
        acts, pre = ours.encode_with_hidden_pre(x)
        assert_same_code((acts != 0, ours(x), pre), (loaded.encode(x) != 0, loaded(x)))
    assert SAE.load_from_disk(tmp_path / "output" / "theirs").cfg.architecture() == "topk"


def test_row28_synthetic_runner_trains_evaluates_and_saves(tmp_path):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=24, hidden_dim=20, seed=0),
        # The runner corrects d_in to the synthetic model's.
        sae=training_cfg(d_in=7, d_sae=64, entropy_coefficient=0.0),
        training_samples=300 * BATCH,
        batch_size=BATCH,
        lr=3e-3,
        eval_samples=2000,
        n_batches_for_norm_estimate=2,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )

    result = SyntheticSAERunner(cfg).run()

    assert type(result.sae) is TrainingBAE
    assert result.sae.cfg.target_entropy_bits == 20
    assert result.sae.n_updates.item() == 300
    evals = result.final_eval
    assert evals is not None
    numbers = torch.tensor(list(map(float, evals.to_log_dict().values())))
    assert numbers.isfinite().all()
    assert evals.explained_variance > 0.3
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is BAE
    x = result.synthetic_model.sample(1000)
    with torch.no_grad():
        acts, pre = result.sae.encode_with_hidden_pre(x)
        flipped = result.sae.mostly_on
        assert_same_code(
            ((acts != 0) ^ flipped, result.sae(x), pre), (loaded.encode(x) != 0, loaded(x))
        )


# The runner end to end, 26, 27, 29


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run of SAELens' runner, its model and where it wrote."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    cfg = runner_cfg(
        folder, n_steps=20, sae=training_cfg(target_entropy=6.0), save_final_checkpoint=True
    )
    runner = LanguageModelSAETrainingRunner(cfg, make_text(), make_model())
    runner.run()
    return runner, folder


def test_the_stock_runner_trains_and_writes_what_it_trained(finished_run):
    runner, folder = finished_run
    sae = runner.sae
    x = runner.model.run_with_cache(make_tokens(20))[1][HOOK][:, 1:].reshape(-1, D_IN)

    loaded = SAE.load_from_disk(folder / "output")

    assert sae.n_updates.item() == 20
    assert loaded.cfg.metadata.hook_name == HOOK
    assert loaded.cfg.metadata.dataset_path == "tiny-text"
    assert loaded.cfg.metadata.exclude_special_tokens is True
    assert loaded.cfg.normalize_activations == "none"
    with torch.no_grad():
        acts, pre = sae.encode_with_hidden_pre(x)
        assert_same_code(
            ((acts != 0) ^ sae.mostly_on, sae(x), pre), (loaded.encode(x) != 0, loaded(x))
        )
    (final,) = (folder / "checkpoints").glob("*/final_*")
    assert torch.equal(TrainingSAE.load_from_disk(final)(x), sae(x))


def test_row26_the_files_that_are_uploaded_are_all_that_is_needed(finished_run, tmp_path):
    _, folder = finished_run
    uploaded = {}

    class Api:
        def upload_folder(self, folder_path, allow_patterns, **kwargs):
            for name in allow_patterns:
                if (Path(folder_path) / name).exists():
                    shutil.copy(Path(folder_path) / name, tmp_path / name)
                    uploaded[name] = True

    hf_upload._upload_sae(Api(), folder / "output", "someone/repo", "sae", "main")  # type: ignore[arg-type]

    assert set(uploaded) == {
        SAE_CFG_FILENAME,
        SAE_WEIGHTS_FILENAME,
        SPARSITY_FILENAME,
        RUNNER_CFG_FILENAME,
    }
    x = make_activations(50)
    assert torch.equal(SAE.load_from_disk(tmp_path)(x), SAE.load_from_disk(folder / "output")(x))
    assert json.loads((tmp_path / RUNNER_CFG_FILENAME).read_text())["sae"]["architecture"] == "bae"


@pytest.mark.parametrize("is_training", [True, False])
def test_row26_what_is_uploaded_from_a_live_sae_loads_for_inference(tmp_path, is_training):
    # upload_saes_to_huggingface takes an SAE object too, and saves it with save_model.
    sae = make_either(is_training)
    x = make_activations(500)
    if isinstance(sae, TrainingBAE):
        record_firing_rates(sae, x)
    path = hf_upload._build_sae_path(sae, str(tmp_path))

    loaded = SAE.load_from_disk(path)

    assert type(loaded) is BAE
    with torch.no_grad():
        pre = sae.run_with_cache(x)[1]["hook_sae_acts_pre"]
        levels = levels_of(loaded, x)
        levels = torch.where(loaded.flipped, sae.cfg.n_levels - levels, levels)
        nearest = (pre[..., None] - sae.thresholds).abs().amin(-1)
        assert_same_code((levels_of(sae, x), sae(x), nearest), (levels, loaded(x)))
