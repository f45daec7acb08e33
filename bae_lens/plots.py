"""Figures of a trained code (matplotlib, extra ``demo``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bae_lens.evals.code_statistics import CodeSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bae_lens.entropy.result import EntropyProfile

# Two hues that stay apart for the colour-blind and in grey; line styles tell them apart as well.
COLOURS = ("#0b6e99", "#d1711f", "#5b8c2a", "#8a4f9e")
_STYLES = ("-", "--", "-.", ":")


def require_matplotlib() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: if matplotlib is missing; the message is the command to run.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as e:
        raise ImportError(
            "Plots need matplotlib. Install it with:\n    pip install 'bae-lens[demo]'"
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


def read_metric_log(path: str | Path) -> dict[str, list[float]]:
    """A training run's ``metrics.jsonl`` as columns, NaN where a line lacks a value."""
    # Of a run that was killed, the last line may be cut short.
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: [float("nan") if row.get(name) is None else row[name] for row in rows]
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
