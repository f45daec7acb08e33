"""Where a run writes."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, StandardTrainingSAEConfig, TopKTrainingSAEConfig
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file

from bae_lens import TrainingRunner, load_config
from bae_lens.files.folder_lock import FolderInUseError, locked_folder
from bae_lens.training.metric_log import MetricLog
from bae_lens.training.outputs import NotSavedError, held_folders
from bae_lens.training.synthetic_runner import SyntheticTrainingRunner
from tests.helpers import BATCH, D_IN, D_SAE, make_model, make_text, runner_cfg

N_STEPS, REPLAY = 6, 5 * BATCH


def make_runner(folder: Path, **fields: Any) -> TrainingRunner:
    cfg = runner_cfg(folder, **{"n_steps": N_STEPS, **fields})
    cfg.logger.wandb_log_frequency = 2
    return TrainingRunner(cfg, make_text(), make_model(), replay_tokens=REPLAY)


def log_of(folder: Path, name: str = "metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).open()]


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# Found out before


@pytest.mark.parametrize("field", ["output_path", "checkpoint_path"])
@pytest.mark.parametrize("name", ["file", "file/x", "/proc/x", "n" * 300])
def test_a_place_that_takes_no_files_is_refused_before_a_model_is_loaded(
    tmp_path: Path, field: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    if name.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    (tmp_path / "file").write_text("precious")

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("bae_lens.training.runner_model.load_model", load)
    given: dict[str, Any] = {field: str(tmp_path / name)}
    cfg = runner_cfg(tmp_path, **given)
    with pytest.raises(ValueError, match=rf"^{field}: .* cannot be written as a folder"):
        TrainingRunner(cfg, make_text())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_config_that_json_cannot_hold_is_refused_before(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot be saved as JSON .*'bfloat16' for a dtype"):
        make_runner(tmp_path, model_from_pretrained_kwargs={"dtype": torch.bfloat16})


def test_a_synthetic_run_is_refused_before(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cfg: Any = load_config("synthetic-bae", {"output_path": str(tmp_path / "file")}).runner
    with pytest.raises(ValueError, match="output_path: "):
        SyntheticTrainingRunner(cfg)


# One run in a folder


def test_a_folder_in_use_is_refused_with_who_uses_it(tmp_path: Path):
    runner = make_runner(tmp_path)
    with locked_folder(tmp_path / "output"):
        message = f"output is in use by process {os.getpid()} on"
        with pytest.raises(FolderInUseError, match=message):
            runner.run()
        with pytest.raises(FolderInUseError, match=message):
            make_runner(tmp_path)
    runner.run()
    assert log_of(tmp_path / "output") == [1, 3, 5]


def test_two_runs_at_once(tmp_path: Path):
    """The second one, in the middle of the first, is refused and disturbs nothing."""
    first, seen = make_runner(tmp_path, n_steps=8), []
    step = first.sae.training_forward_pass

    def step_and_start(step_input: Any) -> Any:
        if step_input.n_training_steps == 5:
            second = runner_cfg(tmp_path / "second", output_path=str(tmp_path / "output"))
            with pytest.raises(FolderInUseError) as caught:
                TrainingRunner(second, make_text(), make_model())
            seen.append(str(caught.value))
        return step(step_input=step_input)

    first.sae.training_forward_pass = step_and_start
    first.run()
    assert len(seen) == 1
    assert log_of(tmp_path / "output") == [1, 3, 5, 7]


def test_a_killed_run_blocks_no_other(tmp_path: Path):
    pid = os.fork()
    if pid == 0:
        with held_folders([tmp_path / "output"]):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    make_runner(tmp_path).run()
    assert not (tmp_path / "output" / ".lock").exists()


def test_folders_that_nothing_was_written_to_are_not_left(tmp_path: Path):
    with held_folders([tmp_path / "a" / "b", None, tmp_path / "a" / "b"]):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())


# The old one stays until the new one is there


def test_the_old_metrics_stay_until_the_new_weights_are_there(tmp_path: Path):
    make_runner(tmp_path).run()
    output = tmp_path / "output"
    (output / "notes.txt").write_text("mine")
    (output / "eval_metrics.json").write_text("{}")
    old = (output / "metrics.jsonl").read_text()
    weights = (output / "sae_weights.safetensors").read_bytes()
    runner = make_runner(tmp_path, seed=7, n_steps=8)
    step, seen = runner.sae.training_forward_pass, []

    def step_and_look(step_input: Any) -> Any:
        assert (output / "metrics.jsonl").read_text() == old
        assert (output / "sae_weights.safetensors").read_bytes() == weights
        seen.append((output / "metrics.unfinished.jsonl").exists())
        return step(step_input=step_input)

    runner.sae.training_forward_pass = step_and_look
    runner.run()
    assert seen[0] is False
    assert seen[-1] is True
    assert (output / "sae_weights.safetensors").read_bytes() != weights
    assert log_of(output) == [1, 3, 5, 7]
    assert sorted(path.name for path in output.iterdir()) == [
        *("cfg.json", "eval_metrics.json", "metrics.jsonl", "notes.txt", "runner_cfg.json"),
        *("sae_weights.safetensors", "sparsity.safetensors"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_a_run_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        make_runner(tmp_path, output_path=".", checkpoint_path=None, seed=seed).run()
        assert SAE.load_from_disk(".").cfg.d_sae == D_SAE
        assert json.loads(Path("runner_cfg.json").read_text())["seed"] == seed
        assert Path("notes.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "sae",
    [StandardTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE), TopKTrainingSAEConfig(D_IN, D_SAE, k=3)],
)
def test_saelens_own_architectures_are_replaced_whole_too(
    tmp_path: Path, sae: Any, monkeypatch: pytest.MonkeyPatch
):
    make_runner(tmp_path).run()
    old = (tmp_path / "output" / "cfg.json").read_text()
    with monkeypatch.context() as patch:
        patch.setattr("json.dump", full)
        with pytest.raises(NotSavedError):
            make_runner(tmp_path, sae=sae).run()
    assert (tmp_path / "output" / "cfg.json").read_text() == old
    make_runner(tmp_path, sae=sae).run()
    assert SAE.load_from_disk(tmp_path / "output").cfg.architecture() == sae.architecture()


# Training is not lost


@pytest.mark.parametrize("places", ["checkpoint_path", "beside", "temporary folder"])
def test_weights_that_cannot_be_saved_are_kept_elsewhere(
    tmp_path: Path, places: str, monkeypatch: pytest.MonkeyPatch
):
    make_runner(tmp_path / "whole").run()
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    disk = tmp_path / "disk"
    output = disk / "output"
    cfg = {"output_path": str(output), "checkpoint_path": None}
    if places == "checkpoint_path":
        cfg["checkpoint_path"] = str(tmp_path / "checkpoints")
    runner = make_runner(tmp_path, **cfg)
    save = runner.sae.save_inference_model
    n_tries = 0

    def save_elsewhere(path: Path) -> Any:
        nonlocal n_tries
        n_tries += 1
        if n_tries < 3 if places == "temporary folder" else n_tries < 2:
            full()
        return save(path)

    runner.sae.save_inference_model = save_elsewhere  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(
        NotSavedError, match=r"No space left on device\. What was to be there is in"
    ):
        runner.run()
    root = {"checkpoint_path": Path(str(runner.cfg.checkpoint_path)), "beside": disk}
    (kept,) = root.get(places, elsewhere).glob("output-unsaved-*")
    whole = load_file(tmp_path / "whole/output/sae_weights.safetensors")
    found = load_file(kept / "sae_weights.safetensors")
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert log_of(kept) == [1, 3, 5]


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    log = MetricLog(tmp_path / "file" / "metrics.jsonl")
    (tmp_path / "file").write_text("")
    log.write(1, {"a": 1.0})
    log.write(3, {"a": 1.0})
    assert caplog.text.count("Metrics cannot be written to") == 1


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.write(1, {"a": 1.0})
    half = os.open(log.path, os.O_APPEND | os.O_WRONLY)

    class Full:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def write(self, text: str) -> None:
            os.write(half, text[:5].encode())
            full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: Full())
        log.write(3, {"a": 1.0})
    log.write(5, {"a": 1.0})
    assert log_of(tmp_path) == [1, 5]


def test_text_is_not_read_where_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runner = make_runner(tmp_path)
    monkeypatch.setattr(ActivationsStore, "get_activations", full)
    with locked_folder(tmp_path / "output"), pytest.raises(FolderInUseError):
        runner.run()
