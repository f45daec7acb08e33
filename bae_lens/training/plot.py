"""Figures of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bae_lens.charts import Curve, draw_curve, remove_frame, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(
    logs: Mapping[str, Mapping[str, Sequence[float]]],
    target_entropy: float | None = None,
    title: str = "",
) -> Figure:
    """Draw the reconstruction loss and the entropy of the minibatch's code over training runs.

    The entropy is the one that a budget is of: latents one by one, and of levels, which one it is as well.

    Args:
        logs: Name → columns of its metric log (``read_metric_log``); runs that log no entropy are
            left out of the right panel.
        target_entropy: Bits per token, drawn as a line.
        title: Above the figure.

    Raises:
        ImportError: If matplotlib is missing; the message is the command to run.
    """
    plt = require_matplotlib()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    for i, (name, log) in enumerate(logs.items()):
        tokens = [n / 1e6 for n in log["details/n_training_samples"]]
        for axes, column in ((left, "losses/mse_loss"), (right, "metrics/entropy")):
            if axes is left or column in log:
                draw_curve(axes, Curve(name, tokens, log[column], color=i, style=i))
    if target_entropy is not None:
        label = f"target {target_entropy:g}"
        right.axhline(target_entropy, color="0.4", linewidth=0.8, label=label)
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis("{x:g}")
    left.set_ylabel("squared error per token, scaled inputs")
    right.set_ylabel("entropy of the code, bits per token")
    for axes in (left, right):
        axes.set_xlabel("training tokens (million, replays counted)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        remove_frame(axes)
    figure.suptitle(title)
    return figure
