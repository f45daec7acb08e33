"""Columns of tables of texts: which is which, and what its classes are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from shlex import quote
from typing import Any

from datasets import ClassLabel

from bae_lens.checks.fields import shown
from bae_lens.checks.suggest import did_you_mean

# Rows that are looked at to tell what a column holds.
_N_LOOKED_AT = 200
# The hub's mark of no label.
_NO_CLASS = -1


def rows_of_table(data: Any) -> Iterable[Any]:
    """The rows of a DataFrame (of pandas or polars); anything else as it is.

    Raises:
        ValueError: if it is a mapping, of splits or of columns.
    """
    if hasattr(data, "to_dicts"):  # polars
        return data.to_dicts()
    if hasattr(data, "to_dict") and hasattr(data, "columns") and hasattr(data, "iloc"):  # pandas
        return data.to_dict(orient="records")
    if isinstance(data, Mapping):
        names = ", ".join(map(repr, islice(data, 8)))
        if all(hasattr(value, "features") for value in data.values()):
            raise ValueError(f"A dataset with splits was given; give one split of it: {names}.")
        raise ValueError(
            f"data must be rows, each by column; got a {type(data).__name__} of {names}. Of columns "
            "make a dataset: datasets.Dataset.from_dict(data)."
        )
    return data


def class_names(data: Any, column: str) -> list[str] | None:
    """What a dataset calls the classes that a column has the numbers of; None where it does not say."""
    features = getattr(data, "features", None)
    feature = features.get(column) if isinstance(features, Mapping) else None
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def named_class(value: Any, names: list[str], row: int) -> str | None:
    """The name of a class by its number; None where there is no label.

    Raises:
        ValueError: if it is the number of no class.
    """
    if value is None or value == _NO_CLASS:
        return None
    if isinstance(value, str):
        return value
    if not 0 <= value < len(names):
        raise ValueError(
            f"The label of row {row} is {value!r}; the dataset names classes 0 to {len(names) - 1}."
        )
    return names[value]


def missing_column(
    kind: str, name: str, there: Sequence[str], rows: Sequence[Mapping[str, Any]], others: set[str]
) -> str:
    """What to say where a column of texts or labels is not there.

    Args:
        kind: ``"text"`` or ``"label"``.
        name: that is not there.
        there: the names that are.
        rows: some rows.
        others: names that were given for something else.
    """
    first = f"There is no column {name!r} in the data; it has {', '.join(map(shown, there))[:400]}."
    likely = _likely(kind, there, rows, others)
    if likely is not None:
        is_plain = likely.isprintable() and len(likely) <= 80
        return (
            f"{first} Its {kind}s seem to be in {shown(likely)}: say so as "
            f"{kind}_column={shown(likely)} "
            f"(--{kind}_column {quote(likely) if is_plain else shown(likely)})."
        )
    return f"{first} {did_you_mean(name, there)} Say so as {kind}_column (--{kind}_column)."


def _likely(
    kind: str, there: Sequence[str], rows: Sequence[Mapping[str, Any]], others: set[str]
) -> str | None:
    """The column that looks like texts (the longest strings), or like labels (the fewest values)."""
    rows = rows[:_N_LOOKED_AT]
    values = {column: [row.get(column) for row in rows] for column in there}
    strings = {column: [v for v in cells if isinstance(v, str)] for column, cells in values.items()}
    lengths = {
        column: sum(map(len, cells)) / len(cells)
        for column, cells in strings.items()
        if cells and len(cells) == len(rows)
    }
    text = max(lengths, key=lengths.__getitem__, default=None)
    if kind == "text":
        return text if text not in others else None
    n_distinct = {
        column: len(set(own))
        for column, own in values.items()
        if column not in others and all(isinstance(value, (str, int, bool)) for value in own)
    }
    n_distinct.pop(text or "", None)
    few = {column: n for column, n in n_distinct.items() if 2 <= n <= max(2, len(rows) // 2)}
    return min(few, key=few.__getitem__, default=None)
