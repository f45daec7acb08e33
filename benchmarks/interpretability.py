"""What latents and codes stand for, by scores with their controls, on SmolLM2 and without a network.

    python benchmarks/interpretability.py --data DIR --cache bench_output --output interpretability.json
    python benchmarks/interpretability.py --quick         # minutes: little data, few steps, one seed
    python benchmarks/interpretability.py --parts latents --device cuda --workers 14 --minutes 8 \\
        --cache bench_output --output interpretability.json

**Latents.** The BAEs of ``feature_untangling.py``, their peers (SAELens' TopK, BatchTopK and JumpReLU, and
binary sparse coding) and its BatchTopK with feedback, a control, after block 15, all of the same width and
trained on the same activations with the same batches and steps. Five levels: budgets of 19 to 300 bits a
token for BAE, L0 2 to 48 for the others, whose magnitudes come on top of the bits that are printed. Each
has the learning rate that explains the most of held-out activations: at the middle level of all those
given, at the others of the best there and its neighbors. Nothing is chosen by what is measured here.
Another control is a TopK SAE with random directions that was not trained. The same held-out text is read
with each; of the latents that fire in enough texts, an equal number is drawn and given the intruder test
with the offline judge. A latent is *heard* if the intruder is found in 80 % of trials, by chance in 20 %;
"in all" is the share that is heard times the number of latents with enough texts. That a latent is heard
may be for a single token: the column "not one token" counts those whose most frequent token makes up at
most half of the examples.

Latents that fire seldom may be heard more often, and one code may have more of these. So the share that is
heard is printed by how often latents fire, too, and each BAE's less each other's at equal firing rates
(``equal_rates.py``).

**Codes.** CLVQ-VAE, VQ-VAE and k-means as ``concept_ablation.py`` trains them (512 codes, after block 10;
TopK SAE and BAE with 2,048 latents for comparison, one seed), and as a control the activations of 512 random
tokens as centroids. What the probe predicts of a text is told by a classifier of words from the view of
the salient token's concept alone, whose words and contexts are from other texts, which it does not know.
Beside it: the concept's class shares, the salient word alone, and the whole text. DIR holds the
labeled texts, by the names in ``concept_ablation_trials.DATASETS``; without it movie reviews are read.

Of what ``--cache`` and ``--output`` hold nothing is measured again, unless a recipe has changed. After ``--minutes`` nothing else is
begun, and tables are of what there is: the levels of the target come first, then the others.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concept_ablation import Cells
from concept_ablation_trials import DATASETS, Plan, collect, fit
from cross_layer import table
from equal_rates import (
    LEAST_MATCHED,
    N_BINS,
    ScoredLatent,
    by_rate,
    differences,
    scored_latents,
    signed,
)
from feature_untangling import RATES, neighbors
from interpretability_trials import (
    ARCHITECTURES,
    CODES,
    COMPARED,
    ENTROPIES,
    L0S,
    MODEL,
    NO_CAP,
    PEERS,
    RANDOM,
    TARGETED,
    TOKENS,
    Listening,
    listen,
    read_corpus,
    recipe_of,
    recover_cell,
    validate,
)
from untangling_trials import CONTROLS, NAMES, OURS, Task, Trial, lm_task, prepare
from workers import Job, Workers
from writing import add_write_argument, written

from bae_lens.scoring import IntruderResult
from bae_lens.scoring.recoverability_result import GIVEN, OF_CONCEPT, Given, Recoverability
from bae_lens.stats import Interval, wilson

# With the token purity that they may have at most.
KINDS = (("latents that are heard", 1.0), ("of them not one token", 0.5))
# Of the number of latents that are not for one token, over the best peer's.
TARGET = 1.3
# Of what was not measured; of the others only how many there are.
N_NAMED = 12
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


def searched(levels: Sequence[int]) -> int:
    """The level at which all learning rates are tried."""
    return sorted(levels)[len(levels) // 2]


def candidates(task: Task, args: argparse.Namespace, cells: dict[str, Any]) -> list[Trial]:
    """What learning rates are chosen by, each with the first seed: at one level all, at the others the best
    one there and its neighbors, once it is known. Without its cap a BAE has the one that it has with it."""
    grid, seed, middle = sorted(args.learning_rates), args.seeds[0], searched(args.levels)
    found = []
    for arch in (a for a in ARCHITECTURES if not a.endswith(NO_CAP)):
        tried = [Trial(task.name, arch, middle, lr, seed) for lr in grid]
        best = best_of(tried, cells)
        found += tried
        if best is not None:
            rates = neighbors(grid, best.lr)
            others = [level for level in args.levels if level != middle]
            found += [replace(best, level=level, lr=lr) for level in others for lr in rates]
    return found


def best_of(tried: Sequence[Trial], cells: dict[str, Any]) -> Trial | None:
    """The one that explains the most of the activations held out for validation, of those known."""
    known = {t: cells[f"validation/{t.key}"] for t in tried if f"validation/{t.key}" in cells}
    scores = {t: c["validation_ev"] for t, c in known.items() if not math.isnan(c["validation_ev"])}
    return max(scores, key=lambda t: scores[t], default=None)


def trials(task: Task, args: argparse.Namespace, cells: dict[str, Any]) -> list[Trial]:
    """Each at the best of its learning rates; those for which none is known are left out."""
    tried: dict[tuple[str, int], list[Trial]] = {}
    for trial in candidates(task, args, cells):
        tried.setdefault((trial.arch, trial.level), []).append(trial)
    best = {place: own for place, many in tried.items() if (own := best_of(many, cells))}
    for level in args.levels:
        best[RANDOM, level] = Trial(task.name, RANDOM, level, 0.0, args.seeds[0])
    return [
        replace(best[place], arch=arch, seed=seed)
        for seed in args.seeds
        for level in by_interest(args.levels)
        for arch in (*ARCHITECTURES, RANDOM)
        if (place := (arch.removesuffix(NO_CAP), level)) in best
    ]


def drop_others(cells: dict[str, Any], task: Task) -> None:
    """Forget what was measured of another recipe, or when firing rates were not kept."""
    for key, cell in list(cells.items()):
        part, _, rest = key.partition("/")
        if part in ("validation", "latents"):
            name, arch, level, lr, seed = rest.split("/")
            trial = Trial(name, arch, int(level), float(lr), int(seed))
            is_whole = part == "validation" or "rates" in cell
            known = arch in (*ARCHITECTURES, RANDOM)
            if not (known and is_whole and cell.get("recipe") == recipe_of(trial, task)):
                del cells[key]


def by_interest(levels: Sequence[int]) -> list[int]:
    """Those that the target is about first, for the case that time runs out."""
    return sorted(levels, key=lambda level: (level not in TARGETED, level))


def run(task: Task, plan: Plan, args: argparse.Namespace, cells: Cells, folder: Path) -> list[str]:
    """All that is not in the file yet, or what there is time for; returns what failed."""
    failed: dict[str, BaseException] = {}
    with Workers(args.workers, args.minutes) as workers:

        def finish(jobs: dict[str, Job]) -> None:
            left = {key: job for key, job in jobs.items() if key not in cells.cells}
            for key, cell in workers.run(left, failed):
                if cell is not None:
                    cells.add(key, cell)

        if "codes" in args.parts:
            if not workers.is_time_out:
                collect(plan, MODEL, folder)
            finish(trainings_of_codes(plan, args, folder))
            # A reading of the texts and their attributions, for all dictionaries together.
            own = (args.methods, args.seeds, folder, args.n_texts_read)
            finish({f"codes/{d}": (recover_cell, (plan, d, *own)) for d in plan.datasets})
        if "latents" in args.parts:
            if not workers.is_time_out:
                prepare([task], folder, args.device)
            listening = Listening(**args.listening)

            def validations(among: Sequence[int]) -> dict[str, Job]:
                own = [t for t in candidates(task, args, cells.cells) if t.level in among]
                return {
                    f"validation/{t.key}": (validate, (t, task, folder, args.device)) for t in own
                }

            def tests(among: Sequence[int]) -> dict[str, Job]:
                own = [t for t in trials(task, args, cells.cells) if t.level in among]
                return {
                    f"latents/{t.key}": (listen, (t, task, folder, listening, args.device))
                    for t in own
                }

            middle = searched(args.levels)
            first = [level for level in args.levels if level in TARGETED and level != middle]
            others = [level for level in args.levels if level not in (*TARGETED, middle)]
            reader = Trial(task.name, RANDOM, middle, 0.0, args.seeds[0])
            corpus: Job = (read_corpus, (reader, task, folder, listening, args.device))
            finish({"the text that is read": corpus} | validations([middle]))
            finish(validations(first) | tests([middle]))
            finish(tests(first) | validations(others))
            finish(tests(others))
    if workers.n_left_out:
        print("Out of time: tables are of what there is; the same command goes on.")
    return list(failed)


def trainings_of_codes(plan: Plan, args: argparse.Namespace, folder: Path) -> dict[str, Job]:
    """Of all dictionaries of codes that are asked for; they are kept in the folder."""
    return {
        f"{method}, seed {seed}": (fit, (plan, MODEL, method, seed, folder))
        for seed in args.seeds
        for method in args.methods
        if method != TOKENS and (method not in COMPARED or seed == args.seeds[0])
    }


# Latents


def passed(result: IntruderResult, *, control: bool = False, max_purity: float = 1.0) -> int:
    """Latents, or controls, that reach the threshold."""
    own = result.control if control else result.latents
    scores = [t.accuracy() for t in own if t.purity <= max_purity]
    return sum(s is not None and s.mean >= result.settings.threshold for s in scores)


def share_passed(result: IntruderResult, *, control: bool = False) -> float | None:
    """Of the latents, or controls, that were tested; None where none were."""
    n = len(result.latents)
    return passed(result, control=control) / n if n else None


def in_all(result: IntruderResult, max_purity: float = 1.0) -> float:
    """Of the dictionary's latents, by the share of those tested."""
    n = len(result.latents)
    return passed(result, max_purity=max_purity) / n * result.n_enough if n else 0.0


def report_latents(cells: dict[str, Any], task: Task, asked: Sequence[Trial]) -> None:
    found = {t: cells[f"latents/{t.key}"] for t in asked if f"latents/{t.key}" in cells}
    if not found:
        return
    order = [*ARCHITECTURES, RANDOM]
    found = dict(sorted(found.items(), key=lambda p: (p[0].level, order.index(p[0].arch))))
    results = {t: IntruderResult.from_dict(cell["result"]) for t, cell in found.items()}
    first = next((r for r in results.values() if r.latents), next(iter(results.values())))
    print(f"\n# Latents: {task.title}, {task.d_in} → {task.d_sae}\n")
    print(
        f"Intruder test, {first.settings.n_latents} latents each at most; judge: {first.judge}.\n"
        f"{first.caveat}"
    )
    report_missing(found, {(t.level, t.seed) for t in asked})
    for level in dict.fromkeys(t.level for t in found):
        own = [t for t in found if t.level == level]
        print(f"\n## Level {level}: {level_title(task, level)}\n")
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
                [share_passed(r) for r in many],
                [share_passed(r, control=True) for r in many],
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
            lines.append([name_of(arch), lr, *cells_of])
        table(header, lines)
        print("Share that passes, by how often a latent fires, with its Wilson interval:\n")
        print(by_rate(latents_of({t: found[t] for t in own})).markdown())
    summarize_latents(found, results, task)
    report_best_peers(results, task)
    report_equal_rates(found, task)


def report_missing(found: Iterable[Trial], places: Iterable[tuple[int, int]]) -> None:
    """What there is not of each architecture at the levels and seeds that were asked for."""
    there = {(t.arch, t.level, t.seed) for t in found}
    every = [(arch, *place) for place in sorted(places) for arch in (*ARCHITECTURES, RANDOM)]
    if missing := [own for own in every if own not in there]:
        first = [f"{name_of(arch)}, level {level}, seed {seed}" for arch, level, seed in missing]
        more = f"; and {len(first) - N_NAMED} others" if len(first) > N_NAMED else ""
        print(
            f"\nNot measured: {len(missing)} of {len(every)} ({'; '.join(first[:N_NAMED])}{more})."
        )


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
            lines.append([name_of(arch), *by_level])
        table(["", *(level_title(task, level) for level in levels)], lines)


def report_best_peers(results: dict[Trial, IntruderResult], task: Task) -> None:
    """Each BAE's number of latents over that of the best peer of the same seed; what the target is of."""
    levels = list(dict.fromkeys(t.level for t in results))
    for what, limit in KINDS:
        print(f"\n## {what[0].upper()}{what[1:]}: over the best peer's\n")
        lines = []
        for arch in (a for a in OURS if any(t.arch == a for t in results)):
            cells_of = []
            for level in levels:
                ratios, names = over_best_peer(results, arch, level, limit)
                cells_of.append(f"{spread(ratios, 2)} ({', '.join(names)})" if names else "–")
            lines.append([name_of(arch), *cells_of])
        table(["", *(level_title(task, level) for level in levels)], lines)
    seeds = {t.seed for t in results}
    absent = [
        f"{name_of(arch)} at level {level}, seed {seed}"
        for level in levels
        for arch in PEERS
        for seed in seeds
        if not any((t.arch, t.level, t.seed) == (arch, level, seed) for t in results)
    ]
    targeted = ", ".join(map(str, TARGETED))
    print(
        f"In brackets, who the best peer of each seed is. The target is {TARGET:g} or more at levels {targeted}, "
        "of those that are not for one token."
    )
    if absent:
        print(f"Of these peers there is nothing yet to compare with: {'; '.join(absent)}.")


def over_best_peer(
    results: dict[Trial, IntruderResult], arch: str, level: int, max_purity: float
) -> tuple[list[float | None], list[str]]:
    """Of each seed an architecture's number over that of the best peer, and who these are."""
    ratios: list[float | None] = []
    best: dict[str, None] = {}
    for trial in (t for t in results if (t.arch, t.level) == (arch, level)):
        peers = {
            name_of(t.arch): in_all(results[t], max_purity)
            for t in results
            if (t.level, t.seed) == (level, trial.seed) and t.arch in PEERS
        }
        if not peers:
            continue
        name = max(peers, key=lambda p: peers[p])
        best[name] = None
        own = in_all(results[trial], max_purity)
        ratios.append(own / peers[name] if peers[name] else None)
    return ratios, list(best)


def report_equal_rates(found: dict[Trial, Any], task: Task) -> None:
    """Shares that pass by firing rate, and each BAE's less each other's at equal rates."""
    latents = latents_of(found)
    levels = {level: level_title(task, level) for level in dict.fromkeys(t.level for t in found)}
    print("\n## All levels: share that passes, by how often a latent fires\n")
    print(by_rate(latents).markdown())
    pairs = [
        (name_of(one), name_of(other))
        for one in OURS
        for other in (*PEERS, *CONTROLS)
        if name_of(one) in latents and name_of(other) in latents
    ]
    for what, limit in KINDS:
        print(f"\n## {what[0].upper()}{what[1:]}: difference of shares at equal firing rates\n")
        print(differences(latents, pairs, levels, limit).markdown())
    print(
        f"\nOf the latents tested, in {N_BINS} bins a decade of the share of held-out tokens at which a latent "
        "fires (of a bit that is mostly on: is off): the difference within each bin that both have, weighted by "
        "the smaller of the two counts, with its 95 % bootstrap interval over seeds and latents (of no width "
        f"where none pass); then the sum of the weights, of which less than {LEAST_MATCHED} are too few."
    )


def latents_of(found: dict[Trial, Any]) -> dict[str, list[ScoredLatent]]:
    """Those tested, by the name of their architecture."""
    latents: dict[str, list[ScoredLatent]] = {}
    for trial, cell in found.items():
        own = scored_latents(cell, trial.level, trial.seed)
        latents.setdefault(name_of(trial.arch), []).extend(own)
    return latents


def name_of(arch: str) -> str:
    return NAMES.get(arch, arch)


def level_title(task: Task, level: int) -> str:
    return f"{task.entropies[level]:g} bits, L0 {task.l0s[level]:g}"


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
    args.levels = args.levels or range(len(L0S))
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
    drop_others(cells.cells, task)
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            failed += run(task, plan, args, cells, folder)
        except BrokenProcessPool as error:
            failed.append(f"a process died ({error})")
    if "latents" in args.parts:
        report_latents(cells.cells, task, trials(task, args, cells.cells))
    report_codes(cells.cells, args.methods)
    if failed:
        raise SystemExit(f"Failed, and tables are without it: {'; '.join(failed)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--data", help="folder of labeled texts")
    parser.add_argument("--datasets", nargs="+", choices=[*DATASETS], help="default: by --data")
    parser.add_argument(
        "--parts", nargs="+", choices=["latents", "codes"], help="default: both", default=None
    )
    parser.add_argument("--methods", nargs="+", choices=CODES, default=list(CODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--levels", nargs="+", type=int, choices=range(len(L0S)), help="of sparsity; default: all"
    )
    parser.add_argument("--learning_rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--n_latents", type=int, default=200, help="tested a dictionary")
    parser.add_argument("--n_tokens", type=int, default=40_000, help="read with each dictionary")
    parser.add_argument(
        "--n_texts_read", type=int, default=2400, help="half to learn from, half to show"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--device", default="cpu", help="of the latents' part; dictionaries of codes are on the CPU"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="then nothing else is begun; tables are printed",
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cache", type=Path, help="folder for activations and dictionaries")
    parser.add_argument("--output", type=Path, help="JSON file; goes on where it ended")
    add_write_argument(parser)
    args = parser.parse_args()
    if args.data is None and args.datasets not in (None, ["movies"]):
        parser.error("--datasets other than movies need --data, the folder of their files.")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no GPU here.")
    with written("interpretability", args):
        measure_and_report(args)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
