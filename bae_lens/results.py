"""What results are shown as: a table of cells with notes, for the terminal, Markdown and pages; a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

EVAL_METRICS_FILENAME = "eval_metrics.json"
"""Of what ``bae-lens eval`` writes beside a saved SAE."""


@dataclass(frozen=True)
class Table:
    """Cells that are text already, and paragraphs below them.

    >>> print(Table(("", "score"), (("a|b", "0.50"),), ("Of ten texts.",)).markdown())
    | | score |
    | --- | --- |
    | a\\|b | 0.50 |
    <BLANKLINE>
    Of ten texts.

    Attributes:
        head: Names of the columns.
        rows: As many cells each.
        notes: Paragraphs below the table.
        caveat: What the numbers cannot say, the last paragraph; empty: there is none.

    Raises:
        ValueError: If a row has more or fewer cells than the head.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    caveat: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(
                    f"Each row must have one cell for each of {len(self.head)} columns; got {row}."
                )

    def markdown(self) -> str:
        """The table with its notes, a paragraph each. A bar within a cell is escaped."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        table = "\n".join(f"|{''.join(map(_cell, line))}" for line in lines)
        return "\n\n".join(filter(None, [table, *self.notes, self.caveat]))

    def text(self) -> str:
        """The same in columns of even width, for a terminal."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = "\n".join(_aligned(line, widths) for line in lines)
        return "\n\n".join(filter(None, [table, *self.notes, self.caveat]))


class Verdict(NamedTuple):
    """What a result comes to, in two sentences.

    Attributes:
        finding: What was found, and no more than its intervals allow.
        advice: What to try next: an option with its value.
    """

    finding: str
    advice: str

    def __str__(self) -> str:
        return f"{self.finding} {self.advice}"


def _cell(text: str) -> str:
    return f" {escaped} |" if (escaped := text.replace("|", "\\|")) else " |"


def _aligned(cells: Iterable[str], widths: Iterable[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
