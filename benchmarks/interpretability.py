"""What latents and codes stand for, by scores with their controls, on SmolLM2 and without a network.

    python benchmarks/interpretability.py --data DIR --cache bench_output --output interpretability.json
    python benchmarks/interpretability.py --quick         # minutes: little data, few steps, one seed

**Latents.** BAE and SAELens' TopK, BatchTopK and JumpReLU after block 15, all of the same width and
trained on the same activations with the same batches and steps. Five levels: budgets of 19 to 300 bits a
token for BAE, L0 2 to 48 for the others, whose magnitudes come on top of the bits that are printed. At
each level each has the learning rate, of four, that explains the most of held-out activations; nothing is
chosen by what is measured here. The control is a TopK SAE with random directions that was not trained.
The same held-out text is read with each; of the latents that fire in enough texts, an equal number is
drawn and given the intruder test with the offline judge. A latent is *heard* if the intruder is found in
80 % of trials, by chance in 20 %; "in all" is the share that is heard times the number of latents with
enough texts. That a latent is heard may be for a single token: the column "not one token" counts those
whose most frequent token makes up at most half of the examples.

**Codes.** CLVQ-VAE, VQ-VAE and k-means as ``concept_ablation.py`` trains them (512 codes, after block 10;
TopK SAE and BAE with 2,048 latents for comparison, one seed), and as a control the activations of 512 random
tokens as centroids. What the probe predicts of a text is told by a classifier of words from the view of
the salient token's concept alone, whose words and contexts are from other texts, which it does not know.
Beside it: the concept's class shares, the salient word alone, and the whole text. DIR holds the
labeled texts, by the names in ``concept_ablation_trials.DATASETS``; without it movie reviews are read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from concept_ablation import Cells, run_jobs
from concept_ablation_trials import DATASETS, Plan, collect, fit
from cross_layer import table
from interpretability_trials import (
    ARCHITECTURES,
    CODES,
    ENTROPIES,
    L0S,
    MODEL,
    PEERS,
    RANDOM,
    TOKENS,
    Listening,
    listen,
    recover_cell,
    validate,
)
from untangling_trials import NAMES, OURS, Task, Trial, lm_task, prepare
from writing import add_write_argument, written

from bae_lens.scoring import IntruderResult
from bae_lens.scoring.recoverability_result import GIVEN, OF_CONCEPT, Given, Recoverability
from bae_lens.stats import Interval, wilson

# With the token purity that they may have at most.
KINDS = (("latents that are heard", 1.0), ("of them not one token", 0.5))
QUICK_TASK: dict[str, Any] = {
    "steps": 30,
    "n_train": 8192,
    "n_validation": 512,
    "n_test": 2048,
    "d_sae": 256,
}
QUICK_PLAN: dict[str, Any] = {
    "n_examples": 60,
    "n_train": 9000,
    "n_steps": 2,
    "n_reference": 60,
    "steps": 20,
    "n_codes": 64,
    "d_sae": 128,
}


def candidates(task: Task, args: argparse.Namespace) -> list[Trial]:
    """What learning rates are chosen by: each with the first seed. Without its cap a BAE has the one
    that it has with it."""
    return [
        Trial(task.name, arch, level, lr, args.seeds[0])
        for arch in ARCHITECTURES
        if arch != "bae_no_cap"
        for level in args.levels
        for lr in args.learning_rates
    ]


def trials(task: Task, args: argparse.Namespace, cells: dict[str, Any]) -> list[Trial]:
    """Each at the learning rate that explains the most of the activations held out for validation."""
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for trial in candidates(task, args):
        if cell := cells.get(f"validation/{trial.key}"):
            place = trial.arch, trial.level
            own = (cell["validation_ev"], trial.lr)
            best[place] = max(best.get(place, own), own)
    return [
        Trial(task.name, arch, level, lr, seed)
        for seed in args.seeds
        for level in args.levels
        for arch in (*ARCHITECTURES, RANDOM)
        for lr in [0.0 if arch == RANDOM else best[arch.removesuffix("_no_cap"), level][1]]
    ]


def run(task: Task, plan: Plan, args: argparse.Namespace, cells: Cells, folder: Path) -> None:
    """All that is not in the file yet."""

    def finish(jobs: dict[str, Any]) -> None:
        left = {key: job for key, job in jobs.items() if key not in cells.cells}
        for key, cell in run_jobs(left, args.workers):
            cells.add(key, cell)

    jobs: dict[str, Any] = {}
    if "codes" in args.parts:
        collect(plan, MODEL, folder)
        methods = [m for m in args.methods if m != TOKENS]
        trainings = {
            f"{method}, seed {seed}": (fit, (plan, MODEL, method, seed, folder))
            for seed in args.seeds
            for method in methods
            if method not in PEERS or seed == args.seeds[0]
        }
        for _ in run_jobs(trainings, args.workers):
            pass
        for name in plan.datasets:
            # A reading of the texts and their attributions, for all dictionaries together.
            own = (plan, name, args.methods, args.seeds, folder, args.n_texts_read)
            jobs[f"codes/{name}"] = (recover_cell, own)
    if "latents" in args.parts:
        prepare([task], folder, "cpu")
        for trial in candidates(task, args):
            jobs[f"validation/{trial.key}"] = (validate, (trial, task, folder))
    finish(jobs)
    if "latents" in args.parts:
        listening = Listening(**args.listening)
        own = trials(task, args, cells.cells)
        finish({f"latents/{t.key}": (listen, (t, task, folder, listening)) for t in own})


# Latents


def passed(result: IntruderResult, *, control: bool = False, max_purity: float = 1.0) -> int:
    """Latents, or controls, that reach the threshold."""
    own = result.control if control else result.latents
    scores = [t.accuracy() for t in own if t.purity <= max_purity]
    return sum(s is not None and s.mean >= result.settings.threshold for s in scores)


def in_all(result: IntruderResult, max_purity: float = 1.0) -> float:
    """Of the dictionary's latents, by the share of those tested."""
    return passed(result, max_purity=max_purity) / len(result.latents) * result.n_enough


def report_latents(cells: dict[str, Any], task: Task, asked: Sequence[Trial]) -> None:
    found = {t: cells[f"latents/{t.key}"] for t in asked if f"latents/{t.key}" in cells}
    if not found:
        return
    results = {t: IntruderResult.from_dict(cell["result"]) for t, cell in found.items()}
    first = next(iter(results.values()))
    print(f"\n# Latents: {task.title}, {task.d_in} → {task.d_sae}\n")
    print(
        f"Intruder test, {len(first.latents)} latents each at most; judge: {first.judge}.\n"
        f"{first.caveat}"
    )
    for level in dict.fromkeys(t.level for t in found):
        own = [t for t in found if t.level == level]
        print(f"\n## Level {level}: {task.entropies[level]:g} bits, L0 {task.l0s[level]:g}\n")
        header = [
            "",
            "lr",
            "L0",
            "bits/token",
            "EV",
            "enough texts",
            "passed",
            "shuffled",
            "in all",
        ]
        header += ["not one token", "purity", "accuracy", "hard", "hard, shuffled", "agreement"]
        lines = []
        for arch in dict.fromkeys(t.arch for t in own):
            same = [t for t in own if t.arch == arch]
            many = [results[t] for t in same]
            columns: list[list[float | None]] = [
                [found[t][name] for t in same] for name in ("l0", "bits", "explained_variance")
            ]
            columns += [
                [float(r.n_enough) for r in many],
                [passed(r) / len(r.latents) for r in many],
                [passed(r, control=True) / len(r.control) for r in many],
                [in_all(r) for r in many],
                [in_all(r, 0.5) for r in many],
                [mean(r.purity()) for r in many],
                [mean(r.accuracy()) for r in many],
                [mean(r.accuracy("hard")) for r in many],
                [mean(r.accuracy("hard", control=True)) for r in many],
                [r.agreement() for r in many],
            ]
            digits = (1, 0, 3, 0, 2, 2, 0, 0, 2, 3, 3, 3, 2)
            cells_of = [spread(c, d) for c, d in zip(columns, digits, strict=True)]
            lr = "–" if arch == RANDOM else f"{same[0].lr:g}"
            lines.append([NAMES.get(arch, arch), lr, *cells_of])
        table(header, lines)
        for what, limit in KINDS:
            ratios(own, results, what, limit)
    summarize_latents(found, results, task)


def summarize_latents(
    found: dict[Trial, Any], results: dict[Trial, IntruderResult], task: Task
) -> None:
    """Over all levels: one sparser code is not another's equal by its L0."""
    levels = list(dict.fromkeys(t.level for t in found))
    kinds: list[tuple[str, int, dict[Trial, float | None]]] = [
        (what, 0, {t: in_all(results[t], limit) for t in found}) for what, limit in KINDS
    ]
    kinds.append(("explained variance", 3, {t: found[t]["explained_variance"] for t in found}))
    for what, digits, of in kinds:
        print(f"\n## All levels: {what}\n")
        lines = []
        for arch in dict.fromkeys(t.arch for t in found):
            by_level = (
                spread([of[t] for t in found if (t.arch, t.level) == (arch, level)], digits)
                for level in levels
            )
            lines.append([NAMES.get(arch, arch), *by_level])
        titles = [f"{task.entropies[level]:g} bits, L0 {task.l0s[level]:g}" for level in levels]
        table(["", *titles], lines)


def ratios(
    own: Sequence[Trial], results: dict[Trial, IntruderResult], what: str, max_purity: float
) -> None:
    """BAE's number over that of the best peer of the same seed."""
    for arch in (a for a in OURS if any(t.arch == a for t in own)):
        found, best = [], []
        for trial in (t for t in own if t.arch == arch):
            peers = {
                NAMES[t.arch]: in_all(results[t], max_purity)
                for t in own
                if t.seed == trial.seed and t.arch not in (*OURS, RANDOM)
            }
            if not peers:
                continue
            name = max(peers, key=lambda p: peers[p])
            best.append(name)
            found.append(
                in_all(results[trial], max_purity) / peers[name] if peers[name] else float("nan")
            )
        names = ", ".join(dict.fromkeys(best))
        print(f"{NAMES[arch]} over the best peer ({names}), {what}: {spread(found, 2)}")


def mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation over seeds."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    text = f"{statistics.mean(known):.{digits}f}"
    return text if len(known) < 2 else f"{text} ± {statistics.stdev(known):.{digits}f}"


# Codes


def recoverabilities(cell: dict[str, Any], method: str) -> list[Recoverability]:
    """By seed."""
    found = cell["recoverabilities"]
    return [Recoverability.from_dict(v) for k, v in found.items() if k.rpartition("/")[0] == method]


def report_codes(cells: dict[str, Any], methods: Sequence[str]) -> None:
    found = {k.partition("/")[2]: c for k, c in cells.items() if k.startswith("codes/")}
    for name, cell in found.items():
        any_of = recoverabilities(cell, methods[0])[0]
        counts = [any_of.predictions.count(i) for i in range(len(any_of.class_names))]
        print(f"\n# Recoverability: {DATASETS[name].title}\n")
        print(
            f"Balanced accuracy, mean ± over seeds; {len(any_of.predictions)} texts, predicted as "
            f"{dict(zip(any_of.class_names, counts, strict=True))}; chance {any_of.chance:.3f}; reader "
            f"learned from {any_of.n_learned} other texts, views are of {any_of.n_shown} others still. "
            "Beyond the word: of the view, paired by text, 95 % (bounds: means of the seeds' bounds)."
        )
        header = ["", "concepts", "view", "beyond the word", "words", "contexts", "class shares"]
        lines = []
        for method in methods:
            own = recoverabilities(cell, method)
            lines.append(
                [
                    method,
                    spread([float(r.n_concepts) for r in own], 0),
                    spread([r.score().mean for r in own], 3),
                    signed(pooled([r.excess_over("word") for r in own])),
                    spread([r.score("words").mean for r in own], 3),
                    spread([r.score("contexts").mean for r in own], 3),
                    spread([r.score("class shares").mean for r in own], 3),
                ]
            )
        table(header, lines)
        others: list[Given] = [given for given in GIVEN if given not in OF_CONCEPT]
        said = [f"{given}: {any_of.score(given).mean:.3f}" for given in others]
        print(f"The same reader given the {', the '.join(said)}.")
    summarize_codes(found, methods)
    report_heard_codes(found, methods)


def pooled(intervals: Sequence[Interval]) -> Interval:
    """Means of means and of bounds: seeds are asked about the same texts, so that several are hardly
    surer than one."""
    return Interval(*np.mean(intervals, axis=0).tolist())


def signed(interval: Interval) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval)


def summarize_codes(found: dict[str, Any], methods: Sequence[str]) -> None:
    """CLVQ-VAE less each of the others, by dataset."""
    if len(methods) < 2 or not found:
        return
    print(f"\n# {methods[0]} less the others, balanced accuracy from the view\n")
    lines = []
    for method in methods[1:]:
        line = [method]
        for cell in found.values():
            first, others = recoverabilities(cell, methods[0]), recoverabilities(cell, method)
            # Of those with one seed only that one.
            pairs = zip(first, others, strict=False)
            line.append(signed(pooled([a.difference(b) for a, b in pairs])))
        lines.append(line)
    table(["95 % interval", *(DATASETS[name].title for name in found)], lines)


def report_heard_codes(found: dict[str, Any], methods: Sequence[str]) -> None:
    """The intruder test of the same dictionaries on the same texts."""
    for name, cell in found.items():
        print(f"\n# Intruder test: {DATASETS[name].title}\n")
        lines = []
        for method in methods:
            keys = [k for k in cell["intruders"] if k.rpartition("/")[0] == method]
            own = [IntruderResult.from_dict(cell["intruders"][k]) for k in keys]
            n = [(passed(r), len(r.latents)) for r in own]
            share = wilson(sum(k for k, _ in n), sum(m for _, m in n))
            lines.append(
                [
                    method,
                    spread([float(r.n_enough) for r in own], 0),
                    f"{mean(share):.2f}",
                    spread([mean(r.accuracy()) for r in own], 3),
                    spread([mean(r.accuracy(control=True)) for r in own], 3),
                    spread([mean(r.accuracy(max_purity=0.5)) for r in own], 3),
                    spread([mean(r.purity()) for r in own], 2),
                ]
            )
        header = ["", "enough texts", "passed", "accuracy", "shuffled", "purity ≤ 0.5", "purity"]
        table(header, lines)


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    args.parts = args.parts or ["latents", "codes"]
    names = args.datasets or (["eraser", "jigsaw", "ag_news"] if args.data else ["movies"])
    args.listening = {"n_latents": args.n_latents, "n_tokens": args.n_tokens}
    task = lm_task(15, l0s=L0S, entropies=ENTROPIES)
    args.levels = range(len(L0S))
    plan = Plan(args.data, tuple(names))
    if args.quick:
        args.seeds, args.levels, args.learning_rates = args.seeds[:1], [2], [4e-3]
        args.listening = {"n_latents": 20, "n_tokens": 4000, "n_trials": 5}
        args.n_texts_read = 240
        task, plan = replace(task, **QUICK_TASK), replace(plan, **QUICK_PLAN)
    # Where the folder lies does not change what is measured.
    settings = {"task": asdict(task), "plan": asdict(replace(plan, data=None))}
    settings |= {"listening": args.listening, "n_texts_read": args.n_texts_read}
    cells = Cells(args.output, settings)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(task, plan, args, cells, folder)
    if "latents" in args.parts:
        report_latents(cells.cells, task, trials(task, args, cells.cells))
    report_codes(cells.cells, args.methods)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--data", help="folder of labeled texts")
    parser.add_argument("--datasets", nargs="+", choices=[*DATASETS], help="default: by --data")
    parser.add_argument("--parts", nargs="+", choices=["latents", "codes"], default=None)
    parser.add_argument("--methods", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--n_latents", type=int, default=200, help="tested a dictionary")
    parser.add_argument("--n_tokens", type=int, default=40_000, help="read with each dictionary")
    parser.add_argument(
        "--n_texts_read", type=int, default=2400, help="half to learn from, half to show"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path, help="folder for activations and dictionaries")
    parser.add_argument("--output", type=Path, help="JSON file; goes on where it ended")
    add_write_argument(parser)
    args = parser.parse_args()
    if args.data is None and args.datasets not in (None, ["movies"]):
        parser.error("--datasets other than movies need --data, the folder of their files.")
    with written("interpretability", args):
        measure_and_report(args)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
