"""``bae-lens eval PATH``: a saved SAE's metrics, on the model and text its metadata names."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bae_lens.strict_json import finite_or_none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a saved SAE (cfg.json and sae_weights.safetensors)")
    parser.add_argument(
        "--n_eval_batches", type=int, default=4, help="batches of text for SAELens' evals"
    )
    parser.add_argument("--batch_size_prompts", type=int, default=8, help="prompts a batch")
    parser.add_argument(
        "--n_code_tokens", type=int, default=65_536, help="tokens for the code's statistics"
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
        help="resolution at which magnitudes are counted in the description length",
    )
    parser.add_argument("--dataset", help="another dataset than the one in the metadata")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="JSON file to write; default: PATH/eval_metrics.json")


def run_eval(args: argparse.Namespace) -> int:
    from sae_lens import SAE
    from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME
    from sae_lens.evals import get_eval_everything_config
    from sae_lens.training.activation_scaler import ActivationScaler

    from bae_lens.evals import run_evals
    from bae_lens.evals.held_out import held_out_store, load_model_of
    from bae_lens.hook_points import hook_names
    from bae_lens.training.runner import hook_width

    path = Path(args.path)
    if not (path / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{path} is not the folder of a saved SAE: there is no cfg.json in it. Give the folder "
            "that training wrote (output_path)."
        )
    for name in ("n_eval_batches", "batch_size_prompts"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1; got {getattr(args, name)}.")
    sae = SAE.load_from_disk(path, device=args.device)
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ValueError(f"The metadata in {path / 'cfg.json'} names no hook point (hook_name).")
    scaler = ActivationScaler()
    if (path / ACTIVATION_SCALER_CFG_FILENAME).is_file():
        # A checkpoint from the middle of a run: the scale of its inputs is not folded in yet.
        scaler.load(path / ACTIVATION_SCALER_CFG_FILENAME)
    model = load_model_of(sae, device=args.device)
    hook_in, hook_out = hook_names(sae)
    for field, hook_name, head_index in (
        ("d_in", hook_in, metadata.hook_head_index),
        ("d_out", hook_out, None if hook_out != hook_in else metadata.hook_head_index),
    ):
        expected = getattr(sae.cfg, field, sae.cfg.d_in)
        width = hook_width(model, hook_name, head_index)
        if width != expected:
            raise ValueError(
                f"The SAE's {field} is {expected}, but the activations at {hook_name!r} have width "
                f"{width}."
            )
    store = held_out_store(
        sae, model, args.dataset, store_batch_size_prompts=args.batch_size_prompts
    )
    metrics, _ = run_evals(
        sae,
        store,
        model,
        activation_scaler=scaler,
        eval_config=get_eval_everything_config(
            args.batch_size_prompts, args.n_eval_batches, args.n_eval_batches
        ),
        exclude_special_tokens=metadata.exclude_special_tokens or False,
        verbose=True,
        n_code_tokens=args.n_code_tokens,
        pair_counts=args.pair_counts,
        magnitude_bits=args.magnitude_bits,
    )
    print_metrics(metrics)
    output = Path(args.output) if args.output else path / "eval_metrics.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    strict = {
        group: {name: finite_or_none(value) for name, value in values.items()}
        for group, values in metrics.items()
    }
    output.write_text(json.dumps(strict, indent=2, allow_nan=False) + "\n")
    print(f"\nWritten to {output}")
    return 0


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
