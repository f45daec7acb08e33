"""What ``feature_untangling.py`` prints and draws from its rows: rate–distortion, tables, targets."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from untangling_trials import (
    BATCH,
    BLOCK,
    CONTROLS,
    LEVELS,
    MIDDLE,
    NAMES,
    OURS,
    PEERS,
    Row,
    Task,
)

from bae_lens.charts import save_figure
from bae_lens.stats import SeedInterval, paired_bootstrap

# Of a training's points the one of fewest bits that loses at most this much explained variance.
TOLERANCE = 0.01
# Rows that count, by task and architecture.
Rows = dict[tuple[str, str], list[Row]]

# Rate–distortion


class Point(NamedTuple):
    """Explained variance at bits per token, and what each block of test tokens leaves unexplained."""

    bits: float
    ev: float
    unexplained: tuple[float, ...] = ()


def points_of(row: Row) -> list[Point]:
    blocks: Sequence[Sequence[float]] = row.unexplained or [()] * len(row.points)
    return [
        Point(bits, ev, tuple(block))
        for (_, bits, ev), block in zip(row.points, blocks, strict=True)
    ]


def pareto(rows: Iterable[Row]) -> list[Point]:
    """Points that no other one beats in both, by bits."""
    front: list[Point] = []
    for point in sorted((p for row in rows for p in points_of(row)), key=lambda p: p.bits):
        if not front or point.ev > front[-1].ev:
            front.append(point)
    return front


def envelope(rows: Iterable[Row]) -> list[Point]:
    """The concave hull of the front: two codes that take turns reach every point between them.

    Without it the curve would sag between two levels of sparsity, for no other reason than that
    nothing was trained there, and peers would look worse at BAE's bits than they are.
    """
    hull: list[Point] = []
    for point in pareto(rows):
        while len(hull) > 1:
            (x0, y0, _), (x1, y1, _) = hull[-2:]
            if (y1 - y0) * (point.bits - x0) > (point.ev - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append(point)
    return hull


def interpolate(points: Sequence[tuple[float, float]], x: float) -> float:
    """Linear between points sorted by x; the last beyond them, NaN before them."""
    if not points or x < points[0][0]:
        return math.nan
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / max(x1 - x0, 1e-12)
    return points[-1][1]


def reached(hull: Sequence[Point], bits: float) -> Point | None:
    """The hull at so many bits: linear, also of each block; the last beyond, None before."""
    if not hull or bits < hull[0].bits:
        return None
    for low, high in itertools.pairwise(hull):
        if bits <= high.bits:
            share = (bits - low.bits) / max(high.bits - low.bits, 1e-12)
            blocks = zip(low.unexplained, high.unexplained, strict=True)
            mixed = tuple(a + share * (b - a) for a, b in blocks)
            return Point(bits, low.ev + share * (high.ev - low.ev), mixed)
    return hull[-1]._replace(bits=bits)


def at_level(rows: Iterable[Row], level: int) -> list[Row]:
    return [row for row in rows if row.trial.level == level]


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


# Comparisons at equal bits


class Comparison(NamedTuple):
    """An architecture of ours at a level, and each other's EV at its bits, one entry a seed."""

    bits: list[float]
    ev: list[float]
    differences: dict[str, list[float]]
    blocks: dict[str, list[tuple[float, ...]]]

    def best(self, archs: Iterable[str]) -> str | None:
        """The one that ours is the least ahead of, over all seeds."""
        known = {a: d for a in archs if (d := self.mean(a)) is not None}
        return min(known, key=lambda a: known[a], default=None)

    def mean(self, arch: str) -> float | None:
        known = [d for d in self.differences.get(arch, []) if not math.isnan(d)]
        return statistics.mean(known) if known else None

    def interval(self, arch: str) -> tuple[float, float] | None:
        """95 %: over seeds (t), or of one seed over blocks of test tokens (bootstrap)."""
        known = [d for d in self.differences[arch] if not math.isnan(d)]
        if len(known) > 1:
            mean, half = SeedInterval.of(known)
            return mean - half, mean + half
        blocks = [block for block in self.blocks[arch] if block]
        if not blocks:
            return None
        _, low, high = paired_bootstrap(torch.tensor(blocks[0], dtype=torch.float64))
        return low, high


def compare(
    ours: Sequence[Row], tried: dict[str, list[Row]], archs: Iterable[str], seeds: list[int]
) -> Comparison:
    """Rows of one level against others' concave envelopes.

    Nothing is compared with an architecture some of whose levels were not trained (yet): its envelope
    would be lower than it is, by as much as ours would look better. Beyond the bits of an envelope its
    last point counts, as a code may leave bits unused.

    Args:
        ours: rows of one architecture and level.
        tried: the others' rows, with those of the rates' search.
        archs: the others.
        seeds: of the middle level.
    """
    own = [points_of(row)[0] for row in ours]
    differences: dict[str, list[float]] = {}
    blocks: dict[str, list[tuple[float, ...]]] = {}
    for arch in archs:
        differences[arch], blocks[arch] = [], []
        for row, point in zip(ours, own, strict=True):
            rows = with_seed(tried.get(arch, []), seed_of(row, seeds))
            is_whole = {row.trial.level for row in rows} == set(LEVELS)
            other = reached(envelope(rows), point.bits) if is_whole else None
            differences[arch].append(math.nan if other is None else point.ev - other.ev)
            both = zip(other.unexplained, point.unexplained, strict=True) if other else ()
            blocks[arch].append(tuple(theirs - mine for theirs, mine in both))
    return Comparison([p.bits for p in own], [p.ev for p in own], differences, blocks)


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


def asked_for(arch: str, task: Task, level: int) -> str:
    return f"{task.entropies[level]:g} bits" if arch in OURS else f"L0 {task.l0s[level]:g}"


def print_levels(task: Task, by_arch: dict[str, list[Row]]) -> None:
    columns: dict[str, Callable[[Row], float | None]] = {
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
    extra: dict[str, Callable[[Row], float | None]] = {
        "CE, zero": lambda r: r.ce.get("zero"),
        "CE, mean": lambda r: r.ce.get("mean"),
    }
    if task.layer is None:
        names = ("f1_score", "precision", "recall", "mcc", "uniqueness")
        extra = {name: lambda r, name=name: r.truth.get(name) for name in names}
    columns |= extra
    formats |= dict.fromkeys(extra, ".3f")
    lines = []
    for arch, rows in by_arch.items():
        for level in LEVELS:
            if same := at_level(rows, level):
                values = [cell((get(r) for r in same), formats[n]) for n, get in columns.items()]
                asked = asked_for(arch, task, level)
                lines.append([NAMES[arch], f"{same[0].trial.lr:g}", asked, *values])
    table(["", "lr", "asked for", *columns], lines)


def print_edges(tried: dict[str, list[Row]], seeds: list[int]) -> None:
    """Whose best rate is the lowest or highest that was tried."""
    said = []
    for arch, rows in tried.items():
        own = [r for r in at_level(rows, MIDDLE) if r.trial.seed == seeds[0]]
        rates = sorted({row.trial.lr for row in own})
        if len(rates) > 1:
            best = max(own, key=lambda row: row.validation_ev).trial.lr
            if best in (rates[0], rates[-1]):
                said.append(f"{NAMES[arch]} ({best:g} of {rates[0]:g} to {rates[-1]:g})")
    if said:
        print(f"Best rate at the end of those tried: {'; '.join(said)}.\n")


def print_equal_bits(
    by_arch: dict[str, list[Row]], tried: dict[str, list[Row]], seeds: list[int]
) -> None:
    """EV of ours less the others', at its bits per token."""
    peers = [arch for arch in PEERS if arch in by_arch]
    controls = [arch for arch in CONTROLS if arch in by_arch]
    lines = []
    for own, level in itertools.product([arch for arch in OURS if arch in by_arch], LEVELS):
        if not (ours := at_level(by_arch[own], level)):
            continue
        compared = compare(ours, tried, [*peers, *controls], seeds)
        best = compared.best(peers)
        lines.append(
            [
                NAMES[own],
                cell(compared.bits, ".0f"),
                cell(compared.ev, ".3f"),
                *(cell(compared.differences[arch], "+.3f") for arch in peers),
                "–" if best is None else cell(compared.differences[best], "+.3f"),
                *(cell(compared.differences[arch], "+.3f") for arch in controls),
            ]
        )
    header = ["", "bits/token", "EV", *(f"less {NAMES[arch]}'s" for arch in peers)]
    header += ["less the best peer's", *(f"control: less {NAMES[arch]}'s" for arch in controls)]
    table(header, lines)


def print_equal_l0(by_arch: dict[str, list[Row]], seeds: list[int], d_sae: int) -> None:
    """Share of dense latents at a BAE's L0, and the worst share of dead ones."""
    others = [arch for arch in (*PEERS, *CONTROLS) if arch in by_arch]
    ours = [arch for arch in OURS if arch in by_arch]
    lines = []
    for measure, own, level in itertools.product(
        ("dense_share_10", "dense_share_10_folded"), ours, LEVELS
    ):
        shares: dict[str, list[float]] = {arch: [] for arch in [own, *others]}
        l0s: list[float] = []
        least: list[float] = []
        for row in at_level(by_arch[own], level):
            l0s.append(row.code["l0"])
            shares[own].append(row.code[measure])
            for arch in others:
                rows = with_seed(by_arch[arch], seed_of(row, seeds))
                points = sorted((r.code["l0"], r.code[measure]) for r in rows)
                shares[arch].append(interpolate(points, l0s[-1]))
            known = [shares[a][-1] for a in others if a in PEERS]
            known = [share for share in known if not math.isnan(share)]
            least += [min(known)] if known else []
        if not l0s:
            continue
        best = statistics.mean(least) if least else 0.0
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
    header = ["> 10 %", "", "L0", "mean density", "its share", *(NAMES[a] for a in others)]
    table([*header, "share / best peer's"], lines)
    worst = {a: max(row.code["dead_share"] for row in rows) for a, rows in by_arch.items()}
    print("Worst dead share:", ", ".join(f"{NAMES[a]} {share:.2%}" for a, share in worst.items()))


def signed(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    bounds = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{value:+.3f}{bounds}"


def print_targets(
    tasks: dict[str, Task], rows: Rows, every: Sequence[Row], seeds: list[int]
) -> None:
    """EV less the best peer's at equal bits, with its interval, and what else the comparison is about."""
    lines = []
    for name, task in tasks.items():
        by_arch, tried = of_task(name, rows, every)
        peers = [arch for arch in PEERS if arch in by_arch]
        controls = [arch for arch in CONTROLS if arch in by_arch]
        for level, own in itertools.product(LEVELS, [arch for arch in OURS if arch in by_arch]):
            if not (ours := at_level(by_arch[own], level)):
                continue
            compared = compare(ours, tried, [*peers, *controls], seeds)
            best = compared.best(peers)
            truths = []
            for measure in ("f1_score", "mcc"):
                mine = cell((r.truth.get(measure) for r in ours), ".3f")
                theirs = [
                    statistics.mean(values)
                    for arch in peers
                    if (values := truth_of(at_level(by_arch[arch], level), measure))
                ]
                truths.append(f"{mine} / {max(theirs):.3f}" if theirs else mine)
            lines.append(
                [
                    task.title,
                    asked_for(own, task, level),
                    NAMES[own],
                    cell(compared.bits, ".0f"),
                    cell(compared.ev, ".3f"),
                    "–" if best is None else NAMES[best],
                    "–" if best is None else signed(compared.mean(best), compared.interval(best)),
                    ", ".join(signed(compared.mean(a), compared.interval(a)) for a in controls)
                    or "–",
                    cell((r.code["dense_share_10"] for r in ours), ".1%"),
                    cell((r.code["dead_share"] for r in ours), ".1%"),
                    *truths,
                ]
            )
    if not lines:
        return
    print(
        "\n## Targets\n\n"
        "EV of ours less the best retuned peer's at equal bits per token, with its 95 % interval: over "
        "seeds (t) where a level has several, else by bootstrap over blocks of "
        f"{BLOCK} test tokens, which are shuffled, so that a block is tokens of many texts; which points "
        "are on a peer's envelope, and who the best peer is, are taken as given. BatchTopK with feedback "
        "is a control and no peer. F1 and MCC: ours / the best peer's at the same level.\n"
    )
    header = ["", "asked for", "", "bits/token", "EV", "best peer", "less its EV"]
    header += ["less the control's", "> 10 % raw", "dead", "F1", "MCC"]
    table(header, lines)


def truth_of(rows: Iterable[Row], measure: str) -> list[float]:
    return [row.truth[measure] for row in rows if measure in row.truth]


def of_task(
    name: str, rows: Rows, every: Iterable[Row]
) -> tuple[dict[str, list[Row]], dict[str, list[Row]]]:
    """Rows of a task by architecture: those that count, and all that were tried."""
    by_arch = {arch: own for (task, arch), own in rows.items() if task == name and own}
    tried: dict[str, list[Row]] = {arch: [] for arch in by_arch}
    for row in every:
        if row.trial.task == name and row.trial.arch in tried:
            tried[row.trial.arch].append(row)
    return by_arch, tried


def report(tasks: dict[str, Task], rows: Rows, every: Sequence[Row], seeds: list[int]) -> None:
    """All tables; what was not measured is left out of them."""
    for name, task in tasks.items():
        by_arch, tried = of_task(name, rows, every)
        print(f"\n## {task.title}\n")
        if not by_arch:
            print("Nothing was measured.")
            continue
        print(
            f"{task.steps} steps of {BATCH} tokens out of {task.n_train:,}, {task.d_in} -> "
            f"{task.d_sae}, {task.n_test:,} test tokens; ± is over seeds {seeds}\n"
        )
        if task.layer is None:
            print(f"True L0: {next(iter(by_arch.values()))[0].truth['true_l0']:.1f}\n")
        print_levels(task, by_arch)
        print_edges(tried, seeds)
        if any(arch in OURS for arch in by_arch) and any(arch not in OURS for arch in by_arch):
            print(
                "At equal bits per token (which latents fire, by the Chow-Liu bound, and levels or "
                "quantized magnitudes), EV of BAE less the others' concave envelope over levels of "
                "sparsity and resolutions\n"
            )
            print_equal_bits(by_arch, tried, seeds)
            print("At equal L0, share of latents denser than 10 %\n")
            print_equal_l0(by_arch, seeds, task.d_sae)
    print_targets(tasks, rows, every, seeds)


# Plot

# Ours by hue, without cap dashed; peers thin.
_STYLES = {
    "bae": ("#9ecbdb", "o", "-"),
    "bae_no_cap": ("#9ecbdb", "o", "--"),
    "bae_levels": ("#3d93b3", "s", "-"),
    "bae_levels_no_cap": ("#3d93b3", "s", "--"),
    "bae_levels_feedback": ("#0b4f6c", "D", "-"),
    "bae_levels_feedback_no_cap": ("#0b4f6c", "D", "--"),
    "topk": ("#d1711f", "^", "-"),
    "batchtopk": ("#5b8c2a", "v", "-"),
    "matryoshka_batchtopk": ("#8a4f9e", "P", "-"),
    "jumprelu": ("#111111", "X", "-"),
    "binary_sparse_coding": ("#b8a000", "p", "-"),
    "gated": ("#c2185b", "<", "-"),
    "standard": ("#888888", ">", "-"),
    "batchtopk_feedback": ("#5b8c2a", "v", ":"),
}
_COLUMNS = 3


def plot(tasks: dict[str, Task], rows: Rows, seeds: list[int], path: Path) -> None:
    """EV against bits per token, a panel a task that has rows."""
    from bae_lens.charts import require_matplotlib

    plt = require_matplotlib()
    shown = {
        n: t for n, t in tasks.items() if any(own and task == n for (task, _), own in rows.items())
    }
    if not shown:
        return
    n_columns = min(_COLUMNS, len(shown))
    n_rows = math.ceil(len(shown) / n_columns)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(4.6 * n_columns + 2.6, 4.0 * n_rows),
        squeeze=False,
        layout="constrained",
    )
    panels = list(grid.flat)
    handles: dict[str, object] = {}
    for axes, (name, task) in zip(panels, shown.items(), strict=False):
        for (task_name, arch), own in rows.items():
            if task_name != name or not own:
                continue
            curve = (pareto if arch in OURS else envelope)(with_seed(own, seeds[0]))
            color, marker, line = _STYLES[arch]
            (handle,) = axes.plot(
                [p.bits for p in curve],
                [p.ev for p in curve],
                marker=marker,
                linestyle=line,
                markersize=6 if arch in OURS else 4,
                linewidth=2.0 if arch in OURS else 1.2,
                color=color,
                label=NAMES[arch],
                zorder=3 if arch in OURS else 2,
            )
            handles.setdefault(arch, handle)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(plt.NullLocator())
        axes.set_title(task.title)
        axes.set_xlabel("bits per token (Chow–Liu bound + levels or magnitudes)")
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("explained variance at these bits")
    ordered = [arch for arch in NAMES if arch in handles]
    figure.legend(
        [handles[arch] for arch in ordered],
        [NAMES[arch] for arch in ordered],
        frameon=False,
        loc="outside right center",
        handlelength=3.5,
    )
    save_figure(figure, path)
