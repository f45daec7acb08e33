"""The rows that every architecture answers in the same way; what is of one is in its own file."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle
from typing import Any

import pytest
import torch
from sae_lens import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig, registry
from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader
from sae_lens.training import upload_saes_to_huggingface as hf_upload
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

import bae_lens
from tests.conformance.cases import ARCHITECTURES, Architecture, in_a_model
from tests.helpers import (
    D_IN,
    batches_of,
    make_model,
    make_tokens,
    runner_cfg,
    step_input,
    trainer_cfg,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def model():
    return make_model()


def state_of(sae: SAE[Any]) -> dict[str, Tensor]:
    return copy.deepcopy(dict(sae.state_dict()))


def assert_same_state(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def each_config(which: str) -> Any:
    """Every config of every architecture, each as a test of its own."""
    return pytest.mark.parametrize(
        ("architecture", "make"),
        [
            pytest.param(one, make, id=f"{name}-{config}")
            for name, one in ARCHITECTURES.items()
            for config, make in getattr(one, which).items()
        ],
    )


# 1: registration


def test_row01_both_classes_are_registered(architecture):
    name = architecture.name
    assert registry.SAE_CLASS_REGISTRY[name] == architecture.inference
    assert registry.SAE_TRAINING_CLASS_REGISTRY[name] == architecture.training
    assert architecture.inference[1].architecture() == name
    assert architecture.training[1].architecture() == name


def test_row01_registration_is_harmless_on_reload(architecture):
    importlib.reload(bae_lens)

    assert registry.SAE_CLASS_REGISTRY[architecture.name] == architecture.inference
    assert registry.SAE_TRAINING_CLASS_REGISTRY[architecture.name] == architecture.training


# 2, 3: configuration


@each_config("configs")
@pytest.mark.parametrize("is_base", [True, False])
def test_row02_training_config_round_trip(architecture, make, is_base):
    cfg, own = make(), architecture.training[1]

    as_json = json.loads(json.dumps(cfg.to_dict()))
    again = (TrainingSAEConfig if is_base else own).from_dict(as_json)

    assert type(again) is own
    assert again == cfg
    assert again.to_dict() == as_json


@each_config("inference_configs")
@pytest.mark.parametrize("is_base", [True, False])
def test_row02_inference_config_round_trip(architecture, make, is_base):
    cfg, own = make(), architecture.inference[1]

    as_json = json.loads(json.dumps(cfg.to_dict()))
    again = (SAEConfig if is_base else own).from_dict(as_json)

    assert type(again) is own
    assert again == cfg
    assert again.to_dict() == as_json


@each_config("configs")
def test_row02_runner_config_round_trip(tmp_path, architecture, make):
    cfg = runner_cfg(tmp_path, sae=make())

    as_json = json.loads(json.dumps(cfg.to_dict()))

    assert type(cfg).from_dict(as_json).sae == cfg.sae


@pytest.mark.parametrize("is_training", [True, False])
def test_row03_every_field_but_the_sizes_has_a_default(architecture, is_training):
    config = (architecture.training if is_training else architecture.inference)[1]
    without = [
        field.name
        for field in dataclasses.fields(config)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]

    assert without == ["d_in", "d_sae"]


# 4, 5, 6: files


@pytest.mark.parametrize("is_base", [True, False])
def test_row04_training_checkpoint_round_trip(tmp_path, architecture, is_base):
    sae = architecture.trained()
    sae.save_model(tmp_path)

    loaded = (TrainingSAE if is_base else type(sae)).load_from_disk(tmp_path)

    assert type(loaded) is architecture.training[0]
    assert loaded.cfg == sae.cfg
    assert_same_state(state_of(loaded), state_of(sae))
    x = architecture.inputs()
    assert torch.equal(loaded(x), sae(x))


def test_row04_a_loaded_checkpoint_trains_on_as_if_never_saved(tmp_path, architecture):
    sae = architecture.trained()
    sae.save_model(tmp_path)
    loaded = type(sae).load_from_disk(tmp_path)

    for each in (sae, loaded):
        torch.manual_seed(0)
        rows = architecture.batch(5 * 64, seed=3)
        SAETrainer(trainer_cfg(5), each, batches_of(rows)).fit()

    assert_same_state(state_of(loaded), state_of(sae))


@pytest.mark.parametrize("is_base", [True, False])
def test_row04_inference_round_trip(tmp_path, architecture, is_base):
    sae = in_a_model(architecture)
    sae.save_model(tmp_path)

    loaded = (SAE if is_base else type(sae)).load_from_disk(tmp_path)

    assert type(loaded) is architecture.inference[0]
    assert loaded.cfg == sae.cfg
    assert loaded.cfg.metadata.hook_name_out == sae.cfg.metadata.hook_name_out
    assert_same_state(state_of(loaded), state_of(sae))
    x = architecture.inputs()
    assert torch.equal(loaded(x), sae(x))
    assert torch.equal(loaded.encode(x), sae.encode(x))


@pytest.mark.parametrize("is_training", [True, False])
def test_row04_nothing_is_left_on_the_meta_device(tmp_path, architecture, is_training):
    # load_from_disk builds the model there, so a buffer that is not saved would stay behind.
    sae = architecture.trained() if is_training else architecture.make()
    sae.save_model(tmp_path)

    loaded = type(sae).load_from_disk(tmp_path)

    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert {name for name, tensor in tensors.items() if tensor.is_meta} == set()
    assert {name.removeprefix("quantizer.") for name in tensors} == loaded.state_dict().keys()
    assert torch.equal(loaded(architecture.inputs()), sae(architecture.inputs()))


def test_row05_saving_for_inference_leaves_the_live_model_untouched(tmp_path, architecture):
    sae = architecture.trained()
    before = state_of(sae)

    sae.save_inference_model(tmp_path)

    assert_same_state(state_of(sae), before)


def test_row05_inference_files_hold_no_training_state(tmp_path, architecture):
    sae = architecture.trained()
    weights, cfg_path = sae.save_inference_model(tmp_path)

    loaded = SAE.load_from_disk(tmp_path)

    assert type(loaded) is architecture.inference[0]
    assert load_file(weights).keys() == loaded.state_dict().keys()
    own, training = (
        {field.name for field in dataclasses.fields(config)}
        for config in (architecture.inference[1], architecture.training[1])
    )
    cfg = json.loads(cfg_path.read_text())
    assert cfg["architecture"] == cfg["metadata"]["training_architecture"] == architecture.name
    assert set(cfg) == own | {"architecture"}
    assert set(cfg["metadata"]["training_architecture_details"]) == training - own


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        pytest.param(one, name, id=f"{key}-{name}")
        for key, one in ARCHITECTURES.items()
        for name in one.tensors
    ],
)
def test_row06_a_checkpoint_with_a_tensor_missing_is_refused(tmp_path, architecture, name):
    sae = architecture.trained()
    weights, _ = sae.save_model(tmp_path)
    state = load_file(weights)
    del state[name]
    save_file(state, weights)

    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        type(sae)(sae.cfg).load_weights_from_checkpoint(tmp_path)


def test_row06_a_checkpoint_with_a_tensor_too_many_is_refused(tmp_path, architecture):
    sae = architecture.trained()
    weights, _ = sae.save_model(tmp_path)
    save_file(load_file(weights) | {"log_threshold": torch.zeros(3)}, weights)

    with pytest.raises(RuntimeError, match=r"Unexpected key.*log_threshold"):
        type(sae)(sae.cfg).load_weights_from_checkpoint(tmp_path)


# 10, 13, 16, 20: the module and its step


@pytest.mark.parametrize("is_training", [True, False])
def test_row10_encode_and_decode_are_the_forward_pass_and_deterministic(architecture, is_training):
    sae = (architecture.make_training() if is_training else architecture.make()).eval()
    x = architecture.inputs()

    assert torch.equal(sae.decode(sae.encode(x)), sae(x))
    assert torch.equal(sae.encode(x), sae.encode(x))


@pytest.mark.parametrize("is_training", [True, False])
def test_row13_a_device_move_takes_everything_along(architecture, is_training):
    sae = architecture.trained() if is_training else architecture.make()
    dtypes = {name: tensor.dtype for name, tensor in sae.state_dict().items()}

    sae.to(device="meta")

    assert all(tensor.is_meta for tensor in [*sae.parameters(), *sae.buffers()])
    assert {name: tensor.dtype for name, tensor in sae.state_dict().items()} == dtypes


@pytest.mark.parametrize("is_training", [True, False])
def test_row13_config_and_state_can_be_pickled(architecture, is_training):
    # The module itself cannot, as no SAE of SAELens can, which hold lambdas.
    sae = architecture.trained() if is_training else architecture.make()

    cfg, saved = pickle.loads(pickle.dumps((sae.cfg, sae.state_dict())))
    other = type(sae)(cfg)
    other.load_state_dict(saved)

    assert other.cfg == sae.cfg
    assert torch.equal(other(architecture.inputs()), sae(architecture.inputs()))


def test_row16_training_forward_pass_is_called_by_keyword(architecture):
    sae = architecture.make_training()

    assert sae.training_forward_pass(step_input=step_input(sae, architecture.batch())).loss > 0


@pytest.mark.parametrize("is_masked", [False, True])
def test_row20_dead_neuron_mask_may_be_none(architecture, is_masked):
    sae = architecture.make_training()
    mask = torch.arange(sae.cfg.d_sae) < 4 if is_masked else None
    step = dataclasses.replace(step_input(sae, architecture.batch()), dead_neuron_mask=mask)

    output = sae.training_forward_pass(step_input=step)

    assert output.loss.isfinite()
    if "dead_rate" in output.metrics:
        assert float(output.metrics["dead_rate"]) == pytest.approx(4 / sae.cfg.d_sae)  # type: ignore[arg-type]
    assert ("dead_rate" in output.metrics) == (is_masked and architecture.name == "bae")


# 22: in a model


def test_row22_add_and_reset(model, architecture):
    tokens = make_tokens()
    before = model(tokens)

    model.add_sae(in_a_model(architecture), use_error_term=False)
    assert not torch.allclose(model(tokens), before, atol=1e-2)
    model.reset_saes()

    assert torch.equal(model(tokens), before)


def test_row22_attached_with_the_error_term_the_model_is_unchanged(model, architecture):
    tokens = make_tokens()

    logits = model.run_with_saes(tokens, saes=[in_a_model(architecture)], use_error_term=True)

    torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-5)


# 26, 27, 29: sharing and histograms


def test_row26_a_checkpoint_uploaded_from_a_live_sae_loads_for_inference(tmp_path, architecture):
    # upload_saes_to_huggingface takes an SAE object too, and saves it with save_model.
    path = hf_upload._build_sae_path(architecture.trained(), str(tmp_path))

    assert type(SAE.load_from_disk(path)) is architecture.inference[0]


def test_row27_loads_through_from_pretrained(tmp_path, architecture):
    sae = architecture.trained()
    sae.save_inference_model(tmp_path / "some_sae")
    expected = SAE.load_from_disk(tmp_path / "some_sae")

    def from_folder(repo_id, folder_name, device, force_download, cfg_overrides):
        cfg, state = sae_lens_disk_loader(tmp_path / folder_name, device, cfg_overrides)
        return cfg, state, None

    loaded = SAE.from_pretrained("someone/repo", "some_sae", converter=from_folder)

    assert type(loaded) is architecture.inference[0]
    assert_same_state(state_of(loaded), state_of(expected))
    x = architecture.inputs()
    assert torch.equal(loaded(x), expected(x))


def test_row29_log_histograms(architecture):
    sae = architecture.make_training()

    norms = sae.log_histograms()["weights/W_dec_norms"]

    torch.testing.assert_close(torch.from_numpy(norms), sae.W_dec.detach().norm(dim=1))


def test_inputs_are_of_one_width():
    assert {one.inputs().shape[-1] for one in ARCHITECTURES.values()} == {D_IN}
