"""``bae-lens demo``: train, save, load, attach and evaluate a BAE on a real language model, offline.

One pass of SmolLM2-135M over movie reviews is kept and replayed to two trainings, a BAE and
SAELens' TopK; both are scored on held-out reviews.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bae_lens.cli.eval import everything

if TYPE_CHECKING:
    from sae_lens import SAE, HookedSAETransformer

    from bae_lens.evals import CodeSummary

_CONFIGS = {"BAE": "smollm2-bae", "TopK": "smollm2-topk"}


@dataclass
class Score:
    """One column of the table."""

    explained_variance: float
    ce_score_zero: float
    ce_score_mean: float
    l0: float
    marginal_entropy: float
    dense_10: float
    dense_10_folded: float
    dense_1: float
    dense_1_folded: float
    dead: float
    tokens_per_second: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo_output", help="folder for SAEs, plots and scores")
    parser.add_argument(
        "--tokens", type=int, default=250_000, help="tokens of text that the language model reads"
    )
    parser.add_argument(
        "--training_tokens",
        type=int,
        help="tokens of training, replays counted (default: config's)",
    )
    parser.add_argument("--held_out_tokens", type=int, default=65_536, help="tokens to score on")
    parser.add_argument("--ce_batches", type=int, default=2, help="batches of 16 prompts for CE")


def run_demo(args: argparse.Namespace) -> int:
    from sae_lens import SAE

    from bae_lens import demo
    from bae_lens.plots import plot_densities, plot_training, read_metric_log

    started = time.time()
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    overrides = (
        {} if args.training_tokens is None else {"training_tokens": str(args.training_tokens)}
    )
    model = demo.load_model(demo.MODEL_NAME)
    replay = None
    scores: dict[str, Score] = {}
    codes: dict[str, CodeSummary] = {}
    held_out = None
    for name, config in _CONFIGS.items():
        path = output / config
        runner, seconds = _train(
            config, {**overrides, "output_path": str(path)}, args.tokens, model, replay
        )
        replay = runner.activations_store
        sae = SAE.load_from_disk(path)
        if held_out is None:
            held_out = _collect_held_out(sae, model, args.held_out_tokens)
        rate = runner.cfg.training_tokens / seconds
        scores[name], codes[name] = _score(sae, model, held_out, args.ce_batches, rate)

    logs = {name: read_metric_log(output / c / "metrics.jsonl") for name, c in _CONFIGS.items()}
    title = f"SmolLM2-135M, {runner.cfg.hook_name}"
    plot_densities(codes, title).savefig(output / "densities.png", dpi=150)
    plot_training(logs, _target(output / _CONFIGS["BAE"]), title).savefig(
        output / "training.png", dpi=150
    )
    (output / "scores.json").write_text(
        json.dumps({name: asdict(score) for name, score in scores.items()}, indent=2) + "\n"
    )
    print(
        f"\n{title}, {replay.activations.shape[0]:,} tokens replayed, "
        f"scored on {codes['BAE'].n_tokens:,} held-out tokens\n"
    )
    print(table(scores))
    print(
        "\nA TopK latent also has a magnitude, whose bits come on top of its entropy."
        f"\nPlots and SAEs are in {output}/. The whole demo took {(time.time() - started) / 60:.1f} minutes."
    )
    return 0
