"""Texts with labels, from files, datasets or rows."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from jaxtyping import Int
from torch import Tensor

from bae_lens import offline as demo
from bae_lens.activations.label_columns import (
    class_names,
    missing_column,
    named_class,
    rows_of_table,
)
from bae_lens.activations.texts import MissingTexts, check_text, is_missing
from bae_lens.checks.fields import check, plain, whole
from bae_lens.files.json_file import parse_json
from bae_lens.loading import hub

# What LabeledTexts.read takes if nothing is said.
_COLUMNS = {"text_column": "text", "label_column": "label", "split": "test"}
_FILES = (".jsonl", ".json", ".csv", ".txt")  # of _READERS


@dataclass(frozen=True, eq=False)
class LabeledTexts:
    """Texts of two classes or more.

    Attributes:
        texts: none of them empty.
        labels: class of each, 0 … C − 1.
        label_names: what each class is called in the data: in the order of a dataset that names its
            classes, else sorted, by value if all are integers.
        rationales: the span of each text that a person marked as the reason for its label; None
            where nobody did.
    """

    texts: list[str]
    labels: Int[Tensor, " n"]
    label_names: list[str]
    rationales: list[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def read(
        cls,
        data: str | Path | Dataset | Iterable[Mapping[str, Any]],
        *,
        text_column: str = "text",
        label_column: str = "label",
        split: str = "test",
    ) -> LabeledTexts:
        """Texts from a file, a dataset, a dataset's name or rows. Row numbers in errors begin at 1.

        Rows without a text, or with nothing but space, are passed over with a logged warning.

        Args:
            data: a ``.csv`` file with a header; a ``.jsonl`` or ``.json`` file with an object a
                line; a ``.txt`` file with a text a line, which has no labels;
                ``"bae-lens/movie-reviews"`` or a name on the hub; a loaded dataset, one split of it;
                a DataFrame; or rows by column. A column ``rationale``, or ``evidence``, is read
                if there is one.
            text_column: name of the column of texts.
            label_column: name of the column of labels: integers (as floats, too, which pandas makes
                of them), booleans or strings; where the dataset names its classes (``ClassLabel``),
                by those names.
            split: of a dataset that is given by name.

        Raises:
            FileNotFoundError: if ``data`` is meant for a file that is not there.
            ValueError: if a file is not what its suffix says, a dataset cannot be loaded, a column
                is missing, a text is no string or no file can hold it, a label is missing or no class,
                or all labels are the same.
        """
        data = _rows_of(data, split)
        known = class_names(data, label_column)
        rows = _read_rows(data, text=text_column, label=label_column)
        numbered = _with_text(rows, text_column)
        texts = [str(row[text_column]) for _, row in numbered]
        rationales = [
            _rationale_of(row.get("rationale", row.get("evidence")), i) for i, row in numbered
        ]
        labels = [(i, row.get(label_column)) for i, row in numbered]
        if known is not None:
            labels = [(i, named_class(label, known, i)) for i, label in labels]
        names = [_label_name(label, i) for i, label in labels]
        if None in names:
            raise ValueError(
                f"{names.count(None)} of {len(names)} rows have no label in the column "
                f"{label_column!r}; the first is row {labels[names.index(None)][0]}. Label or drop them, or "
                "take another split."
            )
        there = {name for name in names if name is not None}
        label_names = _sorted_names(there) if known is None else [n for n in known if n in there]
        if len(label_names) < 2:
            raise ValueError(
                f"All {len(names)} labels are {label_names[0]!r}; there have to be two classes at "
                "least. Is it the right column, and the right split?"
            )
        number_of = {name: i for i, name in enumerate(label_names)}
        labels = torch.tensor([number_of[cast(str, name)] for name in names])
        return cls(texts, labels, label_names, rationales)

    @classmethod
    def of(cls, data: Any, **columns: str) -> LabeledTexts:
        """The texts, ``read`` by their columns' names and split if they are not read yet.

        Raises:
            ValueError: see ``read``; or if they are read already and a name other than the default is given.
        """
        if not isinstance(data, LabeledTexts):
            return cls.read(data, **columns)
        given = [name for name, value in columns.items() if value != _COLUMNS[name]]
        if given:
            raise ValueError(
                f"{given[0]} is for data that are still to be read; these are LabeledTexts: give it to "
                "LabeledTexts.read."
            )
        return data

    def sample(self, n: int, seed: int = 0) -> LabeledTexts:
        """At most ``n`` of the texts in random order, the classes' shares as near as can be.

        Args:
            n: how many; all of them if there are fewer.
            seed: of the draw. The same one gives the same texts.

        Raises:
            ValueError: if ``n`` is less than one.
        """
        return self.take(self.draw(n, seed))

    def draw(self, n: int, seed: int = 0) -> Int[Tensor, " drawn"]:
        """Which texts ``sample`` takes, in its order, by their numbers from 0 on."""
        if n < 1:
            raise ValueError(f"A sample has one text at least; got n = {n}.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        n_of = torch.bincount(self.labels, minlength=len(self.label_names))
        wanted = n_of * min(n, len(self))
        take = wanted // len(self)
        # The largest remainders are rounded up, of equal ones that of the first class.
        remainders = wanted % len(self)
        n_missing = min(n, len(self)) - int(take.sum())
        take[remainders.argsort(descending=True, stable=True)[:n_missing]] += 1
        labels = self.labels[order]
        kept = torch.zeros(len(self), dtype=torch.bool)
        for label, n_wanted in enumerate(take.tolist()):
            kept[(labels == label).nonzero()[:n_wanted]] = True
        return order[kept]

    def take(self, numbers: Int[Tensor, " taken"]) -> LabeledTexts:
        """The texts of these numbers, in their order; the names of all classes stay."""
        chosen = numbers.tolist()
        return LabeledTexts(
            [self.texts[i] for i in chosen],
            self.labels[numbers],
            self.label_names,
            [self.rationales[i] for i in chosen],
        )

    def check(self, n_folds: int) -> None:
        """That there is a label for every text, and of each class an example for every fold.

        Raises:
            ValueError: if not, with the number of examples of each class.
        """
        n_classes = len(self.label_names)
        if not len(self.texts) == len(self.labels) == len(self.rationales):
            raise ValueError(
                f"Every text has a label and a rationale, which may be None; got {len(self.texts)} "
                f"texts, {len(self.labels)} labels and {len(self.rationales)} rationales."
            )
        if not ((self.labels >= 0) & (self.labels < n_classes)).all():
            raise ValueError(f"labels have to be 0 … {n_classes - 1}, as label_names names them.")
        counts = torch.bincount(self.labels, minlength=n_classes).tolist()
        listed = ", ".join(
            f"{count} of {name!r}" for count, name in zip(counts, self.label_names, strict=True)
        )
        if sum(count > 0 for count in counts) < 2:
            raise ValueError(f"There have to be texts of two classes at least; got {listed}.")
        if min(counts) < n_folds:
            raise ValueError(
                f"Each of {n_folds} folds needs a text of every class; got {listed}. Take more "
                "texts, fewer folds, or leave the rare classes out."
            )


def read_texts(
    data: str | Path | Dataset | Iterable[Mapping[str, Any]],
    n: int | None = None,
    *,
    text_column: str = "text",
    split: str = "train",
) -> list[str]:
    """The first ``n`` texts, or all, of what ``LabeledTexts.read`` takes, labeled or not.

    Raises:
        FileNotFoundError: if ``data`` is meant for a file that is not there.
        ValueError: if it cannot be read, the column is missing, there is no text, or one is no string
            or none that a file can hold; or ``n`` is no number of texts. Rows without a text are passed over with a logged warning.
    """
    n = check("n", n, whole(0, or_none=True))
    rows = _read_rows(_rows_of(data, split), n, text=text_column)
    return [str(row[text_column]) for _, row in _with_text(rows, text_column)]


def has_column(data: str | Path, name: str, split: str) -> bool:
    """Whether the first row of what ``read_texts`` reads has a column.

    Raises:
        FileNotFoundError: if ``data`` is meant for a file that is not there.
        ValueError: if it cannot be read.
    """
    return name in next(iter(_rows_of(data, split)), {})


def _read_rows(
    data: Iterable[Any], n: int | None = None, **columns: str
) -> list[Mapping[str, Any]]:
    """The first ``n`` rows, which have to have the columns, given as kind=name."""
    rows = list(islice(data, n))
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Row {number} has to be a mapping of columns, such as a dict; got a "
                f"{type(row).__name__}. Of a dataset with splits give one split."
            )
    there = list(dict.fromkeys(name for row in rows for name in row))
    if not there:
        raise ValueError("There is no row in the data.")
    for kind, name in columns.items():
        if name not in there:
            others = {other for k, other in columns.items() if k != kind}
            raise ValueError(missing_column(kind, name, there, rows, others))
    return rows


def _rows_of(data: Any, split: str) -> Iterable[Any]:
    if not isinstance(data, (str, Path)):
        return rows_of_table(data)
    path = Path(data)
    # os.path: a name too long for a path is no file either.
    if not os.path.isfile(path):
        if isinstance(data, Path) or path.suffix.lower() in _FILES:
            raise FileNotFoundError(f"There is no file {path}.")
        ours = demo.load_dataset(data, split=split)  # pyright: ignore[reportArgumentType]
        return hub.load_dataset(data, split) if ours is None else ours
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        raise ValueError(f"{path} has to be a file {', '.join(_FILES)}; its suffix is {suffix!r}.")
    try:
        # newline="" leaves the line ends inside a quoted field as they are.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(_READERS[suffix](file, path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has to be UTF-8: {error}.") from error


def is_file_of_texts(name: str | Path) -> bool:
    """Whether a name is meant for a file that ``read_texts`` reads, and for no dataset."""
    return Path(name).suffix.lower() in _FILES or os.path.isfile(name)


def _txt_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, str]]:  # noqa: ARG001
    lines = (line.rstrip("\r\n") for line in file)
    return ({"text": line} for line in lines if line.strip())


def _csv_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            # DictReader's mark of fields that have no name, or names that have no field.
            if None in row or None in row.values():
                names = ", ".join(map(repr, reader.fieldnames or ()))[:400]
                raise csv.Error(f"a row has to have one field for each of {names}")
            yield row
    except csv.Error as error:
        # Its own line_num is that of the last row that was well.
        raise ValueError(f"{path}, line {reader.reader.line_num}: {error}.") from error


def _json_rows(file: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {error}. There has to be an object a line."
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} has to be an object such as "
                f'{{"text": "…", "label": 0}}; it is a {type(row).__name__}.'
            )
        yield row


_READERS = {".csv": _csv_rows, ".txt": _txt_rows, ".jsonl": _json_rows, ".json": _json_rows}


def _missing(value: Any) -> bool:
    """None, an empty field, or pandas' NaN."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _with_text(rows: list[Mapping[str, Any]], column: str) -> list[tuple[int, Mapping[str, Any]]]:
    """The rows that have a text, with their numbers; of the others it is logged how many there are."""
    missing = MissingTexts(column)
    kept: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in enumerate(rows, start=1):
        text = row.get(column)
        if is_missing(text) or (isinstance(text, str) and not text.strip()):
            missing.pass_over(number)
        else:
            check_text(text, f"The text of row {number}")
            kept.append((number, row))
    missing.at_end(len(rows))
    if not kept:
        raise ValueError(f"None of the {len(rows)} rows has a text in the column {column!r}.")
    return kept


def _rationale_of(value: Any, row: int) -> str | None:
    if _missing(value):
        return None
    if not isinstance(value, str):
        raise ValueError(f"The rationale of row {row} has to be a string or None; got {value!r}.")
    return check_text(value, f"The rationale of row {row}")


def _label_name(value: Any, row: int) -> str | None:
    value = plain(value)
    if _missing(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int)):
        raise ValueError(
            f"The label of row {row} has to be a class: an integer, a boolean or a string; got "
            f"{value!r}."
        )
    return check_text(str(value), f"The label of row {row}").strip() or None


def _sorted_names(names: Iterable[str]) -> list[str]:
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"-?\d+", n) for n in names) else names
