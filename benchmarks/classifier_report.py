"""The tables of ``classifier.py``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from classifier_trials import (
    BASELINES,
    CEILING,
    DIRECTION,
    KMEANS,
    METHODS,
    MLP,
    OURS,
    PREDICTIVE,
    RIDGE,
    TITLES,
    Cell,
)
from cross_layer import table

from bae_lens.concept_ablation.result import LEACE, drop_difference
from bae_lens.stats import Interval, balanced_interval, paired_bootstrap, wilson

COMPARED = (*BASELINES, RIDGE, MLP)
Cells = Mapping[str, Any]


class Column(NamedTuple):
    """A dataset and a pair of blocks, and which seeds there are of its dictionaries.

    Attributes:
        title: for tables.
        setting: ``Cell.setting``.
        seeds: what each gave.
    """

    title: str
    setting: str
    seeds: list[Any]

    @property
    def names(self) -> list[str]:
        return [name for name in METHODS if all(name in seed["rows"] for seed in self.seeds)]


def columns(cells: Cells, wanted: Iterable[Cell]) -> list[Column]:
    """Those that anything is known of, in order."""
    seeds: dict[str, list[Any]] = {}
    titles: dict[str, str] = {}
    for cell in wanted:
        if (found := cells.get(f"cell/{cell.key}")) is not None:
            seeds.setdefault(cell.setting, []).append(found)
            titles[cell.setting] = f"{TITLES[cell.dataset]} {cell.pair[0]} → {cell.pair[1]}"
    return [Column(titles[setting], setting, found) for setting, found in seeds.items()]


# Figures, each the mean over seeds of the dictionary


def mean_of(intervals: Sequence[Sequence[float]]) -> Interval:
    return Interval(*(statistics.mean(values) for values in zip(*intervals, strict=True)))


def ev(column: Column, name: str) -> float:
    return statistics.mean(
        1 - sum(seed["rows"][name]["errors"]) / sum(seed["spread"]) for seed in column.seeds
    )


def ev_over(column: Column, name: str, other: str) -> Interval:
    """Paired by text: texts are drawn, and what they vary by is that of all."""
    gains = [
        (torch.tensor(seed["rows"][other]["errors"]) - torch.tensor(seed["rows"][name]["errors"]))
        / statistics.mean(seed["spread"])
        for seed in column.seeds
    ]
    return paired_bootstrap(torch.stack(gains).mean(0))


def nmi(column: Column, name: str) -> Interval:
    return mean_of([seed["rows"][name]["nmi"] for seed in column.seeds])


def nmi_over(column: Column, name: str, other: str) -> Interval:
    """Mean of the seeds' differences and of their bounds."""
    return mean_of([seed["rows"][name]["nmi_over"][other] for seed in column.seeds])


def lost_over(cell: Any, where: str, name: str, other: str) -> Interval:
    """How much more accuracy one removal costs than another, of the same texts."""
    return drop_difference(
        cell[where][name]["correct"], cell[where][other]["correct"], cell["chance"]
    )


def told(cells: Sequence[Any], name: str, other: str | None = None) -> Interval:
    """Balanced accuracy of telling the prediction, or by how much it is more than another's."""
    predicted = cells[0]["predicted"]
    credits = torch.tensor([cell["credits"][name] for cell in cells]).mean(0)
    if other is not None:
        credits -= torch.tensor([cell["credits"][other] for cell in cells]).mean(0)
    return balanced_interval(credits.tolist(), predicted)


# Tables


def signed(value: Interval | None) -> str:
    """An interval that lies off zero is in bold."""
    if value is None:
        return "–"
    text = f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"
    return f"**{text}**" if value.low > 0 or value.high < 0 else text


def plain(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def differences(
    title: str,
    found: Sequence[Column],
    ours: str,
    others: Sequence[str],
    measure: Callable[[Any, str], Interval | None],
) -> None:
    lines = [[f"over {other}", *(signed(measure(c, other)) for c in found)] for other in others]
    if lines:
        table([f"{title}: {ours}", *(c.title for c in found)], lines)


def print_classifiers(cells: Cells, datasets: Sequence[str], seeds: Sequence[int]) -> None:
    lines = []
    for dataset in datasets:
        for seed in seeds:
            if (own := cells.get(f"classifier/{dataset}/{seed}")) is None:
                continue
            right = wilson(sum(own["correct"]), own["n_study"])
            assert right is not None
            lines.append(
                [f"{TITLES[dataset]}, seed {seed}", plain(right), f"{own['chance']:.3f}"]
                + [f"{own[n]:,}" for n in ("n_finetuned", "n_study")]
            )
    header = [
        "fine-tuned classifier",
        "accuracy",
        "most frequent class",
        "fine-tuned on",
        "studied",
    ]
    table(header, lines)


def print_primary(found: Sequence[Column]) -> None:
    """EV and NMI, and by how much ours are more."""
    print_values(found)
    print_differences(found)


def print_values(found: Sequence[Column]) -> None:
    names = [name for name in METHODS if any(name in c.names for c in found)]
    lines = [
        [
            f"*{name}*" if name == CEILING else name,
            *(
                f"{ev(c, name):.3f} / {nmi(c, name).mean:.3f}" if name in c.names else "–"
                for c in found
            ),
        ]
        for name in names
    ]
    table(["EV at the higher block / NMI with the prediction", *(c.title for c in found)], lines)


def print_differences(found: Sequence[Column]) -> None:
    names = [name for name in METHODS if any(name in c.names for c in found)]
    lines = [
        [
            name,
            *(
                str(round(statistics.mean(s["rows"][name]["n_in_use"] for s in c.seeds)))
                if name in c.names
                else "–"
                for c in found
            ),
        ]
        for name in names
    ]
    table(
        ["codes (or strongest latents) that the studied words have", *(c.title for c in found)],
        lines,
    )
    for ours in OURS:
        if ours not in names:
            continue
        others = [n for n in (*OURS, *COMPARED) if n != ours and n in names]
        differences("EV", found, ours, others, lambda c, o, own=ours: ev_over(c, own, o))
        differences("NMI", found, ours, others, lambda c, o, own=ours: nmi_over(c, own, o))


def print_ablation(cells: Cells, found: Sequence[Column]) -> None:
    known = [
        c._replace(seeds=[cells[key]]) for c in found if (key := f"ablation/{c.setting}") in cells
    ]
    if not known:
        return
    lines = [
        ["accuracy, untouched", *(f"{statistics.mean(c.seeds[0]['untouched']):.3f}" for c in known)]
    ]
    lines.append(["most frequent class", *(f"{c.seeds[0]['chance']:.3f}" for c in known)])
    left = [c.seeds[0]["missing"] for c in known]
    lines.append(
        [
            "share of the logit that the gradients miss",
            *("–" if x is None else f"{x:.2f}" for x in left),
        ]
    )
    table(["head, and how well salient words are known", *(c.title for c in known)], lines)
    shown = [n for n in METHODS if n in known[0].seeds[0]["equal rank"]]
    for where, said in (
        ("equal rank", "lost beyond a random direction, equal rank (‖v−v'‖/‖v‖)"),
        ("equal norm", "lost beyond a random direction, equal norm"),
    ):
        lines = []
        for name in (*shown, LEACE):
            texts = []
            for c in known:
                own = signed(lost_over(c.seeds[0], where, name, DIRECTION))
                norm = c.seeds[0][where][name]["removed_norm"]
                texts.append(own if where == "equal norm" else f"{own} ({norm:.2f})")
            lines.append([name, *texts])
        table([said, *(c.title for c in known)], lines)
    for where in ("equal norm", "equal rank"):
        for ours in OURS:
            others = [name for name in shown if name != ours]
            differences(
                f"lost, {where}",
                known,
                ours,
                others,
                lambda c, o, own=ours, at=where: lost_over(c.seeds[0], at, own, o),
            )


def print_released(cells: Cells, found: Sequence[Column]) -> None:
    known = [
        (c.title, cells[key]["released"])
        for c in found
        if (key := f"ablation/{c.setting}") in cells
    ]
    if not known:
        return
    for place in known[0][1]:
        names = list(known[0][1][place])
        lines = [
            [
                name,
                *(f"{cell[place][name]:.3f}" if name in cell[place] else "–" for _, cell in known),
            ]
            for name in names
        ]
        table([f"released arithmetic, {place}", *(title for title, _ in known)], lines)


def recovered(cells: Cells, wanted: Iterable[Cell]) -> dict[str, list[Any]]:
    """By setting, what each seed of its dictionaries gave."""
    found: dict[str, list[Any]] = {}
    for cell in wanted:
        if (own := cells.get(f"recover/{cell.key}")) is not None:
            found.setdefault(cell.setting, []).append(own)
    return found


def print_recoverability(found: Sequence[Column], seeds: Mapping[str, list[Any]]) -> None:
    known = [c._replace(seeds=seeds[c.setting]) for c in found if c.setting in seeds]
    if not known:
        return
    names = [n for n in METHODS if all(n in own["credits"] for c in known for own in c.seeds)]
    lines = [[name, *(plain(told(c.seeds, name)) for c in known)] for name in names]
    table(["prediction told from the salient token's code", *(c.title for c in known)], lines)
    for ours in OURS:
        others = [n for n in (*OURS, *COMPARED) if n in names and n != ours]
        differences("told", known, ours, others, lambda c, o, own=ours: told(c.seeds, own, o))


def print_over_classifiers(
    cells: Cells, everything: Sequence[Column], seeds: Mapping[str, list[Any]]
) -> None:
    """By how much ours are more in the mean over cells, and in how many with an interval above and below zero."""
    ablated = {c.setting: own for c in everything if (own := cells.get(f"ablation/{c.setting}"))}

    def lost(column: Column, name: str, other: str) -> Interval | None:
        own = ablated.get(column.setting, {}).get("equal norm", {})
        is_known = {name, other} <= own.keys()
        return lost_over(ablated[column.setting], "equal norm", name, other) if is_known else None

    def recoverability(column: Column, name: str, other: str) -> Interval | None:
        own = seeds.get(column.setting, [])
        is_known = bool(own) and all({name, other} <= seed["credits"].keys() for seed in own)
        return told(own, name, other) if is_known else None

    measures = {
        "EV": lambda c, n, o: ev_over(c, n, o) if {n, o} <= set(c.names) else None,
        "NMI": lambda c, n, o: nmi_over(c, n, o) if {n, o} <= set(c.names) else None,
        "lost, equal norm": lost,
        "told": recoverability,
    }
    for ours in OURS:
        lines = []
        for other in (*OURS, *COMPARED):
            if other == ours:
                continue
            line = [f"over {other}"]
            for measure in measures.values():
                known = [i for c in everything if (i := measure(c, ours, other)) is not None]
                above, below = sum(i.low > 0 for i in known), sum(i.high < 0 for i in known)
                line.append(
                    f"{statistics.mean(i.mean for i in known):+.3f} ({above} / {below} of {len(known)})"
                    if known
                    else "–"
                )
            lines.append(line)
        table([f"{ours}, mean (above / below zero of all cells)", *measures], lines)


def print_prompted(cells: Cells, datasets: Sequence[str], found: Sequence[Column]) -> None:
    lines = []
    for dataset in datasets:
        if (own := cells.get(f"prompted/{dataset}")) is None:
            continue
        lines.append(
            [
                TITLES[dataset],
                f"{statistics.mean(own['correct']):.3f}",
                f"{own['chance']:.3f}",
                signed(Interval(*own["signal"])),
                "yes" if own["has_signal"] else "without signal",
            ]
        )
    if lines:
        table(
            ["SmolLM2, asked by label words", "accuracy", "most frequent class", "more", "signal"],
            lines,
        )
    if found:
        print_primary(found)


# Targets


class Target(NamedTuple):
    name: str
    by_cell: dict[str, bool]
    is_reached: bool
    found: str


def targets(cells: Cells, found: Sequence[Column], seeds: Mapping[str, list[Any]]) -> list[Target]:
    """The issue's, each by cell, of either of ours."""
    made: list[Target] = []
    for ours in OURS:
        known = [c for c in found if {ours, *BASELINES} <= set(c.names)]
        for what, over in (("EV", ev_over), ("NMI", nmi_over)):
            by_cell = {
                c.title: min(over(c, ours, other).low for other in BASELINES) > 0 for c in known
            }
            n = sum(by_cell.values())
            name = f"{ours}: {what} over k-means, VQ-VAE, Ward, random tokens in 6 of 6"
            made.append(Target(name, by_cell, n == 6, f"{n} of {len(by_cell)}"))
            by_cell = {c.title: over(c, ours, RIDGE).low > 0 for c in known if RIDGE in c.names}
            n = sum(by_cell.values())
            name = f"{ours}: {what} over ridge + k-means (the condition for the default)"
            made.append(Target(name, by_cell, n == 6, f"{n} of {len(by_cell)}"))
        told_of = [c for c in found if c.setting in seeds and "/1-4/" in c.setting]
        gains = {c.title: told(seeds[c.setting], ours, KMEANS) for c in told_of}
        by_cell = {title: g.mean >= 0.03 and g.low > 0 for title, g in gains.items()}
        shown = ", ".join(f"{g.mean:+.3f}" for g in gains.values())
        name = f"{ours}: recoverability at 1 → 4 over k-means ≥ +0.03 on two datasets"
        made.append(Target(name, by_cell, sum(by_cell.values()) >= 2, shown or "–"))
        ablated = {
            c.title: cells[f"ablation/{c.setting}"]
            for c in found
            if f"ablation/{c.setting}" in cells
        }
        of_cell = {
            title: [
                lost_over(cell, "equal norm", ours, other)
                for other in (*BASELINES, "TopK SAE")
                if other in cell["equal norm"]
            ]
            for title, cell in ablated.items()
        }
        never = {t: all(i.high >= 0 for i in own) for t, own in of_cell.items()}
        above = {t: all(i.low > 0 for i in own) for t, own in of_cell.items()}
        n = sum(never.values())
        name = f"{ours}: ablation at equal norm never below a baseline"
        made.append(Target(name, never, n == len(never) > 0, f"{n} of {len(never)}"))
        n = sum(above.values())
        name = f"{ours}: ablation at equal norm above every baseline in two of six"
        made.append(Target(name, above, n >= 2, f"{n} of {len(above)}"))
    ratios = [
        seed["rows"][PREDICTIVE]["seconds"] / seed["rows"][OURS[1]]["seconds"]
        for c in found
        for seed in c.seeds
        if all(seed["rows"].get(name, {}).get("seconds") for name in OURS)
    ]
    if ratios:
        ratio = statistics.median(ratios)
        name = "step of the predictive encoder ≤ 1.2 × that of the paper's encoder"
        made.append(Target(name, {}, ratio <= 1.2, f"{ratio:.2f}"))
    return made


def print_targets(made: Sequence[Target]) -> None:
    lines = []
    for target in made:
        missed = ", ".join(title for title, is_so in target.by_cell.items() if not is_so)
        state = "reached" if target.is_reached else "missed"
        lines.append([target.name, target.found, state, missed or "–"])
    table(["target", "found", "", "cells where it is missed"], lines)


def report(cells: Cells, wanted: Sequence[Cell], prompted: Sequence[Cell]) -> None:
    """Everything that is known."""
    datasets = list(dict.fromkeys(cell.dataset for cell in wanted))
    print_classifiers(cells, datasets, list(dict.fromkeys(cell.model_seed for cell in wanted)))
    first = wanted[0].model_seed
    for n_codes in dict.fromkeys(cell.n_codes for cell in wanted):
        by_seed: dict[int, list[Column]] = {}
        for model_seed in dict.fromkeys(cell.model_seed for cell in wanted):
            own = [c for c in wanted if (c.n_codes, c.model_seed) == (n_codes, model_seed)]
            found, told_of = columns(cells, own), recovered(cells, own)
            if not found:
                continue
            by_seed[model_seed] = found
            counts = sorted({len(c.seeds) for c in found})
            print(
                f"K = {n_codes}, seed {model_seed} of the classifier, {' to '.join(map(str, counts))} of the "
                "dictionaries. Bold: off zero.\n"
            )
            # Of other classifiers the values, and what comes of all of them.
            if model_seed == first:
                print_primary(found)
                print_ablation(cells, found)
                print_recoverability(found, told_of)
                print_released(cells, found)
            else:
                print_values(found)
            print(f"Targets, K = {n_codes}, classifier of seed {model_seed}.\n")
            print_targets(targets(cells, found, told_of))
        if len(by_seed) > 1:
            print(f"K = {n_codes}, {len(by_seed)} classifiers.\n")
            print_over_classifiers(
                cells,
                [c for found in by_seed.values() for c in found],
                recovered(cells, [c for c in wanted if c.n_codes == n_codes]),
            )
    print_prompted(cells, datasets, columns(cells, prompted))
