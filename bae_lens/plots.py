"""Figures of a trained code and of what was measured with it (matplotlib, extra ``demo``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bae_lens.checks.install_hint import install_command
from bae_lens.checks.typed import check_types
from bae_lens.concept_ablation import result as ablation
from bae_lens.concept_ablation.result import AblationRow, ConceptAblationResult
from bae_lens.evals.code_statistics import CodeSummary
from bae_lens.files.json_file import parse_json
from bae_lens.files.whole import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bae_lens.entropy.result import EntropyProfile
    from bae_lens.scoring.comsem_result import ComSemResult
    from bae_lens.scoring.intruder import IntruderResult
    from bae_lens.scoring.ranking import Ranking
    from bae_lens.scoring.recoverability_result import Recovery
    from bae_lens.stats import Interval

# Two hues that stay apart for the colour-blind and in grey; line styles tell them apart as well.
COLOURS = ("#0b6e99", "#d1711f", "#5b8c2a", "#8a4f9e")
_STYLES = ("-", "--", "-.", ":")
# A shape each; controls of a kind share a colour.
_METHODS = {
    ablation.CONCEPT: ("o", COLOURS[0]),
    ablation.RANDOM: ("v", COLOURS[1]),
    ablation.RANDOM_EQUAL: ("^", COLOURS[1]),
    ablation.RANDOM_CONCEPT: ("s", COLOURS[2]),
    ablation.OTHER_CLASS: ("D", COLOURS[2]),
    ablation.MEAN: ("P", COLOURS[3]),
    ablation.LEACE: ("X", COLOURS[3]),
}


def require_matplotlib() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: if matplotlib is missing; the message is the command to run.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError(
            f"Plots need matplotlib. Install it with:\n    {install_command('demo')}"
        ) from e
    return plt


def plot_densities(codes: Mapping[str, CodeSummary], title: str = "") -> Figure:
    """Histogram of how often each latent fires, one line a code, with the 1 % and 10 % marks.

    Rates are as the SAE is. Latents that never fired stand in a bar of their own at the left.

    Args:
        codes: name → statistics.
        title: of the figure.
    """
    plt = require_matplotlib()
    lowest = min(1 / code.n_tokens for code in codes.values())
    edges = torch.logspace(torch.log10(torch.tensor(lowest)).item(), 0.0, 41)
    centres = (edges[1:] * edges[:-1]).sqrt()
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for i, (name, code) in enumerate(codes.items()):
        colour, style = COLOURS[i % 4], _STYLES[i % 4]
        rates = code.firing_rates
        # Clamped, since the outermost edges are rounded.
        counts = torch.histogram(rates[rates > 0].clamp(edges[0], edges[-1]), edges).hist
        axes.plot(centres, counts, style, color=colour, drawstyle="steps-mid", label=name)
        dead = int((rates == 0).sum())
        x = lowest / 3 * 1.35**i
        axes.bar(x, dead, width=x * 0.25, color=colour)
        axes.annotate(
            f" {dead} never",
            (x, dead),
            ha="center",
            va="bottom",
            rotation=90,
            fontsize=8,
            color=colour,
        )
    for mark, text in ((0.01, "1 %"), (0.1, "10 %")):
        axes.axvline(mark, color="0.4", linewidth=0.8)
        axes.text(
            mark, 1.0, f" {text}", transform=axes.get_xaxis_transform(), va="top", color="0.3"
        )
    axes.set_xscale("log")
    axes.set_xlabel("share of tokens on which the latent fires")
    axes.set_ylabel("latents per bin")
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """As an image file, in the format that the path's ending says; all or nothing."""
    image = BytesIO()
    figure.savefig(image, dpi=dpi, format=Path(path).suffix[1:])
    write_bytes(path, image.getvalue())


def read_metric_log(path: str | Path) -> dict[str, list[float]]:
    """A training run's ``metrics.jsonl`` as columns, NaN where a line lacks a value.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no object of numbers by name. The last one may be cut short, of a run
            that was killed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    rows: list[dict[str, float | None]] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            row = parse_json(line)
            check_types(row, dict[str, float | None], "what it holds")
        except ValueError as error:
            raise ValueError(
                f"{path} is no log of a training run: line {number} is no object of numbers by name "
                f"({str(error).removesuffix('.')})."
            ) from error
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: [float("nan") if (value := row.get(name)) is None else value for row in rows]
        for name in names
    }


def plot_training(
    logs: Mapping[str, Mapping[str, list[float]]],
    target_entropy: float | None = None,
    title: str = "",
) -> Figure:
    """Reconstruction loss and entropy of the minibatch's code over a training run.

    Args:
        logs: name → columns of its metric log (``read_metric_log``); runs that log no entropy are
            left out of the right panel.
        target_entropy: bits per token, drawn as a line.
        title: of the figure.
    """
    plt = require_matplotlib()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for i, (name, log) in enumerate(logs.items()):
        tokens = [n / 1e6 for n in log["details/n_training_samples"]]
        style: dict[str, Any] = {"color": COLOURS[i % 4], "linestyle": _STYLES[i % 4]}
        left.plot(tokens, log["losses/mse_loss"], label=name, **style)
        if "metrics/entropy" in log:
            right.plot(tokens, log["metrics/entropy"], label=name, **style)
    if target_entropy is not None:
        label = f"target {target_entropy:g}"
        right.axhline(target_entropy, color="0.4", linewidth=0.8, label=label)
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis("{x:g}")
    left.set_ylabel("squared error per token, scaled inputs")
    right.set_ylabel("marginal entropy, bits per token")
    for axes in (left, right):
        axes.set_xlabel("training tokens (million, replays counted)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    return figure


def plot_entropy_profile(profile: EntropyProfile, title: str = "") -> Figure:
    """Chow–Liu entropy by position or number of demonstrations, a line a hook.

    Bands are 95 % t-intervals over seeds; controls are broken lines in the hook's colour.

    Args:
        profile: of ``entropy_profile`` or ``in_context_entropy``.
        title: of the figure.
    """
    plt = require_matplotlib()
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    at = {row.label: row.at for row in profile.rows}
    labels = sorted(at, key=lambda label: at[label])
    for i, hook in enumerate(profile.hooks):
        for j, control in enumerate(profile.controls):
            points = [profile.interval(hook, label, control) for label in labels]
            means = [point.mean for point in points]
            axes.plot(
                [at[label] for label in labels],
                means,
                _STYLES[j % 4],
                marker="osD^"[i % 4],
                markersize=4,
                color=COLOURS[i % 4],
                label=hook if control is None else f"{hook}, {control}",
            )
            # With one seed there is no interval, and no band.
            low = [mean - point.half_width for mean, point in zip(means, points, strict=True)]
            high = [mean + point.half_width for mean, point in zip(means, points, strict=True)]
            axes.fill_between(
                [at[label] for label in labels],
                *(low, high),
                color=COLOURS[i % 4],
                alpha=0.18 if control is None else 0.08,
                linewidth=0,
            )
    if profile.axis == "token position":
        axes.set_xscale("log", base=2)
        axes.set_xlabel("token position (BOS is 0)")
    else:
        axes.set_xlabel("demonstrations before the query")
    axes.set_xticks([at[label] for label in labels], labels)
    axes.minorticks_off()
    axes.set_ylabel(f"entropy, bits per vector, at {profile.max_unexplained:g} unexplained")
    axes.set_title(title)
    # More than four names leave no room beside the lines.
    if len(axes.lines) > 4:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    else:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_concept_ablation(result: ConceptAblationResult, title: str = "") -> Figure:
    """Accuracy against what was removed, a panel a place, with the untouched model's and chance.

    Bars are 95 % paired bootstrap intervals of the change. Concepts are those of the salient words;
    of the readout where no others were ablated. Marks stand up to an eighth beside their removed
    norm, each method at its own side, since several remove equally much.

    Args:
        result: of ``concept_ablation``.
        title: of the figure.
    """
    plt = require_matplotlib()
    from matplotlib.ticker import FixedLocator, NullLocator

    source = "readout" if result.settings["salient"] == "readout" else "word"
    rows = [row for row in result.rows if row.concept_of in ("", source)]
    places = list(dict.fromkeys(row.place for row in rows))
    n_columns = min(len(places), 2)
    n_lines = -(-len(places) // n_columns)
    figure, panels = plt.subplots(
        *(n_lines, n_columns),
        figsize=(4.8 * n_columns, 3.1 * n_lines + 1.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    shown: dict[str, Any] = {}
    for axes, place in zip(panels.flat, places, strict=False):
        axes.set_xscale("symlog", linthresh=1e-3, linscale=0.3)
        shown["chance"] = axes.axhline(result.chance, color="0.3", linestyle=":", linewidth=0.9)
        for row in rows:
            if row.place == place and row.method == "none":
                style = _STYLES[0 if row.read_by == ablation.PROBE else 1]
                line = axes.axhline(row.accuracy, color="0.3", linestyle=style, linewidth=0.9)
                shown[f"untouched, {row.read_by}"] = line
        for row in rows:
            if row.place == place and row.method != "none":
                _mark(axes, result, row)
        axes.set_title(place, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy")
    # Those with no panel below them.
    for axes in panels.flat[len(places) - n_columns : len(places)]:
        axes.set_xlabel("share of the norm that was removed, ‖v−v'‖ / ‖v‖")
        axes.tick_params(labelbottom=True)
    for axes in panels.flat[len(places) :]:
        axes.remove()
    # All panels share it.
    axis = panels[0, 0].xaxis
    axis.set_major_locator(FixedLocator([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    figure.suptitle(title)
    there = {row.method.removesuffix(ablation.RETRAINED) for row in rows}
    for method in _METHODS:
        if method in there:
            shown[method] = _key(*_METHODS[method])
    if any(row.read_by == ablation.LABEL_WORDS for row in rows):
        shown["hollow: read by label words"] = _key("o", "0.3", is_hollow=True)
    shown["small: probe retrained"] = _key("o", "0.3", is_small=True)
    figure.legend(
        shown.values(),
        shown.keys(),
        loc="outside lower center",
        ncols=2 * n_columns,
        frameon=False,
        fontsize=8,
    )
    return figure


def plot_intruder(result: IntruderResult, title: str = "") -> Figure:
    """Accuracy of each latent, the best first, and of the shuffled ones; a panel a kind of intruder.

    Hard intruders have no line of chance: they are chosen to be like the examples, so that the shuffled
    latents show what nothing comes to.

    Args:
        result: of ``intruder_test``.
        title: of the figure.
    """
    plt = require_matplotlib()
    from bae_lens.scoring.intruder import KINDS, IntruderKind

    kinds: list[IntruderKind] = [kind for kind in KINDS if result.accuracy(kind) is not None]
    # One, though empty, where nothing was answered.
    n_panels = max(len(kinds), 1)
    figure, panels = plt.subplots(
        *(1, n_panels),
        figsize=(4.6 * n_panels, 3.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawn = (("latents", result.latents), ("shuffled latents", result.control))
    for axes, kind in zip(panels.flat, kinds, strict=False):
        for i, (name, trials) in enumerate(drawn):
            accuracies = [own.accuracy(kind) for own in trials]
            _plot_sorted(axes, i, name, [a.mean for a in accuracies if a is not None])
        if kind == "random":
            _level(axes, result.chance, "chance", ":")
            _level(axes, result.settings.threshold, "threshold", "-.")
        axes.set_title(f"{kind} intruder", fontsize=10)
    _finish_scores(figure, panels[0], "share of intruders found", title)
    return figure


def plot_comsem(result: ComSemResult, title: str = "") -> Figure:
    """Score of each latent, the best first; mended, also the share of positives that its phrases fit,
    which is what the released protocol would score.

    Args:
        result: of ``comsem_test``.
        title: of the figure.
    """
    plt = require_matplotlib()
    figure, axes = plt.subplots(figsize=(5.6, 3.8), layout="constrained")
    is_mended = result.settings.protocol == "mended"
    measure = "balanced accuracy" if is_mended else "share of positives that fit"
    _plot_sorted(axes, 0, measure, list(result.scores().values()))
    if is_mended:
        positives: dict[int, list[float]] = {}
        for run in result.runs:
            if run.positives_only is not None:
                positives.setdefault(run.latent, []).append(run.positives_only)
        means = [sum(own) / len(own) for own in positives.values()]
        _plot_sorted(axes, 1, "positives only, of those explained", means)
    label = "guessing, or no pattern" if is_mended else "no pattern"
    _level(axes, result.settings.nothing, label, ":")
    _level(axes, result.settings.threshold, "threshold", "-.")
    _finish_scores(figure, [axes], "score, mean over seeds" if is_mended else "score", title)
    return figure


def plot_recovery(result: Recovery, title: str = "") -> Figure:
    """Balanced accuracy by what the reader sees, with 95 % intervals, beside chance.

    Args:
        result: of ``RecoveryTask.recover``.
        title: of the figure.
    """
    plt = require_matplotlib()
    from bae_lens.scoring.recoverability_result import GIVEN, OF_CONCEPT, SHOWN, Given

    given: list[Given] = [one for one in GIVEN if one in result.said]
    figure, axes = plt.subplots(figsize=(6.8, 0.36 * len(given) + 1.4), layout="constrained")
    for y, one in enumerate(given):
        _interval(axes, int(one not in OF_CONCEPT), y, result.score(one))
    axes.axvline(result.chance, color="0.3", linestyle=":", linewidth=0.9)
    axes.text(
        result.chance, 1.0, " chance", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8
    )
    _finish_intervals(axes, [SHOWN[one] for one in given], "balanced accuracy of the reader", title)
    return figure


def plot_ranking(result: Ranking, title: str = "") -> Figure:
    """Win rate of each dictionary against all others with its 95 % interval, the best first.

    Args:
        result: of ``rank_dictionaries``.
        title: of the figure.
    """
    plt = require_matplotlib()
    figure, axes = plt.subplots(figsize=(6.0, 0.42 * len(result.names) + 1.2), layout="constrained")
    for y, name in enumerate(result.order):
        rate = result.win_rate(name)
        if rate is not None:
            _interval(axes, 0, y, rate)
    axes.axvline(0.5, color="0.3", linestyle=":", linewidth=0.9)
    _finish_intervals(axes, result.order, "win rate against all others, ties 1/2", title)
    return figure


def _interval(axes: Any, i: int, y: float, interval: Interval) -> None:
    """A point with its interval, on a line of its own; the second kind for comparison."""
    axes.errorbar(
        *(interval.mean, y),
        xerr=[[interval.mean - interval.low], [interval.high - interval.mean]],
        fmt="os"[i],
        markersize=5,
        markerfacecolor=COLOURS[i] if i == 0 else "white",
        color=COLOURS[i],
    )


def _finish_intervals(axes: Any, names: Sequence[str], measure: str, title: str) -> None:
    axes.set_yticks(range(len(names)), names)
    # From the top down, and room for one without an interval.
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(measure)
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.suptitle(title)


def _plot_sorted(axes: Any, i: int, label: str, values: Sequence[float]) -> None:
    """Values from the highest to the lowest, by rank."""
    axes.plot(
        *(range(1, len(values) + 1), sorted(values, reverse=True)),
        _STYLES[i],
        marker="os"[i],
        markersize=3,
        markerfacecolor=COLOURS[i] if i == 0 else "white",
        color=COLOURS[i],
        label=label,
    )


def _level(axes: Any, value: float, label: str, style: str) -> None:
    axes.axhline(value, color="0.3", linestyle=style, linewidth=0.9, label=label)


def _finish_scores(figure: Any, panels: Sequence[Any], measure: str, title: str) -> None:
    panels[0].set_ylabel(measure)
    for axes in panels:
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("latents, the best first")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    # Every line is in the first panel.
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def _mark(axes: Any, result: ConceptAblationResult, row: AblationRow) -> None:
    """One row: a point with its interval."""
    method = row.method.removesuffix(ablation.RETRAINED)
    is_hollow = row.read_by == ablation.LABEL_WORDS
    lost = result.change(row)
    beside = 1.04 ** (list(_METHODS).index(method) - 3)
    axes.errorbar(
        *(row.removed_norm * beside, row.accuracy),
        yerr=[[lost.high - lost.mean], [lost.mean - lost.low]],
        elinewidth=0.8,
        **_look(*_METHODS[method], is_hollow, method != row.method),
    )


def _key(*look: Any, **kwargs: bool) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **_look(*look, **kwargs))


def _look(
    marker: str, colour: str, is_hollow: bool = False, is_small: bool = False
) -> dict[str, Any]:
    return {
        "marker": marker,
        "color": colour,
        "markersize": 3.5 if is_small else 6,
        "markerfacecolor": "white" if is_hollow else colour,
        "linestyle": "",
    }
