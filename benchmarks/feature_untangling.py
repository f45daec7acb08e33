"""BAE against SAELens' own architectures at equal bits per token and at equal L0.

    python benchmarks/feature_untangling.py                 # one layer of SmolLM2, one synthetic set
    python benchmarks/feature_untangling.py --quick         # minutes: little data, one seed
    python benchmarks/feature_untangling.py --full --device cuda --jobs 1

Every architecture is trained by SAELens' trainer on the same activations with the same width, batches
and steps, and gets the same trials: four learning rates at the middle of its sparsity levels on the
first seed, chosen by explained variance on a validation split; then the other two levels, and the
middle one with the other seeds. Scored is the SAE that ``save_inference_model`` writes, on a test split.

The levels are bits of entropy for a BAE and latents on per token for the others. For those that have
no k, the coefficient of SAELens' sparsity loss follows the L0 that is asked for.

Synthetic data are SynthSAEBench's recipe at a smaller size; the heavy-tailed set multiplies every
firing's magnitude by an exponential variable, which a code of one bit a feature cannot follow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import D_IN
from untangling_trials import (
    BATCH,
    HIGH,
    LEVELS,
    LOW,
    MIDDLE,
    NAMES,
    OURS,
    Row,
    Task,
    Trial,
    lm_task,
    prepare,
    run_trial,
    synthetic_task,
)
from writing import add_write_argument, written

from bae_lens.charts import save_figure
from bae_lens.files.whole import write_text

DEFAULT_ARCHS = ["bae", "bae_no_cap", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu"]
# Of a training's points the one of fewest bits that loses at most this much explained variance.
TOLERANCE = 0.01


class Results:
    """Rows by trial, in a JSON file if there is one, written anew with each row."""

    def __init__(self, path: Path | None, tasks: Sequence[Task]) -> None:
        self.path = path
        self.settings = {task.name: json.loads(json.dumps(asdict(task))) for task in tasks}
        self.rows: dict[str, Row] = {}
        if path is None or not path.exists():
            return
        saved = json.loads(path.read_text())
        for name, settings in saved["settings"].items():
            if self.settings.setdefault(name, settings) != settings:
                raise SystemExit(
                    f"{path} holds trainings on {name} with other settings; give another file."
                )
        for row in saved["rows"]:
            self.add(Row(**(row | {"trial": Trial(**row["trial"])})), write=False)

    def add(self, row: Row, write: bool = True) -> None:
        self.rows[row.trial.key] = row
        if self.path is not None and write:
            rows = [asdict(row) for row in self.rows.values()]
            write_text(self.path, json.dumps({"settings": self.settings, "rows": rows}, indent=1))


def make_pool(n: int) -> ProcessPoolExecutor:
    """Processes of one thread each, started as they are needed."""
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))


def run_trials(
    trials: Iterable[Trial],
    tasks: dict[str, Task],
    results: Results,
    pool: ProcessPoolExecutor,
    args: argparse.Namespace,
) -> None:
    """Those that are not in the results yet."""
    todo = [trial for trial in trials if trial.key not in results.rows]
    prepare([tasks[name] for name in dict.fromkeys(t.task for t in todo)], args.work, args.device)
    jobs = [
        pool.submit(run_trial, t, tasks[t.task], args.work, args.device, t.seed == args.seeds[0])
        for t in todo
    ]
    for i, job in enumerate(as_completed(jobs)):
        row = job.result()
        results.add(row)
        print(
            f"[{i + 1}/{len(todo)}] {row.trial.key}: EV {row.explained_variance:.3f}, "
            f"L0 {row.code['l0']:.0f}, {row.seconds:.0f} s ({row.training_seconds:.0f} s training)",
            flush=True,
        )


def tune_and_sweep(
    tasks: dict[str, Task], results: Results, pool: ProcessPoolExecutor, args: argparse.Namespace
) -> dict[tuple[str, str], list[Row]]:
    """All trials; returns those that count, by task and architecture, lowest level first."""
    pairs = [(task, arch) for task in tasks for arch in args.archs]
    first = args.seeds[0]
    tuning = {
        pair: [Trial(*pair, MIDDLE, lr, first) for lr in args.learning_rates] for pair in pairs
    }
    every = [trial for trials in tuning.values() for trial in trials]
    run_trials(every, tasks, results, pool, args)
    final: dict[tuple[str, str], list[Trial]] = {}
    for pair, trials in tuning.items():
        best = max(trials, key=lambda trial: results.rows[trial.key].validation_ev)
        others = [replace(best, seed=seed) for seed in args.seeds[1:]]
        final[pair] = [replace(best, level=LOW), best, *others, replace(best, level=HIGH)]
    every = [trial for trials in final.values() for trial in trials]
    run_trials(every, tasks, results, pool, args)
    return {pair: [results.rows[t.key] for t in trials] for pair, trials in final.items()}


# Rate–distortion


def pareto(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """Points (bits per token, EV) that no other one beats in both, by bits."""
    front: list[tuple[float, float]] = []
    for _, bits, ev in sorted((p for row in rows for p in row.points), key=lambda p: p[1]):
        if not front or ev > front[-1][1]:
            front.append((bits, ev))
    return front


def envelope(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """The concave hull of the front: two codes that take turns reach every point between them.

    Without it the curve would sag between two levels of sparsity, for no other reason than that
    nothing was trained there, and peers would look worse at BAE's bits than they are.
    """
    hull: list[tuple[float, float]] = []
    for bits, ev in pareto(rows):
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (bits - x0) > (ev - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((bits, ev))
    return hull


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points sorted by x; the last beyond them, NaN before them."""
    if x < points[0][0]:
        return math.nan
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / max(x1 - x0, 1e-12)
    return points[-1][1]


def with_seed(rows: list[Row], seed: int) -> list[Row]:
    """The outer levels, and the middle one with this seed."""
    return [row for row in rows if row.trial.level != MIDDLE or row.trial.seed == seed]


def seed_of(row: Row, seeds: list[int]) -> int:
    """The seed of the peers' middle level that a row is compared with."""
    return row.trial.seed if row.trial.level == MIDDLE else seeds[0]


def best_point(row: Row) -> tuple[float | None, float, float]:
    """The point of fewest bits that is within the tolerance of the best EV at any resolution."""
    enough = max(ev for _, _, ev in row.points) - TOLERANCE
    return min((p for p in row.points if p[2] >= enough), key=lambda p: p[1])


# Tables


def cell(values: Iterable[float | None], fmt: str) -> str:
    """Mean over seeds, with ± standard deviation where there are several."""
    known = [v for v in values if v is not None and not math.isnan(v)]
    if not known:
        return "–"
    text = format(statistics.mean(known), fmt)
    if len(known) == 1:
        return text
    return f"{text} ± {format(statistics.stdev(known), fmt.lstrip('+'))}"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print(flush=True)


def print_levels(task: Task, by_arch: dict[str, list[Row]]) -> None:
    columns = {
        "EV": lambda r: r.explained_variance,
        "L0": lambda r: r.code["l0"],
        "support bits": lambda r: r.code["support_entropy"],
        "at resolution": lambda r: best_point(r)[0],
        "bits/token": lambda r: best_point(r)[1],
        "EV at these": lambda r: best_point(r)[2],
        "> 10 % raw": lambda r: r.code["dense_share_10"],
        "folded": lambda r: r.code["dense_share_10_folded"],
        "> 1 % raw": lambda r: r.code["dense_share_1"],
        "folded ": lambda r: r.code["dense_share_1_folded"],
        "dead": lambda r: r.code["dead_share"],
    }
    formats = dict.fromkeys(columns, ".1%") | {
        "EV": ".3f",
        "L0": ".1f",
        "support bits": ".0f",
        "at resolution": ".0f",
        "bits/token": ".0f",
        "EV at these": ".3f",
    }
    extra = {"CE, zero": lambda r: r.ce.get("zero"), "CE, mean": lambda r: r.ce.get("mean")}
    if task.layer is None:
        names = ("f1_score", "precision", "recall", "mcc", "uniqueness")
        extra = {name: lambda r, name=name: r.truth.get(name) for name in names}
    columns |= extra
    formats |= dict.fromkeys(extra, ".3f")
    lines = []
    for arch, rows in by_arch.items():
        for level in LEVELS:
            same = [row for row in rows if row.trial.level == level]
            asked = f"{task.entropies[level]:g} bits" if arch in OURS else f"L0 {task.l0s[level]:g}"
            values = [cell((get(row) for row in same), formats[n]) for n, get in columns.items()]
            lines.append([NAMES[arch], f"{same[0].trial.lr:g}", asked, *values])
    table(["", "lr", "asked for", *columns], lines)


def print_equal_bits(
    by_arch: dict[str, list[Row]], tried: dict[str, list[Row]], seeds: list[int]
) -> None:
    """A BAE's EV less the peers', at its bits per token. ``tried`` has the peers' tuning runs as well."""
    peers = [arch for arch in by_arch if arch not in OURS]
    lines = []
    for own, level in itertools.product([arch for arch in OURS if arch in by_arch], LEVELS):
        differences: dict[str, list[float]] = {arch: [] for arch in [*peers, "best"]}
        ours = [row for row in by_arch[own] if row.trial.level == level]
        for row in ours:
            ((_, bits, ev),) = row.points
            for arch in peers:
                reached = interpolate(envelope(with_seed(tried[arch], seed_of(row, seeds))), bits)
                differences[arch].append(ev - reached)
            known = [d for arch in peers if not math.isnan(d := differences[arch][-1])]
            differences["best"].append(min(known, default=math.nan))
        lines.append(
            [
                NAMES[own],
                cell((row.points[0][1] for row in ours), ".0f"),
                cell((row.points[0][2] for row in ours), ".3f"),
                *(cell(values, "+.3f") for values in differences.values()),
            ]
        )
    table(["", "bits/token", "EV", *(f"less {NAMES[a]}'s" for a in peers), "less the best"], lines)


def print_equal_l0(by_arch: dict[str, list[Row]], seeds: list[int], d_sae: int) -> None:
    """Share of dense latents at a BAE's L0, and the worst share of dead ones."""
    peers = [arch for arch in by_arch if arch not in OURS]
    ours = [arch for arch in OURS if arch in by_arch]
    lines = []
    for measure, own, level in itertools.product(
        ("dense_share_10", "dense_share_10_folded"), ours, LEVELS
    ):
        shares: dict[str, list[float]] = {arch: [] for arch in [own, *peers]}
        l0s, least = [], []
        for row in (row for row in by_arch[own] if row.trial.level == level):
            l0s.append(row.code["l0"])
            shares[own].append(row.code[measure])
            for arch in peers:
                rows = with_seed(by_arch[arch], seed_of(row, seeds))
                points = sorted((r.code["l0"], r.code[measure]) for r in rows)
                shares[arch].append(interpolate(points, l0s[-1]))
            known = [share for arch in peers if not math.isnan(share := shares[arch][-1])]
            least.append(min(known, default=math.nan))
        best = statistics.mean(least)
        lines.append(
            [
                "folded" if measure.endswith("folded") else "raw",
                NAMES[own],
                cell(l0s, ".1f"),
                f"{statistics.mean(l0s) / d_sae:.1%}",
                *(cell(values, ".1%") for values in shares.values()),
                f"{statistics.mean(shares[own]) / best:.2f}" if best > 0 else "–",
            ]
        )
    header = ["> 10 %", "", "L0", "mean density", "its share", *(NAMES[a] for a in peers)]
    table([*header, "share / best peer's"], lines)
    worst = {a: max(row.code["dead_share"] for row in rows) for a, rows in by_arch.items()}
    print("Worst dead share:", ", ".join(f"{NAMES[a]} {share:.2%}" for a, share in worst.items()))


def of(row: Row) -> tuple[str, str]:
    return row.trial.task, row.trial.arch


def report(
    tasks: dict[str, Task],
    rows: dict[tuple[str, str], list[Row]],
    every: Iterable[Row],
    seeds: list[int],
) -> None:
    for name, task in tasks.items():
        by_arch = {arch: r for (task_name, arch), r in rows.items() if task_name == name}
        print(f"\n## {task.title}\n")
        print(
            f"{task.steps} steps of {BATCH} tokens out of {task.n_train:,}, {task.d_in} -> "
            f"{task.d_sae}, {task.n_test:,} test tokens; ± is over seeds {seeds}\n"
        )
        if task.layer is None:
            print(f"True L0: {next(iter(by_arch.values()))[0].truth['true_l0']:.1f}\n")
        print_levels(task, by_arch)
        tried = {arch: [r for r in every if of(r) == (name, arch)] for arch in by_arch}
        if any(arch in OURS for arch in by_arch) and any(arch not in OURS for arch in by_arch):
            print(
                "At equal bits per token (Chow-Liu bound plus magnitudes), EV of BAE less the peers' "
                "concave envelope over levels and resolutions\n"
            )
            print_equal_bits(by_arch, tried, seeds)
            print("At equal L0, share of latents denser than 10 %\n")
            print_equal_l0(by_arch, seeds, task.d_sae)


def plot(
    tasks: dict[str, Task], rows: dict[tuple[str, str], list[Row]], seeds: list[int], path: Path
) -> None:
    from bae_lens.charts import COLORS, require_matplotlib

    plt = require_matplotlib()
    blue, *others = COLORS
    hues = (blue, "#7fb6cc", *others, "#111111", "#b8a000", "#888888")
    colors = dict(zip(NAMES, hues, strict=True))
    size = (4.6 * len(tasks) + 0.6, 4.2)
    figure, panels = plt.subplots(1, len(tasks), figsize=size, squeeze=False, layout="constrained")
    for axes, (name, task) in zip(panels[0], tasks.items(), strict=True):
        for (task_name, arch), of_arch in rows.items():
            if task_name != name:
                continue
            curve = pareto if arch in OURS else envelope
            bits, ev = zip(*curve(with_seed(of_arch, seeds[0])), strict=True)
            marker = dict(zip(NAMES, "oos^vDPX", strict=True))[arch]
            is_bae = arch in OURS
            axes.plot(
                *(bits, ev),
                marker=marker,
                markersize=7 if is_bae else 4,
                linewidth=2.4 if is_bae else 1.3,
                color=colors[arch],
                label=NAMES[arch],
                zorder=3 if is_bae else 2,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(plt.NullLocator())
        axes.set_title(task.title)
        axes.set_xlabel("bits per token (Chow–Liu bound + magnitudes)")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("explained variance, magnitudes quantized")
    panels[0][-1].legend(frameon=False, loc="lower right")
    save_figure(figure, path)


# Command line


def make_tasks(args: argparse.Namespace) -> dict[str, Task]:
    lm: dict[str, Any] = {}
    synthetic: dict[str, Any] = {}
    if args.full:
        lm = {"steps": 4000, "d_sae": 8 * D_IN, "n_train": 1_000_000, "n_test": 131_072}
        lm["ce_batches"] = 8
        synthetic = {"steps": 10_000, "d_sae": 2048, "d_in": 256, "n_train": 2_000_000}
        synthetic |= {"l0s": (8, 16, 32), "entropies": (80, 160, 320), "n_test": 131_072}
    if args.quick:
        small = {"n_validation": 4096, "n_test": 8192, "n_quantized": 4096}
        lm = {"steps": 200, "d_sae": 2 * D_IN, "n_train": 20_000, "ce_batches": 1} | small
        synthetic = {"steps": 300, "d_sae": 256, "n_train": 50_000} | small
    tasks = []
    for name in args.sets:
        if name == "lm":
            tasks += [lm_task(layer, **lm) for layer in args.layers]
        else:
            tasks.append(synthetic_task(name == "synth-heavy", **synthetic))
    return {task.name: task for task in tasks}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sets = ["lm", "synth", "synth-heavy"]
    parser.add_argument("--sets", nargs="+", choices=sets)
    parser.add_argument("--archs", nargs="+", choices=list(NAMES))
    parser.add_argument("--layers", type=int, nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--learning_rates", type=float, nargs="+")
    parser.add_argument("--full", action="store_true", help="all architectures, sized for a GPU")
    parser.add_argument(
        "--quick", action="store_true", help="minutes: little data, one rate and seed"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--json", type=Path, help="rows as they come; what it has is not repeated")
    parser.add_argument("--plot", type=Path, help="image file")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the activations for a next run"
    )
    add_write_argument(parser)
    args = parser.parse_args(argv)
    args.archs = args.archs or (list(NAMES) if args.full else DEFAULT_ARCHS)
    args.sets = args.sets or (sets if args.full else ["lm", "synth-heavy"])
    args.layers = args.layers or ([8, 15, 20] if args.full else [15])
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.learning_rates = args.learning_rates or (
        [2e-3] if args.quick else [1e-3, 2e-3, 4e-3, 8e-3]
    )
    return args


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    tasks = make_tasks(args)
    results = Results(args.json, list(tasks.values()))
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or Path(temporary)
        args.work.mkdir(parents=True, exist_ok=True)
        with make_pool(args.jobs) as pool:
            try:
                rows = tune_and_sweep(tasks, results, pool, args)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    report(tasks, rows, results.rows.values(), args.seeds)
    if args.plot is not None:
        plot(tasks, rows, args.seeds, args.plot)


def main() -> None:
    args = parse()
    with written("feature_untangling", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
