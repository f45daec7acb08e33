"""Whose latents tell the class of a text: sparse probing at about equal bits, beside controls, on SmolLM2.

    python benchmarks/sparse_probing.py --data DIR --cache bench_output --output sparse_probing.json
    python benchmarks/sparse_probing.py --data DIR --quick      # minutes: little data, few steps, one seed

BAE, BAE with levels and feedback, and SAELens' TopK, BatchTopK and JumpReLU after block 15, as
``interpretability.py`` trains them: of the same width, on the same activations of movie reviews, with the same
batches and steps, at its budgets of bits for BAE and its L0 for the others, whose magnitudes come on top of the
bits that are printed. Learning rates are those that explained the most of held-out activations there, a table
here: the explained variance that is printed says whether they still do. A TopK SAE with random directions
that was not trained is the control of training.

Each is probed by ``bae_lens.scoring.probe_latents`` with the same texts, splits and draws, of three datasets, which
lie in DIR: AG News (four classes, each against the rest), Jigsaw (hostile or not) and ERASER's movie reviews
(sentiment). Tables have balanced accuracy, a mean over classes and datasets, chance 0.5, ± the standard deviation
over seeds; differences are paired by held-out text, of the mean over seeds, with 95 % bootstrap intervals.

Of what ``--cache`` and ``--output`` hold nothing is measured again, unless a recipe has changed. After ``--minutes``
nothing else is begun, and tables are of what there is: all of the first seed comes before any of the second.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concept_ablation import Cells
from cross_layer import table
from interpretability import QUICK_TASK, level_title, name_of, spread
from interpretability_trials import (
    ENTROPIES,
    L0S,
    RANDOM,
    random_directions,
    recipe_of,
    remembering_model,
    trained,
)
from untangling_trials import (
    EVAL_BATCH,
    Task,
    Trial,
    explained_variance,
    lm_task,
    load,
    metadata,
    prepare,
)
from workers import Job, Workers
from writing import add_write_argument, written

from bae_lens.dictionaries import Dictionary
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.scoring import (
    SparseProbingResult,
    SparseProbingSettings,
    SparseProbingTask,
    probe_latents,
)
from bae_lens.scoring.probing_result import COMPONENTS, DIMENSIONS, LATENTS, SHUFFLED, WHOLE
from bae_lens.scoring.probing_result import RANDOM as RANDOM_LATENTS
from bae_lens.stats import Interval, balanced_interval

# Files in --data, and classes.
DATASETS = {
    "ag_news": ("AG News", "ag_news_test.jsonl", 4),
    "jigsaw": ("Jigsaw", "jigsaw_train.jsonl", 2),
    "movie": ("Movie", "eraser_movie_dev.jsonl", 2),
}
LEVELS = (1, 2, 3, 4)
OURS = ("bae", "bae_levels_feedback")
PEERS = ("topk", "batchtopk", "jumprelu")
# By level of ``interpretability.py``, 0 to 4.
LEARNING_RATES = {
    "bae": (8e-3,) * 5,
    "bae_levels_feedback": (8e-3,) * 5,
    "topk": (8e-3, 8e-3, 4e-3, 4e-3, 2e-3),
    "batchtopk": (8e-3, 4e-3, 4e-3, 4e-3, 2e-3),
    "jumprelu": (8e-3, 8e-3, 4e-3, 4e-3, 4e-3),
    RANDOM: (0.0,) * 5,
}
ARCHITECTURES = (*OURS, *PEERS, RANDOM)
# What is compared with latents, and what tables call it.
WITHOUT = {DIMENSIONS: "dimensions", COMPONENTS: "principal components"}
LESS = {RANDOM_LATENTS: "random latents", SHUFFLED: "for shuffled labels", **WITHOUT, WHOLE: WHOLE}
# Test tokens of movie reviews that explained variance and bits are of.
N_SCORED = 16_384


def trials(task: Task, args: argparse.Namespace) -> list[Trial]:
    """All that is asked for, the first seed first; random directions with the first seed only."""
    return [
        Trial(task.name, arch, level, LEARNING_RATES[arch][level], seed)
        for seed in args.seeds
        for level in args.levels
        for arch in ARCHITECTURES
        if arch != RANDOM or seed == args.seeds[0]
    ]


@lru_cache(maxsize=len(DATASETS))
def read(
    task: Task, dataset: str, data: Path, folder: Path, settings: SparseProbingSettings
) -> SparseProbingTask:
    """A dataset's texts, which the language model reads once for all processes."""
    _, file, n_classes = DATASETS[dataset]
    assert settings.max_examples is not None
    return SparseProbingTask.prepare(
        remembering_model(folder / "seen"),
        metadata(task)["hook_name"],
        data / file,
        replace(settings, max_examples=settings.max_examples * n_classes),
        verbose=False,
    )


def read_all(
    task: Task, datasets: Sequence[str], data: Path, folder: Path, settings: SparseProbingSettings
) -> None:
    """What is read first; what a worker process does."""
    torch.set_num_threads(1)
    for dataset in datasets:
        read(task, dataset, data, folder, settings)


def measure(
    trial: Trial,
    task: Task,
    datasets: Sequence[str],
    data: Path,
    folder: Path,
    settings: SparseProbingSettings,
) -> dict[str, Any]:
    """One training and its probes; what a worker process does."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename)
    test = splits["test"][:N_SCORED]
    if trial.arch == RANDOM:
        sae = random_directions(trial, task, folder, "cpu")
    else:
        sae = trained(trial, task, splits["train"], folder, "cpu")
    own = Dictionary(sae)
    code = CodeStatistics(sae.cfg.d_sae, True, flipped=own.flipped, level_values=own.level_values)
    for batch in test.split(EVAL_BATCH):
        code.update(own.encode(batch))
    summary = code.compute(sae.W_dec)
    is_random = trial.arch == RANDOM
    return {
        "ev": None if is_random else explained_variance(sae, test),
        "l0": summary.l0,
        # Of levels theirs too, which the budget is of; of real numbers without their magnitudes.
        "bits": summary.support_entropy + (summary.magnitude_entropy or 0.0),
        "recipe": recipe_of(trial, task),
        "results": {
            dataset: probe_latents(read(task, dataset, data, folder, settings), sae).to_dict()
            for dataset in datasets
        },
    }


def run(
    task: Task,
    settings: SparseProbingSettings,
    args: argparse.Namespace,
    cells: Cells,
    folder: Path,
) -> None:
    """All that is not in the file yet, or what there is time for."""
    asked = trials(task, args)
    for trial in asked:
        if cells.cells.get(trial.key, {}).get("recipe", "") != recipe_of(trial, task):
            cells.cells.pop(trial.key, None)
    left = [t for t in asked if t.key not in cells.cells]
    if not left:
        return
    with Workers(args.workers, args.minutes) as workers:
        prepare([task], folder, "cpu")
        texts = (args.datasets, args.data, folder, settings)
        reading: dict[str, Job] = {"the texts that are read": (read_all, (task, *texts))}
        for _ in workers.run(reading, n_after=len(left)):
            pass
        jobs: dict[str, Job] = {t.key: (measure, (t, task, *texts)) for t in left}
        for key, cell in workers.run(jobs):
            cells.add(key, cell)
    if workers.n_left_out:
        print("Out of time: tables are of what there is; the same command goes on.")


# Tables


class Found:
    """Cells as results of each training by dataset.

    Args:
        cells: by key of the training.
        asked: the trainings.
    """

    def __init__(self, cells: dict[str, Any], asked: Sequence[Trial]) -> None:
        self.cells = {t: cells[t.key] for t in asked if t.key in cells}
        self.results: dict[Trial, dict[str, SparseProbingResult]] = {
            t: {name: SparseProbingResult.from_dict(r) for name, r in cell["results"].items()}
            for t, cell in self.cells.items()
        }

    def of(self, arch: str, level: int) -> list[Trial]:
        """Trainings of all seeds."""
        return [t for t in self.cells if (t.arch, t.level) == (arch, level)]

    def accuracy(self, trial: Trial, method: str, k: int | None) -> float:
        """Mean over datasets."""
        own = self.results[trial].values()
        return float(np.mean([r.accuracy(method, k).mean for r in own]))

    def mean_over_seeds(self, trials: Sequence[Trial], method: str, k: int | None) -> np.ndarray:
        """One number for each held-out text of all datasets, see ``pooled``."""
        every = [
            np.concatenate(
                [
                    pooled(r.weighted(method, k), r, self.results[t])
                    for r in self.results[t].values()
                ]
            )
            for t in trials
        ]
        return np.mean(every, axis=0)

    def difference(self, one: Sequence[Trial], other: Sequence[Trial], k: int) -> Interval:
        """Accuracy of the one's latents less that of the other's, a mean over datasets, paired by text."""
        left, right = (self.mean_over_seeds(trials, LATENTS, k) for trials in (one, other))
        return balanced_interval((left - right).tolist(), self.classes(one[0]))

    def excess(self, trials: Sequence[Trial], control: str, k: int) -> Interval:
        """Accuracy of k latents less that of a control of the same dictionaries, paired by text."""
        own = self.mean_over_seeds(trials, LATENTS, k)
        other = self.mean_over_seeds(trials, control, None if control == WHOLE else k)
        return balanced_interval((own - other).tolist(), self.classes(trials[0]))

    def classes(self, trial: Trial) -> list[int]:
        """A number for each class of each dataset, of each held-out text of all."""
        found, first = [], 0
        for result in self.results[trial].values():
            found += [first + label for label in result.labels]
            first += len(result.label_names)
        return found


def pooled(
    values: np.ndarray, own: SparseProbingResult, every: dict[str, SparseProbingResult]
) -> np.ndarray:
    """Values whose mean within each class, over the classes of all datasets, is a mean over datasets."""
    n_classes = sum(len(r.label_names) for r in every.values())
    return values * n_classes / (len(every) * len(own.label_names))


def signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def report(found: Found, task: Task, args: argparse.Namespace) -> None:
    if not found.results:
        print("Nothing is measured yet.")
        return
    first = next(iter(found.results))
    print(f"\n# Sparse probing: {task.title}, {task.d_in} → {task.d_sae}\n")
    report_datasets(found, first)
    settings = next(iter(found.results[first].values())).settings
    ks = settings.k
    print(f"\nLatents are chosen by {settings.chosen_by}.")
    levels = [level for level in args.levels if any(t.level == level for t in found.cells)]
    for k in ks:
        print(f"\n## k = {k}: mean over datasets\n")
        lines = [
            [name_of(arch)]
            + [
                spread([found.accuracy(t, LATENTS, k) for t in found.of(arch, level)], 3)
                for level in levels
            ]
            for arch in ARCHITECTURES
        ]
        table(["", *(level_title(task, level) for level in levels)], lines)
    for level in levels:
        print(f"\n## {level_title(task, level)}\n")
        header = ["", "seeds", "EV", "L0", "bits/token"]
        header += [f"{DATASETS[d][0]}, k = {k}" for d in args.datasets for k in (ks[0], ks[-1])]
        header += [f"random latents, k = {ks[-1]}", f"for shuffled labels, k = {ks[-1]}"]
        lines = []
        for arch in ARCHITECTURES:
            own = found.of(arch, level)
            if not own:
                continue
            columns = [[found.cells[t][name] for t in own] for name in ("ev", "l0", "bits")]
            cells = [spread(c, n) for c, n in zip(columns, (3, 1, 0), strict=True)]
            cells += [
                spread([found.results[t][d].accuracy(LATENTS, k).mean for t in own], 3)
                for d in args.datasets
                for k in (ks[0], ks[-1])
            ]
            cells += [
                spread([found.accuracy(t, method, ks[-1]) for t in own], 3)
                for method in (RANDOM_LATENTS, SHUFFLED)
            ]
            lines.append([name_of(arch), str(len(own)), *cells])
        table(header, lines)
    report_differences(found, levels, ks, task)


def report_datasets(found: Found, trial: Trial) -> None:
    """What needs no dictionary: k dimensions, k principal components, the whole activation."""
    lines = []
    for name, result in found.results[trial].items():
        counts = f"{sum(result.n_train)} and {len(result.labels)}"
        cells = [DATASETS[name][0], counts]
        for method in WITHOUT:
            cells += [f"{result.accuracy(method, k).mean:.3f}" for k in result.settings.k]
        whole = result.accuracy(WHOLE, None)
        cells.append(f"{whole.mean:.3f} [{whole.low:.3f}, {whole.high:.3f}]")
        lines.append(cells)
    ks = next(iter(found.results[trial].values())).settings.k
    header = ["without a dictionary", "texts"]
    header += [f"{name}, k = {k}" for name in WITHOUT.values() for k in ks]
    table([*header, WHOLE], lines)


def report_differences(found: Found, levels: Sequence[int], ks: Sequence[int], task: Task) -> None:
    """Each BAE's latents less each peer's, and everybody's less the controls of its own."""
    header = [
        "",
        *(f"{level_title(task, level)}, k = {k}" for level in levels for k in (ks[0], ks[-1])),
    ]
    for what, pairs in (
        (
            "Each BAE less each other, mean over datasets, paired by text",
            [(one, other) for one in OURS for other in (*OURS[:1], *PEERS, RANDOM) if one != other],
        ),
        (
            "Latents less what needs no dictionary, or no choice",
            [(arch, control) for arch in ARCHITECTURES for control in LESS],
        ),
    ):
        print(f"\n## {what}\n")
        lines = []
        for one, other in pairs:
            cells = []
            for level in levels:
                own, against = found.of(one, level), found.of(other, level)
                for k in (ks[0], ks[-1]):
                    if not own or (other in ARCHITECTURES and not against):
                        cells.append("–")
                    elif other in ARCHITECTURES:
                        cells.append(signed(found.difference(own, against, k)))
                    else:
                        cells.append(signed(found.excess(own, other, k)))
            lines.append([f"{name_of(one)} less {LESS.get(other) or name_of(other)}", *cells])
        table(header, lines)


def measure_and_report(args: argparse.Namespace) -> None:
    settings = SparseProbingSettings(
        max_examples=args.n_texts, chosen_by=args.chosen_by, n_draws=args.n_draws
    )
    task = lm_task(15, l0s=L0S, entropies=ENTROPIES)
    if args.quick:
        task = replace(task, **QUICK_TASK)
        settings = replace(settings, max_examples=30, context_size=32, n_draws=2)
        args.seeds, args.levels = args.seeds[:1], args.levels[:2]
    plan = {"task": asdict(task), "settings": asdict(settings), "datasets": args.datasets}
    cells = Cells(args.output, plan)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(task, settings, args, cells, folder)
        report(Found(cells.cells, trials(task, args)), task, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--data", type=Path, required=True, help="folder of labeled texts")
    parser.add_argument("--datasets", nargs="+", choices=[*DATASETS], default=[*DATASETS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--levels", nargs="+", type=int, choices=range(len(L0S)), default=list(LEVELS)
    )
    parser.add_argument("--n_texts", type=int, default=300, help="of a dataset, times its classes")
    parser.add_argument("--n_draws", type=int, default=5, help="of random latents")
    parser.add_argument("--chosen_by", choices=("difference", "standardized"), default="difference")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="then nothing else is begun"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path, help="folder for activations and dictionaries")
    parser.add_argument("--output", type=Path, help="JSON file; goes on where it ended")
    add_write_argument(parser)
    args = parser.parse_args()
    with written("sparse_probing", args):
        measure_and_report(args)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
