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
from sae_lens import SAE, LoggingConfig, TopKTrainingSAEConfig
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activations_store import ActivationsStore
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from bae_lens import BAE, TrainingRunner
from bae_lens import offline as demo
from bae_lens.activations.hook_points import hook_width
from bae_lens.offline import movie_reviews, smollm2
from bae_lens.training import load_config
from bae_lens.training.rank_states import RANDOM_STATE_FILENAME
from bae_lens.training.synthetic_runner import SyntheticTrainingRunner
from tests.helpers import (
    BATCH,
    D_IN,
    D_SAE,
    HOOK,
    make_bridge,
    make_model,
    make_text,
    record_firing_rates,
    runner_cfg,
    training_cfg,
)

N_STEPS = 12
REPLAY = 5 * BATCH
from_config = ActivationsStore.from_config
Z = "blocks.1.attn.hook_z"
HALVES = ("store", "trainer")


def make_cfg(folder: Path, **overrides: Any) -> Any:
    """A run of ``N_STEPS`` steps that logs every other one."""
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2)
    return runner_cfg(folder, **{"n_steps": N_STEPS, "logger": logger, **overrides})


def make_runner(
    folder: Path,
    replay_tokens: int | None = None,
    replay_path: Path | None = None,
    **overrides: Any,
) -> TrainingRunner:
    cfg = make_cfg(folder, **overrides)
    replay: Any = {"replay_tokens": replay_tokens, "replay_path": replay_path}
    return TrainingRunner(cfg, make_text(), make_model(), **replay)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def but_for_speed(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A log without what no two runs share."""
    return [{k: v for k, v in line.items() if not k.startswith("performance/")} for line in log]


def checkpoints(runner: TrainingRunner) -> list[Path]:
    """Folders of the checkpoints written, earliest first."""
    assert runner.cfg.checkpoint_path is not None
    return sorted(Path(runner.cfg.checkpoint_path).iterdir(), key=lambda path: int(path.name))


def weights(folder: Path) -> dict[str, Tensor]:
    return SAE.load_from_disk(folder).state_dict()


def densities(folder: Path, x: Tensor) -> Tensor:
    """Share of ``x`` on which each latent of a saved autoencoder fires."""
    return (SAE.load_from_disk(folder).encode(x) != 0).float().mean(0)


def assert_same_weights(actual: Path, expected: Path) -> None:
    a, b = weights(actual), weights(expected)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# A run


@pytest.mark.parametrize("replay_tokens", [None, REPLAY])
def test_it_trains_saves_and_logs(tmp_path: Path, replay_tokens: int | None):
    runner = make_runner(tmp_path, replay_tokens)
    runner.run()
    sae = SAE.load_from_disk(tmp_path / "output")
    assert isinstance(sae, BAE)
    assert sae.cfg.metadata.hook_name == HOOK
    assert sae.cfg.metadata.replay_tokens == replay_tokens
    log = read_log(tmp_path / "output")
    assert [line["step"] for line in log] == [1, 3, 5, 7, 9, 11]
    assert log[-1]["details/n_training_samples"] == N_STEPS * BATCH
    assert log[-1]["metrics/entropy"] > 0
    assert all(line[f"performance/{half}_tokens_per_second"] > 0 for line in log for half in HALVES)


def test_any_architecture_of_saelens_trains_and_logs(tmp_path: Path):
    make_runner(tmp_path, sae=TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)).run()
    log = read_log(tmp_path / "output")
    assert [line["metrics/l0"] for line in log] == [3.0] * 6
    sparsity = load_file(tmp_path / "output" / "sparsity.safetensors")["sparsity"]
    assert (10**sparsity).sum().item() == pytest.approx(3.0, rel=1e-4)


def test_the_log_goes_with_the_checkpoints_where_there_is_no_output(tmp_path: Path):
    runner = make_runner(tmp_path, output_path=None)
    runner.run()
    assert runner.cfg.checkpoint_path is not None
    folder = Path(runner.cfg.checkpoint_path)
    assert runner.metrics_path == folder / "metrics.jsonl"
    assert len(read_log(folder)) == 6


def test_nothing_is_written_where_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    runner = make_runner(tmp_path, output_path=None, checkpoint_path=None)
    runner.run()
    assert runner.metrics_path is None
    assert list(tmp_path.iterdir()) == []


def test_the_seed_decides_the_run(tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_runner(tmp_path / name, seed=seed).run()
    assert_same_weights(tmp_path / "a" / "output", tmp_path / "b" / "output")
    a, c = (weights(tmp_path / name / "output") for name in ("a", "c"))
    assert not torch.equal(a["W_enc"], c["W_enc"])


def test_replay_runs_the_language_model_once_over_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    n_tokens = []
    get_activations = ActivationsStore.get_activations

    def count(self: ActivationsStore, tokens: Tensor) -> Tensor:
        # The first position of each sequence is BOS, which is excluded.
        n_tokens.append(tokens.numel() - len(tokens))
        return get_activations(self, tokens)

    monkeypatch.setattr(ActivationsStore, "get_activations", count)
    runner = make_runner(tmp_path, REPLAY)
    assert n_tokens == []
    runner.run()
    assert sum(n_tokens[:-1]) < REPLAY <= sum(n_tokens)
    assert N_STEPS * BATCH > 2 * REPLAY
    assert isinstance(runner.evaluator.activations_store, ActivationsStore)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder that a run has collected into."""
    path = tmp_path / "kept"
    make_runner(tmp_path / "collecting", REPLAY, path, n_steps=1).run()
    return path


def no_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the language model was run")

    monkeypatch.setattr(ActivationsStore, "get_activations", read_text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"seed": 7},
        {"dtype": "bfloat16"},
        {"hook_name": Z, "hook_head_index": 1, "sae": training_cfg(d_in=D_IN // 2)},
        {"sae": TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3)},
    ],
    ids=["plain", "seed", "bfloat16", "head", "topk"],
)
def test_replay_from_disk_is_replay_from_memory(
    tmp_path: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    memory, first, second = (tmp_path / name for name in ("memory", "first", "second"))
    make_runner(memory, REPLAY, **fields).run()
    make_runner(first, REPLAY, tmp_path / "kept", **fields).run()
    no_text_is_read(monkeypatch)
    make_runner(second, REPLAY, tmp_path / "kept", **fields).run()
    for folder in (first, second):
        assert_same_weights(folder / "output", memory / "output")
        log, expected = (read_log(path / "output") for path in (folder, memory))
        assert but_for_speed(log) == but_for_speed(expected)
    metadata = SAE.load_from_disk(second / "output").cfg.metadata
    assert metadata.replay_tokens == REPLAY


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 7, "lr": 1e-4, "train_batch_size_tokens": 32, "n_batches_in_buffer": 9},
        {"sae": TopKTrainingSAEConfig(d_in=D_IN, d_sae=3 * D_SAE, k=3)},
    ],
)
def test_another_run_reads_what_was_collected(
    tmp_path: Path, kept: Path, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    make_runner(tmp_path / "memory", REPLAY, **fields).run()
    no_text_is_read(monkeypatch)
    make_runner(tmp_path / "disk", REPLAY, kept, **fields).run()
    assert_same_weights(tmp_path / "disk" / "output", tmp_path / "memory" / "output")


def test_evals_are_of_text_that_was_not_collected(tmp_path: Path, kept: Path):
    memory, disk = make_runner(tmp_path, REPLAY), make_runner(tmp_path, REPLAY, kept)
    for runner in (memory, disk):
        runner.run()
    expected = memory.evaluator.activations_store.n_dataset_processed
    assert disk.evaluator.activations_store.n_dataset_processed == expected > 0


def test_the_description_has_all_that_changes_the_rows(kept: Path):
    description = json.loads((kept / "collection" / "description.json").read_text())
    own = {name: value for name, value in description.items() if not name.startswith("crc32")}
    assert own == {
        **{"format": 1, "n_rows": REPLAY, "width": D_IN, "dtype": "torch.float32"},
        **{"model_name": "tiny", "model_class_name": "HookedTransformer", "model_kwargs": {}},
        "model_from_pretrained_kwargs": {"center_writing_weights": False},
        **{"autocast_lm": False, "hook_name": HOOK, "hook_name_out": None, "d_in": D_IN},
        **{"hook_head_index": None, "d_out": None, "dataset_path": "tiny-text"},
        **{"text_unit": None, "use_chat_formatting": False, "use_cached_activations": False},
        **{"cached_activations_path": None, "context_size": 16, "sequence_length": None},
        **{"seqpos_slice": [None], "store_batch_size_prompts": 8, "prepend_bos": True},
        **{"exclude_special_tokens": True, "sequence_separator_token": "bos"},
        **{"disable_concat_sequences": False, "replay_tokens": REPLAY},
        "exclude_outlier_tokens": None,
    }


def test_the_sparsity_file_is_of_the_bits_as_saved(tmp_path: Path):
    runner = make_runner(tmp_path)
    sae: Any = runner.sae
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-1.0, 1.0, D_SAE))
    x = torch.randn(4096, D_IN, generator=torch.Generator().manual_seed(0))
    rate = record_firing_rates(sae, x)
    assert 0 < (rate > 0.5).sum() < D_SAE
    runner.save_final_sae(sae, str(tmp_path / "output"), torch.log10(rate))
    saved = densities(tmp_path / "output", x)
    written = load_file(tmp_path / "output" / "sparsity.safetensors")["sparsity"]
    torch.testing.assert_close(10**written, saved, atol=2e-3, rtol=0)


def test_the_same_holds_on_synthetic_data(tmp_path: Path):
    overrides = {
        "training_samples": 20_480,
        "eval_samples": 256,
        "output_path": str(tmp_path),
        "initial_firing_rate": None,
        "lr": 1e-8,  # bits stay as they are set below
    }
    cfg: Any = load_config("synthetic-bae", overrides).runner
    runner: Any = SyntheticTrainingRunner(cfg)
    with torch.no_grad():
        runner.sae.b_enc.copy_(torch.linspace(-0.2, 0.2, cfg.sae.d_sae))
    sae = runner.run().sae
    assert 0 < (sae.firing_rate > 0.6).sum() < cfg.sae.d_sae
    written = load_file(tmp_path / "sparsity.safetensors")["sparsity"]
    x = runner.synthetic_model.sample(20_000)
    saved = densities(tmp_path, x)
    torch.testing.assert_close(10**written, saved, atol=0.03, rtol=0)


# Names


def test_our_names_are_resolved_and_recorded_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(smollm2, "load_hooked", lambda device: make_model())
    monkeypatch.setattr(movie_reviews, "load_movie_reviews", lambda split: make_text())
    names = {"model_name": demo.MODEL_NAME, "dataset_path": demo.DATASET_NAME}
    with caplog.at_level(logging.WARNING):
        TrainingRunner(make_cfg(tmp_path, **names)).run()
    assert "reproducible" not in caplog.text
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert metadata.model_name == demo.MODEL_NAME
    assert metadata.dataset_path == demo.DATASET_NAME


def test_a_model_or_dataset_of_another_name_is_still_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_runner(tmp_path)
    warned = [r.getMessage() for r in caplog.records if "reproducible" in r.getMessage()]
    assert len(warned) == 2


def test_other_names_go_to_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_model(*args: Any, **kwargs: Any) -> Any:
        asked.append((*args, kwargs["hook_names"]))
        return make_model()

    monkeypatch.setattr("bae_lens.loading.language_models.sae_lens_load_model", load_model)
    TrainingRunner(make_cfg(tmp_path, model_name="gpt2"), make_text())
    assert asked == [("HookedTransformer", "gpt2", [HOOK])]


# What is refused, before any text is read or anything written


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Build a runner in ``tmp_path`` that must be refused; gives the message."""

    def read_text(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the activations store was built")

    monkeypatch.setattr(ActivationsStore, "from_config", read_text)

    def build(error: type[Exception] = ValueError, **kwargs: Any) -> str:
        with pytest.raises(error) as caught:
            make_runner(tmp_path, **kwargs)
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    return build


def test_a_hook_that_the_model_lacks(refused: Any):
    message = refused(hook_name="blocks.0.hook_resid_pots")
    assert "no hook 'blocks.0.hook_resid_pots'. Did you mean blocks.0.hook_resid_post" in message


def test_a_d_in_that_is_not_the_hooks_width(refused: Any):
    message = refused(hook_name="blocks.0.mlp.hook_post")
    assert f"sae.d_in is {D_IN}, but the activations at 'blocks.0.mlp.hook_post'" in message
    assert f"Set sae.d_in to {2 * D_IN}" in message


def test_a_batch_larger_than_the_buffer(refused: Any):
    message = refused(n_batches_in_buffer=3, context_size=16)
    assert f"is {BATCH}, but the buffer holds only 48 tokens" in message
    assert "n_batches_in_buffer to at least 4" in message


def test_positions_that_are_sliced_off_do_not_count_for_the_buffer(refused: Any):
    message = refused(n_batches_in_buffer=4, context_size=16, seqpos_slice=(1, None))
    assert "holds only 60 tokens (n_batches_in_buffer = 4 × 15 positions)" in message


def test_a_batch_larger_than_what_is_replayed(refused: Any):
    message = refused(replay_tokens=BATCH - 1)
    assert f"replay_tokens is {BATCH - 1}, less than one batch" in message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_name": "gpt2"}, "model_name is 'tiny' there and 'gpt2' here"),
        ({"hook_name": "hook_embed"}, f"hook_name is '{HOOK}' there and 'hook_embed' here"),
        ({"dataset_path": "other"}, "dataset_path is 'tiny-text' there and 'other' here"),
        ({"context_size": 8}, "context_size is 16 there and 8 here"),
        ({"seqpos_slice": (1, None)}, "seqpos_slice is [None] there and [1, None] here"),
        ({"prepend_bos": False}, "prepend_bos is True there and False here"),
        ({"exclude_special_tokens": [0]}, "exclude_special_tokens is True there and [0] here"),
        ({"dtype": "bfloat16"}, "dtype is 'torch.float32' there and 'torch.bfloat16' here"),
        ({"replay_tokens": BATCH}, f"replay_tokens is {REPLAY} there and {BATCH} here"),
    ],
)
def test_a_folder_of_other_activations(
    tmp_path_factory: pytest.TempPathFactory, refused: Any, fields: dict[str, Any], message: str
):
    folder = tmp_path_factory.mktemp("collected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ActivationsStore, "from_config", from_config)
        make_runner(folder / "collecting", REPLAY, folder / "kept", n_steps=1).run()
    found = refused(**{"replay_tokens": REPLAY, "replay_path": folder / "kept", **fields})
    assert f"asks for: {message}. Name another folder, or delete this one" in found
    assert str(folder / "kept") in found


def test_a_folder_for_what_is_not_replayed(refused: Any, tmp_path: Path):
    message = refused(replay_path=tmp_path / "kept")
    assert "kept', but nothing is replayed: replay_tokens is null" in message


def test_prefetching_what_is_replayed(refused: Any):
    assert "prefetch_llm_batches" in refused(replay_tokens=REPLAY, prefetch_llm_batches=True)


def test_a_folder_that_is_not_a_checkpoint(refused: Any):
    message = refused(FileNotFoundError, resume_from_checkpoint="checkpoints/none")
    assert "'checkpoints/none', which lacks trainer_state.pt, sae_weights.safetensors" in message


def test_a_small_buffer_is_no_matter_where_activations_are_replayed(tmp_path: Path):
    make_runner(tmp_path, REPLAY, n_batches_in_buffer=3).run()
    assert len(read_log(tmp_path / "output")) == 6


@pytest.mark.parametrize(
    ("hook_name", "head", "width"),
    [
        ("hook_embed", None, D_IN),
        ("blocks.1.hook_resid_post", None, D_IN),
        ("blocks.0.attn.hook_z", None, D_IN),
        ("blocks.0.attn.hook_z", 1, D_IN // 2),
        ("blocks.1.mlp.hook_post", None, 2 * D_IN),
    ],
)
def test_width_of_a_hook(hook_name: str, head: int | None, width: int):
    assert hook_width(make_model(), hook_name, head) == width


def test_width_of_a_head_that_is_not_there():
    model = make_model()
    with pytest.raises(ValueError, match=r"hook_head_index is 2, but .* has 2 heads"):
        hook_width(model, "blocks.0.attn.hook_z", 2)
    with pytest.raises(ValueError, match=r"hook_head_index is 0, but .* has no heads"):
        hook_width(model, HOOK, 0)


def test_width_of_a_hook_that_does_not_fire():
    with pytest.raises(ValueError, match=r"'blocks.0.attn.hook_result', but it does not fire"):
        hook_width(make_model(), "blocks.0.attn.hook_result")


def test_width_on_a_bridge_and_its_own_name_for_the_hook(tmp_path: Path):
    bridge = make_bridge(tmp_path)
    assert hook_width(bridge, "blocks.0.hook_out") == D_IN  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"Did you mean blocks.0.hook_out"):
        hook_width(bridge, HOOK)  # pyright: ignore[reportArgumentType]


# Going on


def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path):
    # As after a crash: the log has lines beyond the checkpoint.
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    runner = make_runner(whole, REPLAY, n_checkpoints=2)
    runner.run()
    first, second = checkpoints(runner)
    shutil.copytree(whole / "output", resumed / "output")
    again = make_runner(resumed, REPLAY, n_checkpoints=2, resume_from_checkpoint=str(first))
    again.run()
    assert_same_weights(resumed / "output", whole / "output")
    log, expected = (but_for_speed(read_log(path / "output")) for path in (resumed, whole))
    assert log == expected
    assert [path.name for path in checkpoints(again)] == [second.name]
    sparsity = [
        load_file(p / "output" / "sparsity.safetensors")["sparsity"] for p in (whole, resumed)
    ]
    assert torch.equal(*sparsity)


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_a_run_from_disk_is_resumed_like_any_other(
    tmp_path: Path, kept: Path, before: bool, after: bool
):
    make_runner(tmp_path / "whole", REPLAY).run()
    first = make_runner(tmp_path / "first", REPLAY, kept if before else None, n_checkpoints=2)
    first.run()
    checkpoint = str(checkpoints(first)[0])
    path = kept if after else None
    make_runner(tmp_path / "again", REPLAY, path, resume_from_checkpoint=checkpoint).run()
    assert_same_weights(tmp_path / "again" / "output", tmp_path / "whole" / "output")


class Drawing(TrainingRunner):
    """Notes what a training step would draw, and draws it."""

    drawn: list[float]

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        self.drawn = []
        forward = self.sae.training_forward_pass

        def draw_and_forward(step_input: Any) -> Any:
            self.drawn.append(torch.rand(()).item())
            return forward(step_input=step_input)

        self.sae.training_forward_pass = draw_and_forward
        return super().run_trainer_with_interruption_handling(trainer)


def test_a_resumed_run_draws_what_the_other_would_have_drawn(tmp_path: Path):
    cfg = make_cfg(tmp_path, n_checkpoints=2)
    runner = Drawing(cfg, make_text(), make_model(), replay_tokens=REPLAY)
    runner.run()
    checkpoint = checkpoints(runner)[0]
    assert set(load_file(checkpoint / RANDOM_STATE_FILENAME)) >= {"cpu"}
    n_done = int(checkpoint.name) // BATCH
    again = make_cfg(tmp_path / "again", resume_from_checkpoint=str(checkpoint))
    torch.rand(99)
    resumed = Drawing(again, make_text(), make_model(), replay_tokens=REPLAY)
    resumed.run()
    assert resumed.drawn == runner.drawn[n_done:]
    assert len(set(runner.drawn)) == N_STEPS


def test_without_replay_it_goes_on_with_the_step_and_the_text(tmp_path: Path):
    runner = make_runner(tmp_path, n_checkpoints=1)
    runner.run()
    (checkpoint,) = checkpoints(runner)
    again = make_runner(tmp_path, resume_from_checkpoint=str(checkpoint))
    again.run()
    log = read_log(tmp_path / "output")
    assert [line["step"] for line in log] == [1, 3, 5, 7, 9, 11]
    assert again.activations_store.n_dataset_processed > 0
    assert again.sae.n_updates == N_STEPS


class Interrupted(TrainingRunner):
    """Gets a signal in the middle of step 7 (of 12, counted from 0)."""

    number = signal.SIGINT

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        forward = self.sae.training_forward_pass

        def forward_and_signal(step_input: Any) -> Any:
            if step_input.n_training_steps == 7:
                os.kill(os.getpid(), self.number)
            return forward(step_input=step_input)

        self.sae.training_forward_pass = forward_and_signal
        return super().run_trainer_with_interruption_handling(trainer)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_can_go_on(
    tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
):
    make_runner(tmp_path / "whole", REPLAY).run()
    cfg = make_cfg(tmp_path)
    stopped = Interrupted(cfg, make_text(), make_model(), replay_tokens=REPLAY)
    stopped.number = number
    with pytest.raises(InterruptedException):
        stopped.run()
    checkpoint = Path(cfg.checkpoint_path) / str(8 * BATCH)
    assert f"resume_from_checkpoint={checkpoint}" in caplog.text
    assert not (tmp_path / "output" / "sae_weights.safetensors").exists()
    assert [line["step"] for line in read_log(tmp_path / "output")] == [1, 3, 5, 7]
    make_runner(tmp_path, REPLAY, resume_from_checkpoint=str(checkpoint)).run()
    assert_same_weights(tmp_path / "output", tmp_path / "whole" / "output")
    log, expected = (read_log(path / "output") for path in (tmp_path, tmp_path / "whole"))
    assert but_for_speed(log) == but_for_speed(expected)


def test_an_interrupted_run_with_no_folder_for_checkpoints_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cfg = make_cfg(tmp_path, checkpoint_path=None)
    with pytest.raises(InterruptedException):
        Interrupted(cfg, make_text(), make_model()).run()
    assert "nothing is saved, since checkpoint_path is None" in caplog.text
    assert [p.name for p in tmp_path.rglob("*.*")] == ["metrics.jsonl"]


def test_what_it_writes_is_a_config_of_saelens(tmp_path: Path):
    from sae_lens import LanguageModelSAERunnerConfig

    make_runner(tmp_path, sae=training_cfg(temperature=0.5)).run()
    saved = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert LanguageModelSAERunnerConfig.from_dict(saved).sae.temperature == 0.5
