"""``RunConfig.run``: what a config file says, trained as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import SAE, LanguageModelSAERunnerConfig

from bae_lens import CrossLayerTrainingRunner, TrainingRunner, load_config
from bae_lens.training import SyntheticTrainingRunner
from bae_lens.training.config_file import RunConfig
from tests.helpers import BATCH, CONTEXT_SIZE, D_IN, HOOK_OUT, make_model, make_text, runner_cfg
from tests.training.test_config_file import CONTENT, SYNTHETIC

N_REPLAYED = 4 * BATCH


def write(folder: Path, content: dict[str, Any], **fields: Any) -> Path:
    path = folder / "run.yaml"
    ours = {"output_path": str(folder / "output"), "checkpoint_path": None}
    path.write_text(yaml.safe_dump({**content, **ours, **fields}))
    return path


def small(folder: Path, **fields: Any) -> Path:
    return write(
        folder,
        CONTENT,
        **{
            "is_dataset_tokenized": False,
            "context_size": CONTEXT_SIZE,
            "training_tokens": 6 * BATCH,
            "train_batch_size_tokens": BATCH,
            "store_batch_size_prompts": 8,
            "n_batches_in_buffer": 16,
            "n_batches_for_norm_estimate": 2,
            "exclude_special_tokens": True,
            "replay_tokens": N_REPLAYED,
            "replay_path": str(folder / "kept"),
            **fields,
        },
    )


def test_a_run_replays_what_its_file_says(tmp_path):
    config = load_config(small(tmp_path))

    sae = config.run(override_model=make_model(), override_dataset=make_text())

    saved = SAE.load_from_disk(tmp_path / "output")
    assert sae.cfg.metadata.replay_tokens == saved.cfg.metadata.replay_tokens == N_REPLAYED
    assert any((tmp_path / "kept").iterdir())
    assert type(sae).__name__ == "TrainingBAE"


def test_a_run_across_layers(tmp_path):
    sae = {"architecture": "clvq_vae", "d_in": D_IN, "d_sae": 10, "decoder_layers": 1}
    path = small(tmp_path, sae=sae, hook_name_out=HOOK_OUT, initialization_tokens=64)
    config = load_config(path)
    model, text = make_model(), make_text()

    trained = config.run(override_model=model, override_dataset=text)

    assert trained.cfg.metadata.hook_name_out == HOOK_OUT
    assert trained.cfg.metadata.replay_tokens == N_REPLAYED
    assert isinstance(config.make_runner(text, model), CrossLayerTrainingRunner)


def test_a_run_on_synthetic_data(tmp_path):
    config = load_config(write(tmp_path, SYNTHETIC, training_samples=2000, batch_size=500))

    sae = config.run()

    assert sae.cfg.architecture() == "topk"
    assert (tmp_path / "output" / "cfg.json").is_file()
    for fields in ({"replay_tokens": 5}, {"replay_tokens": 0}, {"replay_path": ""}):
        with pytest.raises(ValueError, match="not for synthetic data"):
            config._replace(**fields).run()
    with pytest.raises(ValueError, match="override_dataset is not for synthetic data"):
        config.run(override_dataset=make_text())


@pytest.mark.parametrize(
    "runner", [TrainingRunner, CrossLayerTrainingRunner, SyntheticTrainingRunner]
)
def test_what_load_config_returns_is_no_config_of_a_runner(runner, tmp_path):
    config: Any = load_config(small(tmp_path))

    with pytest.raises(ValueError, match=r"got a RunConfig\. .* trained by its own run\(\)"):
        runner(config)


@pytest.mark.parametrize("cfg", [None, {"lr": 1e-3}, "run.yaml"])
def test_anything_else_is_no_config_of_a_runner(cfg: Any):
    name = type(cfg).__name__
    with pytest.raises(ValueError, match=f"a LanguageModelSAERunnerConfig; got a {name}"):
        TrainingRunner(cfg)
    with pytest.raises(ValueError, match=f"a SyntheticSAERunnerConfig; got a {name}"):
        SyntheticTrainingRunner(cfg)


def test_the_number_of_hook_points_is_that_of_the_runner(tmp_path):
    one: Any = runner_cfg(tmp_path)
    sae = {"architecture": "clvq_vae", "d_in": D_IN, "d_sae": 10}
    two: Any = load_config(small(tmp_path, sae=sae, hook_name_out=HOOK_OUT)).runner

    assert isinstance(one, LanguageModelSAERunnerConfig)
    with pytest.raises(ValueError, match="must be a CrossLayerRunnerConfig; got"):
        CrossLayerTrainingRunner(one, override_model=make_model())
    # It would train the one hook point, whatever the other.
    with pytest.raises(ValueError, match="must be a config of one hook point; got"):
        TrainingRunner(two, override_model=make_model())
    assert isinstance(RunConfig(one).make_runner(make_text(), make_model()), TrainingRunner)
