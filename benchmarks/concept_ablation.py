"""What a probe, and the model, lose when a dictionary's concept of the salient word is taken away.

    python benchmarks/concept_ablation.py                 # movie reviews, SmolLM2 and MiniLM
    python benchmarks/concept_ablation.py --data DIR      # and ERASER-Movie, Jigsaw, AG News from DIR
    python benchmarks/concept_ablation.py --quick         # minutes: little data, few steps, one seed
    python benchmarks/concept_ablation.py --data DIR --cache bench_output --output ablation.json

DIR holds JSONL files with ``text`` and ``label`` by the names in ``concept_ablation_trials.DATASETS``.

Each model gets one dictionary of a kind and seed, trained on equal shares of the datasets' unlabeled
texts, none of which is scored, with the same number of steps and tokens a step; k-means gets the same
tokens. CLVQ-VAE, VQ-VAE and k-means have 512 codes; TopK SAE and transcoder 2,048 latents, k = 32; BAE
2,048 bits and a budget of 50 bits a token. CLVQ-VAE, for its transformer decoder, reads whole texts,
whose padding does not count, so fewer tokens a step. Nothing is tuned here, but CLVQ-VAE's defaults, and
the learning rates that VQ-VAE shares with it, come from runs on SmolLM2 between the same hook points
(``cross_layer.py``); TopK's and BAE's were not chosen for this. Nor is any of it chosen by ablation.

Every dictionary is given the same 200 texts a dataset, the same probes (logistic regression, 5 folds)
and the same salient words (integrated gradients of the probe at the upper hook point). All remove rank
1: the code of the salient word, or its strongest latent; LEACE, which is fitted on labels, one less
than there are classes. Stored vectors: three seeds of the dictionary. Inside the forward pass: the
first. The drop is accuracy − max(ablated accuracy, chance), so that inversion earns nothing.

"Equal norm": of CLVQ-VAE and another dictionary, each vector is moved by both only as far as the one
that moves it less (stored vectors, and all tokens inside the forward pass). "Refitted": the accuracy of
probes fitted to ablated vectors; "readout's": with the concept of the position that is read in place of
the word's; "uncentered": as released, means left where they are. Intervals are 95 %, paired bootstrap
over texts; of several seeds of a dictionary the same text is drawn together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concept_ablation_trials import CLVQ, DATASETS, METHODS, VARIANTS, Plan, collect, fit, run_cell
from cross_layer import table
from cross_layer_data import TASKS
from workers import Workers
from writing import add_write_argument, written

from bae_lens.charts import save_figure
from bae_lens.concept_ablation import AblationRow, ConceptAblationResult
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.result import drop_difference
from bae_lens.files.whole import write_text
from bae_lens.stats import Interval

QUICK: dict[str, Any] = {
    "n_examples": 40,
    "n_train": 12_000,
    "n_steps": 4,
    "n_ordinary": 8,
    "n_reference": 60,
    "steps": 30,
    "n_codes": 64,
    "d_sae": 256,
}
PLACES = (*names.STORED, *names.CAUSAL)


class Cells:
    """What each cell gave, in a JSON file if there is one.

    Args:
        path: of the file; it need not be there yet.
        plan: what the cells have in common. A file with anything else is refused.
    """

    def __init__(self, path: Path | None, plan: dict[str, Any]) -> None:
        self.path, self.plan = path, json.loads(json.dumps(plan))
        self.cells: dict[str, Any] = {}
        if path is not None and path.exists():
            saved = json.loads(path.read_text())
            if saved["plan"] != self.plan:
                raise SystemExit(f"{path} holds results with other settings; give another file.")
            self.cells = saved["cells"]

    def add(self, key: str, cell: dict[str, Any]) -> None:
        self.cells[key] = cell
        if self.path is not None:
            write_text(self.path, json.dumps({"plan": self.plan, "cells": self.cells}))


def run(plan: Plan, args: argparse.Namespace, cells: Cells, folder: Path) -> None:
    """Train the dictionaries that are wanted, and ablate them in each cell."""
    left = {
        f"{model}/{dataset}": (model, dataset)
        for model in args.models
        for dataset in args.datasets
        if f"{model}/{dataset}" not in cells.cells
    }
    models = dict.fromkeys(model for model, _ in left.values())
    for model in models:
        collect(plan, model, folder)
    trainings = {
        f"{model}, {method}, seed {seed}": (fit, (plan, model, method, seed, folder))
        for seed in args.seeds
        for model in models
        for method in args.methods
    }
    ablations = {
        key: (
            run_cell,
            (plan, *pair, args.methods, args.seeds, pair[0] not in args.stored_only, folder),
        )
        for key, pair in left.items()
    }
    with Workers(args.workers) as workers:
        for _ in workers.run(trainings):
            pass
        for key, cell in workers.run(ablations):
            cells.add(key, cell)


# Tables


def results_of(cell: dict[str, Any], method: str) -> list[ConceptAblationResult]:
    """By seed, the one with the causal part first."""
    found = [v for k, v in cell["results"].items() if k.rpartition("/")[0] == method]
    return [ConceptAblationResult.from_dict(v) for v in found]


def has_causal(result: ConceptAblationResult) -> bool:
    return any(row.place in names.CAUSAL for row in result.rows)


def find(
    result: ConceptAblationResult, place: str, method: str, read_by: str, concept_of: str = "word"
) -> Any:
    try:
        return result.row(place, method, concept_of, read_by)
    except KeyError:
        return None


def cells_of(
    results: Sequence[ConceptAblationResult],
    place: str,
    method: str,
    read_by: str = names.PROBE,
    concept_of: str = "word",
) -> list[str]:
    """Removed norm, accuracy, drop: means over seeds."""
    known = [(r, find(r, place, method, read_by, concept_of)) for r in results]
    known = [(r, row) for r, row in known if row is not None]
    if not known:
        return ["–", "–", "–"]
    drops = [r.drop(row) for r, row in known]
    spread = f"±{statistics.stdev(drops):.3f}".replace("0.", ".") if len(drops) > 1 else ""
    return [
        f"{statistics.mean(row.removed_norm for _, row in known):.3f}",
        f"{statistics.mean(row.accuracy for _, row in known):.3f}",
        f"{statistics.mean(drops):+.3f}{spread}",
    ]


def lines_of(cell: dict[str, Any], place: str) -> Iterable[list[str]]:
    """A line a dictionary, then the controls, which come from CLVQ-VAE's ablation."""
    is_causal = place in names.CAUSAL

    def line(title: str, results: Sequence[ConceptAblationResult], method: str) -> list[str]:
        cells = [title, *cells_of(results, place, method)]
        if is_causal:
            cells += cells_of(results, place, method, names.LABEL_WORDS)[1:]
            row: AblationRow | None = find(results[0], place, method, names.PROBE)
            change = None if row is None else results[0].ce_change(row)
            cells.append("–" if change is None else f"{change.mean:+.3f}")
        else:
            cells.append(cells_of(results, place, method + names.RETRAINED)[1])
            # LEACE and the mean are of no position.
            is_of_one = method in (names.CONCEPT, *names.CONTROLS) and method != names.MEAN
            readouts = cells_of(results, place, method, concept_of="readout")[1:]
            cells += readouts if is_of_one else ["–", "–"]
            own = [v for k, v in cell["uncentered"].items() if k.rpartition("/")[0] == title]
            i = names.STORED.index(place)
            known = [by_place[i] for by_place in own if by_place[i] is not None]
            cells.append(f"{statistics.mean(known):.3f}" if known else "–")
        return cells

    methods = methods_of(cell)
    for method in methods:
        results = results_of(cell, method)
        yield line(method, results[:1] if is_causal else results, names.CONCEPT)
    results = results_of(cell, methods[0])
    results = results[:1] if is_causal else results
    for control in (*names.CONTROLS, names.LEACE):
        yield line(control, results, control)


def report(key: str, cell: dict[str, Any]) -> None:
    model, dataset = key.split("/")
    first = results_of(cell, methods_of(cell)[0])[0]
    print(f"\n## {DATASETS[dataset].title}, {TASKS[model].title}\n")
    untouched = [row for row in first.rows if row.method == "none"]
    said = {f"{row.place}, {row.read_by}": f"{row.accuracy:.3f}" for row in untouched}
    print(f"Untouched: {said}; chance {first.chance:.3f}; {len(first.labels)} texts.")
    salient = first.salient
    if salient.readout_share is not None:
        print(f"Most attributed position is the one that is read: {salient.readout_share:.2f}.")
    if salient.missing is not None:
        print(f"Integrated gradients leave {salient.missing:.2g} of the logit (median).")
    if salient.in_rationale is not None:
        print(
            f"Salient word in a person's evidence {salient.in_rationale:.2f}, any word "
            f"{salient.rationale_words:.2f}; words of the concept in it: "
            + ", ".join(
                f"{m} {r[0].concept_in_rationale:.2f}"
                for m in methods_of(cell)
                if (r := results_of(cell, m))[0].concept_in_rationale is not None
            )
            + "."
        )
    for place in PLACES if has_causal(first) else names.STORED:
        print(f"\nAblated: {place}\n")
        header = [place, "‖v−v'‖/‖v‖", "accuracy", "drop"]
        if place in names.CAUSAL:
            header += ["words' accuracy", "words' drop", "CE"]
        else:
            header += ["refitted", "readout's", "drop", "uncentered"]
        table(header, lines_of(cell, place))


def summarize(cells: dict[str, Any]) -> None:
    """The drops of all cells in one table a place."""
    titles = [f"{DATASETS[key.split('/')[1]].title}, {key.split('/')[0]}" for key in cells]
    for place in PLACES:
        columns = []
        for cell in cells.values():
            if place in names.STORED or has_causal(results_of(cell, methods_of(cell)[0])[0]):
                columns.append({line[0]: line for line in lines_of(cell, place)})
            else:
                columns.append({})
        lines = []
        for title in dict.fromkeys(title for column in columns for title in column):
            drops = [column[title][3] if title in column else "–" for column in columns]
            norms = [float(c[title][1]) for c in columns if title in c and c[title][1] != "–"]
            norm = f"{min(norms):.3f}–{max(norms):.3f}" if norms else "–"
            lines.append([title, norm, *drops])
        print(f"\n## Drop, {place}\n")
        table([place, "‖v−v'‖/‖v‖", *titles], lines)
    for place in names.CAUSAL:
        excess_over = {key: excess_over_random(cell, place) for key, cell in cells.items()}
        methods = dict.fromkeys(method for found in excess_over.values() for method in found)
        lines = [[m, *(_shown(found.get(m)) for found in excess_over.values())] for m in methods]
        if lines:
            print(f"\n## Lost beyond a random direction of equal norm, {place}\n")
            table(["95 % interval", *titles], lines)
    changes = [ce_changes(cell) for cell in cells.values()]
    lines = [
        [method, *(_shown(own.get(method)) for own in changes)]
        for method in dict.fromkeys(method for own in changes for method in own)
    ]
    if lines:
        print("\n## Cross-entropy of ordinary text, the same removed from all its tokens\n")
        table(["nats per token, 95 % interval over texts", *titles], lines)


def methods_of(cell: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.rpartition("/")[0] for key in cell["results"]))


def excess_over_random(cell: dict[str, Any], place: str) -> dict[str, Interval]:
    """By dictionary, of the first seed; empty where nothing was ablated in that place."""
    found = {}
    for method in methods_of(cell):
        for result in results_of(cell, method)[:1]:
            row = find(result, place, names.CONCEPT, names.PROBE)
            if row is not None:
                found[method] = result.excess_over(row)
    return found


def ce_changes(cell: dict[str, Any]) -> dict[str, Interval]:
    """By dictionary, then by control of the first; empty where nothing was measured."""
    wanted = [(m, results_of(cell, m)[0], names.CONCEPT) for m in methods_of(cell)]
    wanted += [(name, wanted[0][1], name) for name in (*names.CONTROLS, names.LEACE)]
    found = {}
    for title, result, method in wanted:
        row = find(result, names.EVERYWHERE, method, names.PROBE)
        change = None if row is None else result.ce_change(row)
        if change is not None:
            found[title] = change
    return found


def difference(pairs: Sequence[dict[str, Any]], chance: float) -> Interval:
    """CLVQ-VAE's drop less the other's."""
    own, other = ([p[name] for p in pairs] for name in ("correct", "other_correct"))
    return drop_difference(own, other, chance)


def compare(cells: dict[str, Any]) -> None:
    """Where CLVQ-VAE's drop is the larger one, at equal rank, and at equal norm too."""
    others = dict.fromkeys(m for cell in cells.values() for m in methods_of(cell) if m != CLVQ)
    wins: dict[tuple[str, str], list[bool]] = {}
    lines = []
    for key, cell in cells.items():
        results = {m: results_of(cell, m) for m in methods_of(cell)}
        if CLVQ not in results:
            continue
        chance = results[CLVQ][0].chance
        for place in PLACES:
            found = {"rank": rank_differences(results, place, chance)}
            found["norm"] = norm_differences(cell["pairs"], place, chance)
            for equal, by_method in found.items():
                if by_method:
                    beats = all(interval.low > 0 for interval in by_method.values())
                    wins.setdefault((place, equal), []).append(beats)
                    shown = [by_method.get(m) for m in others]
                    lines.append(
                        [key, place, equal, *(_shown(i) for i in shown), "yes" if beats else "no"]
                    )
    print("\n## CLVQ-VAE's drop less that of each other dictionary, 95 % interval\n")
    table(["cell", "ablated", "equal", *others, "beats all"], lines)
    for (place, equal), beats in wins.items():
        print(f"{place}, equal {equal}: beats every other in {sum(beats)} of {len(beats)} cells.")


def rank_differences(
    results: dict[str, list[ConceptAblationResult]], place: str, chance: float
) -> dict[str, Interval]:
    found = {}
    for method in (m for m in results if m != CLVQ):
        pairs = []
        for own, other in zip(results[CLVQ], results[method], strict=True):
            rows = [find(r, place, names.CONCEPT, names.PROBE) for r in (own, other)]
            if None not in rows:
                pairs.append({"correct": rows[0].correct, "other_correct": rows[1].correct})
        if pairs:
            found[method] = difference(pairs, chance)
    return found


def norm_differences(pairs: Sequence[dict[str, Any]], place: str, chance: float) -> dict[str, Any]:
    at_place = [p for p in pairs if p["place"] == place]
    return {
        method: difference([p for p in at_place if p["other"] == method], chance)
        for method in dict.fromkeys(p["other"] for p in at_place)
    }


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def plot(cells: dict[str, Any], path: Path) -> None:
    """Accuracy lost against removed norm, a panel a cell: dictionaries and controls, all places.

    Lost, since the probes of the places do not start alike.
    """
    from bae_lens.charts import COLORS, require_matplotlib

    plt = require_matplotlib()
    models = list(dict.fromkeys(key.split("/")[0] for key in cells))
    datasets = list(dict.fromkeys(key.split("/")[1] for key in cells))
    shape = (len(models), len(datasets))
    figure, axes = plt.subplots(
        *shape,
        figsize=(max(7.0, 4.2 * shape[1]), 1.0 + 3.4 * shape[0]),
        squeeze=False,
        layout="constrained",
    )
    dictionaries = list(dict.fromkeys(m for cell in cells.values() for m in methods_of(cell)))
    kinds = [*dictionaries, names.RANDOM_EQUAL, names.MEAN, names.LEACE]
    for key, cell in cells.items():
        model, dataset = key.split("/")
        ax = axes[models.index(model)][datasets.index(dataset)]
        results = {m: results_of(cell, m) for m in methods_of(cell)}
        first = next(iter(results.values()))[0]
        for i, kind in enumerate(kinds):
            result = results[kind][0] if kind in results else first
            method = names.CONCEPT if kind in results else kind
            rows = [find(result, place, method, names.PROBE) for place in PLACES]
            points = [(r.removed_norm, result.change(r).mean) for r in rows if r is not None]
            ax.scatter(
                *zip(*points, strict=True),
                marker="osD^vPX*h<>pd"[i],
                color=COLORS[i % 4] if kind in dictionaries else "0.35",
                facecolors=None if i < 4 else "none",
                label=kind,
                s=34,
            )
        ax.axhline(0, color="0.4", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_title(f"{DATASETS[dataset].title}, {model}", fontsize=9)
        ax.set_xlabel("removed ‖v−v'‖/‖v‖")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("accuracy of the probe that is lost")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    save_figure(figure, path, dpi=120)


# Command line


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder with labeled texts; default: movie reviews")
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS))
    parser.add_argument(
        "--methods", nargs="+", choices=(*METHODS, *VARIANTS), default=list(METHODS)
    )
    parser.add_argument(
        "--vary", action="store_true", help="CLVQ-VAE, and with one thing changed, not the others"
    )
    parser.add_argument(
        "--blocks", type=int, nargs=2, help="of the hook points; another --cache and --output"
    )
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--n_examples", type=int)
    parser.add_argument("--rank", type=int, help="codes or latents that are removed together")
    parser.add_argument("--n_codes", type=int, help="of CLVQ-VAE, VQ-VAE and k-means")
    parser.add_argument("--n_steps", type=int, help="of integrated gradients")
    parser.add_argument(
        "--stored_only", nargs="+", choices=list(TASKS), default=[], help="not inside these models"
    )
    parser.add_argument("--quick", action="store_true", help="little data, few steps, one seed")
    parser.add_argument("--full", action="store_true", help="800 texts a cell, 50 gradients a text")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--output", type=Path, help="JSON file; what it has is not repeated")
    parser.add_argument("--cache", type=Path, help="folder that keeps activations and dictionaries")
    add_write_argument(parser)
    args = parser.parse_args(argv)
    args.methods = [CLVQ, *VARIANTS] if args.vary else args.methods
    args.seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    args.datasets = args.datasets or (["eraser", "jigsaw", "ag_news"] if args.data else ["movies"])
    return args


def make_plan(args: argparse.Namespace) -> Plan:
    options = dict(QUICK) if args.quick else {}
    if args.full:
        options |= {"n_examples": 800, "n_steps": 50, "n_ordinary": 128}
    for name in ("n_examples", "n_steps", "rank", "n_codes"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    blocks = None if args.blocks is None else tuple(args.blocks)
    return Plan(args.data, tuple(args.datasets), blocks=blocks, **options)


def measure_and_report(args: argparse.Namespace) -> None:
    """Run everything that the arguments ask for, and print its tables."""
    plan = make_plan(args)
    cells = Cells(args.output, asdict(plan) | {"seeds": args.seeds, "methods": args.methods})
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(plan, args, cells, folder)
    wanted = [f"{model}/{dataset}" for model in args.models for dataset in args.datasets]
    found = {key: cells.cells[key] for key in wanted}
    for key, cell in found.items():
        report(key, cell)
    summarize(found)
    compare(found)
    if args.output is not None:
        plot(found, args.output.with_suffix(".png"))


def main() -> None:
    args = parse()
    with written("concept_ablation", args):
        measure_and_report(args)


if __name__ == "__main__":
    main()
