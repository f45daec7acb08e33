"""What each part of the default BAE recipe does: take it away, train again, at two layers.

    python benchmarks/bae_recipe.py            # about twenty minutes on two cores
    python benchmarks/bae_recipe.py --quick    # minutes: fewer tokens and steps

Every row is one training of SAELens' own trainer on the same activations of SmolLM2-135M, scored on
held-out reviews.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from common import D_IN, collect
from torch import Tensor
from writing import add_write_argument, written

from bae_lens import TrainingBAEConfig
from bae_lens.evals import CodeSummary, summarize_code
from bae_lens.nn import entropy, off_diagonal_covariance
from bae_lens.training.fit import fit_activations

D_SAE, BATCH = 4 * D_IN, 1024
# Of all but those that have none.
BUDGET: dict[str, Any] = {"target_entropy": "d_in"}

_PUSH = "push on silent bits"  # not a field of the config: the package has no such option

VARIANTS: dict[str, dict[str, Any]] = {
    "default recipe": {},
    "without calibration": {"initial_firing_rate": None},
    "without budget (fixed coefficient)": {"target_entropy": None},
    "without density cap": {"max_density": None},
    "with a push on silent bits": {_PUSH: True},
    "with covariance penalty 6e-5 (the release's)": {"covariance_coefficient": 1e-7 * D_IN},
    "with covariance penalty 1e-2": {"covariance_coefficient": 1e-2},
    "surrogate identity": {"surrogate": "identity"},
    "surrogate paper": {"surrogate": "paper"},
    "without budget, cap, calibration": {
        "target_entropy": None,
        "max_density": None,
        "initial_firing_rate": None,
    },
}


@dataclass
class Row:
    """One training, scored."""

    code: CodeSummary
    explained_variance: float
    covariance: float


def pushed_silent_bits() -> Any:
    """Let the entropy push bits that are silent in a batch, by log2 of 2n - 1 (p = half a count).

    The release pushes them by 33 bits; this is the least that a clamped p gives.
    """

    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        p = p.clamp(0.5 / BATCH, 1 - 0.5 / BATCH)
        return grad * torch.log2((1 - p) / p)

    return patch.object(entropy._EntropyOfRates, "backward", staticmethod(backward))


def train(
    overrides: dict[str, Any],
    train_acts: Tensor,
    test_acts: Tensor,
    steps: int,
    lr: float,
    seed: int,
) -> Row:
    """Train one variant and score it."""
    fields = BUDGET | {name: value for name, value in overrides.items() if name != _PUSH}
    cfg = TrainingBAEConfig(d_in=D_IN, d_sae=D_SAE, **fields)
    with pushed_silent_bits() if _PUSH in overrides else nullcontext():
        sae = fit_activations(cfg, train_acts, steps, BATCH, lr, seed)
    code, explained_variance, _ = summarize_code(sae, test_acts.split(4096))
    with torch.no_grad():
        rows = test_acts[: 8 * BATCH].split(BATCH)
        bits = [(sae.encode(x) != 0).float() for x in rows if len(x) > 1]
        covariance = sum(off_diagonal_covariance(b).item() for b in bits) / len(bits)
    return Row(code, explained_variance, covariance)


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    if args.quick:
        args.layers, args.steps, args.tokens, args.held_out_tokens = [15], 100, 20_000, 8_192

    train_acts = collect(args.layers, "train", args.tokens)
    test_acts = collect(args.layers, "test", args.held_out_tokens)
    print(
        f"\n{args.steps} steps of {BATCH} tokens, lr {args.lr:g}, {D_IN} -> {D_SAE}, "
        f"{args.held_out_tokens:,} held-out tokens, seed {args.seed}\n"
    )
    print("| after block | variant | EV | bits on | entropy | covariance | > 10 % | dead |")
    print("|---|---|---|---|---|---|---|---|")
    for layer in args.layers:
        for name in args.variants:
            row = train(
                VARIANTS[name], train_acts[layer], test_acts[layer], args.steps, args.lr, args.seed
            )
            print(
                f"| {layer} | {name} | {row.explained_variance:.3f} | {row.code.l0:.0f} "
                f"| {row.code.marginal_entropy:.0f} | {row.covariance:.0f} "
                f"| {row.code.dense_share_10:.1%} | {row.code.dead_share:.1%} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 15])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--held_out_tokens", type=int, default=65_536)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="20,000 tokens, 100 steps, layer 15")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("bae_recipe", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
