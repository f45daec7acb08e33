"""All readers, and the table of what came of their bad inputs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.bad_inputs.readers import Reader
from tests.bad_inputs.trial import Result, Trial, run
from tests.cli.helpers import resolve_to_tiny

SEED = 0


class Tried(NamedTuple):
    """A reader, and what came of each of its trials."""

    reader: Reader
    results: list[tuple[Trial, Result]]

    def count(self, *outcomes: str) -> int:
        """Trials with one of the outcomes."""
        found = Counter(result.outcome for _, result in self.results)
        return sum(found[outcome] for outcome in outcomes)


def try_all(readers: Iterable[Reader], n: int, folder: Path, seed: int = SEED) -> list[Tried]:
    """n inputs a reader."""
    logging.disable(logging.WARNING)
    try:
        with pytest.MonkeyPatch.context() as patch:
            resolve_to_tiny(patch)
            return [
                Tried(one, [(trial, run(trial)) for trial in one.draw(n, seed, folder / f"{i}")])
                for i, one in enumerate(readers)
            ]
    finally:
        logging.disable(logging.NOTSET)


def table(tried: list[Tried], seed: int = SEED) -> str:
    """Markdown, a line a reader; what cannot be told from a good input is not counted as silent."""
    lines = [
        f"| reader | generator (seed {seed}) | expects | tried | clear | accepted, cannot be told | unclear | silent | hangs |",
        "| --- " * 9 + "|",
    ]
    rows = [(one.reader.name, one.reader.generator, one.reader.expects, one) for one in tried]
    whole = Tried(
        Reader("all", "", "", lambda *_: iter(())), [r for one in tried for r in one.results]
    )
    for name, generator, expects, one in [*rows, ("all", "", "", whole)]:
        counts = [one.count(k) for k in ("clear", "accepted", "unclear", "silent", "hang")]
        cells = [name, generator, expects, str(len(one.results)), *map(str, counts)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def failures(tried: list[Tried]) -> list[str]:
    """Every input whose answer was not clear, with what came."""
    return [
        f"{one.reader.name}: {trial.name}: {result.outcome}: {result.message}"
        for one in tried
        for trial, result in one.results
        if result.outcome not in ("clear", "accepted")
    ]
