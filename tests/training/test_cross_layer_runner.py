"""Runs of two hook points: what they write, what they log, how they go on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import override

from bae_lens import (
    CLVQVAE,
    CrossLayerTrainingRunner,
    ReplayedActivations,
    TopKTranscoder,
)
from bae_lens.architectures.packed_rows import pack_rows, unpack_rows
from tests.activations.test_paired_activations import counted_passes
from tests.activations.test_sentence_store import make_encoder
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    HOOK_OUT,
    N_CODES,
    make_bridge,
    make_model,
    make_pairs,
    make_text,
    trainer_cfg,
)
from tests.training.cross_layer_runs import (
    KINDS,
    LOGGED,
    LOGGED_OF_CODES,
    MLP,
    MODELS,
    N_STEPS,
    REPLAY,
    UNITS,
    assert_same,
    but_for_speed,
    checkpoints,
    make_cfg,
    make_runner,
    new_sae,
    read_log,
    sae_cfg,
    some_contexts,
    weights,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Each model with the fields of a run on it, and what it reads."""
    texts = make_text(200, 12)["text"]
    bridge_hooks = {"hook_name": "blocks.0.hook_out", "hook_name_out": "blocks.1.hook_out"}
    return {
        "hooked": {"model": make_model(), "text": make_text(), "fields": {}},
        "bridge": {
            "model": make_bridge(tmp_path_factory.mktemp("gpt2")),
            "text": make_text(),
            "fields": bridge_hooks,
        },
        "encoder": {
            "model": make_encoder(),
            "text": texts,
            "fields": bridge_hooks | {"text_unit": "sentence"},
        },
    }


# A run


@pytest.mark.parametrize("replay_tokens", [None, REPLAY])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_saves_and_logs(
    tmp_path: Path, kind: str, model: str, models: Any, replay_tokens: int | None
):
    given = models[model]
    cfg = make_cfg(tmp_path, kind, **given["fields"])
    runner = CrossLayerTrainingRunner(
        cfg, given["text"], given["model"], replay_tokens=replay_tokens
    )
    trained = runner.run().eval()

    loaded = SAE.load_from_disk(tmp_path / "output")
    assert type(loaded) is (TopKTranscoder if kind == "topk" else CLVQVAE)
    metadata = loaded.cfg.metadata
    assert (metadata.hook_name, metadata.hook_name_out) == (cfg.hook_name, cfg.hook_name_out)
    assert (metadata.text_unit, metadata.replay_tokens) == (cfg.text_unit, replay_tokens)
    assert metadata.hook_name != metadata.hook_name_out
    x = some_contexts()
    with torch.no_grad():
        expected = trained(x)
        assert not torch.allclose(expected[0], expected[1])
        torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4)

    log = read_log(tmp_path / "output")
    assert [line["step"] for line in log] == [1, 3, 5, 7]
    wanted = LOGGED if kind == "topk" else LOGGED | LOGGED_OF_CODES
    assert all(wanted <= line.keys() for line in log)
    assert all(line[name] is not None for line in log for name in wanted)
    assert log[-1]["details/n_training_samples"] == N_STEPS * BATCH
    sparsity = load_file(tmp_path / "output" / "sparsity.safetensors")["sparsity"]
    # Of the tokens that count; TopK's latents only fire where they are positive.
    l0 = (10**sparsity).sum().item()
    assert l0 == pytest.approx(3.0 if kind == "topk" else 1.0, rel=0.02)


class Watched(CrossLayerTrainingRunner):
    """Keeps the last batch and what became of it."""

    rows: Tensor
    output: Any

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        forward = self.sae.training_forward_pass

        def watch(step_input: Any) -> Any:
            self.rows = step_input.sae_in
            self.output = forward(step_input=step_input)
            return self.output

        self.sae.training_forward_pass = watch
        return super().run_trainer_with_interruption_handling(trainer)


@pytest.mark.parametrize(("hook_out", "d_out"), [(HOOK_OUT, D_IN), (MLP, 2 * D_IN)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_logged_is_about_the_target(tmp_path: Path, kind: str, hook_out: str, d_out: int):
    sae = sae_cfg(kind, d_out=d_out)
    runner = make_runner(tmp_path, kind, make=Watched, hook_name_out=hook_out, sae=sae)
    runner.run()
    line = read_log(tmp_path / "output")[-1]
    _, upper, valid = unpack_rows(runner.rows, D_IN, d_out)
    assert valid.all() != (kind == "transformer")
    y, out = upper[valid], runner.output.sae_out[valid]
    residual = (y - out).square().sum(1)
    explained = 1 - residual.sum() / (y - y.mean(0)).square().sum()
    relative = (residual / y.square().sum(1)).mean()
    assert line["metrics/explained_variance"] == pytest.approx(explained.item(), abs=1e-5)
    assert line["metrics/relative_squared_error"] == pytest.approx(relative.item(), rel=1e-4)
    # Of unit variance, the target costs d_out where nothing is known of it.
    spread = runner.sae.target_scale.square()
    assert line["losses/mse_loss"] == pytest.approx((residual.mean() / spread).item(), rel=1e-4)


def test_metrics_of_codes_are_what_their_names_say(tmp_path: Path):
    make_runner(tmp_path, "transformer").run()
    for line in read_log(tmp_path / "output"):
        assert 1 < line["metrics/perplexity"] <= line["metrics/codes_in_use"] <= N_CODES
        assert 0 < line["metrics/drawn_off_nearest"] < 1
        assert line["metrics/revived_codes"] == 0


def test_without_sampling_the_nearest_code_is_drawn(tmp_path: Path):
    make_runner(tmp_path, sae=sae_cfg("token", top_k=1)).run()
    assert {line["metrics/drawn_off_nearest"] for line in read_log(tmp_path / "output")} == {0}


def test_codes_that_nothing_is_near_to_are_revived_and_counted(tmp_path: Path):
    # More codes than a batch has tokens, and none may rest for two batches.
    sae = sae_cfg("token", d_sae=200, revive_after=2, max_revived=7)
    make_runner(tmp_path, sae=sae).run()
    last = read_log(tmp_path / "output")[-1]
    assert 7 <= last["metrics/revived_codes"] <= 7 * N_STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_run(tmp_path: Path, kind: str):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_runner(tmp_path / name, kind, seed=seed).run()
    a, b, c = (weights(tmp_path / name / "output") for name in "abc")
    assert_same(a, b)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("hook", [HOOK, "", HOOK_OUT])
def test_one_hook_point_makes_a_single_layer_vqvae(tmp_path: Path, hook: str):
    hooks: Any = {"hook_name": HOOK_OUT} if hook == HOOK_OUT else {"hook_name_out": hook}
    runner = make_runner(tmp_path, make=Watched, **hooks)
    runner.run()
    metadata = SAE.load_from_disk(tmp_path / "output").cfg.metadata
    assert metadata.hook_name == metadata.hook_name_out == runner.cfg.hook_name_out
    lower, upper, _ = unpack_rows(runner.rows, D_IN, D_IN)
    assert torch.equal(lower, upper)


def test_positions_are_left_out_of_sequences(tmp_path: Path):
    # Without BOS at position 0: sequences of 15, four a batch.
    n = CONTEXT_SIZE - 1
    runner = make_runner(
        tmp_path,
        "transformer",
        make=Watched,
        seqpos_slice=(1, None),
        train_batch_size_tokens=4 * n,
        sequence_separator_token=None,
    )
    runner.run()
    assert runner.cfg.sae.sequence_length == n
    assert runner.rows.shape == (4 * n, 2 * D_IN + 1)
    assert (runner.rows[:, -1] == 1).all()


# How it begins


class Calibrated(CrossLayerTrainingRunner):
    """Keeps what the autoencoder is initialized with."""

    @override
    def _build(self, dataset: Any, model: Any, sae: Any) -> None:
        super()._build(dataset, model, sae)
        self.calls: list[tuple[Tensor, int]] = []
        inner: Any = self.sae
        calibrate = inner.calibrate

        def keep(rows: Tensor, batch_size: int) -> None:
            self.calls.append((rows, batch_size))
            calibrate(rows, batch_size)

        inner.calibrate = keep


@pytest.mark.parametrize("kind", KINDS)
def test_units_and_codebook_are_set_from_the_first_tokens(tmp_path: Path, kind: str):
    runner = make_runner(tmp_path, kind, make=Calibrated, initialization_tokens=200)
    runner.run()
    [(rows, batch_size)] = runner.calls
    assert len(rows) == 4 * BATCH
    assert batch_size == BATCH
    lower, upper, valid = unpack_rows(rows, D_IN, D_IN)
    torch.testing.assert_close(runner.sae.input_mean, lower[valid].mean(0))
    torch.testing.assert_close(runner.sae.target_mean, upper[valid].mean(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [100, 10**6])
def test_or_from_a_sample_of_what_is_replayed(tmp_path: Path, kind: str, n: int):
    runner = make_runner(tmp_path, kind, REPLAY, make=Calibrated, initialization_tokens=n)
    runner.run()
    [(rows, _)] = runner.calls
    assert len(rows) == min(n, REPLAY)
    known = {tuple(row) for row in runner.activations_store.activations.tolist()}
    assert {tuple(row) for row in rows.tolist()} <= known
    assert n > REPLAY or not torch.equal(rows, runner.activations_store.activations[:n])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "bfloat16"}, "float32"),
        ({"autocast": True}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_it_trains_in_less_precision(tmp_path: Path, kind: str, fields: dict[str, Any], dtype: str):
    runner = make_runner(tmp_path, kind, sae=sae_cfg(kind, dtype=dtype), **fields)
    trained = runner.run().eval()
    log = read_log(tmp_path / "output")
    assert all(line[name] is not None for line in log for name in LOGGED)
    assert {getattr(trained, name).dtype for name in UNITS} == {torch.float32}
    loaded = SAE.load_from_disk(tmp_path / "output")
    x = some_contexts()
    with torch.no_grad():
        expected, actual = trained(x).float(), loaded(x).float()
    # Where it is rounded, a token may fall to another code.
    near = (actual - expected).norm(dim=-1) < 0.1 * expected.norm(dim=-1)
    assert near.float().mean() > (0.85 if dtype == "bfloat16" else 0.99)


def test_the_language_model_reads_both_hook_points_at_once(tmp_path: Path):
    runner = make_runner(tmp_path, replay_tokens=REPLAY)
    with counted_passes(runner.model) as passes:
        runner.run()
    # 384 tokens without BOS: four times 8 contexts of 16.
    assert passes == [8 * CONTEXT_SIZE] * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["hooked", "encoder"])
def test_replay_from_disk_is_replay_from_memory(tmp_path: Path, kind: str, model: str, models: Any):
    given = models[model]

    def build(name: str, path: Path | None, **fields: Any) -> CrossLayerTrainingRunner:
        cfg = make_cfg(tmp_path / name, kind, n_checkpoints=1, **given["fields"], **fields)
        replay: Any = {"replay_tokens": REPLAY, "replay_path": path}
        return CrossLayerTrainingRunner(cfg, given["text"], given["model"], **replay)

    build("memory", None).run()
    build("first", tmp_path / "kept").run()
    second = build("second", tmp_path / "kept")
    with counted_passes(given["model"]) as passes:
        second.run()
    assert passes == []
    (checkpoint,) = checkpoints(second)
    build("resumed", tmp_path / "kept", resume_from_checkpoint=str(checkpoint)).run()
    expected = weights(tmp_path / "memory" / "output")
    for name in ("first", "second", "resumed"):
        assert_same(weights(tmp_path / name / "output"), expected)


def test_what_one_architecture_collects_another_can_replay(tmp_path: Path):
    path = tmp_path / "kept"
    make_runner(tmp_path / "token", "token", REPLAY, replay_path=path).run()
    make_runner(tmp_path / "topk", "topk", REPLAY, replay_path=path, seed=3).run()
    make_runner(tmp_path / "memory", "topk", REPLAY, seed=3).run()
    assert_same(weights(tmp_path / "topk" / "output"), weights(tmp_path / "memory" / "output"))


def test_the_next_batch_can_be_read_while_one_is_trained_on(tmp_path: Path):
    make_runner(tmp_path / "ahead", "transformer", prefetch_llm_batches=True).run()
    make_runner(tmp_path / "plain", "transformer").run()
    assert_same(weights(tmp_path / "ahead" / "output"), weights(tmp_path / "plain" / "output"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["inference", "checkpoint"])
def test_it_goes_on_from_a_saved_autoencoder(tmp_path: Path, kind: str, file: str):
    first = make_runner(tmp_path / "first", kind, n_checkpoints=1)
    trained = first.run().eval()
    (checkpoint,) = checkpoints(first)
    folder = tmp_path / "first" / "output" if file == "inference" else checkpoint
    if file == "checkpoint":
        trained = TrainingSAE.load_from_disk(folder).eval()

    again = make_runner(
        tmp_path / "second", kind, make=Calibrated, from_pretrained_path=str(folder)
    )

    x = some_contexts()
    with torch.no_grad():
        torch.testing.assert_close(again.sae.eval()(x), trained(x), rtol=1e-4, atol=1e-4)
    before = {name: getattr(again.sae, name).clone() for name in UNITS}
    again.run()
    assert again.calls == []
    assert all(torch.equal(getattr(again.sae, name), before[name]) for name in UNITS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_autoencoder_can_be_handed_over(tmp_path: Path, kind: str):
    new = new_sae(kind)
    runner = make_runner(tmp_path, kind, override_sae=new, make=Calibrated)
    assert runner.run() is new
    assert len(runner.calls) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loaded", [True, False])
def test_one_that_is_initialized_stays_so(tmp_path: Path, kind: str, loaded: bool):
    sae = new_sae(kind)
    lower, upper = make_pairs(200, d_out=D_IN)
    sae.calibrate(pack_rows(lower + 5, 3 * upper))
    if loaded:
        sae.save_model(tmp_path / "sae")
        sae: Any = TrainingSAE.load_from_disk(tmp_path / "sae")
    mean = sae.input_mean.clone()
    runner = make_runner(tmp_path, kind, override_sae=sae, make=Calibrated)
    runner.run()
    assert runner.calls == []
    assert torch.equal(runner.sae.input_mean, mean)


@pytest.mark.parametrize("given", ["handed over", "inference file"])
def test_the_decoder_sees_the_sequences_that_are_served(tmp_path: Path, given: str):
    # An autoencoder of another run, or a file for inference, does not know their length.
    if given == "handed over":
        runner = make_runner(
            tmp_path,
            "transformer",
            override_sae=TrainingSAE.from_dict(sae_cfg("transformer").to_dict()),
        )
    else:
        make_runner(tmp_path / "first", "transformer").run()
        path = str(tmp_path / "first" / "output")
        runner = make_runner(tmp_path / "second", "transformer", from_pretrained_path=path)
    shapes: set[tuple[int, ...]] = set()
    runner.sae.decoder.register_forward_pre_hook(
        lambda module, inputs: shapes.add(tuple(inputs[0].shape))
    )
    runner.run()
    assert shapes == {(BATCH // CONTEXT_SIZE, CONTEXT_SIZE, D_IN)}


# What it learns


@pytest.mark.parametrize(
    ("kind", "explained"), [("token", 0.9), ("transformer", 0.9), ("topk", 0.9)]
)
def test_it_learns_which_cluster_a_token_is_of(kind: str, explained: float):
    # Below, a noisy mixture; above, the mean of each part: all there is to know is the cluster.
    n = 80 * BATCH
    cluster = torch.randint(N_CODES, (n,), generator=torch.Generator().manual_seed(0))
    lower = make_centers(D_IN, 1)[cluster] + 0.3 * torch.randn(
        n, D_IN, generator=torch.Generator().manual_seed(2)
    )
    rows = pack_rows(lower, 10 * make_centers(D_IN, 3)[cluster] + 4)
    torch.manual_seed(0)
    sae = new_sae(kind, 8)
    sae.calibrate(rows[:1024], BATCH)
    logs: list[dict[str, Any]] = []
    trainer = SAETrainer(trainer_cfg(250, lr=3e-3), sae, ReplayedActivations(rows, BATCH))
    take_step = trainer.step

    def step(batch: Tensor) -> Any:
        output = take_step(batch)
        logs.append(trainer.build_train_step_log_dict(output, 1))
        return output

    trainer.step = step
    trainer.fit()

    def mean(name: str, logs: list[dict[str, Any]]) -> float:
        return sum(log[name] for log in logs) / len(logs)

    assert mean("losses/overall_loss", logs[-20:]) < 0.3 * mean("losses/overall_loss", logs[:3])
    assert mean("metrics/explained_variance", logs[:3]) < 0.5
    sae.eval()
    with torch.no_grad():
        _, upper, _ = unpack_rows(rows[:512], D_IN, D_IN)
        x = rows[:512, :D_IN]
        out = sae(x.unflatten(0, (-1, 8))).flatten(0, 1)
    missed = (out - upper).square().sum() / (upper - upper.mean(0)).square().sum()
    assert 1 - missed > explained


def make_centers(width: int, seed: int) -> Tensor:
    return 2 * torch.randn(N_CODES, width, generator=torch.Generator().manual_seed(seed))


# Going on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["hooked", "encoder"])
def test_a_resumed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, kind: str, model: str, models: Any
):
    given = models[model]

    def build(folder: Path, **fields: Any) -> Any:
        cfg = make_cfg(folder, kind, n_checkpoints=2, **given["fields"], **fields)
        return CrossLayerTrainingRunner(cfg, given["text"], given["model"], replay_tokens=REPLAY)

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    runner = build(whole)
    runner.run()
    first, second = checkpoints(runner)
    torch.rand(7)
    again = build(resumed, resume_from_checkpoint=str(first))
    again.run()
    assert_same(weights(resumed / "output"), weights(whole / "output"))
    [other] = checkpoints(again)
    assert other.name == second.name
    assert_same(weights(other), weights(second))
    log, expected = (but_for_speed(read_log(path / "output")) for path in (resumed, whole))
    assert log == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_whole(tmp_path: Path, kind: str):
    runner = make_runner(tmp_path, kind, REPLAY, n_checkpoints=1)
    runner.run()
    (checkpoint,) = checkpoints(runner)
    saved = weights(checkpoint)
    assert saved.keys() == runner.sae.state_dict().keys()
    assert set(UNITS) <= saved.keys()
    assert kind == "topk" or {"codebook", "ema_count", "ema_sum", "n_updates"} <= saved.keys()
    metadata = json.loads((checkpoint / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["hook_name_out"]) == (HOOK, HOOK_OUT)
    assert metadata["replay_tokens"] == REPLAY
    # And one that SAELens loads for inference as it is.
    x = some_contexts()
    with torch.no_grad():
        expected = TrainingSAE.load_from_disk(checkpoint).eval()(x)
        torch.testing.assert_close(
            SAE.load_from_disk(checkpoint)(x), expected, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["hooked", "encoder"])
def test_without_replay_it_goes_on_with_the_step_and_the_text(
    tmp_path: Path, kind: str, model: str, models: Any
):
    given = models[model]

    def build(**fields: Any) -> Any:
        cfg = make_cfg(tmp_path, kind, n_checkpoints=1, **given["fields"], **fields)
        return CrossLayerTrainingRunner(cfg, given["text"], given["model"])

    runner = build()
    runner.run()
    (checkpoint,) = checkpoints(runner)
    n_updates = None if kind == "topk" else runner.sae.quantizer.n_updates.item()
    again = build(resume_from_checkpoint=str(checkpoint))
    n_read = load_file(checkpoint / "activations_store_state.safetensors")
    again.run()
    log = read_log(tmp_path / "output")
    assert [line["step"] for line in log] == [1, 3, 5, 7]
    assert kind == "topk" or again.sae.quantizer.n_updates == n_updates
    store = again.activations_store.store
    [read] = n_read.values()
    n_texts = store.n_texts_read if model == "encoder" else store.store.n_dataset_processed
    assert n_texts > read > 0


class Interrupted(CrossLayerTrainingRunner):
    """Gets a signal in the middle of step 5 (of 8, counted from 0)."""

    number = signal.SIGINT

    @override
    def run_trainer_with_interruption_handling(self, trainer: Any) -> Any:
        forward = self.sae.training_forward_pass

        def forward_and_signal(step_input: Any) -> Any:
            if step_input.n_training_steps == 5:
                os.kill(os.getpid(), self.number)
            return forward(step_input=step_input)

        self.sae.training_forward_pass = forward_and_signal
        return super().run_trainer_with_interruption_handling(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_can_go_on(tmp_path: Path, kind: str):
    make_runner(tmp_path / "whole", kind, REPLAY).run()
    stopped = make_runner(tmp_path, kind, REPLAY, make=Interrupted)
    with pytest.raises(InterruptedException):
        stopped.run()
    (checkpoint,) = checkpoints(stopped)
    assert checkpoint.name == str(6 * BATCH)
    assert not (tmp_path / "output" / "sae_weights.safetensors").exists()
    make_runner(tmp_path, kind, REPLAY, resume_from_checkpoint=str(checkpoint)).run()
    assert_same(weights(tmp_path / "output"), weights(tmp_path / "whole" / "output"))
    log, expected = (read_log(path / "output") for path in (tmp_path, tmp_path / "whole"))
    assert but_for_speed(log) == but_for_speed(expected)


@pytest.mark.parametrize("replay_tokens", [None, REPLAY])
def test_a_checkpoint_wants_the_kind_of_text_it_was_written_with(
    tmp_path: Path, models: Any, replay_tokens: int | None
):
    given = models["encoder"]
    cfg = make_cfg(tmp_path, n_checkpoints=1, **given["fields"])
    first = CrossLayerTrainingRunner(
        cfg, given["text"], given["model"], replay_tokens=replay_tokens
    )
    first.run()
    (checkpoint,) = checkpoints(first)
    other = None if replay_tokens else REPLAY
    cfg = make_cfg(tmp_path, resume_from_checkpoint=str(checkpoint), **given["fields"])
    with pytest.raises(
        ValueError, match=f"replay_tokens is {replay_tokens} there and {other} here"
    ):
        CrossLayerTrainingRunner(cfg, given["text"], given["model"], replay_tokens=other)


# Evals while training


def evaluate(runner: Any) -> dict[str, Any]:
    scaler = ActivationScaler()
    return runner.evaluator(runner.sae.eval(), runner.activations_store, scaler)


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluator_gives_saelens_groups_at_the_higher_hook_point(tmp_path: Path, kind: str):
    sae = sae_cfg(kind, d_out=2 * D_IN)
    runner = make_runner(tmp_path, kind, sae=sae, hook_name_out=MLP)
    runner.run()
    metrics = evaluate(runner)
    groups = {
        "model_performance_preservation",
        "reconstruction_quality",
        "shrinkage",
        "sparsity",
        "token_stats",
    }
    assert groups <= metrics.keys()
    assert metrics["sparsity"]["l0"] == (3.0 if kind == "topk" else 1.0)
    assert metrics["reconstruction_quality"]["explained_variance"] < 1
    preserved = metrics["model_performance_preservation"]
    assert preserved["ce_loss_without_sae"] != preserved["ce_loss_with_sae"]
    assert "code" not in metrics


def test_an_encoder_is_evaluated_without_cross_entropy(tmp_path: Path, models: Any):
    given = models["encoder"]
    cfg = make_cfg(tmp_path, **given["fields"])
    runner = CrossLayerTrainingRunner(cfg, given["text"], given["model"])
    runner.run()
    metrics = evaluate(runner)
    assert metrics["reconstruction_quality"]["explained_variance"] < 1
    assert not metrics.get("model_performance_preservation")


def test_evaluations_are_logged_while_text_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr("wandb.init", lambda **kwargs: None)
    monkeypatch.setattr("wandb.finish", lambda: None)
    monkeypatch.setattr("wandb.log", lambda metrics, step: logged.append(metrics))
    monkeypatch.setattr(LoggingConfig, "log", lambda *args, **kwargs: None)
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    make_runner(tmp_path, "transformer", prefetch_llm_batches=True, logger=logger).run()
    assert [metrics["metrics/l0"] for metrics in logged if "metrics/l0" in metrics]
    evaluated = [metrics for metrics in logged if "reconstruction_quality" in metrics]
    assert len(evaluated) == 2
