"""What each part of the recipe for levels and feedback does: change one thing, train again.

    python benchmarks/levels_recipe.py                              # two hours on two cores
    python benchmarks/levels_recipe.py --device cuda --jobs 8       # minutes
    python benchmarks/levels_recipe.py --quick                      # minutes: few steps, one budget and rate

Every row is one training on the activations of SmolLM2 after block 15, as ``feature_untangling.py`` trains
(576 -> 1,152 latents, 800 steps of 512 tokens, no density cap, one seed), scored on held-out reviews. Bits
per token are those of which latents fire, by the Chow-Liu bound, and at which level.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from untangling_trials import BATCH, EVAL_BATCH, Task, lm_task, load, prepare
from workers import Job, Workers
from writing import add_write_argument, written

from bae_lens import TrainingBAEConfig
from bae_lens.evals import summarize_code
from bae_lens.training.fit import fit_activations

RECIPE: dict[str, Any] = {"n_levels": 7, "feedback_steps": 2, "max_density": None}
# Steps of a warm-up as a share of the training.
_WARM_UP = "warm-up"
VARIANTS: dict[str, dict[str, Any]] = {
    "default recipe": {},
    "feedback starts at 0.5": {"initial_feedback_gain": 0.5},
    "feedback starts at 1": {"initial_feedback_gain": 1.0},
    "no curvature": {"curvature_coefficient": 0.0},
    "curvature 0.25": {"curvature_coefficient": 0.25},
    "curvature 0.5, warmed up over 5/8": {_WARM_UP: 5 / 8},
    "curvature 1, warmed up over 5/8": {"curvature_coefficient": 1.0, _WARM_UP: 5 / 8},
    "temperature 0.35": {"temperature": 0.35},
    "temperature 0.5": {"temperature": 0.5},
    "no feedback": {"feedback_steps": 0},
    "1 feedback step": {"feedback_steps": 1},
    "3 feedback steps": {"feedback_steps": 3},
    "3 levels": {"n_levels": 3},
    "15 levels": {"n_levels": 15},
    "one bit": {"n_levels": 1, "feedback_steps": 0},
    "one bit, curvature 0.5": {
        "n_levels": 1,
        "feedback_steps": 0,
        "curvature_coefficient": 0.5,
    },
}


def make_config(name: str, entropy: float, task: Task) -> TrainingBAEConfig:
    fields = RECIPE | VARIANTS[name]
    share = fields.pop(_WARM_UP, 0)
    return TrainingBAEConfig(
        d_in=task.d_in,
        d_sae=task.d_sae,
        target_entropy=entropy,
        curvature_warm_up_steps=round(share * task.steps),
        **fields,
    )


def measure(
    name: str, entropy: float, lr: float, task: Task, folder: Path, device: str
) -> list[str]:
    """One training, scored; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename)
    cfg = make_config(name, entropy, task)
    cfg.device = device
    sae = fit_activations(cfg, splits["train"], task.steps, BATCH, lr, 0, device)
    batches = (batch.to(device) for batch in splits["test"].split(EVAL_BATCH))
    code, explained_variance, _ = summarize_code(sae, batches, pair_counts=True)
    return [
        f"{entropy:g}",
        name,
        f"{lr:g}",
        f"{explained_variance:.4f}",
        f"{code.description_length:.0f}",
        f"{code.magnitude_entropy:.0f}",
        f"{code.l0:.0f}",
        f"{code.dense_share_10:.1%}",
        f"{code.dead_share:.1%}",
    ]


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its table."""
    task = lm_task(15)
    if args.quick:
        task = replace(task, steps=20, n_train=20_000, n_validation=512, n_test=8192)
        args.entropies, args.learning_rates = [300], [8e-3]
    with tempfile.TemporaryDirectory() as temporary, Workers(args.jobs) as workers:
        folder = args.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        prepare([task], folder, args.device)
        jobs: dict[str, Job] = {
            f"{name}, {entropy:g} bits, {lr:g}": (
                measure,
                (name, entropy, lr, task, folder, args.device),
            )
            for entropy, name, lr in itertools.product(
                args.entropies, args.variants, args.learning_rates
            )
        }
        rows = dict(workers.run(jobs))
    print(f"\n{task.steps} steps of {BATCH} tokens, {task.d_in} -> {task.d_sae}, no density cap\n")
    header = ["asked for", "variant", "lr", "EV", "bits", "of levels", "L0", "> 10 %", "dead"]
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    for name in jobs:
        print(f"| {' | '.join(rows[name])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entropies", type=float, nargs="+", default=[150, 300])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[4e-3, 8e-3])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true", help="20 steps, one budget and rate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--work", type=Path, help="folder that keeps the activations")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("levels_recipe", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
