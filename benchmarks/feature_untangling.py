"""BAE against SAELens' own architectures at equal bits per token and at equal L0.

    python benchmarks/feature_untangling.py                 # hours on two cores
    python benchmarks/feature_untangling.py --quick         # minutes: little data, one rate and seed
    python benchmarks/feature_untangling.py --json rows.json --device cuda --jobs 8 --minutes 8
    python benchmarks/feature_untangling.py --full --device cuda --jobs 8

Three layers of SmolLM2 and two synthetic sets. Every architecture is trained by SAELens' trainer on the
same activations with the same width, batches and steps, and gets the same number of learning rates: five
at the middle of its sparsity levels on the first seed, at one layer and on each synthetic set, chosen by
explained variance on a validation split; at the other layers, and eight times as wide as d_in, the best
of these and its two neighbors. Then the other two levels, and the middle one with the other seeds (the
wide ones have one seed, and the other levels are the peers' only, whose curve has to reach to both sides
of BAE's bits). Scored is the SAE that ``save_inference_model`` writes, on a test split.

The levels are bits of entropy for a BAE and latents on per token for the others. For those that have
no k, the coefficient of SAELens' sparsity loss follows the L0 that is asked for. Bits per token are
those of which latents fire, and at which level, or at which quantized magnitude, at the resolution that
suits a peer best. Peers are SAELens' architectures and binary sparse coding (arXiv 2509.25596);
BatchTopK with a BAE's feedback is a control, which tells what is the encoder's and what the code's.

Synthetic data are SynthSAEBench's recipe at a smaller size; the heavy-tailed set multiplies every
firing's magnitude by an exponential variable, which a code of one bit a feature cannot follow.

A run that was interrupted, or that had too few ``--minutes``, goes on from its ``--json``; tables are of
what there is. ``--full`` searches all rates and trains all levels, widths and seeds everywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from untangling_report import Rows, plot, report
from untangling_trials import (
    LEVELS,
    MIDDLE,
    NAMES,
    OURS,
    WIDTH,
    Row,
    Task,
    Trial,
    lm_task,
    prepare,
    recipe_of,
    run_trial,
    synthetic_task,
)
from workers import Job, Workers
from writing import add_write_argument, written

from bae_lens.files.whole import write_text

DEFAULT_ARCHS = [arch for arch in NAMES if arch not in ("gated", "standard")]
SEARCHED_LAYER = 15
# As many for every architecture.
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
LEARNING_RATES: dict[str, tuple[float, ...]] = dict.fromkeys(NAMES, RATES)
N_NEIGHBORS = 3


class Results:
    """Rows by trial, in a JSON file if there is one, written anew with each row.

    A file of other data or steps is refused. What was trained by another recipe is forgotten.
    """

    def __init__(self, path: Path | None, tasks: Sequence[Task]) -> None:
        self.path = path
        # As they come back from a file.
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
        known = {task.name: task for task in tasks}
        forgotten: dict[str, int] = {}
        for fields in saved["rows"]:
            row = Row(**(fields | {"trial": Trial(**fields["trial"])}))
            task = known.get(row.trial.task)
            if task is None or row.recipe == recipe_of(row.trial, task):
                self.add(row, write=False)
            else:
                name = NAMES[row.trial.arch]
                forgotten[name] = forgotten.get(name, 0) + 1
        if forgotten:
            said = "; ".join(f"{name} {n}" for name, n in forgotten.items())
            print(f"Of another recipe, and forgotten: {said}.")

    def add(self, row: Row, write: bool = True) -> None:
        self.rows[row.trial.key] = row
        if self.path is not None and write:
            rows = [asdict(row) for row in self.rows.values()]
            write_text(self.path, json.dumps({"settings": self.settings, "rows": rows}))


@dataclass(frozen=True)
class Part:
    """What is trained of a task.

    Attributes:
        rates_of: the task whose best learning rates are tried again, with their neighbors; None: all
            rates are tried here.
        seeds: at the middle level; at the others the first one.
        is_wide: whether BAEs are trained at the middle level only.
    """

    task: Task
    rates_of: str | None
    seeds: tuple[int, ...]
    is_wide: bool = False
    seeds_everywhere: bool = False

    def others(self, best: Trial) -> list[Trial]:
        """What is trained once the rate is known, beside the training that it was found by."""
        levels = [MIDDLE] if self.is_wide and best.arch in OURS else LEVELS
        return [
            replace(best, level=level, seed=seed)
            for level in levels
            for seed in (self.seeds if level == MIDDLE or self.seeds_everywhere else self.seeds[:1])
            if (level, seed) != (best.level, best.seed)
        ]

    def n_trials(self, arch: str, rates: Sequence[float]) -> int:
        n_rates = len(rates) if self.rates_of is None else min(N_NEIGHBORS, len(rates))
        return n_rates + len(self.others(Trial("", arch, MIDDLE, 0.0, self.seeds[0])))


def neighbors(rates: Sequence[float], best: float) -> list[float]:
    """As many rates of the grid for everyone, with the best in their middle or at the grid's end."""
    i = min(range(len(rates)), key=lambda i: abs(math.log(rates[i] / best)))
    start = max(0, min(i - N_NEIGHBORS // 2, len(rates) - N_NEIGHBORS))
    return list(rates[start : start + N_NEIGHBORS])


class Run:
    """All trainings that the arguments ask for, in the order of their importance."""

    def __init__(
        self, parts: Sequence[Part], results: Results, workers: Workers, args: argparse.Namespace
    ) -> None:
        self.parts, self.results, self.workers, self.args = parts, results, workers, args
        self.tasks = {part.task.name: part.task for part in parts}
        self.failed: dict[str, BaseException] = {}
        self.n_to_come = sum(
            part.n_trials(arch, self.rates(arch)) for part in parts for arch in args.archs
        )
        self._is_prepared = False

    def rates(self, arch: str) -> Sequence[float]:
        return self.args.learning_rates or LEARNING_RATES[arch]

    def train(self, trials: Iterable[Trial]) -> None:
        """Those that are not in the results yet, as long as there is time."""
        asked = list(dict.fromkeys(trials))
        self.n_to_come = max(self.n_to_come - len(asked), 0)
        todo = [t for t in asked if t.key not in self.results.rows and t.key not in self.failed]
        if not todo or self.workers.is_time_out:
            self.workers.n_left_out += len(todo)
            return
        if not self._is_prepared:
            prepare(list(self.tasks.values()), self.args.work, self.args.device)
            self._is_prepared = True
        jobs: dict[str, Job] = {t.key: (run_trial, self.arguments(t)) for t in todo}
        for _, row in self.workers.run(jobs, self.failed, n_after=self.n_to_come):
            self.results.add(row)
            print(
                f"    EV {row.explained_variance:.3f}, L0 {row.code['l0']:.0f}, {row.seconds:.0f} s "
                f"({row.training_seconds:.0f} s training)",
                flush=True,
            )

    def arguments(self, trial: Trial) -> tuple[Any, ...]:
        task = self.tasks[trial.task]
        is_searched = task.layer == searched_layer(self.args) and task.d_sae == WIDTH * task.d_in
        # Of the middle level with another seed than that of all the rates' trials.
        seeds = self.args.seeds[:2]
        is_own = trial.seed == (seeds[-1] if trial.level == MIDDLE else seeds[0])
        scores_ce = is_own and (is_searched or self.args.full)
        return trial, task, self.args.work, self.args.device, scores_ce

    def at_rates(self, part: Part) -> list[Trial]:
        """The trials by which each architecture's rate is found, where the part can have any yet."""
        trials = []
        for arch in self.args.archs:
            rates = self.rates(arch)
            if part.rates_of is not None:
                if (best := self.best(part.rates_of, arch)) is None:
                    continue
                rates = neighbors(rates, best.lr)
            name, seed = part.task.name, part.seeds[0]
            trials += [Trial(name, arch, MIDDLE, lr, seed) for lr in rates]
        return trials

    def best(self, task: str, arch: str) -> Trial | None:
        """The training at the middle level that explains the most on the validation split."""
        seed, rates = self.args.seeds[0], self.rates(arch)
        own = [
            row
            for lr in rates
            if (row := self.results.rows.get(Trial(task, arch, MIDDLE, lr, seed).key))
            and not math.isnan(row.validation_ev)
        ]
        return max(own, key=lambda row: row.validation_ev).trial if own else None

    def others(self, part: Part) -> list[Trial]:
        own = [self.best(part.task.name, arch) for arch in self.args.archs]
        return [trial for best in own if best is not None for trial in part.others(best)]

    def everything(self) -> None:
        """Rates, then levels and seeds, of one task after the other, those whose rates others need first.

        What of a task needs its rates is trained beside the next one's rates: processes wait for each
        other once a task.
        """
        searched = [part for part in self.parts if part.rates_of is None]
        ordered = [*searched, *(part for part in self.parts if part.rates_of is not None)]
        for part, following in zip([None, *ordered], [*ordered, None], strict=True):
            others = [] if part is None else self.others(part)
            self.train([*others, *([] if following is None else self.at_rates(following))])

    def rows(self) -> Rows:
        """Those that count: each architecture's at its best rate, lowest level first."""
        found: Rows = {}
        for part in self.parts:
            for arch in self.args.archs:
                if (best := self.best(part.task.name, arch)) is None:
                    continue
                trials = sorted([best, *part.others(best)], key=lambda t: (t.level, t.seed))
                rows = self.results.rows
                found[part.task.name, arch] = [rows[t.key] for t in trials if t.key in rows]
        return found


# Command line


def searched_layer(args: argparse.Namespace) -> int:
    """Where rates are searched: layer 15, or the middle one of others."""
    if SEARCHED_LAYER in args.layers:
        return SEARCHED_LAYER
    return sorted(args.layers)[len(args.layers) // 2]


def make_parts(args: argparse.Namespace) -> list[Part]:
    lm: dict[str, Any] = {}
    synthetic: dict[str, Any] = {}
    if args.full:
        lm = {"steps": 4000, "n_train": 1_000_000, "n_test": 131_072, "ce_batches": 8}
        synthetic = {"steps": 10_000, "d_sae": 2048, "d_in": 256, "n_train": 2_000_000}
        synthetic |= {"l0s": (6, 16, 32), "entropies": (80, 160, 320), "n_test": 131_072}
    if args.quick:
        small = {"n_validation": 4096, "n_test": 8192, "n_quantized": 4096}
        lm = {"steps": 200, "n_train": 20_000, "ce_batches": 1} | small
        synthetic = {"steps": 300, "d_sae": 256, "n_train": 50_000} | small
    layers = sorted(args.layers, key=lambda layer: layer != searched_layer(args))
    seeds = tuple(args.seeds)
    parts: list[Part] = []
    widths = args.widths if "lm" in args.sets else []
    for width in widths:
        # One width has all layers and seeds.
        is_wide = width != widths[0] and not args.full
        for layer in layers[:1] if is_wide else layers:
            task = lm_task(layer, width, **lm)
            if args.full or not parts:
                parts.append(Part(task, None, seeds, seeds_everywhere=args.full))
            else:
                own = seeds[:1] if is_wide else seeds
                parts.append(Part(task, parts[0].task.name, own, is_wide))
    for name in sorted(args.sets, reverse=True):
        # The heavy-tailed set, which targets are of, before the other.
        if name != "lm":
            task = synthetic_task(name == "synth-heavy", **synthetic)
            parts.append(Part(task, None, seeds, seeds_everywhere=args.full))
    return parts


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sets = ["lm", "synth", "synth-heavy"]
    parser.add_argument("--sets", nargs="+", choices=sets)
    parser.add_argument("--archs", nargs="+", choices=list(NAMES))
    parser.add_argument("--layers", type=int, nargs="+", help="rates are searched at 15")
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        help="latents per dimension of the language model's SAEs; all layers and seeds have the first",
    )
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--learning_rates", type=float, nargs="+", help="for everyone")
    parser.add_argument("--full", action="store_true", help="everything everywhere, for a GPU")
    parser.add_argument(
        "--quick", action="store_true", help="minutes: little data, one rate and seed"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="no training is begun after so many; tables are of what there is",
    )
    parser.add_argument("--json", type=Path, help="rows as they come; what it has is not repeated")
    parser.add_argument("--plot", type=Path, help="image file")
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the activations for a next run"
    )
    add_write_argument(parser)
    args = parser.parse_args(argv)
    args.archs = args.archs or (list(NAMES) if args.full else DEFAULT_ARCHS)
    args.sets = args.sets or (["lm", "synth-heavy"] if args.quick else sets)
    args.layers = args.layers or ([SEARCHED_LAYER] if args.quick else [8, SEARCHED_LAYER, 22])
    args.widths = args.widths or ([WIDTH] if args.quick else [WIDTH, 8])
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    if args.quick and not args.learning_rates:
        args.learning_rates = [4e-3]
    return args


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables.

    Raises:
        SystemExit: if it is interrupted; what was measured is in the file.
    """
    parts = make_parts(args)
    tasks = {part.task.name: part.task for part in parts}
    results = Results(args.json, list(tasks.values()))
    with tempfile.TemporaryDirectory() as temporary:
        args.work = args.work or Path(temporary)
        args.work.mkdir(parents=True, exist_ok=True)
        try:
            with Workers(args.jobs, args.minutes) as workers:
                run = Run(parts, results, workers, args)
                print(f"{run.n_to_come} trainings; {len(results.rows)} in the file.", flush=True)
                try:
                    run.everything()
                except BrokenProcessPool as error:
                    # What was measured is worth its tables; the same command goes on.
                    print(f"A process died: {error}", flush=True)
        except KeyboardInterrupt:
            kept = (
                "nothing is kept without --json"
                if args.json is None
                else "--json goes on from here"
            )
            raise SystemExit(f"Interrupted: {kept}.") from None
    report(tasks, run.rows(), list(results.rows.values()), args.seeds)
    if workers.n_left_out:
        print("Out of time: tables are of what there is; the same command goes on.")
    if run.failed:
        print(f"Failed: {', '.join(run.failed)}.")
    if args.plot is not None:
        plot(tasks, run.rows(), args.seeds, args.plot)


def main() -> None:
    args = parse()
    with written("feature_untangling", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
