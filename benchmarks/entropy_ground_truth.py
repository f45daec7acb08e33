"""Entropy as a BAE measures it, on sources whose entropy is known.

    python benchmarks/entropy_ground_truth.py            # three quarters of an hour on one core
    python benchmarks/entropy_ground_truth.py --quick    # six minutes: four sources, one seed

Each source is a vector of bits, mixed into 64 dimensions by random directions without noise. One rule
for all of them: `bae_lens.entropy.estimate_entropy` at an unexplained variance of 0.5 %, nothing set
for any of them. The two columns "as trained" are of the code before that prunes it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from writing import add_write_argument, written

from bae_lens import CodeStatistics, TrainingBAE, TrainingBAEConfig
from bae_lens.entropy import estimate_entropy
from bae_lens.entropy.pruning import prune
from bae_lens.evals import summarize_code
from bae_lens.nn import binary_entropy, plug_in_entropy
from bae_lens.training.fit import fit_activations

D_IN, D_SAE, MAX_UNEXPLAINED = 64, 256, 0.005
SURROGATES = ("sigmoid", "identity", "paper")
RELEASE = "as released"

Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Source:
    """Bits ``draw(n, generator) -> [n, n_bits]`` of known joint entropy, in bits."""

    draw: Draw
    entropy: float


def fair(r: int) -> Source:
    return Source(lambda n, g: _coins(n, torch.full((r,), 0.5), g), r)


def biased(p: Tensor) -> Source:
    return Source(lambda n, g: _coins(n, p, g), binary_entropy(p).sum().item())


def duplicated(r: int, copies: int) -> Source:
    return Source(lambda n, g: fair(r).draw(n, g).repeat(1, copies), r)


def tree(r: int, flip: float) -> Source:
    """A fair root; every other bit is its parent's, flipped with this probability."""

    def draw(n: int, g: torch.Generator) -> Tensor:
        bits = _coins(n, torch.tensor([0.5] + [flip] * (r - 1)), g)
        for j in range(1, r):
            bits[:, j] = (bits[:, j] != bits[:, (j - 1) // 2]).float()
        return bits

    return Source(draw, 1 + (r - 1) * binary_entropy(torch.tensor(flip)).item())


def thresholded_gaussians(r: int, correlation: float) -> Source:
    """Signs of Gaussians whose correlation falls off with distance. Entropy from four million draws."""
    distance = (torch.arange(r).unsqueeze(1) - torch.arange(r)).abs()
    root = torch.linalg.cholesky(correlation**distance)

    def draw(n: int, g: torch.Generator) -> Tensor:
        return (torch.randn(n, r, generator=g) @ root.T > 0).float()

    codes = draw(4_000_000, torch.Generator().manual_seed(0)) @ (2.0 ** torch.arange(r))
    return Source(draw, plug_in_entropy(torch.bincount(codes.long())))


def with_parities(r: int) -> Source:
    """Fair bits, and the exclusive or of each two neighbors as a bit of its own."""

    def draw(n: int, g: torch.Generator) -> Tensor:
        bits = fair(r).draw(n, g)
        return torch.cat([bits, (bits[:, ::2] != bits[:, 1::2]).float()], dim=1)

    return Source(draw, r)


def with_majorities(r: int) -> Source:
    """Fair bits, and the majority of each three as a bit of its own."""

    def draw(n: int, g: torch.Generator) -> Tensor:
        bits = fair(r).draw(n, g)
        return torch.cat([bits, (bits.reshape(n, -1, 3).sum(2) > 1).float()], dim=1)

    return Source(draw, r)


def _coins(n: int, p: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.rand(n, len(p), generator=generator) < p).float()


SOURCES: dict[str, Callable[[], Source]] = {
    "4 fair bits": lambda: fair(4),
    "8 fair bits": lambda: fair(8),
    "12 fair bits": lambda: fair(12),
    "16 fair bits": lambda: fair(16),
    "12 biased bits, 3 % to 50 %": lambda: biased(torch.linspace(0.03, 0.5, 12)),
    "30 rare bits, 5 %": lambda: biased(torch.full((30,), 0.05)),
    "5 fair bits, three times each": lambda: duplicated(5, 3),
    "15 bits on a tree": lambda: tree(15, 0.1),
    "8 thresholded Gaussians": lambda: thresholded_gaussians(8, 0.7),
    "6 fair bits and 3 parities": lambda: with_parities(6),
    "9 fair bits and 3 majorities": lambda: with_majorities(9),
}
QUICK = ("4 fair bits", "12 fair bits", "15 bits on a tree", "6 fair bits and 3 parities")


def settings(args: argparse.Namespace) -> dict[str, int]:
    return {key: vars(args)[key] for key in ("steps", "tokens", "held_out_tokens")}


def measured(args: argparse.Namespace) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Rows of this setting that the JSON file has already."""
    if args.json is None or not args.json.exists():
        return {}
    rows = [json.loads(line) for line in args.json.read_text().splitlines()]
    return {
        (row["source"], row["variant"], row["seed"]): row
        for row in rows
        if settings(args).items() <= row.items()
    }


def measure(name: str, variant: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: the source's own figures, and what a BAE says of it."""
    source = SOURCES[name]()
    generator = torch.Generator().manual_seed(seed)
    n_bits = source.draw(1, generator).shape[1]
    directions = torch.nn.functional.normalize(
        torch.randn(n_bits, D_IN, generator=generator), dim=1
    )
    train = source.draw(args.tokens, generator)
    held_out = source.draw(args.held_out_tokens, generator)
    own = CodeStatistics(n_bits, pair_counts=True)
    own.update(held_out)
    x, x_held_out = train @ directions, held_out @ directions
    row: dict[str, Any] = {
        "source": name,
        "variant": variant,
        "seed": seed,
        **settings(args),
        "true_entropy": source.entropy,
        "chow_liu_of_source": own.compute().chow_liu_entropy,
    }
    if variant == RELEASE:
        cfg = TrainingBAEConfig.paper(D_IN)
        sae = fit_activations(cfg, x, args.steps, batch_size=512, lr=5e-4, seed=seed)
        assert isinstance(sae, TrainingBAE)
        before, _, _ = summarize_code(sae, x_held_out.split(4096), pair_counts=True)
        pruned = prune(sae, x, MAX_UNEXPLAINED)
        code, explained, _ = summarize_code(pruned, x_held_out.split(4096), pair_counts=True)
        row["trained_marginal_entropy"] = before.marginal_entropy
        row["trained_chow_liu_entropy"] = before.chow_liu_entropy
        return row | code.to_dict() | {"unexplained_variance": 1 - explained}
    recipe: dict[str, Any] = {"target_entropy": "d_in", "max_density": None, "surrogate": variant}
    cfg = TrainingBAEConfig(d_in=D_IN, d_sae=D_SAE, **recipe)
    estimate = estimate_entropy(x, x_held_out, MAX_UNEXPLAINED, cfg, steps=args.steps, seed=seed)
    return row | estimate.to_dict()


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds, and the worst error of any seed."""
    lines = [
        "| source | true | as trained: marginal | Chow–Liu | pruned: marginal | plug-in | Chow–Liu "
        "| off by, worst seed | unexplained | Chow–Liu of the source's own bits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    columns = {
        "trained_marginal_entropy": ".1f",
        "trained_chow_liu_entropy": ".1f",
        "marginal_entropy": ".2f",
        "plug_in_entropy": ".2f",
        "chow_liu_entropy": ".2f",
    }
    for name in SOURCES:
        here = [row for row in rows if row["source"] == name]
        if not here:
            continue
        true = here[0]["true_entropy"]
        off = max((row["chow_liu_entropy"] / true - 1 for row in here), key=abs)
        means = [format(mean(row[key] for row in here), fmt) for key, fmt in columns.items()]
        unexplained = mean(row["unexplained_variance"] for row in here)
        own = mean(row["chow_liu_of_source"] for row in here)
        cells = [name, f"{true:.2f}", *means, f"{off:+.1%}", f"{unexplained:.2%}", f"{own:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    if args.quick:
        args.sources = list(QUICK)
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    logging.getLogger("bae_lens").setLevel(logging.ERROR)

    print(
        f"{args.steps} steps of 512 vectors, {D_IN} -> {D_SAE}, {args.tokens:,} vectors to train on, "
        f"{args.held_out_tokens:,} held out (plug-in ceiling {math.log2(args.held_out_tokens):.1f} "
        f"bits), seeds {args.seeds}"
    )
    rows = measured(args)
    for variant in args.variants:
        keys = list(itertools.product(args.sources, [variant], args.seeds))
        for key in keys:
            if key in rows:
                continue
            rows[key] = measure(*key, args)
            if args.json is not None:
                with args.json.open("a") as file:
                    file.write(json.dumps(rows[key]) + "\n")
        title = f"surrogate {variant}" if variant != RELEASE else "recipe as released"
        print(f"\n{title}\n\n{table([rows[key] for key in keys])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    variants = (*SURROGATES, RELEASE)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants)
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--held_out_tokens", type=int, default=65_536)
    parser.add_argument(
        "--json", type=Path, help="rows as they come, one per line; what it has is not repeated"
    )
    parser.add_argument("--quick", action="store_true", help="four sources; one seed unless given")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("entropy_ground_truth", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
