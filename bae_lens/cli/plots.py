"""The plot that a command writes beside its JSON file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bae_lens.cli.saved import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NONE = "none"


def add_plot_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """``--plot``, of what is said."""
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help=f"image file (.png, .svg or .pdf) to write: {what}; none: no plot; default: beside --output, "
        "by the same name with .png",
    )


def plot_path(args: argparse.Namespace, output: Path, *inputs: str | Path | None) -> Path | None:
    """Where to write the plot; None where none is asked for, or can be drawn.

    Args:
        args: parsed, with ``add_plot_argument``.
        output: the JSON file. Where that is a device, there is no plot by default.
        inputs: see ``check_output``.

    Raises:
        ValueError: if it cannot be written there, or would take the place of a file that is read or written.
        ImportError: if a plot is asked for and matplotlib is missing. By default that is said, and no error.
    """
    if args.plot == _NONE or (args.plot is None and output.exists() and not output.is_file()):
        return None
    from bae_lens.charts import check_figure_file, require_matplotlib

    path = output.with_suffix(".png") if args.plot is None else Path(args.plot)
    try:
        check_figure_file(path)
    except ValueError as error:
        raise ValueError(f"--plot {error}") from error
    check_output(path, *inputs, option="--plot", others=[output])
    try:
        require_matplotlib()
    except ImportError as error:
        if args.plot is not None:
            raise
        print(f"bae-lens: no plot is written. {error}", file=sys.stderr)
        return None
    return path


def write_plot(path: Path | None, draw: Callable[[], Figure]) -> None:
    """Draw and write, all or nothing, and say where; nothing without a path."""
    if path is None:
        return
    from bae_lens.charts import require_matplotlib, save_figure

    figure = draw()
    save_figure(figure, path)
    require_matplotlib().close(figure)
    print(f"Plot in {path}")
