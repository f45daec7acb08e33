"""``bae-lens eval PATH``: a saved SAE's metrics, on the model and text its metadata names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bae_lens.cli.data import (
    add_data_arguments,
    add_outlier_argument,
    outlier_option,
    read_unlabeled,
)
from bae_lens.cli.plots import add_plot_argument, plot_path, write_plot
from bae_lens.cli.saved import add_saved_arguments, check_output, load_saved, saved_folder
from bae_lens.files.json_file import finite_or_none, write_json
from bae_lens.results import EVAL_METRICS_FILENAME as METRICS_FILENAME

if TYPE_CHECKING:
    from sae_lens import SAEConfig

# Options that say how much text is read.
EXTENT = ("n_eval_batches", "batch_size_prompts", "n_code_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a saved SAE (cfg.json and sae_weights.safetensors)")
    parser.add_argument(
        "--n_eval_batches", type=int, default=4, help="batches of text for SAELens' evals"
    )
    parser.add_argument("--batch_size_prompts", type=int, default=8, help="prompts a batch")
    parser.add_argument(
        "--n_code_tokens",
        type=int,
        default=65_536,
        help="tokens for the code's statistics; 0 for none",
    )
    parser.add_argument(
        "--pair_counts",
        action=argparse.BooleanOptionalAction,
        help="count pairs of latents, for the joint entropy; default: where there are 20 tokens a latent, up to 16,384 latents",
    )
    parser.add_argument(
        "--magnitude_bits",
        type=float,
        default=4,
        help="resolution at which magnitudes of a real-valued code are counted in the description length",
    )
    add_outlier_argument(parser)
    parser.add_argument(
        "--dataset", help="another dataset than the one in the metadata: a name, or a file of texts"
    )
    add_data_arguments(parser, "texts to read in place of --dataset", required=False, labels=False)
    add_saved_arguments(parser)
    parser.add_argument("--output", help="JSON file to write; default: PATH/" + METRICS_FILENAME)
    add_plot_argument(parser, "how often each latent fires")


def run_eval(args: argparse.Namespace) -> int:
    """Under torchrun each process evaluates its share of the text; rank 0 prints and writes."""
    from bae_lens.distributed import failures_named, on_every_rank, rank, start_process_group

    start_process_group()
    with failures_named():
        with on_every_rank():
            output, plot = _outputs(args)
        evaluated = _evaluate(args)
        with on_every_rank():
            if rank() == 0:
                _write(evaluated, output, plot)
    return 0


def _write(evaluated: _Evaluated, output: Path, plot: Path | None) -> None:
    from bae_lens.evals.plot import plot_firing_rates
    from bae_lens.evals.verdict import eval_verdict

    metrics, rates, about, cfg = evaluated
    verdict = eval_verdict(metrics, cfg)
    print_metrics(metrics)
    write_json(output, {**_strict(metrics), "verdict": verdict._asdict(), "sae": about})
    print(f"\nWritten to {output}")
    if rates:
        n_tokens, name = metrics["code"]["n_tokens"], cfg.architecture()
        title = f"{about['model_name']}, {cfg.metadata.hook_name}"
        write_plot(plot, lambda: plot_firing_rates({name: rates}, n_tokens, title))
    print(f"\n{verdict}")


def _outputs(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The files that are to be written, if the arguments are such that there will be something to write."""
    from bae_lens.checks.fields import check, whole
    from bae_lens.distributed import rank

    path = saved_folder(args.path)
    output, plot = Path(args.output) if args.output else path / METRICS_FILENAME, None
    if rank() == 0:
        inputs = (path, args.data, args.dataset)
        check_output(output, *inputs)
        plot = plot_path(args, output, *inputs)
    for name in ("n_eval_batches", "batch_size_prompts"):
        check(f"--{name}", getattr(args, name), whole(1))
    if args.n_code_tokens < 0:
        raise ValueError(f"--n_code_tokens must be at least 0; got {args.n_code_tokens}.")
    if args.data is not None and args.dataset is not None:
        raise ValueError("Give --data or --dataset: only one of them can be read.")
    return output, plot


class _Evaluated(NamedTuple):
    """Metrics, how often each latent fires (empty where that was not measured), and what they are of."""

    metrics: dict[str, Any]
    firing_rates: list[float]
    about: dict[str, Any]
    cfg: SAEConfig


def _evaluate(args: argparse.Namespace) -> _Evaluated:
    from sae_lens.evals import get_eval_everything_config

    from bae_lens.activations.held_out import held_out_store
    from bae_lens.distributed import check_same, n_ranks, on_every_rank, own_device
    from bae_lens.evals import run_evals
    from bae_lens.fingerprint import deciding_fields, weights_sha256

    all_ranks = n_ranks() > 1
    with on_every_rank():
        dataset = args.dataset if args.data is None else read_unlabeled(args)
        args.device = own_device(args.device)
        sae, model, scaler = load_saved(saved_folder(args.path), args)
        store = held_out_store(sae, model, dataset, args.batch_size_prompts, all_ranks)
        # Before anything is folded in.
        sha256, config = weights_sha256(sae), deciding_fields(sae)
    # A folder may be another one on another machine.
    check_same({"the autoencoder's weights": sha256})
    metrics, per_latent = run_evals(
        sae,
        store,
        model,
        activation_scaler=scaler,
        eval_config=get_eval_everything_config(
            args.batch_size_prompts, args.n_eval_batches, args.n_eval_batches
        ),
        exclude_special_tokens=sae.cfg.metadata.exclude_special_tokens or False,
        verbose=True,
        n_code_tokens=args.n_code_tokens,
        pair_counts=args.pair_counts,
        magnitude_bits=args.magnitude_bits,
        exclude_outlier_tokens=outlier_option(args),
        all_ranks=all_ranks,
    )
    # What these are of, and how much text: for whoever finds them beside others.
    metadata = sae.cfg.metadata
    about = {
        "weights_sha256": sha256,
        "config": config,
        "model_name": args.model or metadata.model_name,
        "text": Path(args.data).name if args.data else args.dataset or metadata.dataset_path,
        **{name: getattr(args, name) for name in (*EXTENT, "outlier_multiple")},
    }
    return _Evaluated(metrics, per_latent.get("firing_rates", []), about, sae.cfg)


def _strict(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        group: {name: finite_or_none(value) for name, value in values.items()}
        for group, values in metrics.items()
    }


def print_metrics(metrics: dict[str, dict[str, Any]]) -> None:
    for group, values in metrics.items():
        print(f"\n{group}")
        for name, value in values.items():
            print(f"  {name:<32} {_shown(value):>12}")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
