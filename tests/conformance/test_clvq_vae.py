"""What SAELens asks of an architecture, row by row: what is said of the CLVQ-VAE, whose output is at another hook point, alone.

README.md has the rows; test_shared.py has what all architectures answer in the same way.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    LanguageModelSAETrainingRunner,
    TopKTrainingSAEConfig,
    TrainingSAE,
)
from sae_lens.config import LoggingConfig
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.llm_sae_training_runner import _parse_cfg_args
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

from bae_lens import CLVQVAE, CLVQVAEConfig, TrainingCLVQVAE, TrainingCLVQVAEConfig, TrainingRunner
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.conformance.cases import CLVQ_COUNTERS as COUNTERS
from tests.conformance.cases import CLVQ_STATISTICS as STATISTICS
from tests.conformance.cases import UNITS, sequences, with_dead_codes
from tests.conformance.cases import trained_clvq as trained
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_OUT,
    HOOK,
    HOOK_OUT,
    N_CODES,
    batches_of,
    clvq_cfg,
    grad_of,
    make_bridge,
    make_clvq,
    make_model,
    make_pairs,
    make_rows,
    make_text,
    make_tokens,
    make_training_clvq,
    metric,
    runner_cfg,
    step_input,
    train_step,
    trainer_cfg,
)

HOOKS = (
    "hook_sae_input",
    "hook_sae_acts_pre",
    "hook_sae_acts_post",
    "hook_sae_recons",
    "hook_sae_error",
    "hook_sae_output",
)
BOTH_CLASSES = pytest.mark.parametrize("make", [make_training_clvq, make_clvq])


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["token", "transformer"])
def decoder(request) -> str:
    return request.param


def state(sae: SAE[Any]) -> dict[str, Tensor]:
    return copy.deepcopy(dict(sae.state_dict()))


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


# 1: registration


# 2, 3: configuration


# 4, 5, 6: files


@pytest.mark.parametrize("memory", ["codes", "encoder"])
@pytest.mark.parametrize("make", [make_clvq, trained])
def test_row04_nothing_is_left_on_the_meta_device(tmp_path, make, memory):
    # load_from_disk builds the model there, so a buffer that is not saved would stay behind.
    sae = make(decoder_memory=memory)
    sae.save_model(tmp_path)

    loaded = type(sae).load_from_disk(tmp_path)

    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert {name for name, tensor in tensors.items() if tensor.is_meta} == set()
    assert {name.removeprefix("quantizer.") for name in tensors} == loaded.state_dict().keys()
    assert torch.equal(loaded(sequences()), sae(sequences()))


def test_row05_training_to_inference_conversion(tmp_path, decoder):
    sae = trained(decoder=decoder)
    weights, cfg_path = sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert type(loaded) is CLVQVAE
    x = sequences()
    assert torch.equal(loaded(x), sae(x))
    assert torch.equal(loaded.encode(x), sae.encode(x))
    assert torch.equal(loaded.decode(loaded.encode(x)), sae(x))
    kept = {name for name, _ in sae.named_parameters()} | {*UNITS, "scale", "codebook"}
    assert set(load_file(weights)) == kept
    cfg = json.loads(cfg_path.read_text())
    assert set(cfg) == {f.name for f in dataclasses.fields(CLVQVAEConfig)} | {"architecture"}
    details = cfg["metadata"]["training_architecture_details"]
    own = {field.name for field in dataclasses.fields(TrainingCLVQVAEConfig)}
    assert set(details) == own - {field.name for field in dataclasses.fields(CLVQVAEConfig)}
    assert details["revive_after"] == 1


def test_row05_the_codebook_has_one_name_in_both_classes():
    for make in (make_training_clvq, make_clvq):
        codebook = make().state_dict()["codebook"]
        assert codebook.shape == (N_CODES, D_IN)
        assert codebook.dtype == torch.float32


def test_row05_a_training_checkpoint_loads_for_inference(tmp_path, decoder):
    sae = trained(decoder=decoder)
    sae.save_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert type(loaded) is CLVQVAE
    assert set(STATISTICS + COUNTERS).isdisjoint(loaded.state_dict())
    assert torch.equal(loaded(sequences()), sae(sequences()))


@pytest.mark.parametrize("is_inference_folder", [True, False])
def test_row05_a_saved_codebook_can_be_trained_further(tmp_path, decoder, is_inference_folder):
    sae = make_training_clvq(decoder=decoder, top_k=1, revive_after=None)
    train_step(sae, make_rows())
    (sae.save_inference_model if is_inference_folder else sae.save_model)(tmp_path)

    further = TrainingSAE.load_from_disk(tmp_path)

    assert isinstance(further, TrainingCLVQVAE)
    x = sequences()
    assert torch.equal(further(x), sae(x))
    units = {name: getattr(further, name).clone() for name in UNITS}
    codebook = further.codebook.clone()
    torch.testing.assert_close(
        further.quantizer.ema_sum, codebook * further.quantizer.ema_count[:, None]
    )
    losses = [train_step(further, make_rows(seed=9)).loss for _ in range(3)]
    # It goes on from where it was: no second calibration, and no code leaps.
    assert all(torch.equal(getattr(further, name), units[name]) for name in UNITS)
    moved = (further.codebook - codebook).norm(dim=1)
    assert 0 < moved.max() < 2
    assert all(loss.isfinite() for loss in losses)


# 7, 8, 9: folds


@BOTH_CLASSES
@pytest.mark.parametrize("factor", [0.5, 3.7])
def test_row07_folding_the_activation_norm_scaling_factor_is_exact(make, factor, decoder):
    sae = make(decoder=decoder, normalize_activations="expected_average_only_in")
    folded = copy.deepcopy(sae)
    folded.fold_activation_norm_scaling_factor(factor)
    x = sequences() / factor

    assert folded.cfg.normalize_activations == "none"
    assert torch.equal(folded.encode(x), sae.encode(x * factor))
    torch.testing.assert_close(folded(x), sae(x * factor) / factor, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.W_dec, sae.W_dec / factor)


def test_row07_the_trainer_folds_its_own_scale_away(decoder):
    sae = TrainingCLVQVAE(
        clvq_cfg(decoder=decoder, normalize_activations="expected_average_only_in")
    )
    rows = make_rows(20 * BATCH)
    rows[:, :-1] *= 30
    trainer = SAETrainer(trainer_cfg(20), sae, batches_of(rows))
    before = {}
    original = sae.fold_activation_norm_scaling_factor

    def keep(factor):
        before["sae"], before["factor"] = copy.deepcopy(sae), factor
        return original(factor)

    sae.fold_activation_norm_scaling_factor = keep  # type: ignore[method-assign]
    trainer.fit()

    x = 30 * sequences()
    assert before["factor"] < 0.5
    expected = before["sae"](x * before["factor"]) / before["factor"]
    torch.testing.assert_close(sae(x), expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(sae.encode(x), before["sae"].encode(x * before["factor"]))


@BOTH_CLASSES
def test_row08_a_whitening_is_refused(make):
    eye = torch.eye(D_IN)

    with pytest.raises(NotImplementedError, match="cannot take a whitening"):
        make().fold_activation_whitening(torch.zeros(D_IN), eye, eye)


@pytest.mark.parametrize("config", [CLVQVAEConfig, TrainingCLVQVAEConfig])
@pytest.mark.parametrize(
    "option",
    [
        {"normalize_activations": "covariance_whitening"},
        {"normalize_activations": "layer_norm"},
        {"normalize_activations": "constant_norm_rescale"},
        {"reshape_activations": "hook_z"},
        {"apply_b_dec_to_input": True},
    ],
)
def test_row08_row11_row30_what_has_no_meaning_is_refused(config, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        config(d_in=D_IN, d_sae=N_CODES, **option)


@BOTH_CLASSES
def test_row09_folding_the_decoder_norm_is_exact(make, decoder):
    sae = make(decoder=decoder)
    folded = copy.deepcopy(sae)
    norms = folded.fold_and_get_W_dec_norm()
    x = sequences()

    torch.testing.assert_close(norms, sae.W_dec.norm(dim=1))
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(N_CODES))
    torch.testing.assert_close(folded(x), sae(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(folded.encode(x), sae.encode(x) * norms)
    assert torch.equal(folded.code_indices(x), sae.code_indices(x))
    torch.testing.assert_close(folded.decode(folded.encode(x)), sae(x), rtol=1e-5, atol=1e-5)
    again = copy.deepcopy(folded)
    again.fold_W_dec_norm()
    torch.testing.assert_close(again.scale, folded.scale)


def test_row09_folding_the_decoder_norm_changes_no_training_step(decoder):
    sae = make_training_clvq(decoder=decoder, top_k=1)
    folded = copy.deepcopy(sae)
    norms = folded.fold_and_get_W_dec_norm()

    expected, output = (train_step(each, make_rows()) for each in (sae, folded))

    assert torch.equal(output.loss, expected.loss)
    torch.testing.assert_close(output.feature_acts, expected.feature_acts * norms)


def test_row09_loading_with_fold_W_dec_norm_is_exact(tmp_path, decoder):
    sae = trained(decoder=decoder)
    sae.save_inference_model(tmp_path)

    folded = SAE.load_from_disk(tmp_path, fold_W_dec_norm=True)

    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(N_CODES))
    torch.testing.assert_close(folded(sequences()), sae(sequences()), rtol=1e-5, atol=1e-5)


# 10, 11, 12: hooks, shapes, names


@BOTH_CLASSES
def test_row10_the_hooks_fire_with_their_values(make, decoder):
    sae = make(decoder=decoder)
    x = sequences()
    z = sae.encoder((x - sae.input_mean) * sae.input_scale)

    out, cache = sae.run_with_cache(x)

    assert set(cache) == set(HOOKS) - {"hook_sae_error"}
    distances = (z[..., None, :] - sae.codebook).square().sum(-1)
    assert torch.equal(cache["hook_sae_input"], x)
    torch.testing.assert_close(cache["hook_sae_acts_pre"], -distances, rtol=1e-4, atol=1e-3)
    assert torch.equal(cache["hook_sae_acts_post"], sae.encode(x))
    assert torch.equal(cache["hook_sae_recons"], out)
    assert torch.equal(cache["hook_sae_output"], out)


@BOTH_CLASSES
def test_row10_the_error_term_is_left_to_the_model(make):
    sae = make()
    sae.use_error_term = True

    with pytest.raises(ValueError, match="does not know the activation that its error refers to"):
        sae(sequences())


@BOTH_CLASSES
def test_row10_a_code_can_be_put_elsewhere_by_its_hook(make, decoder):
    sae = make(decoder=decoder)
    x = sequences()
    everywhere = torch.zeros(x.shape[:-1], dtype=torch.int64)

    def put(value, hook):
        return sae.scale * torch.eye(N_CODES)[torch.full_like(everywhere, 3)]

    out = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", put)])

    one = sae.scale[3] * torch.eye(N_CODES)[3].expand(*x.shape[:-1], N_CODES)
    assert torch.equal(out, sae.decode(one))
    assert not torch.allclose(out, sae(x))


@BOTH_CLASSES
def test_row10_a_code_can_be_forbidden_by_its_distance(make):
    sae = make()
    x = sequences()
    code = int(sae.code_indices(x).reshape(-1).mode().values)

    def forbid(value, hook):
        value[..., code] = -torch.inf
        return value

    _, cache = sae.run_with_cache(x)
    with sae.hooks(fwd_hooks=[("hook_sae_acts_pre", forbid)]):
        indices = sae.encode(x).argmax(-1)

    second = cache["hook_sae_acts_pre"].topk(2).indices
    expected = torch.where(second[..., 0] == code, second[..., 1], second[..., 0])
    assert torch.equal(indices, expected)


@BOTH_CLASSES
def test_row11_two_and_three_dimensional_inputs(make, decoder):
    sae = make(decoder=decoder)
    x = sequences()
    flat = x.reshape(-1, D_IN)

    assert sae.encode(flat).shape == (len(flat), N_CODES)
    assert sae(flat).shape == (len(flat), D_OUT)
    assert sae.encode(x).shape == (*x.shape[:-1], N_CODES)
    assert sae(x).shape == (*x.shape[:-1], D_OUT)
    torch.testing.assert_close(sae(flat), sae(flat[:, None])[:, 0])
    if decoder == "token":
        torch.testing.assert_close(sae(flat).reshape(*x.shape[:-1], D_OUT), sae(x))
        torch.testing.assert_close(sae(flat[1]), sae(flat)[1])


@BOTH_CLASSES
def test_row12_names_and_shapes(make, decoder):
    sae = make(decoder=decoder)

    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    assert {name: tuple(getattr(sae, name).shape) for name in names} == {
        "W_enc": (D_IN, N_CODES),
        "W_dec": (N_CODES, D_OUT),
        "b_enc": (N_CODES,),
        "b_dec": (D_OUT,),
    }
    assert sae.scale.shape == (N_CODES,)
    assert all(p.requires_grad for p in sae.parameters())
    assert "codebook" not in dict(sae.named_parameters())


# 13: dtype and device


def statistics(sae: SAE[Any]) -> dict[str, Tensor]:
    """What a change of dtype is to leave alone."""
    state = sae.state_dict()
    names = ("codebook", *UNITS, *STATISTICS, *COUNTERS)
    return {name: state[name].clone() for name in names if name in state}


@pytest.mark.parametrize("make", [trained, make_clvq])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cast", ["to", "method", "to_tensor"])
def test_row13_a_cast_keeps_codebook_and_statistics_whole(make, dtype, cast):
    sae = make()
    if isinstance(sae, TrainingCLVQVAE):
        sae.quantizer.ema_count.add_(100_001)  # not a bfloat16 number
    expected = statistics(sae)

    if cast == "to":
        sae.to(dtype)
    elif cast == "to_tensor":
        sae.to(torch.zeros(1, dtype=dtype))
    else:
        {torch.bfloat16: sae.bfloat16, torch.float16: sae.half, torch.float64: sae.double}[dtype]()

    assert {p.dtype for p in sae.parameters()} == {dtype}
    assert_same_state(statistics(sae), expected)


def test_row13_a_cast_model_computes_in_its_dtype_and_trains_on(decoder):
    sae = trained(decoder=decoder).to(torch.bfloat16)
    x = sequences()

    output = train_step(sae, make_rows())
    output.loss.backward()

    assert sae.cfg.dtype == "bfloat16"
    assert sae(x).dtype == sae.encode(x).dtype == sae.W_dec.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert sae.quantizer.n_updates.item() == 9
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_row13_loaded_in_another_dtype_the_statistics_are_float32(tmp_path, is_training, dtype):
    # SAELens' disk loader casts every tensor of the file before we see it, so in bfloat16 the
    # values are rounded to eight bits; from then on they are float32 again, and can count.
    sae = trained()
    (sae.save_model if is_training else sae.save_inference_model)(tmp_path)

    loaded = (TrainingSAE if is_training else SAE).load_from_disk(tmp_path, dtype=dtype)

    assert loaded.cfg.dtype == dtype
    assert loaded(sequences()).dtype == getattr(torch, dtype)
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}
    expected = statistics(sae)
    actual = statistics(loaded)
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        torch.testing.assert_close(value, expected[name], rtol=2**-8, atol=0)


def test_row13_resuming_a_bfloat16_run_keeps_every_bit_of_the_statistics(tmp_path):
    sae = trained(dtype="bfloat16")
    sae.quantizer.ema_count.add_(100_001)
    sae.save_model(tmp_path)
    resumed = TrainingCLVQVAE(sae.cfg)

    resumed.load_weights_from_checkpoint(tmp_path)

    assert_same_state(state(resumed), state(sae))


@pytest.mark.parametrize("make", [trained, make_clvq])
def test_row13_copies_share_nothing(make):
    sae = make()
    before, x = state(sae), sequences()

    other = copy.deepcopy(sae)
    assert_same_state(state(other), before)
    assert torch.equal(other(x), sae(x))
    other.load_state_dict(before)
    other.to(torch.bfloat16)
    if isinstance(other, TrainingCLVQVAE):
        train_step(other, make_rows())

    assert_same_state(state(sae), before)
    assert all(torch.equal(getattr(other, name), before[name]) for name in UNITS)


# 14 to 20: the training step


def test_row14_coefficients_are_schedulable_by_name():
    sae = make_training_clvq(commitment_coefficient=0.3)

    trainer = SAETrainer(trainer_cfg(10), sae, batches_of(make_rows()))

    assert set(trainer.coefficient_schedulers) == {"commitment"}
    assert trainer.get_coefficients() == {"commitment": 0.3}
    value = sae.get_coefficients()["commitment"]
    assert isinstance(value, (float, TrainCoefficientConfig))


def test_row14_the_coefficient_weighs_the_commitment():
    losses = [
        train_step(make_training_clvq(top_k=1), make_rows(), commitment=c).losses for c in (1, 0.2)
    ]

    torch.testing.assert_close(losses[1]["commitment_loss"], 0.2 * losses[0]["commitment_loss"])
    assert torch.equal(losses[1]["mse_loss"], losses[0]["mse_loss"])


def test_row15_losses_add_up_and_metrics_are_loggable(decoder):
    sae = make_training_clvq(decoder=decoder)
    trainer = SAETrainer(trainer_cfg(10), sae, batches_of(make_rows()))

    output = trainer.step(next(trainer.data_provider))
    log = trainer.build_train_step_log_dict(output, n_training_samples=BATCH)

    assert set(output.losses) == {"mse_loss", "commitment_loss"}
    torch.testing.assert_close(output.loss, torch.stack(list(output.losses.values())).sum())
    for name in output.losses:
        assert isinstance(log[f"losses/{name}"], float)
    for name in ("relative_squared_error", "drawn_off_nearest", "perplexity", "alpha"):
        assert isinstance(log[f"metrics/{name}"], float)
    for name in ("codes_in_use", "revived_codes"):
        assert isinstance(log[f"metrics/{name}"], int)
    assert log["details/commitment_coefficient"] == sae.cfg.commitment_coefficient
    json.dumps(log)


def test_row15_the_auxiliary_loss_is_computed_in_the_step():
    sae = make_training_clvq()

    with pytest.raises(NotImplementedError, match="training_forward_pass"):
        sae.calculate_aux_loss(step_input(sae, make_rows()), *[torch.zeros(1)] * 3)


@BOTH_CLASSES
def test_row17_a_nonzero_activation_means_fired(make, decoder):
    sae = make(decoder=decoder)
    x = sequences()

    acts, indices = sae.encode(x), sae.code_indices(x)

    assert torch.equal(acts.bool(), torch.eye(N_CODES)[indices].bool())
    torch.testing.assert_close(acts.sum(-1), sae.scale[indices])


def test_row17_the_trainers_sparsity_is_the_share_of_each_code(decoder):
    sae = make_training_clvq(decoder=decoder, ema_decay=0.999, revive_after=None)
    rows = make_rows()
    trainer = SAETrainer(trainer_cfg(1), sae, batches_of(rows))
    lower, _, valid = unpack_rows(rows, D_IN, D_OUT)
    expected = sae.encode(lower)[valid].sum(0) / BATCH

    trainer.step(rows)

    torch.testing.assert_close(trainer.feature_sparsity, expected)


def test_row18_bfloat16_autocast_keeps_distances_and_statistics_in_float32(decoder):
    settings: dict[str, Any] = {"decoder": decoder, "top_k": 1, "revive_after": None}
    sae, plain = (make_training_clvq(**settings) for _ in range(2))
    rows, seen = make_rows(), []
    sae.encoder.register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    snapshot = sae.codebook.clone()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = train_step(sae, rows)
    output.loss.backward()
    expected = train_step(plain, rows)

    valid = unpack_rows(rows, D_IN, D_OUT)[2]
    exact = (seen[0].float()[:, None] - snapshot).square().sum(-1)
    torch.testing.assert_close(-output.hidden_pre, exact, rtol=1e-4, atol=1e-3)
    assert output.hidden_pre.dtype == output.loss.dtype == torch.float32
    assert (output.feature_acts == expected.feature_acts).all(1)[valid].float().mean() > 0.9
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0)
    for tensor in (sae.codebook, *sae.parameters()):
        assert tensor.dtype == torch.float32
    assert all(grad_of(p).isfinite().all() for p in sae.parameters())


def test_row18_a_run_under_autocast_calibrates_and_trains(decoder):
    sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder))
    rows = make_rows(20 * BATCH)
    trainer = SAETrainer(trainer_cfg(20, autocast=True), sae, batches_of(rows))

    trainer.fit()

    by_hand = TrainingCLVQVAE(clvq_cfg(decoder=decoder))
    by_hand.calibrate(rows[:BATCH])
    assert torch.equal(sae.input_mean, by_hand.input_mean)
    assert torch.equal(sae.target_scale, by_hand.target_scale)
    assert {t.dtype for t in (sae.codebook, *sae.parameters())} == {torch.float32}
    assert all(t.isfinite().all() for t in (*sae.buffers(), *sae.parameters()))
    assert sae.quantizer.n_updates.item() == 21


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_row19_compiled_training_equals_eager_training(decoder):
    cfg = clvq_cfg(decoder=decoder, top_k=1, revive_after=2, decoder_layers=1)
    eager, compiled = TrainingCLVQVAE(cfg), TrainingCLVQVAE(cfg)
    rows = make_rows(6 * BATCH)
    with_dead_codes(eager, rows)
    compiled.load_state_dict(eager.state_dict())
    compiled.training_forward_pass = torch.compile(  # as SAELens' runner does
        compiled.training_forward_pass, backend="aot_eager"
    )
    trainers = [SAETrainer(trainer_cfg(6), sae, batches_of(rows)) for sae in (eager, compiled)]

    for step in range(6):
        outputs = []
        for trainer in trainers:
            torch.manual_seed(step)
            outputs.append(trainer.step(next(trainer.data_provider)))

        torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=1e-5, atol=1e-6)
        assert torch.equal(outputs[1].feature_acts, outputs[0].feature_acts), step
        for name in outputs[0].metrics:
            torch.testing.assert_close(metric(outputs[1], name), metric(outputs[0], name))
    assert compiled.quantizer.n_revived > 0
    for name, tensor in eager.state_dict().items():
        # Adam turns a rounding error of a small gradient into a part of its step of 1e-3.
        torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("settings", [{}, {"decoder_memory": "encoder"}, {"decoder": "token"}])
def test_row19_no_graph_break_once_calibrated(settings):
    sae = make_training_clvq(**settings, decoder_layers=1)
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager", fullgraph=True)

    output = compiled(step_input=step_input(sae, make_rows()))

    output.loss.backward()
    assert sae.quantizer.n_updates.item() == 2
    assert metric(output, "perplexity") > 1


@pytest.mark.usefixtures("dynamo")
def test_row19_a_run_does_not_recompile():
    sae = TrainingCLVQVAE(clvq_cfg(decoder_layers=1))
    counter = CompileCounterWithBackend("aot_eager")
    trainer = SAETrainer(trainer_cfg(12), sae, batches_of(make_rows(12 * BATCH)))
    sae.training_forward_pass = torch.compile(sae.training_forward_pass, backend=counter)
    frames = []
    for _ in range(12):
        trainer.step(next(trainer.data_provider))
        frames.append(counter.frame_count)

    assert frames[-1] == frames[2]
    assert frames[-1] <= 4


# 21: SAELens' own command line


def parse(*flags: str) -> TrainingCLVQVAEConfig:
    cfg = _parse_cfg_args(["--architecture", "clvq_vae", *flags]).sae
    assert type(cfg) is TrainingCLVQVAEConfig
    return cfg


def test_row21_command_line_defaults_are_the_configs():
    assert parse() == TrainingCLVQVAEConfig(d_in=512, d_sae=1024)


def test_row21_command_line_flags():
    flags = "--d_in 64 --d_sae 32 --decoder token --top_k 3 --temperature 0.5 --revive_after 7"
    more = "--codebook_init random --sequence_length 128 --decoder_width 32 --max_revived 2"

    assert parse(*flags.split(), *more.split()) == TrainingCLVQVAEConfig(
        d_in=64,
        d_sae=32,
        decoder="token",
        top_k=3,
        temperature=0.5,
        revive_after=7,
        codebook_init="random",
        sequence_length=128,
        decoder_width=32,
        max_revived=2,
    )


@pytest.mark.parametrize(("flags", "d_out"), [(("--d_out", "48"), 48), ((), 64)])
def test_row21_the_width_of_the_target_on_the_command_line(flags, d_out):
    assert TrainingCLVQVAE(parse("--d_in", "64", *flags)).d_out == d_out


def test_row21_none_on_the_command_line():
    assert parse("--revive_after", "none").revive_after is None


@pytest.mark.parametrize("flags", [("--decoder", "mlp"), ("--codebook_init", "kmeans")])
def test_row21_a_word_that_is_no_value_is_refused_with_the_flag(flags):
    with pytest.raises(argparse.ArgumentError, match=f"argument {flags[0]}.*{flags[1]}"):
        parse(*flags)


# 22, 23: in a model


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def bridge(tmp_path):
    return make_bridge(tmp_path)


def attachable(hook_out: str | None = HOOK_OUT, **overrides: Any) -> CLVQVAE:
    metadata = SAEMetadata(
        hook_name=HOOK,
        hook_name_out=hook_out,
        model_name="tiny",
        context_size=CONTEXT_SIZE,
        prepend_bos=True,
    )
    return make_clvq(**{"d_out": D_IN, "metadata": metadata, **overrides})


@pytest.mark.parametrize("hook_out", [HOOK_OUT, HOOK, None])
def test_row22_attached_with_the_error_term_the_model_is_unchanged(model, decoder, hook_out):
    tokens, sae = make_tokens(), attachable(hook_out, decoder=decoder)

    logits = model.run_with_saes(tokens, saes=[sae], use_error_term=True)

    torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_error_term", [True, False])
def test_row22_all_six_hooks_fire_at_the_output_hook(model, decoder, use_error_term):
    sae, tokens = attachable(decoder=decoder), make_tokens()
    _, clean = model.run_with_cache(tokens)

    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=use_error_term)

    x, y = clean[HOOK], clean[HOOK_OUT]
    fired = {name.removeprefix(f"{HOOK_OUT}.") for name in cache if name.startswith(HOOK_OUT + ".")}
    assert fired == set(HOOKS) - (set() if use_error_term else {"hook_sae_error"})
    torch.testing.assert_close(cache[f"{HOOK_OUT}.hook_sae_input"], x)
    torch.testing.assert_close(cache[f"{HOOK_OUT}.hook_sae_acts_post"], sae.encode(x))
    torch.testing.assert_close(cache[f"{HOOK_OUT}.hook_sae_recons"], sae(x))
    expected = y if use_error_term else sae(x)
    torch.testing.assert_close(cache[f"{HOOK_OUT}.hook_sae_output"], expected)
    if use_error_term:
        torch.testing.assert_close(cache[f"{HOOK_OUT}.hook_sae_error"], y - sae(x))


def test_row22_without_the_error_term_the_model_reads_the_reconstruction(model, decoder):
    sae, tokens = attachable(decoder=decoder), make_tokens()
    x = model.run_with_cache(tokens)[1][HOOK]

    logits = model.run_with_saes(tokens, saes=[sae], use_error_term=False)

    expected = model.run_with_hooks(tokens, fwd_hooks=[(HOOK_OUT, lambda y, hook: sae(x))])
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(logits, model(tokens), atol=1e-2)


def test_row22_special_tokens_can_pass_by(model, decoder):
    sae, tokens = attachable(decoder=decoder), make_tokens()
    is_special = (tokens == 0)[..., None]
    x = model.run_with_cache(tokens)[1][HOOK]

    logits = model.run_with_saes(tokens, saes=[sae], exclude_special_tokens=True)

    expected = model.run_with_hooks(
        tokens, fwd_hooks=[(HOOK_OUT, lambda y, hook: torch.where(is_special, y, sae(x)))]
    )
    torch.testing.assert_close(logits, expected)


def test_row22_a_decoder_that_leaks_cannot_be_attached(model):
    with pytest.raises(ValueError, match="not a function of the codes"):
        model.run_with_saes(make_tokens(), saes=[attachable(decoder_memory="encoder")])

    assert not model.acts_to_saes


@pytest.mark.parametrize("hook_out", [HOOK_OUT, None])
def test_row22_bridge_with_the_error_term_the_model_is_unchanged(bridge, decoder, hook_out):
    tokens, sae = make_tokens(), attachable(hook_out, decoder=decoder)
    clean_logits, clean = bridge.run_with_cache(tokens)

    logits, cache = bridge.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=True)

    torch.testing.assert_close(logits, clean_logits, rtol=1e-4, atol=1e-5)
    x, y = (clean[bridge._resolve_hook_name(name)] for name in (HOOK, hook_out or HOOK))
    error = cache[bridge.get_sae_hook_name(sae, "hook_sae_error")]
    torch.testing.assert_close(error, y - sae(x), rtol=1e-4, atol=1e-4)
    assert error.norm() > 0.1 * y.norm()


def test_row22_bridge_without_the_error_term_the_model_reads_the_reconstruction(bridge, decoder):
    sae, tokens = attachable(decoder=decoder), make_tokens()
    x = bridge.run_with_cache(tokens)[1][bridge._resolve_hook_name(HOOK)]
    expected = bridge.run_with_hooks(
        tokens, fwd_hooks=[(bridge._resolve_hook_name(HOOK_OUT), lambda y, hook: sae(x))]
    )

    logits = bridge.run_with_saes(tokens, saes=[sae], use_error_term=False)

    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("is_training", [True, False])
def test_row23_run_evals_of_a_single_layer_gives_finite_numbers(
    model, tmp_path, decoder, is_training
):
    sae = attachable(None, decoder=decoder)
    if is_training:
        sae = make_training_clvq(decoder=decoder, d_out=D_IN, metadata=sae.cfg.metadata)
    store = ActivationsStore.from_config(model, runner_cfg(tmp_path), override_dataset=make_text())

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
    assert metrics["sparsity"]["l0"] == 1
    assert sum(feature_metrics["feature_density"]) == pytest.approx(1, rel=1e-4)
    for name in ("encoder_bias", "encoder_norm", "encoder_decoder_cosine_sim"):
        assert torch.tensor(feature_metrics[name]).isfinite().all()


# 24: resume


def test_row24_resume_goes_on_as_if_it_had_never_stopped(tmp_path, decoder):
    rows = make_rows(12 * BATCH)
    cfg = clvq_cfg(decoder=decoder, top_k=3, revive_after=1, max_revived=1)

    def trainer(rows: Tensor) -> SAETrainer[Any, Any]:
        return SAETrainer(trainer_cfg(12), TrainingCLVQVAE(cfg), batches_of(rows))

    first = trainer(rows)
    with_dead_codes(first.sae, rows)
    for _ in range(6):
        first.step(next(first.data_provider))
        first.n_training_steps += 1
    first.save_checkpoint("half", base_path=tmp_path)
    at_checkpoint = state(first.sae)
    torch.manual_seed(1)  # the random state is not saved
    whole = state(first.fit())

    resumed = trainer(rows[6 * BATCH :])
    resumed.load_trainer_state(tmp_path / "half")
    resumed.sae.load_weights_from_checkpoint(tmp_path / "half")

    assert all(at_checkpoint[name].any() for name in STATISTICS + COUNTERS)
    assert_same_state(state(resumed.sae), at_checkpoint)
    torch.manual_seed(1)
    assert_same_state(state(resumed.fit()), whole)


def test_row24_stock_runner_resumes_where_it_was(tmp_path, model):
    def cfg(folder, **overrides):
        return runner_cfg(
            tmp_path / folder, n_steps=8, sae=single_layer_cfg(), n_checkpoints=1, **overrides
        )

    first: Any = LanguageModelSAETrainingRunner(cfg("a"), make_text(), model)
    first.run()
    (path,) = (tmp_path / "a" / "checkpoints").glob("*/[0-9]*")
    saved = load_file(path / "sae_weights.safetensors")
    resumed: Any = LanguageModelSAETrainingRunner(
        cfg("b", resume_from_checkpoint=str(path)), make_text(), model
    )
    seen = []
    original = resumed.sae.training_forward_pass

    def watch(step_input):
        seen.append(state(resumed.sae))
        return original(step_input=step_input)

    resumed.sae.training_forward_pass = watch  # type: ignore[method-assign]
    resumed.run()

    assert_same_state(seen[0], saved)
    assert first.sae.quantizer.n_updates == resumed.sae.quantizer.n_updates == 9


# 25, 28 and the runners end to end


def single_layer_cfg(**overrides: Any) -> TrainingCLVQVAEConfig:
    return clvq_cfg(**{"d_out": None, **overrides})


def test_the_stock_trainer_trains_on_packed_rows(tmp_path, decoder):
    sae = TrainingCLVQVAE(clvq_cfg(decoder=decoder))
    rows = make_rows(40 * BATCH)
    trainer = SAETrainer(
        trainer_cfg(40, lr=3e-3, n_checkpoints=1, checkpoint_path=str(tmp_path)),
        sae,
        batches_of(rows),
    )
    before = train_step(copy.deepcopy(sae), rows[:BATCH]).losses["mse_loss"]

    trainer.fit()

    after = train_step(copy.deepcopy(sae).eval(), rows[:BATCH]).losses["mse_loss"]
    assert after < 0.8 * before
    assert sae.quantizer.n_updates.item() == 41
    assert 0.5 < (sae.cfg.metadata.l0 or 0) < 1  # the share of tokens that are not masked
    (path,) = tmp_path.glob("*")
    assert type(TrainingSAE.load_from_disk(path)) is TrainingCLVQVAE


@pytest.mark.parametrize("runner", [LanguageModelSAETrainingRunner, TrainingRunner])
def test_the_runners_train_a_single_layer_vq_vae(tmp_path, model, runner, decoder):
    cfg = runner_cfg(tmp_path, n_steps=8, sae=single_layer_cfg(decoder=decoder))
    training = runner(cfg, make_text(), model)

    sae: Any = training.run()

    assert sae.quantizer.n_updates.item() == 9
    x = model.run_with_cache(make_tokens(8))[1][HOOK]
    loaded = SAE.load_from_disk(tmp_path / "output")
    assert type(loaded) is CLVQVAE
    assert loaded.cfg.metadata.hook_name == HOOK
    assert loaded.cfg.metadata.exclude_special_tokens is True
    assert torch.equal(loaded(x), sae(x))


def test_a_run_from_a_pretrained_path_goes_on_from_a_file_for_inference(tmp_path, model):
    sae = make_training_clvq(d_out=None)
    sae.save_inference_model(tmp_path / "before")
    cfg = runner_cfg(
        tmp_path,
        n_steps=2,
        sae=single_layer_cfg(),
        from_pretrained_path=str(tmp_path / "before"),
    )

    further: Any = LanguageModelSAETrainingRunner(cfg, make_text(), model).run()

    assert torch.equal(further.input_mean, sae.input_mean)
    assert further.quantizer.n_updates.item() == 3
    assert not torch.equal(further.codebook, sae.codebook)


def test_row25_multi_sae_runner_trains_one_beside_a_topk(tmp_path, model):
    cfg = MultiSAETrainingRunnerConfig(
        saes={
            "ours": single_layer_cfg(),
            "theirs": TopKTrainingSAEConfig(d_in=D_IN, d_sae=40, k=4),
        },
        hook_names={"ours": HOOK, "theirs": HOOK_OUT},
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
    assert type(ours) is TrainingCLVQVAE
    assert ours.quantizer.n_updates.item() == 9
    x = model.run_with_cache(make_tokens(8))[1][HOOK]
    loaded = SAE.load_from_disk(tmp_path / "output" / "ours")
    assert type(loaded) is CLVQVAE
    assert torch.equal(loaded(x), ours(x))


@pytest.mark.parametrize("d_in", [20, 7])
def test_row28_synthetic_runner_trains_evaluates_and_saves(tmp_path, d_in):
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=24, hidden_dim=20, seed=0),
        # The runner corrects d_in to the synthetic model's.
        sae=single_layer_cfg(d_in=d_in, d_sae=24, decoder="token", decoder_layers=1),
        training_samples=60 * BATCH,
        batch_size=BATCH,
        lr=3e-3,
        eval_samples=2000,
        n_batches_for_norm_estimate=2,
        checkpoint_path=None,
        output_path=str(tmp_path),
        logger=LoggingConfig(log_to_wandb=False),
    )

    result = SyntheticSAERunner(cfg).run()

    assert type(result.sae) is TrainingCLVQVAE
    assert result.sae.quantizer.n_updates.item() == 61
    evals = result.final_eval
    assert evals is not None
    assert torch.tensor(list(map(float, evals.to_log_dict().values()))).isfinite().all()
    assert evals.sae_l0 == 1
    assert evals.explained_variance > 0.05
    x = result.synthetic_model.sample(1000)
    assert torch.equal(SAE.load_from_disk(tmp_path)(x), result.sae(x))


# 26, 27, 29: sharing and histograms


@pytest.mark.parametrize("make", [trained, make_clvq])
def test_row26_what_is_uploaded_from_a_live_model_loads_for_inference(tmp_path, make):
    # upload_saes_to_huggingface takes an SAE object too, and saves it with save_model.
    sae = make()
    path = Path(hf_upload._build_sae_path(sae, str(tmp_path)))

    loaded = SAE.load_from_disk(path)

    assert type(loaded) is CLVQVAE
    assert torch.equal(loaded(sequences()), sae(sequences()))


# 30: two hook points


def test_row30_a_target_of_another_width_is_saved_and_loaded(tmp_path, decoder):
    sae = trained(decoder=decoder, d_out=5)
    sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert loaded.cfg.d_out == 5  # pyright: ignore[reportAttributeAccessIssue]
    assert loaded(sequences()).shape == (*sequences().shape[:-1], 5)
    assert loaded.cfg.apply_b_dec_to_input is False


def test_row30_the_targets_of_a_batch_are_what_the_trainer_logs(decoder):
    lower, upper = make_pairs(BATCH)
    sae = make_training_clvq(decoder=decoder)

    output = train_step(sae, pack_rows(lower, upper))

    assert torch.equal(output.sae_in, upper)
    assert output.sae_out.shape == upper.shape
