"""CLVQ-VAE in a model that is a classifier: what its codes tell of the higher block and of the prediction.

    python benchmarks/classifier.py --data DIR --json FILE --minutes 60    # goes on from FILE
    python benchmarks/classifier.py --data DIR --quick                     # little of everything
    python benchmarks/classifier.py --data DIR --json FILE --full          # K = 32 and 400, three classifiers

DIR holds JSONL files with ``text`` and ``label``, by the names in ``classifier_trials.read_parts``.

MiniLM is fine-tuned (a head on [CLS], two epochs) on AG News, Jigsaw, and movie reviews, and studied on
texts of the first two that it has not seen, and on ERASER's sentences. Of each dataset no text is in two of
three parts: fine-tuning, dictionaries, study. What has no labels in ERASER is the dictionaries' part there.

Dictionaries read a lower block and are fitted on the same tokens; what is trained by steps gets the same
number of them, on batches of the same size, by SAELens' trainer, at the rate in ``LEARNING_RATES`` (none
was chosen here). K codes, or 768 latents with k = 16 (TopK) or 40 bits (BAE). The paper's encoder has the
values of ``TrainingCLVQVAEConfig.paper`` with a decoder of single tokens. Controls that see both blocks as
CLVQ-VAE does: scikit-learn's ridge regression and MLP from the lower to the higher block, and k-means of
what they predict. k-means of the higher block itself is the ceiling of any code that is read lower down.

EV: each token of the studied texts is replaced, at the higher block, by the mean that its code has on the
dictionary part; the same for all, and an SAE's code is its strongest latent (of which there are more than K,
and it was not trained for that). NMI: of a word's code with the class that the head predicts of its text,
less that of predictions dealt out to texts anew.

Ablation: the code of the salient token of each text (integrated gradients of the head's logit at the lower
block) is projected out of all tokens in the forward pass, and the head's own accuracy read. Equal rank: one
direction each (LEACE, which has seen labels, one less than classes). Equal norm: each direction moves each
token as far as k-means' does, which is more than the projection where a dictionary's own moves it less.

Told: the class for which the salient token's code is most frequent on the dictionary part, for its share.
Intervals are 95 %, paired over texts; over seeds of the dictionary figures are means.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from classifier_report import report
from classifier_trials import (
    ABLATED,
    DATASETS,
    METHODS,
    PAIRS,
    PROMPTED,
    Cell,
    Plan,
    finetune,
    prompt,
    recover,
    run_ablation,
    run_cell,
)
from concept_ablation import Cells
from workers import Job, Workers
from writing import add_write_argument, written

QUICK: dict[str, Any] = {
    "n_finetune": 200,
    "epochs": 1,
    "context_size": 32,
    "n_dictionary": 200,
    "n_tokens": 4000,
    "n_study": 80,
    "steps": 20,
    "n_ward": 500,
    "d_sae": 128,
    "n_ablated": 40,
    "n_gradients": 2,
    "n_resamples": 100,
    "n_prompted": 16,
    "n_prompted_tokens": 1000,
}


class Run:
    """All jobs that the arguments ask for, the most important first."""

    def __init__(
        self, plan: Plan, args: argparse.Namespace, cells: Cells, workers: Workers
    ) -> None:
        self.plan, self.args, self.cells, self.workers = plan, args, cells, workers
        self.failed: dict[str, BaseException] = {}
        first = args.seeds[0]
        self.first = [
            Cell(dataset, pair, args.n_codes[0], args.model_seeds[0], first)
            for pair in PAIRS
            for dataset in args.datasets
        ]
        # What else there is of the classifier that comes first, and then of the others.
        rest = [
            Cell(cell.dataset, cell.pair, n_codes, model_seed, seed)
            for model_seed in args.model_seeds
            for n_codes in args.n_codes
            for seed in args.seeds
            for cell in self.first
        ]
        self.rest = [cell for cell in rest if cell not in self.first]
        self.prompted = [
            Cell(dataset, PROMPTED.blocks, args.n_codes[0], 0, first, True)  # pyright: ignore[reportArgumentType]
            for dataset in args.datasets
        ]

    def do(self, jobs: dict[str, Job]) -> None:
        todo = {
            key: job
            for key, job in jobs.items()
            if key not in self.cells.cells and key not in self.failed
        }
        for key, found in self.workers.run(todo, self.failed):
            self.cells.add(key, json.loads(json.dumps(found)))

    def has(self, *keys: str) -> bool:
        return all(key in self.cells.cells for key in keys)

    def classifiers(self, seeds: Sequence[int]) -> None:
        jobs: dict[str, Job] = {
            f"classifier/{dataset}/{seed}": (finetune, (self.plan, dataset, seed, self.args.work))
            for seed in seeds
            for dataset in self.args.datasets
        }
        self.do(jobs)

    def dictionaries(self, cells: Sequence[Cell]) -> None:
        names = [name for name in METHODS if name in self.args.methods]
        jobs: dict[str, Job] = {
            f"cell/{cell.key}": (run_cell, (self.plan, cell, names, self.args.work))
            for cell in cells
            if cell.is_prompted or self.has(f"classifier/{cell.dataset}/{cell.model_seed}")
        }
        self.do(jobs)

    def ablations(self, cells: Sequence[Cell]) -> None:
        known = METHODS[:-1] if self.args.full else ABLATED
        names = [name for name in known if name in self.args.methods]
        jobs: dict[str, Job] = {
            f"ablation/{cell.setting}": (run_ablation, (self.plan, cell, names, self.args.work))
            for cell in cells
            if cell.seed == self.args.seeds[0] and self.has(f"cell/{cell.key}")
        }
        self.do(jobs)

    def recoverability(self, cells: Sequence[Cell]) -> None:
        jobs: dict[str, Job] = {
            f"recover/{cell.key}": (recover, (cell, self.args.work))
            for cell in cells
            if self.has(f"cell/{cell.key}", f"ablation/{cell.setting}")
        }
        self.do(jobs)

    def everything(self) -> None:
        self.classifiers(self.args.model_seeds[:1])
        self.dictionaries(self.first)
        self.ablations(self.first)
        self.recoverability(self.first)
        if not self.args.no_prompts:
            jobs: dict[str, Job] = {
                f"prompted/{dataset}": (prompt, (self.plan, dataset, self.args.work))
                for dataset in self.args.datasets
            }
            self.do(jobs)
        has_signal = [
            cell
            for cell in self.prompted
            if self.cells.cells.get(f"prompted/{cell.dataset}", {}).get("has_signal")
        ]
        self.dictionaries(has_signal)
        self.classifiers(self.args.model_seeds[1:])
        stages: list[Callable[[Sequence[Cell]], None]] = [
            self.dictionaries,
            self.ablations,
            self.recoverability,
        ]
        for stage in stages:
            stage(self.rest)


# Command line


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with labeled texts")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--n_codes", type=int, nargs="+", help="K; the first is that of targets")
    parser.add_argument("--seeds", type=int, nargs="+", help="of dictionaries")
    parser.add_argument("--model_seeds", type=int, nargs="+", help="of classifiers")
    parser.add_argument("--no_prompts", action="store_true", help="without prompted SmolLM2")
    parser.add_argument("--quick", action="store_true", help="minutes: little of everything")
    parser.add_argument("--full", action="store_true", help="three classifiers, K of 32 and 400")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="nothing is begun after so many; tables are of what there is",
    )
    parser.add_argument(
        "--json", type=Path, help="results as they come; what it has is not repeated"
    )
    parser.add_argument(
        "--work", type=Path, help="folder that keeps classifiers, activations and dictionaries"
    )
    add_write_argument(parser)
    args = parser.parse_args(argv)
    args.n_codes = args.n_codes or ([16] if args.quick else [128, 32, 400] if args.full else [128])
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.model_seeds = args.model_seeds or ([0, 1, 2] if args.full else [0])
    return args


def measure_and_report(args: argparse.Namespace) -> None:
    """Run what the arguments ask for and there is time for, and print the tables of it.

    Raises:
        SystemExit: if it is interrupted; what was measured is in the file.
    """
    plan = Plan(args.data, **(QUICK if args.quick else {}))
    # Where the texts lie changes no figure.
    cells = Cells(args.json, asdict(plan) | {"data": "", "methods": args.methods})
    with tempfile.TemporaryDirectory() as temporary:
        # What is not in the file is of no use without what it was made of.
        args.work = args.work or (
            Path(temporary) if args.json is None else args.json.with_suffix(".work")
        )
        args.work.mkdir(parents=True, exist_ok=True)
        try:
            with Workers(args.jobs, args.minutes) as workers:
                run = Run(plan, args, cells, workers)
                try:
                    run.everything()
                except BrokenProcessPool as error:
                    print(f"A process died: {error}", flush=True)
        except KeyboardInterrupt:
            kept = "nothing is kept without --json" if args.json is None else "--json goes on"
            raise SystemExit(f"Interrupted: {kept}.") from None
    print(
        f"\n{plan.steps} steps of {plan.batch_size}; {plan.n_tokens:,} tokens at most of "
        f"{plan.n_dictionary:,} texts, cut to {plan.context_size} tokens; ablations on {plan.n_ablated} "
        f"texts, {plan.n_gradients} gradients each.\n"
    )
    report(cells.cells, [*run.first, *run.rest], run.prompted)
    if workers.n_left_out:
        print("Out of time: tables are of what there is; the same command goes on.")
    if run.failed:
        print(f"Failed: {', '.join(run.failed)}.")


def main() -> None:
    args = parse()
    with written("classifier", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
