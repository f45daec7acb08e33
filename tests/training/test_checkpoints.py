"""Checkpoints: whole, exact, and gone on from by their own run only."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file, save_file

from bae_lens import CrossLayerTrainingRunner, TrainingRunner
from bae_lens.training.rank_states import RANDOM_STATE_FILENAME, restore_random_state
from tests.helpers import (
    BATCH,
    D_SAE,
    HOOK_OUT,
    cross_layer_cfg,
    make_model,
    make_text,
    runner_cfg,
    training_cfg,
)

N_STEPS, REPLAY = 12, 5 * BATCH


def make_runner(
    folder: Path,
    text: Any = None,
    model: Any = None,
    replay_tokens: int | None = REPLAY,
    exclude_outlier_tokens: bool | float = False,
    **fields: Any,
) -> TrainingRunner:
    cfg = runner_cfg(folder, **{"n_steps": N_STEPS, **fields})
    text = make_text() if text is None else text
    return TrainingRunner(
        cfg,
        text,
        model or make_model(),
        replay_tokens=replay_tokens,
        exclude_outlier_tokens=exclude_outlier_tokens,
    )


def make_clvq_runner(folder: Path, **fields: Any) -> CrossLayerTrainingRunner:
    cfg = cross_layer_cfg(folder, N_STEPS, **fields)
    return CrossLayerTrainingRunner(cfg, make_text(), make_model(), replay_tokens=REPLAY)


def checkpoint_of(runner: TrainingRunner) -> Path:
    (checkpoint,) = Path(str(runner.cfg.checkpoint_path)).iterdir()
    return checkpoint


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, not to be changed."""
    runner = make_runner(tmp_path_factory.mktemp("written"), n_checkpoints=1)
    runner.run()
    return checkpoint_of(runner)


@pytest.fixture
def checkpoint(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


def refused(
    checkpoint: Path, folder: Path, error: type[Exception] = ValueError, **given: Any
) -> str:
    with pytest.MonkeyPatch.context() as patch:

        def read_text(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("text was read")

        patch.setattr(ActivationsStore, "get_activations", read_text)
        with pytest.raises(error) as caught:
            make_runner(folder / "again", resume_from_checkpoint=str(checkpoint), **given)
    assert not (folder / "again").exists()
    return str(caught.value)


# Of another run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_name": HOOK_OUT}, "hook_name is 'blocks.0.hook_resid_post' there and"),
        ({"seed": 7}, "seed is 42 there and 7 here"),
        ({"replay_tokens": BATCH}, f"replay_tokens is {REPLAY} there and {BATCH} here"),
        ({"exclude_outlier_tokens": 5}, "exclude_outlier_tokens is None there and 5.0 here"),
        ({"replay_tokens": None}, f"replay_tokens is {REPLAY} there and None here"),
        ({"lr": 3e-3}, "lr is 0.001 there and 0.003 here"),
        ({"lr_warm_up_steps": 3}, "lr_warm_up_steps is 0 there and 3 here"),
        ({"train_batch_size_tokens": 32}, "train_batch_size_tokens is 64 there and 32 here"),
        ({"context_size": 8}, "context_size is 16 there and 8 here"),
        ({"dataset_path": "other"}, "dataset_path is 'tiny-text' there and 'other' here"),
        ({"model_name": "gpt2"}, "model_name is 'tiny' there and 'gpt2' here"),
        ({"exclude_special_tokens": False}, "exclude_special_tokens is True there and False here"),
        ({"dtype": "bfloat16"}, "dtype is 'torch.float32' there and 'torch.bfloat16' here"),
        ({"autocast": True}, "autocast is False there and True here"),
        ({"sae": training_cfg(target_entropy=3.0)}, "sae.target_entropy is 'd_in' there and 3.0"),
        ({"sae": training_cfg(surrogate="identity")}, "sae.surrogate is 'sigmoid' there and"),
        (
            {"sae": training_cfg(d_sae=2 * D_SAE)},
            f"sae.d_sae is {D_SAE} there and {2 * D_SAE} here",
        ),
        # The rate would have fallen from another step on.
        (
            {"lr_decay_steps": 4, "n_steps": 20},
            "lr_decay_steps is 0 there and 4 here",
        ),
        ({"text": make_text(320)}, "the text's number of rows is 160 there and 320 here"),
        (
            {"text": make_text(160, 25)},
            "the text (a hash of some rows) is",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    written: Path, tmp_path: Path, fields: dict[str, Any], message: str
):
    found = refused(written, tmp_path, **fields)
    assert message in found
    assert "a checkpoint of another run" in found


def test_a_model_with_other_weights_is_another_run(written: Path, tmp_path: Path):
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert "the language model has other weights" in refused(written, tmp_path, model=model)


def test_a_stream_of_other_texts_is_another_run(tmp_path: Path):
    texts = list(make_text()["text"])

    def stream(texts: list[str]) -> Any:
        return Dataset.from_dict({"text": texts}).to_iterable_dataset()

    runner = make_runner(tmp_path / "a", stream(texts), n_checkpoints=1)
    runner.run()
    checkpoint = checkpoint_of(runner)
    again = make_runner(tmp_path / "b", stream(texts), resume_from_checkpoint=str(checkpoint))
    again.run()
    found = refused(checkpoint, tmp_path, text=stream(texts[::-1]))
    assert "the text (a hash of some rows)" in found


def test_a_learning_rate_that_falls_at_the_end_fixes_the_length(tmp_path: Path):
    runner = make_runner(tmp_path, n_checkpoints=1, lr_decay_steps=4)
    runner.run()
    found = refused(checkpoint_of(runner), tmp_path, lr_decay_steps=4, n_steps=20)
    assert f"training_tokens is {N_STEPS * BATCH} there and {20 * BATCH} here" in found


def test_a_run_is_made_longer_where_the_learning_rate_does_not_depend_on_it(
    tmp_path: Path, checkpoint: Path
):
    make_runner(tmp_path / "long", n_steps=20).run()
    make_runner(tmp_path / "b", n_steps=20, resume_from_checkpoint=str(checkpoint)).run()
    long, resumed = (
        load_file(tmp_path / n / "output/sae_weights.safetensors") for n in ("long", "b")
    )
    assert all(torch.equal(long[name], resumed[name]) for name in long)


def test_that_nothing_is_left_to_train_is_said(tmp_path: Path, checkpoint: Path):
    found = refused(checkpoint, tmp_path, n_steps=3)
    assert f"training_tokens is {3 * BATCH}, but" in found
    assert f"has {checkpoint_tokens(checkpoint)} behind it already" in found


def checkpoint_tokens(checkpoint: Path) -> int:
    return json.loads((checkpoint / "checkpoint.json").read_text())["n_tokens"]


def test_what_only_says_where_a_run_takes_place_may_differ(tmp_path: Path, checkpoint: Path):
    elsewhere = {
        **{"output_path": str(tmp_path / "other"), "checkpoint_path": None, "n_checkpoints": 5},
        **{"verbose": True, "n_eval_batches": 3, "streaming": False, "act_store_device": "cpu"},
    }
    make_runner(tmp_path, resume_from_checkpoint=str(checkpoint), **elsewhere).run()
    assert SAE.load_from_disk(tmp_path / "other").cfg.d_sae == D_SAE


def test_a_final_checkpoint_has_the_scale_in_its_weights(tmp_path: Path):
    runner = make_runner(tmp_path, save_final_checkpoint=True)
    runner.run()
    found = refused(checkpoint_of(runner), tmp_path, n_steps=20)
    assert "is the final checkpoint of a run" in found


# Whole


@pytest.mark.parametrize(
    "name",
    [
        *("trainer_state.pt", "sae_weights.safetensors", "activations_store_state.safetensors"),
        *("runner_cfg.json", "random_state.safetensors", "cfg.json", "activation_scaler.json"),
    ],
)
def test_a_checkpoint_that_lacks_a_file_or_a_part_of_one(
    tmp_path: Path, checkpoint: Path, name: str
):
    file = checkpoint / name
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    found = refused(checkpoint, tmp_path, Exception)
    assert name in found
    file.unlink()
    assert name in refused(checkpoint, tmp_path, FileNotFoundError)


def test_one_of_an_earlier_version_resumes_with_one_warning(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
):
    make_runner(tmp_path / "whole").run()
    (checkpoint / "checkpoint.json").unlink()
    with caplog.at_level(logging.WARNING, "bae_lens"):
        make_runner(tmp_path / "b", resume_from_checkpoint=str(checkpoint)).run()
    assert len([r for r in caplog.records if "an earlier version" in r.getMessage()]) == 1
    whole, resumed = (
        load_file(tmp_path / n / "output/sae_weights.safetensors") for n in ("whole", "b")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "seed is 42 there and 7 here" in refused(checkpoint, tmp_path, seed=7)
    runner = make_runner(
        tmp_path / "c", resume_from_checkpoint=str(checkpoint), replay_tokens=2 * BATCH
    )
    with pytest.raises(ValueError, match=f"is {REPLAY} there and {2 * BATCH} here"):
        runner.run()
    runner = make_runner(tmp_path / "d", resume_from_checkpoint=str(checkpoint), replay_tokens=None)
    with pytest.raises(ValueError, match=r"replayed its activations\. Give replay_tokens"):
        runner.run()


def test_one_of_an_earlier_version_that_was_cut_off_is_refused(tmp_path: Path, checkpoint: Path):
    for name in ("checkpoint.json", "random_state.safetensors"):
        (checkpoint / name).unlink()
    found = refused(checkpoint, tmp_path, FileNotFoundError)
    assert "lacks random_state.safetensors: the writing of it was cut off" in found


def test_one_of_saelens_own_runner_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    runner = make_runner(tmp_path, n_checkpoints=1, replay_tokens=None)
    runner.run()
    checkpoint = checkpoint_of(runner)
    for name in ("checkpoint.json", "random_state.safetensors", "metrics.jsonl"):
        (checkpoint / name).unlink(missing_ok=True)
    again = make_runner(tmp_path / "b", resume_from_checkpoint=str(checkpoint), replay_tokens=None)
    again.run()
    assert again.sae.n_updates == N_STEPS
    assert "SAELens' own runner; random numbers are drawn anew" in caplog.text


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    make_runner(tmp_path / "whole").run()
    runner = make_runner(tmp_path / "b", n_checkpoints=2)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        runner.run()
    assert "could not be written: [Errno 28] No space left on device" in caplog.text
    assert not (tmp_path / "b" / "checkpoints").exists()
    whole, other = (
        load_file(tmp_path / n / "output/sae_weights.safetensors") for n in ("whole", "b")
    )
    assert all(torch.equal(whole[name], other[name]) for name in whole)


def test_random_numbers_of_a_machine_with_more_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    state = {f"cuda:{i}": torch.full((16,), i, dtype=torch.uint8) for i in (0, 1, 7)}
    save_file({"cpu": torch.get_rng_state(), **state}, tmp_path / RANDOM_STATE_FILENAME)
    restored: dict[int, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, i: restored.update({i: s.clone()}))

    restore_random_state(tmp_path)

    assert {i: int(s[0]) for i, s in restored.items()} == {0: 0, 1: 1}


# Signals


@pytest.mark.parametrize("make", [make_runner, make_clvq_runner])
@pytest.mark.parametrize("times", [2, 3])
def test_more_signals_in_one_step_leave_an_exact_checkpoint_or_none(
    tmp_path: Path, make: Any, times: int, monkeypatch: pytest.MonkeyPatch
):
    make(tmp_path / "whole").run()
    clip, n = torch.nn.utils.clip_grad_norm_, 0

    def clip_and_signal(*args: Any, **kwargs: Any) -> Any:
        nonlocal n
        n += 1
        for _ in range(times if n == 7 else 0):
            signal.raise_signal(signal.SIGINT)
        return clip(*args, **kwargs)

    stopped = make(tmp_path / "stopped")
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.utils.clip_grad_norm_", clip_and_signal)
        with pytest.raises(InterruptedException):
            stopped.run()
    assert not (tmp_path / "stopped/output/sae_weights.safetensors").exists()
    if times == 3:
        assert not (tmp_path / "stopped/checkpoints").exists()
        return
    checkpoint = checkpoint_of(stopped)
    assert checkpoint.name == str(7 * BATCH)
    make(tmp_path / "again", resume_from_checkpoint=str(checkpoint)).run()
    whole, again = (
        load_file(tmp_path / n / "output/sae_weights.safetensors") for n in ("whole", "again")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_signals_while_a_checkpoint_is_written(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
):
    save = torch.save

    def save_and_signal(*args: Any, **kwargs: Any) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    stopped = make_runner(tmp_path, n_checkpoints=1)
    with monkeypatch.context() as patch:
        patch.setattr("torch.save", save_and_signal)
        with pytest.raises(InterruptedException):
            stopped.run()
    folder = Path(str(stopped.cfg.checkpoint_path))
    found = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert found == ([str(7 * BATCH)] if times < 3 else [])
    if found:
        torch.load(folder / found[0] / "trainer_state.pt")


def test_a_signal_before_the_first_step_saves_nothing(tmp_path: Path):
    class Early(TrainingRunner):
        def _attach_log(self, trainer: Any) -> None:
            estimate = trainer.activation_scaler.estimate_scaling_factor

            def estimate_and_signal(*args: Any, **kwargs: Any) -> None:
                estimate(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGINT)

            trainer.activation_scaler.estimate_scaling_factor = estimate_and_signal

    runner = Early(runner_cfg(tmp_path), make_text(), make_model(), replay_tokens=REPLAY)
    with pytest.raises(InterruptedException):
        runner.run()
    assert list(tmp_path.iterdir()) == []
