"""Training that begins with saved weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKTrainingSAEConfig
from sae_lens.training.activations_store import ActivationsStore

from bae_lens import CrossLayerTrainingRunner, TrainingBAE, TrainingRunner
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    clvq_cfg,
    cross_layer_cfg,
    make_activations,
    make_model,
    make_text,
    make_training_bae,
    runner_cfg,
    training_cfg,
)


def make_runner(folder: Path, **fields: Any) -> TrainingRunner:
    given = fields.pop("override_sae", None)
    cfg = runner_cfg(folder, **fields)
    return TrainingRunner(cfg, make_text(), make_model(), given, replay_tokens=5 * BATCH)


def make_clvq_runner(folder: Path, path: Path | None = None, **fields: Any) -> Any:
    sae = clvq_cfg(d_out=D_IN, **{"decoder_layers": 1, "sequence_length": None, **fields})
    given = {"sae": sae, "from_pretrained_path": None if path is None else str(path)}
    cfg = cross_layer_cfg(folder, **given)
    return CrossLayerTrainingRunner(cfg, make_text(), make_model(), replay_tokens=5 * BATCH)


@pytest.fixture(scope="module")
def bae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BAE whose inputs were scaled in training."""
    folder = tmp_path_factory.mktemp("bae")
    make_runner(folder).run()
    return folder / "output"


def refused(make: Any, folder: Path, error: type[Exception] = ValueError, **fields: Any) -> str:
    with pytest.MonkeyPatch.context() as patch:

        def read_text(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("the store was built")

        patch.setattr(ActivationsStore, "from_config", read_text)
        patch.setattr(ActivationsStore, "from_config_multi_hook", read_text)
        with pytest.raises(error) as caught:
            make(folder / "refused", **fields)
    assert not (folder / "refused").exists()
    return str(caught.value)


def test_the_configs_objective_is_trained_with_the_files_weights(tmp_path: Path, bae: Path):
    asked = training_cfg(
        target_entropy=8.0, max_density=None, covariance_coefficient=0.5, surrogate="identity"
    )
    runner = make_runner(tmp_path, sae=asked, from_pretrained_path=str(bae))
    saved, begun = SAE.load_from_disk(bae), runner.sae
    torch.testing.assert_close(begun.W_enc.data, saved.W_enc.data)
    trained = runner.run()
    for name in ("target_entropy", "max_density", "covariance_coefficient", "surrogate"):
        assert getattr(trained.cfg, name) == getattr(asked, name), name
    written = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert written["sae"]["target_entropy"] == 8.0
    assert written["sae"]["normalize_activations"] == "expected_average_only_in"


def test_weights_are_not_calibrated_anew_and_mean_the_same_on_scaled_inputs(
    tmp_path: Path, bae: Path
):
    """With a learning rate of nothing the function is what it was, through the scale and back."""
    make_runner(tmp_path, from_pretrained_path=str(bae), lr=1e-12).run()
    x = make_activations(512)
    before, after = (SAE.load_from_disk(path) for path in (bae, tmp_path / "output"))
    torch.testing.assert_close(after(x), before(x), rtol=1e-4, atol=1e-4)
    assert after.encode(x).ne(0).eq(before.encode(x).ne(0)).float().mean() > 0.999


def test_a_run_from_saved_weights_is_resumed_like_any_other(tmp_path: Path, bae: Path):
    fields = {"from_pretrained_path": str(bae), "n_steps": 8}
    whole = make_runner(tmp_path / "whole", n_checkpoints=1, **fields)
    whole.run()
    (checkpoint,) = Path(str(whole.cfg.checkpoint_path)).iterdir()
    make_runner(tmp_path / "again", resume_from_checkpoint=str(checkpoint), **fields).run()
    a, b = (SAE.load_from_disk(tmp_path / n / "output").state_dict() for n in ("whole", "again"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_for_a_codebook(tmp_path: Path):
    make_clvq_runner(tmp_path / "a").run()
    path, asked = tmp_path / "a" / "output", {"top_k": 1, "ema_decay": 0.5}
    runner = make_clvq_runner(tmp_path / "b", path, **asked)
    saved = SAE.load_from_disk(path)
    assert torch.equal(runner.sae.state_dict()["codebook"], saved.state_dict()["codebook"])
    trained = runner.run()
    assert {name: getattr(trained.cfg, name) for name in asked} == asked
    found = refused(make_clvq_runner, tmp_path, path=path, decoder_layers=2)
    assert "decoder_layers is 1 there and 2 here" in found
    found = refused(make_clvq_runner, tmp_path, path=path, d_sae=20)
    assert "d_sae is 10 there and 20 here" in found


def test_saelens_own_architectures(tmp_path: Path):
    sae = TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)
    make_runner(tmp_path / "a", sae=sae).run()
    asked = TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=5, aux_loss_coefficient=0.25)
    path = str(tmp_path / "a" / "output")
    runner = make_runner(tmp_path / "b", sae=asked, from_pretrained_path=path)
    trained = runner.run()
    assert trained.cfg.aux_loss_coefficient == 0.25
    assert SAE.load_from_disk(tmp_path / "b" / "output").cfg.k == 5


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (
            TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE),
            "architecture is 'bae' there and 'topk' here",
        ),
        (training_cfg(d_sae=2 * D_SAE), f"d_sae is {D_SAE} there and {2 * D_SAE} here"),
        (training_cfg(d_in=8), f"d_in is {D_IN} there and 8 here"),
        (
            training_cfg(apply_b_dec_to_input=False),
            "apply_b_dec_to_input is True there and False here",
        ),
        (
            training_cfg(normalize_activations="layer_norm"),
            "normalize_activations is 'none' there and 'layer_norm' here",
        ),
    ],
)
def test_weights_of_another_kind_are_refused(tmp_path: Path, bae: Path, sae: Any, message: str):
    found = refused(make_runner, tmp_path, sae=sae, from_pretrained_path=str(bae))
    assert message in found
    assert str(bae) in found


def test_weights_of_another_width_than_the_hook(tmp_path: Path):
    narrow = TrainingBAE(training_cfg(d_in=8, d_sae=20, target_entropy=None))
    narrow.calibrate(torch.randn(64, 8))
    narrow.save_inference_model(tmp_path / "narrow")
    path = str(tmp_path / "narrow")
    assert "d_in is 8 there and 16 here" in refused(
        make_runner, tmp_path, from_pretrained_path=path
    )
    found = refused(
        make_runner,
        tmp_path,
        sae=training_cfg(d_in=8, d_sae=20, target_entropy=None),
        from_pretrained_path=path,
    )
    assert "sae.d_in is 8, but the activations" in found


@pytest.mark.parametrize("missing", ["cfg.json", "sae_weights.safetensors"])
def test_a_folder_without_an_autoencoder(tmp_path: Path, missing: str):
    make_training_bae().save_model(tmp_path / "sae")
    (tmp_path / "sae" / missing).unlink()
    path = str(tmp_path / "sae")
    found = refused(make_runner, tmp_path, FileNotFoundError, from_pretrained_path=path)
    assert f"which lacks {missing}" in found


def test_an_autoencoder_that_is_handed_over(
    tmp_path: Path, bae: Path, caplog: pytest.LogCaptureFixture
):
    given = make_training_bae(normalize_activations="expected_average_only_in", temperature=0.3)
    found = refused(
        make_runner, tmp_path, override_sae=given, sae=TopKTrainingSAEConfig(D_IN, D_SAE)
    )
    assert "architecture is 'bae' there and 'topk' here" in found
    found = refused(make_runner, tmp_path, override_sae=given, from_pretrained_path=str(bae))
    assert "override_sae is given too" in found
    make_runner(tmp_path / "a", override_sae=given).run()
    assert "temperature is 0.3 of it and 'auto' in the config" in caplog.text
    written = json.loads((tmp_path / "a" / "output" / "runner_cfg.json").read_text())
    assert written["sae"]["temperature"] == 0.3
