"""``bae-lens demo``: train, save, load, attach and evaluate a BAE on a real language model, offline.

SmolLM2-135M reads movie reviews once; what it computes is kept and replayed to three trainings, a BAE of
bits, one of levels with feedback, and SAELens' TopK, and all are scored on held-out reviews.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lens import SAE, ActivationsStore
    from torch import Tensor

    from bae_lens.activations.replay import ReplayedActivations
    from bae_lens.evals import CodeSummary

# All are trained and scored, in this order; the last is SAELens' own. ``_BAE`` and ``_LEVELS`` have the same
# budget.
_BAE, _LEVELS = "BAE", "BAE, 7 levels"
_CONFIGS = {_BAE: "smollm2-bae", _LEVELS: "smollm2-bae-levels", "SAELens TopK": "smollm2-topk"}
_PROMPTS = 16
# Resolution at which TopK's magnitudes are counted.
_MAGNITUDE_BITS = 4


@dataclass(frozen=True, eq=False)
class Score:
    """One column of the table."""

    code: CodeSummary
    explained_variance: float
    quantized_explained_variance: float | None
    ce_score_zero_ablation: float
    ce_score_mean_ablation: float
    tokens_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """All of it, flat, for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "code"}
        return own | self.code.to_dict()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", default="demo_output", help="folder for SAEs, plots and scores")
    parser.add_argument(
        "--tokens", type=int, default=250_000, help="tokens of text that the language model reads"
    )
    parser.add_argument(
        "--training_tokens",
        type=int,
        help="tokens of training, replays counted; default: as shipped",
    )
    parser.add_argument("--held_out_tokens", type=int, default=65_536, help="tokens to score on")
    parser.add_argument(
        "--ce_batches", type=int, default=2, help=f"batches of {_PROMPTS} prompts for cross-entropy"
    )


def run_demo(args: argparse.Namespace) -> int:
    from sae_lens import SAE

    from bae_lens import offline as demo
    from bae_lens.activations.held_out import held_out_store
    from bae_lens.activations.replay import ReplayedActivations
    from bae_lens.charts import require_matplotlib, save_figure
    from bae_lens.evals.plot import plot_densities
    from bae_lens.files.json_file import write_json
    from bae_lens.training.metric_log import read_metric_log
    from bae_lens.training.outputs import METRICS_FILENAME
    from bae_lens.training.plot import plot_training
    from bae_lens.training.runner import TrainingRunner

    for name in ("tokens", "training_tokens", "held_out_tokens", "ce_batches"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}.")
    require_matplotlib()
    # Advice on training runs of a user's own, which this is not.
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    started = time.time()
    output = Path(args.output)
    model: Any = demo.load_model(demo.MODEL_NAME)
    configs = {name: _config(shipped, output, args) for name, shipped in _CONFIGS.items()}
    replay: ReplayedActivations | None = None
    held_out: ReplayedActivations | None = None
    scores: dict[str, Score] = {}
    for name, cfg in configs.items():
        runner = TrainingRunner(cfg, override_model=model)
        if replay is None:
            replay = ReplayedActivations.collect(runner.activations_store, args.tokens)
        replay.n_batches_served = 0  # all are trained on the same batches in the same order
        runner.activations_store = replay  # pyright: ignore[reportAttributeAccessIssue]
        print(f"\nTraining {name}, {cfg.sae.d_in} -> {cfg.sae.d_sae} latents, at {cfg.hook_name}")
        before = time.time()
        runner.run()
        rate = cfg.training_tokens / (time.time() - before)

        sae = SAE.load_from_disk(cfg.output_path)

        def store(sae: SAE[Any] = sae) -> ActivationsStore:
            return held_out_store(sae, model, store_batch_size_prompts=_PROMPTS)

        if held_out is None:
            held_out = ReplayedActivations.collect(store(), args.held_out_tokens)
        print(f"Scoring {name}")
        scores[name] = _score(sae, model, store, held_out, args.ce_batches, rate)
        _show_attached(name, sae, model, store().get_batch_tokens(4))

    assert replay is not None
    assert held_out is not None
    cfg = configs[_BAE]
    title = f"SmolLM2-135M, {cfg.hook_name}"
    logs = {
        name: read_metric_log(Path(cfg.output_path) / METRICS_FILENAME)
        for name, cfg in configs.items()
    }
    save_figure(
        plot_densities({name: score.code for name, score in scores.items()}, title),
        output / "densities.png",
    )
    save_figure(plot_training(logs, cfg.sae.target_entropy_bits, title), output / "training.png")
    result = {name: score.to_dict() for name, score in scores.items()}
    write_json(output / "scores.json", result, indent=2)
    print(
        f"\n{title}: {len(replay.activations):,} tokens replayed, {cfg.training_tokens:,} trained on; "
        f"scored on {len(held_out.activations):,} held-out tokens, cross-entropy on "
        f"{args.ce_batches * _PROMPTS * cfg.context_size:,}\n"
    )
    print(table(scores))
    print(
        "\nEntropies are of which latents are on; the whole description has TopK's magnitudes and BAE's "
        f"levels too, magnitudes at a resolution of {_MAGNITUDE_BITS} bits, levels as they are."
        f"\nSAEs, plots and scores.json are in {output}/. "
        f"The whole demo took {(time.time() - started) / 60:.1f} minutes."
    )
    return 0


def _config(shipped: str, output: Path, args: argparse.Namespace) -> Any:
    from bae_lens.training.config_file import load_config

    overrides: dict[str, Any] = {"output_path": str(output / shipped)}
    if args.training_tokens is not None:
        overrides["training_tokens"] = args.training_tokens
    return load_config(shipped, overrides).runner


def _score(
    sae: SAE[Any],
    model: Any,
    store: Callable[[], ActivationsStore],
    held_out: ReplayedActivations,
    ce_batches: int,
    tokens_per_second: float,
) -> Score:
    """Evaluate one SAE: code and variance on ``held_out``, SAELens' CE evals on a fresh ``store()``."""
    from sae_lens.evals import EvalConfig

    from bae_lens.evals import run_evals, summarize_code

    code, explained_variance, quantized = summarize_code(
        sae,
        held_out.activations.split(4096),
        pair_counts=True,
        magnitude_bits=_MAGNITUDE_BITS,
    )
    metrics, _ = run_evals(
        sae,
        store(),
        model,
        eval_config=EvalConfig(
            batch_size_prompts=_PROMPTS,
            n_eval_reconstruction_batches=ce_batches,
            compute_ce_loss=True,
        ),
        verbose=True,
        n_code_tokens=0,
        # As the code's statistics and the training are: of all tokens.
        exclude_outlier_tokens=False,
    )
    ce = metrics["model_performance_preservation"]
    return Score(
        code=code,
        explained_variance=explained_variance,
        quantized_explained_variance=quantized,
        ce_score_zero_ablation=ce["ce_loss_score"],
        ce_score_mean_ablation=ce["ce_loss_score_mean_ablation"],
        tokens_per_second=tokens_per_second,
    )


def _show_attached(name: str, sae: SAE[Any], model: Any, tokens: Tensor) -> None:
    """Run the model with the SAE in it, with and without what it misses added back."""
    import torch

    from bae_lens.attach import attached

    def loss() -> float:
        return model(tokens, return_type="loss").item()

    with torch.no_grad():
        alone = loss()
        with attached(model, sae):
            replaced = loss()
        with attached(model, sae, use_error_term=True):
            corrected = loss()
    print(
        f"Attached to the model, on {tokens.numel():,} tokens: cross-entropy {replaced:.4f} with the "
        f"{name}, {corrected:.4f} with its error term added, {alone:.4f} without it"
    )


def table(scores: Mapping[str, Score]) -> str:
    """The scores as a Markdown table, one column each."""
    from bae_lens.results import Table

    def both(score: Score, name: str) -> str:
        raw, folded = getattr(score.code, name), getattr(score.code, f"{name}_folded")
        return f"{raw:.1%} / {folded:.1%}"

    def at_that(score: Score) -> str:
        quantized = score.quantized_explained_variance
        return f"{score.explained_variance if quantized is None else quantized:.3f}"

    rows: list[tuple[str, Callable[[Score], str]]] = [
        ("explained variance", lambda s: f"{s.explained_variance:.3f}"),
        ("CE loss recovered, against zero-ablation", lambda s: f"{s.ce_score_zero_ablation:.3f}"),
        ("CE loss recovered, against mean-ablation", lambda s: f"{s.ce_score_mean_ablation:.3f}"),
        ("latents on per token", lambda s: f"{s.code.l0:.0f}"),
        ("marginal entropy, bits per token", lambda s: f"{s.code.marginal_entropy:.0f}"),
        ("Chow–Liu bound, bits per token", lambda s: f"{s.code.chow_liu_entropy:.0f}"),
        ("whole description, bits per token", lambda s: f"{s.code.description_length:.0f}"),
        ("explained variance at that", at_that),
        ("denser than 10 %, raw / folded", lambda s: both(s, "dense_share_10")),
        ("denser than 1 %, raw / folded", lambda s: both(s, "dense_share_1")),
        ("dead", lambda s: f"{s.code.dead_share:.2%}"),
        ("training, tokens per second", lambda s: f"{s.tokens_per_second:,.0f}"),
    ]
    cells = [(name, *map(show, scores.values())) for name, show in rows]
    return Table(("", *scores), cells).markdown()
