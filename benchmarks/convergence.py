"""How explained variance and readable latents grow with tokens and width, and which schedule holds throughout.

    python benchmarks/convergence.py --device cuda --jobs 6 --json FILE --minutes 9    # goes on from FILE
    python benchmarks/convergence.py --quick                                           # minutes: few steps

After block 15 of SmolLM2, a BAE of levels and feedback (no cap, as its peer has none) and SAELens' BatchTopK see the
same batches of 512 of the same tokens (``--n_train`` of them; training makes epochs over them), for 500, 2,000 and
10,000 steps, twice and eight times as wide as the residual stream, at a budget for reading (37.5 bits; L0 4)
and one for reconstruction (300 bits; L0 48). Each is trained with every rate of its grid; the one counts that
explains most of a validation split. A schedule of the learning rate is a warm-up and a decay to a tenth, as shares of
the steps.

**Schedules**: EV at each rate less that of the plain schedule at *its* best rate, for BAE. A schedule that holds is one whose
best rate stays the same from few steps to many and from narrow to wide, and whose neighbors cost little.

**Growth**: EV and bits per token on held-out reviews, and the latents that pass the intruder test with
the offline judge (of ``n_latents`` drawn, times the number of those with enough texts; guessing passes few, see
``interpretability.py``). Bits are those of ``feature_untangling.py``: of which latents fire and at which level or
quantized magnitude.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from concept_ablation import Cells
from cross_layer import table
from interpretability import in_all
from interpretability_trials import Listening, collect, read_corpus, told_apart
from sae_lens import SAE
from untangling_report import best_point
from untangling_trials import (
    BATCH,
    NAMES,
    Task,
    Trial,
    explained_variance,
    lm_task,
    load,
    make_config,
    metadata,
    prepare,
    score_code,
)
from workers import Job, Workers
from writing import add_write_argument, written

from bae_lens.charts import Curve, draw_curve, remove_frame, require_matplotlib, save_figure
from bae_lens.files.whole import whole_folder
from bae_lens.scoring import IntruderResult
from bae_lens.training.fit import fit_activations

BAE, PEER = "bae_levels_feedback_no_cap", "batchtopk"
ENTROPIES, L0S = (37.5, 300.0), (4, 48)
READ, REBUILD = range(2)
BUDGETS = {READ: "37.5 bits or L0 4", REBUILD: "300 bits or L0 48"}
STEPS, WIDTHS = (500, 2000, 10_000), (2, 8)
RATES = (1e-3, 2e-3, 4e-3, 8e-3)


@dataclass(frozen=True)
class Schedule:
    """Of the learning rate, in shares of the steps."""

    warm_up: float
    decay: float


SCHEDULES = {
    "decay over 1/5": Schedule(0.0, 0.2),
    "decay over 1/5, warm-up over 1/20": Schedule(0.05, 0.2),
    "decay over 1/2": Schedule(0.0, 0.5),
    "decay over all": Schedule(0.0, 1.0),
}
PLAIN = next(iter(SCHEDULES))


@dataclass(frozen=True)
class Point:
    """One training."""

    arch: str
    budget: int
    width: int
    steps: int
    lr: float
    schedule: str = PLAIN

    @property
    def key(self) -> str:
        return f"{self.arch}/{self.budget}/{self.width}/{self.steps}/{self.lr:g}/{self.schedule}"

    def trial(self, task: Task) -> Trial:
        return Trial(task.name, self.arch, self.budget, self.lr, 0)

    def path(self, folder: Path) -> Path:
        return folder / self.key.replace("/", "-").replace(" ", "-")


def task_of(width: int, steps: int, sizes: dict[str, Any]) -> Task:
    return replace(lm_task(15, width), steps=steps, entropies=ENTROPIES, l0s=L0S, **sizes)


def train(point: Point, task: Task, folder: Path, device: str) -> dict[str, Any]:
    """One training, scored; what a worker process does. The SAE stays in the folder."""
    torch.set_num_threads(1)
    splits = load(folder / task.filename, device)
    trial, schedule = point.trial(task), SCHEDULES[point.schedule]
    if not point.path(folder).exists():
        cfg = make_config(trial, task, device)
        vars(cfg.metadata).update(metadata(task))
        shares = {"warm_up": schedule.warm_up, "decay": schedule.decay}
        own = (cfg, splits["train"], task.steps, BATCH, point.lr, 0, device)
        trained = fit_activations(*own, **shares)
        with whole_folder(point.path(folder)) as partial:
            trained.save_inference_model(str(partial))
    sae = SAE.load_from_disk(str(point.path(folder)), device=device).eval()
    with torch.no_grad():
        row = score_code(trial, task, sae, splits)
    _, bits, ev = best_point(row)
    return {
        "validation_ev": row.validation_ev,
        "ev": row.explained_variance,
        "bits": bits,
        "ev_at_bits": ev,
        "l0": row.code["l0"],
        "dead": row.code["dead_share"],
        "dense": row.code["dense_share_10"],
        "train_ev": explained_variance(sae, splits["train"][: len(splits["test"])]),
    }


def listen(point: Point, folder: Path, listening: Listening, device: str) -> dict[str, Any]:
    """The intruder test of one SAE; what a worker process does."""
    torch.set_num_threads(1)
    sae = SAE.load_from_disk(str(point.path(folder)), device=device).eval()
    return told_apart(collect(sae, folder, listening, device), listening.test(), device).to_dict()


# Which trainings


def plain_points(args: argparse.Namespace) -> list[Point]:
    """The longest first, so that no process is left alone with one at the end."""
    cells = itertools.product(
        sorted(args.steps, reverse=True), args.budgets, args.widths, (BAE, PEER), args.rates
    )
    return [
        Point(arch, budget, width, steps, lr)
        for steps, budget, width, arch, lr in cells
        if not (budget == REBUILD and width != args.widths[0])
    ]


def scheduled_points(args: argparse.Namespace) -> list[Point]:
    """Of BAE, at the first width."""
    cells = itertools.product(
        sorted(args.steps, reverse=True), args.budgets, args.schedules, args.rates
    )
    return [Point(BAE, b, args.widths[0], s, lr, name) for s, b, name, lr in cells]


def best_of(points: Sequence[Point], cells: dict[str, Any]) -> Point | None:
    """The one that explains most of what is held out for validation, of those known."""
    known = {p: cells[p.key]["validation_ev"] for p in points if p.key in cells}
    scores = {p: score for p, score in known.items() if not math.isnan(score)}
    return max(scores, key=lambda p: scores[p], default=None)


def best_points(points: Sequence[Point], cells: dict[str, Any]) -> list[Point]:
    """At the best rate of each."""
    groups: dict[Point, list[Point]] = {}
    for point in points:
        groups.setdefault(replace(point, lr=0.0), []).append(point)
    return [best for own in groups.values() if (best := best_of(own, cells)) is not None]


def run(args: argparse.Namespace, sizes: dict[str, Any], cells: Cells, folder: Path) -> list[str]:
    """All that is not in the file yet, or what there is time for; returns what failed."""
    failed: dict[str, BaseException] = {}
    listening = Listening(**args.listening)
    first = task_of(args.widths[0], args.steps[0], sizes)
    with Workers(args.jobs, args.minutes) as workers:
        if not workers.is_time_out:
            prepare([first], folder, args.device)

        def do(jobs: dict[str, Job]) -> None:
            todo = {k: j for k, j in jobs.items() if k not in cells.cells and k not in failed}
            for key, found in workers.run(todo, failed):
                if found is not None:
                    cells.add(key, json.loads(json.dumps(found)))

        def trainings(points: Sequence[Point]) -> dict[str, Job]:
            tasks = {p: task_of(p.width, p.steps, sizes) for p in points}
            return {p.key: (train, (p, tasks[p], folder, args.device)) for p in points}

        try:
            do(trainings(plain_points(args)))
            best = [p for p in best_points(plain_points(args), cells.cells) if p.budget == READ]
            reader = Trial(first.name, "random directions", READ, 0.0, 0)
            tests: dict[str, Job] = {
                f"intruder/{p.key}": (listen, (p, folder, listening, args.device)) for p in best
            }
            if any(key not in cells.cells for key in tests):
                do({"the text": (read_corpus, (reader, first, folder, listening, args.device))})
            do(tests)
            do(trainings(scheduled_points(args)))
        except BrokenProcessPool as error:
            print(f"A process died: {error}", flush=True)
    if workers.n_left_out:
        print("Out of time: tables are of what there is; the same command goes on.")
    return list(failed)


# Report


def report(args: argparse.Namespace, cells: dict[str, Any]) -> None:
    plain, scheduled = plain_points(args), scheduled_points(args)
    print(f"\n## Growth: each at its best of {len(args.rates)} rates\n")
    lines = []
    for point in sorted(
        best_points(plain, cells), key=lambda p: (p.budget, p.width, p.arch, p.steps)
    ):
        cell = cells[point.key]
        heard = cells.get(f"intruder/{point.key}")
        result = IntruderResult.from_dict(heard) if heard else None
        lines.append(
            [
                f"{NAMES[point.arch]}, {BUDGETS[point.budget]}, ×{point.width}",
                f"{point.steps:,}",
                f"{point.steps * BATCH / 1e6:.2f} M",
                f"{point.lr:g}",
                f"{cell['ev']:.3f}",
                f"{cell['train_ev']:.3f}",
                f"{cell['bits']:.0f}",
                f"{cell['ev_at_bits']:.3f}",
                f"{cell['l0']:.1f}",
                f"{cell['dead']:.1%}",
                "–" if result is None else f"{in_all(result):.0f}",
                "–" if result is None else f"{in_all(result, 0.5):.0f}",
            ]
        )
    header = ["", "steps", "tokens", "rate", "EV", "EV, training tokens", "bits", "EV at these"]
    table([*header, "L0", "dead", "pass the intruder test", "not for one token"], lines)
    print("\n## Which rate, and what its neighbors cost: EV by rate\n")
    groups: dict[Point, list[Point]] = {}
    for point in [*plain, *scheduled]:
        groups.setdefault(replace(point, lr=0.0), []).append(point)
    lines = []
    for group, points in sorted(
        groups.items(), key=lambda g: (g[0].arch, g[0].budget, g[0].width, g[0].steps)
    ):
        by_rate = {p.lr: cells.get(p.key) for p in points}
        if not any(by_rate.values()):
            continue
        lines.append(
            [
                f"{NAMES[group.arch]}, {BUDGETS[group.budget]}, ×{group.width}, {group.schedule}",
                f"{group.steps:,}",
                *("–" if (c := by_rate[lr]) is None else f"{c['ev']:.3f}" for lr in args.rates),
            ]
        )
    table(["", "steps", *(f"{lr:g}" for lr in args.rates)], lines)


def plot(args: argparse.Namespace, cells: dict[str, Any], path: Path) -> None:
    """EV at both budgets, and latents that pass the intruder test, by tokens of training."""
    plt = require_matplotlib()
    best = best_points(plain_points(args), cells)
    panels = [(budget, False) for budget in args.budgets]
    panels += [(READ, True)] if READ in args.budgets else []
    figure, every = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.8), layout="constrained", squeeze=False
    )
    for axes, (budget, is_heard) in zip(every[0], panels, strict=True):
        for width, arch in itertools.product(args.widths, (BAE, PEER)):
            own = [p for p in best if (p.budget, p.width, p.arch) == (budget, width, arch)]
            own.sort(key=lambda p: p.steps)
            if is_heard:
                own = [p for p in own if f"intruder/{p.key}" in cells]
                results = [IntruderResult.from_dict(cells[f"intruder/{p.key}"]) for p in own]
                y = [in_all(result) for result in results]
            else:
                y = [cells[p.key]["ev"] for p in own]
            if own:
                x = [p.steps * BATCH for p in own]
                label = f"{NAMES[arch]}, ×{width}"
                color, style = int(arch == PEER), args.widths.index(width)
                draw_curve(axes, Curve(label, x, y, color=color, style=style, marker="o"))
        axes.set_xscale("log")
        tokens = [steps * BATCH for steps in args.steps]
        axes.set_xticks(tokens, [f"{n / 1e6:.2g} M" for n in tokens])
        axes.minorticks_off()
        axes.set_xlabel("tokens of training")
        what = "latents told apart" if is_heard else "EV"
        axes.set_title(f"{what}, {BUDGETS[budget]}", fontsize=10)
        remove_frame(axes)
    every[0][0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="over d_in")
    parser.add_argument("--budgets", type=int, nargs="+", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    others = [name for name in SCHEDULES if name != PLAIN]
    parser.add_argument(
        "--schedules", nargs="*", choices=others, default=others, help=f"beside {PLAIN!r}"
    )
    parser.add_argument("--n_train", type=int, default=1_000_000, help="tokens to train on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="nothing is begun after so many"
    )
    parser.add_argument("--json", type=Path, help="results as they come; nothing is repeated")
    parser.add_argument("--work", type=Path, help="folder that keeps activations and SAEs")
    parser.add_argument("--plot", type=Path, help="image file")
    parser.add_argument("--quick", action="store_true", help="minutes: few steps and tokens")
    add_write_argument(parser)
    args = parser.parse_args()
    args.listening = {"n_latents": 200}
    if args.quick:
        args.steps, args.widths, args.rates, args.n_train = [10, 20], [1, 2], [4e-3], 8192
        args.listening = {"n_latents": 10, "n_tokens": 4000, "n_trials": 4}
    return args


def main() -> None:
    args = parse()
    sizes: dict[str, Any] = {"n_train": args.n_train}
    if args.quick:
        sizes |= {"n_validation": 1024, "n_test": 4096, "n_quantized": 1024}
    plan = {"sizes": sizes, "listening": asdict(Listening(**args.listening))}
    with written("convergence", args), tempfile.TemporaryDirectory() as temporary:
        cells = Cells(args.json, plan)
        folder = args.work or (
            Path(temporary) if args.json is None else args.json.with_suffix(".work")
        )
        folder.mkdir(parents=True, exist_ok=True)
        failed = run(args, sizes, cells, folder)
        report(args, cells.cells)
        if args.plot is not None:
            plot(args, cells.cells, args.plot)
        if failed:
            print(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
