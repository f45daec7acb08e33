"""Figures of codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

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
    return plot_firing_rates(
        {name: code.firing_rates.tolist() for name, code in codes.items()},
        max((code.n_tokens for code in codes.values()), default=1),
        title,
    )


def plot_firing_rates(
    rates: Mapping[str, Sequence[float]], n_tokens: int, title: str = ""
) -> Figure:
    """Draw ``plot_densities`` from the rates alone, such as ``run_evals`` returns.

    Args:
        rates: Name → how often each latent fires.
        n_tokens: Tokens that they are of: no rate but 0 is below 1 in so many.
        title: Above the figure.

    Raises:
        ImportError: If matplotlib is missing; the message is the command to run.
    """
    return charts.log_histogram(
        {name: torch.tensor(own) for name, own in rates.items()},
        least=1 / n_tokens,
        x_label="share of tokens on which the latent fires",
        y_label="latents per bin",
        marks={"1 %": 0.01, "10 %": 0.1},
        title=title,
    )
