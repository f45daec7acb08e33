"""``--write``: what a benchmark prints goes into its page in ``benchmarks/results`` as it is."""

from __future__ import annotations

import argparse
import io
import platform
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import date
from pathlib import Path
from typing import TextIO

import torch

from bae_lens.files.whole import write_text

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- printed: begin -->", "<!-- printed: end -->"
# Options that name a file or folder of whoever ran it: where it lies changes no figure.
_PATHS = ("--cache", "--data", "--json", "--output", "--plot", "--work")


def add_write_argument(parser: argparse.ArgumentParser) -> None:
    """``--write``."""
    parser.add_argument(
        "--write",
        action="store_true",
        help="put what is printed into the benchmark's page in benchmarks/results",
    )


@contextmanager
def written(name: str, args: argparse.Namespace) -> Iterator[None]:
    """Print as ever; with ``--write``, put all of it into a page of results once the block is over.

    The page's text before and after the markers stays. Nothing is written where the block fails.

    Args:
        name: of the page, without its suffix.
        args: of the benchmark.

    Raises:
        ValueError: if it is a quick run, whose figures are nobody's, before anything is measured.
    """
    if not args.write:
        yield
        return
    if getattr(args, "quick", False):
        raise ValueError(
            "--write keeps figures, and those of --quick are of too little: leave one out."
        )
    copy = io.StringIO()
    with redirect_stdout(_Both(sys.stdout, copy)):
        yield
    path = RESULTS / f"{name}.md"
    write_text(path, with_printed(path.read_text(encoding="utf-8"), copy.getvalue(), sys.argv))


def with_printed(page: str, printed: str, argv: list[str]) -> str:
    """A page with what a run printed between its markers, which are put at its end at first.

    Args:
        page: its Markdown.
        printed: by the run.
        argv: its command line.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    stamp = (
        f"Printed by `python benchmarks/{command(argv)}` on {date.today()}: {platform.machine()}, "
        f"{torch.get_num_threads()} threads, {device}, torch {torch.__version__}."
    )
    block = f"{BEGIN}\n{stamp}\n\n{printed.strip()}\n{END}"
    found = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if found.search(page):
        return found.sub(lambda _: block, page, count=1)
    return f"{page.rstrip()}\n\n## As printed\n\n{block}\n"


def command(argv: list[str]) -> str:
    """A command line without what folders and files are called here."""
    shown = [Path(argv[0]).name]
    for i, word in enumerate(argv[1:], 1):
        option, _, value = word.partition("=")
        if argv[i - 1] in _PATHS:
            shown.append(argv[i - 1][2:].upper())
        elif option in _PATHS and value:
            shown += [option, option[2:].upper()]
        elif word != "--write":
            shown.append(shlex.quote(word))
    return " ".join(shown)


class _Both(io.TextIOBase):
    """Writes to a stream and to a copy of it."""

    def __init__(self, stream: TextIO, copy: TextIO) -> None:
        self._streams = (stream, copy)

    def write(self, text: str, /) -> int:
        for stream in self._streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self._streams:
            stream.flush()
