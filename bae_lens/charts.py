"""Charts of plain numbers (matplotlib, extra ``demo``).

Nothing here knows what was measured: a result says in its ``plot`` what stands on which axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bae_lens.checks.install_hint import install_command
from bae_lens.files.whole import write_bytes
from bae_lens.stats import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Hues that stay apart for the color-blind and in gray; line styles tell them apart as well.
COLORS = ("#0b6e99", "#d1711f", "#5b8c2a", "#8a4f9e")
STYLES = ("-", "--", "-.", ":")
# Endings of files that figures are written to.
FORMATS = (".png", ".svg", ".pdf")
_GRAY = "0.3"
_LEGEND_BELOW: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}


@dataclass(frozen=True)
class Curve:
    """A line through points.

    Attributes:
        name: In the legend.
        x: Of the points.
        y: Of the points.
        low: Lower ends of a band around the line; None: there is no band.
        high: Its upper ends.
        color: One of ``COLORS``, by number.
        style: One of ``STYLES``, by number.
        marker: matplotlib's sign for the points; empty: the line alone.
        band_alpha: How opaque the band is.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    color: int = 0
    style: int = 0
    marker: str = ""
    band_alpha: float = 0.18


class Level(NamedTuple):
    """A value that others are to be compared with, drawn as a straight line.

    Attributes:
        value: On the axis of the values.
        label: In the legend.
        style: matplotlib's line style.
    """

    value: float
    label: str
    style: str = ":"


class Look(NamedTuple):
    """How a point looks.

    Attributes:
        marker: matplotlib's sign.
        color: matplotlib's name of a color.
        is_hollow: Whether it is white inside.
        is_small: Whether it is smaller than others.
    """

    marker: str
    color: str
    is_hollow: bool = False
    is_small: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The same for ``errorbar`` and ``Line2D``."""
        return {
            "marker": self.marker,
            "color": self.color,
            "markersize": 3.5 if self.is_small else 6,
            "markerfacecolor": "white" if self.is_hollow else self.color,
            "linestyle": "",
        }


class Mark(NamedTuple):
    """A point of a scatter plot with the interval of its height."""

    x: float
    y: Interval
    look: Look


@dataclass(frozen=True)
class Panel:
    """What one part of a figure shows.

    Attributes:
        scores: By name, values that are drawn from the highest to the lowest (``sorted_scores``).
        marks: Points (``scatter``).
        levels: What they are to be compared with.
        title: Above the panel.
    """

    scores: Mapping[str, Sequence[float]] | None = None
    marks: Sequence[Mark] = ()
    levels: Sequence[Level] = ()
    title: str = ""


def require_matplotlib() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: If matplotlib is missing; the message is the command to run.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError(
            f"Plots need matplotlib. Install it with:\n    {install_command('demo')}"
        ) from e
    return plt


def check_figure_file(path: str | Path) -> None:
    """That a path's ending names a format that figures are written in.

    Raises:
        ValueError: If it does not.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ValueError(
            f"{path} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, the formats of figures."
        )


def save_figure(figure: Figure, path: str | Path, dpi: int = 150) -> None:
    """Write an image file in the format that the path's ending says, all or nothing."""
    image = BytesIO()
    figure.savefig(image, dpi=dpi, format=Path(path).suffix[1:])
    write_bytes(path, image.getvalue())


def draw_curve(axes: Any, curve: Curve) -> None:
    """Draw a line, and its band where it has one, into axes of matplotlib."""
    color = COLORS[curve.color % len(COLORS)]
    axes.plot(
        *(curve.x, curve.y, STYLES[curve.style % len(STYLES)]),
        marker=curve.marker or None,
        markersize=4,
        color=color,
        label=curve.name,
    )
    if curve.low is not None and curve.high is not None:
        axes.fill_between(
            *(curve.x, curve.low, curve.high), color=color, alpha=curve.band_alpha, linewidth=0
        )


def curves(
    lines: Sequence[Curve],
    x_label: str,
    y_label: str,
    ticks: Mapping[str, float],
    title: str = "",
    x_base: float | None = None,
) -> Figure:
    """Lines in one panel.

    Args:
        lines: The lines.
        x_label: What stands on the lower axis.
        y_label: What stands on the left axis.
        ticks: Label → place on the lower axis.
        title: Above the figure.
        x_base: Base of a logarithmic lower axis; None: it is linear.
    """
    plt = require_matplotlib()
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for line in lines:
        draw_curve(axes, line)
    if x_base is not None:
        axes.set_xscale("log", base=x_base)
    axes.set_xlabel(x_label)
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.set_ylabel(y_label)
    axes.set_title(title)
    # More than four names leave no room beside the lines.
    if len(axes.lines) > 4:
        figure.legend(ncols=2, **_LEGEND_BELOW)
    else:
        axes.legend(frameon=False, fontsize=8)
    remove_frame(axes)
    return figure


def remove_frame(axes: Any) -> None:
    """Take the upper and the right line of the frame away."""
    axes.spines[["top", "right"]].set_visible(False)


def log_histogram(
    values: Mapping[str, torch.Tensor],
    least: float,
    x_label: str,
    y_label: str,
    marks: Mapping[str, float],
    title: str = "",
) -> Figure:
    """How often values from ``least`` to 1 occur, in 40 bins of a logarithmic axis, a line per name.

    Zeros, which have no place on that axis, stand as "never" in a bar of their own at the left.

    Args:
        values: Name → values, each 0 or from ``least`` to 1.
        least: Where the lowest bin begins.
        x_label: What the values are.
        y_label: What is counted.
        marks: Label → value at which a vertical line stands.
        title: Above the figure.
    """
    plt = require_matplotlib()
    edges = torch.logspace(torch.log10(torch.tensor(least)).item(), 0.0, 41)
    centers = (edges[1:] * edges[:-1]).sqrt()
    figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
    for i, (name, own) in enumerate(values.items()):
        color = COLORS[i % 4]
        # Clamped, since the outermost edges are rounded.
        counts = torch.histogram(own[own > 0].clamp(edges[0], edges[-1]), edges).hist
        axes.plot(centers, counts, STYLES[i % 4], color=color, drawstyle="steps-mid", label=name)
        n_zero = int((own == 0).sum())
        x = least / 3 * 1.35**i
        axes.bar(x, n_zero, width=x * 0.25, color=color)
        look = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": 8, "color": color}
        axes.annotate(f" {n_zero} never", (x, n_zero), **look)
    for label, value in marks.items():
        axes.axvline(value, color="0.4", linewidth=0.8)
        where = axes.get_xaxis_transform()
        axes.text(value, 1.0, f" {label}", transform=where, va="top", color=_GRAY)
    axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0), frameon=False)
    remove_frame(axes)
    return figure


def sorted_scores(
    panels: Sequence[Panel], measure: str, title: str = "", width: float = 4.6
) -> Figure:
    """Scores from 0 to 1, the best first, by rank; a panel beside the other.

    Args:
        panels: One at least. Every name is in the first of them, whose legend is the figure's.
        measure: What the scores are.
        title: Above the figure.
        width: Of a panel, in inches.
    """
    plt = require_matplotlib()
    figure, all_axes = plt.subplots(
        *(1, len(panels)),
        figsize=(width * len(panels), 3.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, panel in zip(all_axes.flat, panels, strict=True):
        for i, (name, values) in enumerate((panel.scores or {}).items()):
            axes.plot(
                *(range(1, len(values) + 1), sorted(values, reverse=True), STYLES[i]),
                marker="os"[i],
                markersize=3,
                markerfacecolor=COLORS[i] if i == 0 else "white",
                color=COLORS[i],
                label=name,
            )
        for level in panel.levels:
            _draw_level(axes, level)
        axes.set_title(panel.title, fontsize=10)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("latents, the best first")
        axes.xaxis.get_major_locator().set_params(integer=True)
        remove_frame(axes)
    first = all_axes.flat[0]
    first.set_ylabel(measure)
    figure.suptitle(title)
    figure.legend(*first.get_legend_handles_labels(), ncols=2, **_LEGEND_BELOW)
    return figure


def intervals(
    rows: Mapping[str, Interval | None],
    measure: str,
    level: Level,
    title: str = "",
    hollow: Sequence[str] = (),
    size: tuple[float, float, float] = (6.8, 0.36, 1.4),
) -> Figure:
    """Means from 0 to 1 with their intervals, a row each, from the top down.

    Args:
        rows: Name → interval; None leaves the row empty.
        measure: What the means are.
        level: What they are to be compared with, named above the line unless its label is empty.
        title: Above the figure.
        hollow: Names of rows that are for comparison, in another color and white inside.
        size: Width of the figure, height of a row and of what is around the rows, in inches.
    """
    plt = require_matplotlib()
    width, of_row, around = size
    figure, axes = plt.subplots(figsize=(width, of_row * len(rows) + around), layout="constrained")
    for y, (name, interval) in enumerate(rows.items()):
        if interval is None:
            continue
        i = int(name in hollow)
        axes.errorbar(
            *(interval.mean, y),
            xerr=_bar(interval),
            fmt="os"[i],
            markersize=5,
            markerfacecolor=COLORS[i] if i == 0 else "white",
            color=COLORS[i],
        )
    axes.axvline(level.value, color=_GRAY, linestyle=level.style, linewidth=0.9)
    if level.label:
        where = axes.get_xaxis_transform()
        axes.text(level.value, 1.0, f" {level.label}", transform=where, va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), list(rows))
    # From the top down, and room for one without an interval.
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(measure)
    remove_frame(axes)
    figure.suptitle(title)
    return figure


def _bar(interval: Interval) -> list[list[float]] | None:
    """How far the bounds are below and above the mean; None where there are none, and none are drawn."""
    below, above = interval.mean - interval.low, interval.high - interval.mean
    return [[below], [above]] if interval.has_bounds else None


def scatter(
    panels: Sequence[Panel],
    x_label: str,
    y_label: str,
    ticks: Sequence[float],
    looks: Mapping[str, Look],
    title: str = "",
) -> Figure:
    """Points with the intervals of their heights, in panels of the same axes, two beside each other.

    The lower axis is logarithmic down to the second of the ticks and linear from there to 0.

    Args:
        panels: One at least.
        x_label: What stands on the lower axis.
        y_label: What stands on the left axis.
        ticks: Of the lower axis, from 0 upwards.
        looks: What the legend says of points, after the levels.
        title: Above the figure.
    """
    plt = require_matplotlib()
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullLocator

    n_columns = min(len(panels), 2)
    n_lines = -(-len(panels) // n_columns)
    figure, all_axes = plt.subplots(
        *(n_lines, n_columns),
        figsize=(4.8 * n_columns, 3.1 * n_lines + 1.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    legend: dict[str, Any] = {}
    for axes, panel in zip(all_axes.flat, panels, strict=False):
        axes.set_xscale("symlog", linthresh=ticks[1], linscale=0.3)
        for level in panel.levels:
            legend[level.label] = _draw_level(axes, level)
        for x, y, look in panel.marks:
            axes.errorbar(x, y.mean, yerr=_bar(y), elinewidth=0.8, **look.options)
        axes.set_title(panel.title, fontsize=10)
        remove_frame(axes)
    for axes in all_axes[:, 0]:
        axes.set_ylabel(y_label)
    # Those with no panel below them.
    for axes in islice(all_axes.flat, len(panels) - n_columns, len(panels)):
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=True)
    for axes in all_axes.flat[len(panels) :]:
        axes.remove()
    # All panels share it.
    axis = all_axes[0, 0].xaxis
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    figure.suptitle(title)
    legend |= {name: Line2D([], [], **look.options) for name, look in looks.items()}
    figure.legend(legend.values(), legend.keys(), ncols=2 * n_columns, **_LEGEND_BELOW)
    return figure


def _draw_level(axes: Any, level: Level) -> Any:
    return axes.axhline(
        level.value, color=_GRAY, linestyle=level.style, linewidth=0.9, label=level.label
    )
