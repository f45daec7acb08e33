"""Runs of several processes, beside those of one: what they train, write, refuse, and how they end.

What ranks do is written as functions that each of them calls; one launch goes through many of them.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LoggingConfig, TopKTrainingSAEConfig, llm_sae_training_runner
from sae_lens.evals import get_eval_everything_config
from sae_lens.training import sae_trainer
from sae_lens.training._interruption import InterruptedException
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from bae_lens import CodeStatistics, CrossLayerTrainingRunner, TrainingRunner, run_evals
from bae_lens.activations import collection
from bae_lens.activations.collection import kept_rows
from bae_lens.activations.held_out import held_out_store
from bae_lens.activations.replay import ReplayedActivations
from bae_lens.activations.text_store import TextStore
from bae_lens.distributed import RankFailedError, gather_merge, rank, start_process_group
from bae_lens.training import load_config, rank_states, same_run
from bae_lens.training.checkpoints import check_whole
from bae_lens.training.synthetic_runner import SyntheticTrainingRunner
from tests.distributed.ranks import Outcome, on_ranks, results_of
from tests.helpers import (
    BATCH,
    CONTEXT_SIZE,
    D_IN,
    D_SAE,
    clvq_cfg,
    cross_layer_cfg,
    make_activations,
    make_bae,
    make_model,
    make_text,
    runner_cfg,
    training_cfg,
)
from tests.training.test_runner import read_log

N_STEPS, REPLAY = 12, 6 * BATCH
STOP_AT = 5


def cfg_of(folder: Path, **overrides: Any) -> Any:
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2, wandb_id="run")
    # Both penalties, which are of the global batch.
    sae = training_cfg(covariance_coefficient=0.01)
    fields = {"n_steps": N_STEPS, "n_checkpoints": 2, "logger": logger, "sae": sae}
    return runner_cfg(folder, **{**fields, **overrides})


def train(
    folder: Path,
    kept: Path | None = None,
    replay: int | None = REPLAY,
    text: Any = None,
    **overrides: Any,
) -> TrainingRunner:
    text = make_text() if text is None else text
    kwargs: Any = {"replay_tokens": replay, "replay_path": kept}
    runner = TrainingRunner(cfg_of(folder, **overrides), text, make_model(), **kwargs)
    runner.run()
    return runner


def train_pairs(folder: Path, kept: Path) -> CrossLayerTrainingRunner:
    """A CLVQ-VAE, whose draws and revival are of the whole batch."""
    sae = clvq_cfg(d_out=D_IN, decoder_layers=1, top_k=3, revive_after=2, sequence_length=None)
    cfg = cross_layer_cfg(folder, N_STEPS, sae=sae, dtype="float64")
    # No number of ranks but one divides them.
    cfg.initialization_tokens = 251
    runner = CrossLayerTrainingRunner(
        cfg, make_text(), make_model(), replay_tokens=REPLAY, replay_path=kept
    )
    runner.run()
    return runner


def state_of(runner: Any) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in runner.sae.state_dict().items()}


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints" / "run").glob("[0-9]*"), key=lambda p: int(p.name))


def refusal(run: Callable[[], Any]) -> str:
    """What it refuses, or that it does not."""
    try:
        run()
    except ValueError as error:
        return str(error)
    return "not refused"


def warnings_of(run: Callable[[], Any]) -> list[str]:
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    ours = logging.getLogger("bae_lens")
    ours.addHandler(handler)
    try:
        run()
    finally:
        ours.removeHandler(handler)
    return messages


# What each rank does


def train_everything(folder: Path) -> dict[str, Any]:
    """Runs of an autoencoder, and what each rank had in the end."""
    torch.manual_seed(rank())  # Whatever it was before.
    kept, found = folder / "kept", {}
    found["replayed"] = state_of(train(folder / "two", kept))
    resumed = train(
        folder / "resumed", kept, resume_from_checkpoint=str(checkpoints(folder / "two")[0])
    )
    found["resumed"] = state_of(resumed)
    found["of one"] = warnings_of(
        lambda: found.update(
            from_one=state_of(
                train(
                    folder / "from one",
                    kept,
                    resume_from_checkpoint=str(checkpoints(folder / "one")[0]),
                )
            )
        )
    )
    found["pairs"] = state_of(train_pairs(folder / "pairs of two", folder / "kept pairs"))
    found["wandb"] = log_to_wandb(folder / "wandb", kept)
    found["without room"] = train_without_room(folder / "without room", kept)
    found["stopped at"] = stop_one_rank(folder / "stopped", kept)
    [stopped] = [p for p in checkpoints(folder / "stopped") if int(p.name) == found["stopped at"]]
    resumed = train(folder / "stopped", kept, resume_from_checkpoint=str(stopped))
    found["resumed from the stop"] = state_of(resumed)
    return found


class Wandb:
    """What SAELens calls of W&B, counted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.logged: set[str] = set()

    def init(self, **kwargs: Any) -> None:
        self.calls.append("init")

    def log(self, content: dict[str, Any], step: int) -> None:
        self.logged |= content.keys()

    def finish(self) -> None:
        self.calls.append("finish")

    def Histogram(self, values: Any) -> list[float]:
        return list(values)


def log_to_wandb(folder: Path, kept: Path) -> dict[str, Any]:
    """A run with W&B and with evals, which rank 0 does alone."""
    wandb = Wandb()
    sae_trainer.wandb = llm_sae_training_runner.wandb = wandb  # pyright: ignore
    LoggingConfig.log = lambda *args, **kwargs: wandb.calls.append("artifact")
    logger = LoggingConfig(
        log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=2, wandb_id="run"
    )
    runner = train(folder, kept, logger=logger)
    return {"calls": wandb.calls, "logged": wandb.logged, "state": state_of(runner)}


def train_without_room(folder: Path, kept: Path) -> dict[str, Tensor]:
    """A run whose rank 1 cannot write what it has to give to a checkpoint."""

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        if rank() == 1:
            patch.setattr(rank_states, "write_state", fail)
        return state_of(train(folder, kept))


def stop_one_rank(folder: Path, kept: Path | None) -> int:
    """SIGTERM to rank 1; tokens behind this rank when it stopped."""
    seen: list[Any] = []

    def send(trainer: Any) -> None:
        seen.append(trainer)
        if trainer.n_training_steps == STOP_AT and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with before_steps(send):
            train(folder, kept)
    except InterruptedException:
        return seen[-1].n_training_samples
    return -1


@contextmanager
def before_steps(do: Callable[[Any], None]) -> Iterator[None]:
    """While inside, call it with the trainer before each step."""
    trainer_class: Any = SAETrainer
    step = trainer_class.step

    def do_and_step(trainer: Any, batch: Tensor) -> Any:
        do(trainer)
        return step(trainer, batch)

    trainer_class.step = do_and_step
    try:
        yield
    finally:
        trainer_class.step = step


def train_from_text(folder: Path) -> dict[str, Any]:
    """Runs that read text, each rank its own."""
    found: dict[str, Any] = {}
    read: list[str] = []
    get = TextStore._checked
    TextStore._checked = lambda store, row, counts: (
        read.append(row["text"]) or get(store, row, counts)
    )  # pyright: ignore
    found["text"] = state_of(train(folder / "text", replay=None, n_checkpoints=1))
    TextStore._checked = get
    found["read"] = set(read)
    [half] = [p for p in checkpoints(folder / "text")]
    found["text again"] = state_of(
        train(folder / "text again", replay=None, resume_from_checkpoint=str(half))
    )
    # Texts of rank 1 are much shorter than those of rank 0: it begins anew when it has used them up.
    uneven = Dataset.from_dict({"text": [*make_text(8, 200)["text"], *make_text(8, 20)["text"]]})
    found["uneven"] = state_of(train(folder / "uneven", replay=None, text=uneven))
    memory = warnings_of(lambda: train(folder / "memory", replay=800, text=uneven))
    found["memory"] = memory
    disk = warnings_of(lambda: train(folder / "disk", folder / "uneven kept", 800, uneven))
    found["disk"] = disk
    outliers = TrainingRunner(
        cfg_of(folder / "outliers"), make_text(), make_model(), exclude_outlier_tokens=1.05
    )
    outliers.run()
    found["outliers"] = state_of(outliers)
    found["topk"] = state_of(
        train(folder / "topk", sae=TopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3))
    )
    cfg = cross_layer_cfg(folder / "clvq")
    clvq = CrossLayerTrainingRunner(cfg, make_text(), make_model(), replay_tokens=REPLAY)
    clvq.run()
    found["clvq"] = state_of(clvq)
    overrides = {
        **{"training_samples": 40_960, "eval_samples": 256, "lr": 1e-3},
        **{"output_path": str(folder / "synthetic"), "n_checkpoints": 0},
    }
    synthetic: Any = SyntheticTrainingRunner(load_config("synthetic-bae", overrides).runner)  # pyright: ignore
    found["synthetic"] = {n: p.detach() for n, p in synthetic.run().sae.state_dict().items()}
    return found


def evaluate(folder: Path) -> dict[str, Any]:
    counts = CodeStatistics(D_SAE, pair_counts=True)
    acts = make_bae().encode(make_activations(90))
    counts.update(acts[rank() * 30 : (rank() + 1) * 30])
    sae = SAE.load_from_disk(folder / "output")
    store = held_out_store(sae, make_model(), make_text(), all_ranks=True)
    metrics, per_latent = run_evals(
        sae,
        store,
        make_model(),
        eval_config=get_eval_everything_config(8, 6, 6),
        n_code_tokens=900,
        all_ranks=True,
    )
    pairs = SAE.load_from_disk(folder.parent / "pairs" / "output")
    texts = [" ".join(text.split()[: 3 + i % 20]) for i, text in enumerate(make_text()["text"])]
    pairs.cfg.metadata.text_unit = "sentence"
    sentences = held_out_store(pairs, make_model(), texts, 4, all_ranks=True)
    of_pairs, _ = run_evals(
        pairs,
        sentences,
        make_model(),
        eval_config=get_eval_everything_config(4, 6, 6),
        n_code_tokens=600,
        all_ranks=True,
    )
    return {
        "merged": gather_merge(counts).compute().to_dict(),
        "metrics": metrics,
        "per latent": per_latent,
        "of pairs": of_pairs,
    }


def collect_with_three(folder: Path) -> dict[str, Any]:
    """Without a training: three ranks that collect, look and are refused."""
    start_process_group()
    found = evaluate(folder / "one")
    cfg = cfg_of(folder / "a", train_batch_size_tokens=48)
    runner = TrainingRunner(cfg, make_text(), make_model(), replay_tokens=200)
    rows = kept_rows(folder / "of three", runner.activations_store, 200)
    found["own"] = [len(rows), rows.sum().item()]
    found["batches"] = [
        next(ReplayedActivations(rows, 48, seed=s, is_common=True)) for s in range(2)
    ]

    def refused(name: str, run: Callable[[], Any]) -> None:
        found[name] = refusal(run)

    def start(**overrides: Any) -> TrainingRunner:
        kwargs: Any = overrides.pop("kwargs", {})
        text = overrides.pop("text", make_text())
        fields = {"train_batch_size_tokens": 48, **overrides}
        return TrainingRunner(cfg_of(folder / "b", **fields), text, make_model(), **kwargs)

    refused("batch", lambda: start(train_batch_size_tokens=64))
    refused("lr", lambda: start(lr=1e-3 * (1 + (rank() == 2))))
    refused("replay", lambda: start(kwargs={"replay_tokens": 200 + rank()}))
    refused("one of them", lambda: start(lr=-1.0 if rank() == 1 else 1e-3))
    refused("text", lambda: start(text=make_text(20 + (rank() == 1))))
    refused("prefetch", lambda: start(prefetch_llm_batches=True))
    version_of = same_run._version
    same_run._version = lambda package: str(rank() // 2) if package == "torch" else "1"
    refused("version", lambda: start())
    same_run._version = version_of
    refused("short", lambda: start(text=make_text(2)))
    if rank() == 2:
        collection.FINISHED = "elsewhere"
    kwargs = {"replay_tokens": 200, "replay_path": folder / "of three"}
    refused("folder", lambda: kept_rows(folder / "of three", runner.activations_store, 200))
    collection.FINISHED = "collection"
    refused("length", lambda: start(kwargs=kwargs | {"replay_tokens": 100}))
    return found


def fail(folder: Path, how: str) -> None:
    """A run of which rank 1 does not come to an end."""

    def end(trainer: Any) -> None:
        if trainer.n_training_steps == STOP_AT and rank() == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("no disk is left")

    with before_steps(end):
        train(folder, n_checkpoints=6)


# What comes of it


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process trains, beside which several are held."""
    folder = tmp_path_factory.mktemp("ranks")
    train(folder / "one", folder / "kept")
    train(folder / "one from text", replay=None)
    train_pairs(folder / "pairs", folder / "kept pairs")
    return folder


@pytest.fixture(scope="module")
def two(one: Path) -> list[dict[str, Any]]:
    return results_of(on_ranks(2, train_everything, one, group=False, seconds=120))


@pytest.fixture(scope="module")
def from_text(one: Path) -> list[dict[str, Any]]:
    return results_of(on_ranks(2, train_from_text, one, group=False, seconds=120))


@pytest.fixture(scope="module")
def three(one: Path) -> list[dict[str, Any]]:
    return results_of(on_ranks(3, collect_with_three, one, group=False, seconds=120))


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


def saved(folder: Path) -> dict[str, Tensor]:
    return SAE.load_from_disk(folder / "output").state_dict()


def logged(folder: Path) -> dict[str, list[float]]:
    lines = read_log(folder / "output")
    return {name: [line[name] for line in lines] for name in lines[0]}


def test_two_ranks_train_what_one_process_does(one: Path, two: list[dict[str, Any]]):
    assert_equal(two[0]["replayed"], two[1]["replayed"])
    assert_equal(saved(one / "two"), saved(one / "one"), 1e-6)
    a, b = logged(one / "two"), logged(one / "one")
    assert a.keys() == b.keys()
    assert a["details/n_training_samples"][-1] == N_STEPS * BATCH
    for name in a:
        if not name.startswith("performance/"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    for name in ("runner_cfg.json", "cfg.json", "metrics.jsonl", "sparsity.safetensors"):
        assert (one / "two" / "output" / name).is_file()
    metadata = SAE.load_from_disk(one / "two" / "output").cfg.metadata
    assert metadata.replay_tokens == REPLAY


def test_two_ranks_train_a_codebook_as_one_process_does(one: Path, two: list[dict[str, Any]]):
    assert_equal(two[0]["pairs"], two[1]["pairs"])
    of_two, of_one = saved(one / "pairs of two"), saved(one / "pairs")
    for weights in (of_two, of_one):
        # Of its first half, the keys', the gradient is rounding alone, which Adam takes for one.
        name = "decoder.blocks.0.attention.key_value.bias"
        weights[name] = weights[name].chunk(2)[1]
    assert_equal(of_two, of_one, 1e-5)


def test_a_rank_that_cannot_write_its_state_costs_the_checkpoint_alone(
    one: Path, two: list[dict[str, Any]]
):
    for found in two:
        torch.testing.assert_close(found["without room"], found["replayed"], rtol=0, atol=0)
    assert not checkpoints(one / "without room")


def test_rank_0_alone_logs_to_wandb_and_evaluates(two: list[dict[str, Any]]):
    first, second = (of_rank["wandb"] for of_rank in two)
    assert first["calls"][0] == "init"
    assert first["calls"][-2:] == ["artifact", "finish"]
    assert {"losses/mse_loss", "model_performance_preservation"} <= first["logged"]
    assert (second["calls"], second["logged"]) == ([], set())
    for of_rank in (first, second):
        assert_equal(of_rank["state"], two[0]["replayed"])


def test_a_resumed_run_ends_with_the_same_bits(one: Path, two: list[dict[str, Any]]):
    for of_rank in two:
        assert_equal(of_rank["resumed"], two[0]["replayed"])
    first = checkpoints(one / "two")[0]
    assert {p.name for p in first.glob("*.rank1.*")} == {
        "activations_store_state.rank1.safetensors",
        "random_state.rank1.safetensors",
    }
    assert check_whole(first)["n_ranks"] == 2


def test_a_signal_to_one_rank_stops_all_at_the_same_step(two: list[dict[str, Any]]):
    stopped = {of_rank["stopped at"] for of_rank in two}
    assert len(stopped) == 1
    assert (STOP_AT + 1) * BATCH <= stopped.pop() <= (STOP_AT + 2) * BATCH
    for of_rank in two:
        assert_equal(of_rank["resumed from the stop"], two[0]["replayed"])


def test_another_number_of_ranks_goes_on_and_says_what_differs(
    one: Path, two: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
):
    for of_rank in two:
        assert any("written by 1 processes, and 2 go on" in m for m in of_rank["of one"])
        assert_equal(of_rank["from_one"], two[0]["replayed"], 1e-6)
    checkpoint = checkpoints(one / "two")[0]
    runner = train(one / "back", one / "kept", resume_from_checkpoint=str(checkpoint))
    assert "written by 2 processes, and 1 go on" in caplog.text
    assert_equal(state_of(runner), two[0]["replayed"], 1e-6)


def test_runs_from_text_learn_as_much(one: Path, from_text: list[dict[str, Any]]):
    for name in ("text", "text again", "uneven", "outliers", "topk", "clvq", "synthetic"):
        assert_equal(from_text[0][name], from_text[1][name])
    several, alone = logged(one / "text"), logged(one / "one from text")
    assert several["losses/mse_loss"][-1] == pytest.approx(alone["losses/mse_loss"][-1], rel=0.2)
    assert several["details/n_training_samples"] == alone["details/n_training_samples"]


def test_each_rank_reads_its_own_share(from_text: list[dict[str, Any]]):
    read = [of_rank["read"] for of_rank in from_text]
    assert read[0]
    assert read[1]
    assert not read[0] & read[1]


def test_a_rank_out_of_text_collects_less(one: Path, from_text: list[dict[str, Any]]):
    for name in ("memory", "disk"):
        messages = [of_rank[name] for of_rank in from_text]
        assert not any("text ended after" in m for m in messages[0])
        assert any("The text ended after" in m and "of 400 tokens" in m for m in messages[1])
        for of_rank in messages:
            assert any(
                re.search(r"^The text ended: \d+ of 800 .*, by rank 400, ", m) for m in of_rank
            )
    counts = [
        SAE.load_from_disk(one / name / "output").cfg.metadata.replay_tokens
        for name in ("memory", "disk")
    ]
    assert 400 < counts[0] == counts[1] < 800


def test_synthetic_data_are_others_on_each_rank(one: Path, from_text: list[dict[str, Any]]):
    assert (one / "synthetic" / "eval_stats.json").is_file()
    assert from_text[0]["synthetic"]["firing_rate"].any()


def test_one_collection_of_all_ranks_serves_the_batches_of_one_process(
    one: Path, three: list[dict[str, Any]]
):
    assert [of_rank["own"] for of_rank in three] == 3 * [three[0]["own"]]
    store = TrainingRunner(cfg_of(one / "x"), make_text(), make_model()).activations_store
    rows = kept_rows(one / "of three", store, 200)
    assert rows.shape == (200, D_IN)
    for seed in range(2):
        batch = torch.cat([of_rank["batches"][seed] for of_rank in three])
        assert torch.equal(batch, next(ReplayedActivations(rows, 48, seed=seed)))
    described = json.loads((one / "of three" / "collection" / "description.json").read_text())
    assert described["n_rows"] == 200
    assert sorted(p.name for p in (one / "of three").rglob("*") if p.is_file()) == [
        "activations.bin",
        "activations_store_state.safetensors",
        "description.json",
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch", "64 rows cannot be divided among 3 processes"),
        ("lr", "lr is 0.001 on rank 0 and 0.002 on rank 2"),
        ("replay", "replay_tokens is 200 on rank 0 and 201 on rank 1"),
        ("one of them", "lr must be a number of at least 0"),
        ("text", "the text is {'rows': 20"),
        ("prefetch", "prefetch_llm_batches is not supported on the CPU with several processes"),
        ("version", "the version of torch is '0' on rank 0 and '1' on rank 2"),
        ("short", "The dataset has 2 rows, fewer than there are processes (3)"),
        ("folder", "for rank 0, and not for rank 2. Name a folder that all machines share"),
        ("length", "replay_tokens is 200 there and 100 here"),
    ],
)
def test_bad_input_is_refused_on_every_rank(three: list[dict[str, Any]], name: str, said: str):
    for of_rank in three:
        assert said in of_rank[name], of_rank[name]


def test_evals_are_of_the_text_of_all_ranks(one: Path, three: list[dict[str, Any]]):
    whole = CodeStatistics(D_SAE, pair_counts=True)
    whole.update(make_bae().encode(make_activations(90)))
    expected = whole.compute().to_dict()
    for of_rank in three:
        assert of_rank["merged"] == pytest.approx(expected, nan_ok=True)
        assert of_rank["metrics"] == three[0]["metrics"]
        assert of_rank["of pairs"] == three[0]["of pairs"]
    of_pairs = three[0]["of pairs"]
    assert of_pairs["code"]["n_tokens"] == 600
    assert 0 < of_pairs["code"]["bits_per_token"] < 4
    assert of_pairs["code"]["codes_in_use"] > 1
    metrics = three[0]["metrics"]
    assert metrics["code"]["n_tokens"] == 900
    assert metrics["token_stats"]["total_tokens_eval_reconstruction"] == 6 * 8 * CONTEXT_SIZE
    sae = SAE.load_from_disk(one / "one" / "output")
    alone, per_latent = run_evals(
        sae,
        held_out_store(sae, make_model(), make_text()),
        make_model(),
        eval_config=get_eval_everything_config(8, 6, 6),
        n_code_tokens=900,
    )
    assert metrics.keys() == alone.keys()
    for group, name in (
        ("model_performance_preservation", "ce_loss_score"),
        ("model_behavior_preservation", "kl_div_score"),
        ("reconstruction_quality", "explained_variance"),
        ("code", "explained_variance"),
        ("code", "l0"),
    ):
        assert metrics[group][name] == pytest.approx(alone[group][name], abs=0.1), name
    assert three[0]["per latent"].keys() == per_latent.keys()


@pytest.mark.parametrize(
    ("how", "said"),
    [("killed", r"Rank 1 gives no sign of life"), ("raises", r"Rank 1 .*OSError: no disk is left")],
)
def test_a_rank_that_fails_ends_all(tmp_path: Path, how: str, said: str):
    begun = time.monotonic()
    outcomes: list[Outcome] = on_ranks(2, fail, tmp_path, how, group=False, seconds=60)
    assert time.monotonic() - begun < 45
    assert isinstance(outcomes[0].error, RankFailedError)
    assert re.search(said, str(outcomes[0].error))
    if how == "raises":
        assert isinstance(outcomes[1].error, OSError)
    written = checkpoints(tmp_path)
    assert written
    for checkpoint in written:
        assert check_whole(checkpoint)["n_ranks"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(int(os.environ.get("BAE_LENS_RANK_KILLS", "6"))))
def test_a_run_that_was_killed_anywhere_is_gone_on_from(one: Path, tmp_path: Path, seed: int):
    draw = random.Random(seed)
    on_ranks(
        2, train_and_die, tmp_path, one / "kept", draw.randrange(2), draw.random(), group=False
    )
    left = checkpoints(tmp_path)
    for checkpoint in left:
        check_whole(checkpoint)
    resume = str(left[-1]) if left else None
    states = results_of(on_ranks(2, resume_run, tmp_path, one / "kept", resume, group=False))
    whole = results_of(on_ranks(2, resume_run, tmp_path / "whole", one / "kept", None, group=False))
    for state in states:
        assert_equal(state, whole[0])


def train_and_die(folder: Path, kept: Path, number: int, when: float) -> None:
    """A run in which one rank is killed at some time, of a second about its middle."""

    def set_off(trainer: Any) -> None:
        if trainer.n_training_steps == 1 and rank() == number:
            threading.Timer(0.5 * when, os.kill, (os.getpid(), signal.SIGKILL)).start()
        time.sleep(0.05)

    with before_steps(set_off):
        train(folder, kept, n_checkpoints=10)


def resume_run(folder: Path, kept: Path, resume: str | None) -> dict[str, Tensor]:
    return state_of(train(folder, kept, n_checkpoints=10, resume_from_checkpoint=resume))
