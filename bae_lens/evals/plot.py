"""Figures of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bae_lens import charts
from bae_lens.evals.code_summary import CodeSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_densities(codes: Mapping[str, CodeSummary], title: str = "") -> Figure:
    """Draw a histogram of how often each latent fires, a line per code, with marks at 1 % and 10 %.

    Rates are as the SAE is. Latents that never fired stand in a bar of their own at the left.

    Args:
        codes: Name → statistics.
        title: Above the figure.

    Raises:
        ImportError: If matplotlib is missing; the message is the command to run.
    """
    return charts.log_histogram(
        {name: code.firing_rates for name, code in codes.items()},
        least=min((1 / code.n_tokens for code in codes.values()), default=1.0),
        x_label="share of tokens on which the latent fires",
        y_label="latents per bin",
        marks={"1 %": 0.01, "10 %": 0.1},
        title=title,
    )
