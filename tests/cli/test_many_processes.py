"""``bae-lens train`` and ``bae-lens eval`` as torchrun starts them: several processes, one autoencoder, one table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from sae_lens import SAE

from bae_lens.cli import main
from bae_lens.training.checkpoints import check_whole
from tests.distributed.ranks import on_ranks, results_of
from tests.helpers import D_IN, D_SAE, make_bridge, make_text


def run_commands(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Status, stdout and stderr of each command on this rank."""
    config, sae, model = folder / "run.yaml", folder / "sae", str(folder / "model")
    texts = ["--dataset", str(folder / "texts.jsonl"), "--n_code_tokens", "400"]
    commands = {
        "lr": ["train", str(config), "--lr", "-1"],
        "batch": ["train", str(config), "--train_batch_size_tokens", "63"],
        "train": ["train", str(config)],
        "eval": ["eval", str(sae), "--model", model, "--pair_counts", *texts],
        "no folder": ["eval", str(folder / "nothing")],
        "report": ["report", str(sae)],
    }
    found = {}
    for name, argv in commands.items():
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(argv)
        found[name] = status, out.getvalue(), err.getvalue()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_bridge(folder / "model")
    rows = make_text()["text"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
    (folder / "texts.jsonl").write_text(lines)
    config = {
        **{"model_name": str(folder / "model"), "model_class_name": "TransformerBridge"},
        **{"hook_name": "blocks.0.hook_out", "dataset_path": str(folder / "texts.jsonl")},
        **{"context_size": 16, "exclude_special_tokens": True, "streaming": False},
        **{"training_tokens": 640, "train_batch_size_tokens": 64, "store_batch_size_prompts": 8},
        **{"n_batches_in_buffer": 16, "n_batches_for_norm_estimate": 2, "replay_tokens": 512},
        **{"output_path": str(folder / "sae"), "checkpoint_path": None, "verbose": False},
        "sae": {"architecture": "bae", "d_in": D_IN, "d_sae": D_SAE},
        "logger": {"log_to_wandb": False, "wandb_log_frequency": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return results_of(on_ranks(2, run_commands, folder, group=False, seconds=120))


def test_rank_0_saves_one_autoencoder(folder: Path, ranks: list[dict[str, Any]]):
    assert [r["train"][0] for r in ranks] == [0, 0], ranks[0]["train"][2]
    assert "Saved to" in ranks[0]["train"][1]
    assert ranks[1]["train"][1] == ""
    assert SAE.load_from_disk(folder / "sae").cfg.metadata.replay_tokens == 512


def test_rank_0_prints_one_table_and_writes_it_once(folder: Path, ranks: list[dict[str, Any]]):
    assert [r["eval"][0] for r in ranks] == [0, 0], ranks[0]["eval"][2]
    assert ranks[0]["eval"][1].count("explained_variance ") > 0
    assert ranks[1]["eval"][1] == ""
    written = json.loads((folder / "sae" / "eval_metrics.json").read_text())
    assert written["code"]["n_tokens"] + written["outlier_tokens"]["n_outlier_tokens"] == 400
    assert written["code"]["chow_liu_entropy"] > 0
    assert ranks[0]["eval"][1].endswith(f" {written['verdict']['advice']}\n")
    assert (folder / "sae" / "eval_metrics.png").is_file()
    assert written["sae"]["text"] == str(folder / "texts.jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lr", "lr must be a number of at least 0"),
        ("batch", "63 rows cannot be divided among 2 processes"),
        ("no folder", "nothing"),
        ("report", "bae-lens report is run by one process, and there are 2"),
    ],
)
def test_what_is_refused_is_refused_by_each(ranks: list[dict[str, Any]], name: str, said: str):
    for of_rank in ranks:
        status, out, err = of_rank[name]
        assert (status, out) == (2, "")
        assert err.startswith("bae-lens: error: ")
        assert said in err


def test_a_broken_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert main(["train", "smollm2-bae"]) == 2
    assert "lacks RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in capsys.readouterr().err


@pytest.mark.slow
def test_torchrun_itself(folder: Path, tmp_path: Path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    files = ["--output_path", str(tmp_path / "sae"), "--checkpoint_path", str(tmp_path / "saved")]
    command = [*torchrun, "-m", "bae_lens", "train", str(folder / "run.yaml"), *files]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Saved to") == 1
    assert (tmp_path / "sae" / "sae_weights.safetensors").is_file()

    # A signal to torchrun, in the middle of a run that would take hours.
    log = tmp_path / "sae" / "metrics.unfinished.jsonl"
    endless = subprocess.Popen(
        [*command, "--training_tokens", "64000000"], stderr=subprocess.PIPE, text=True
    )
    while not log.is_file() and endless.poll() is None:
        time.sleep(0.2)
    endless.terminate()
    _, err = endless.communicate(timeout=60)
    assert "Interrupted; go on with resume_from_checkpoint=" in err
    [checkpoint] = (tmp_path / "saved").glob("*")
    assert check_whole(checkpoint)["n_ranks"] == 2
