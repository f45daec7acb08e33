"""Options of commands that read texts, labeled or not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from bae_lens.activations.outlier_tokens import DEFAULT_MULTIPLE
from bae_lens.checks.fields import Number, check

if TYPE_CHECKING:
    from datasets import Dataset

    from bae_lens.activations.labeled_texts import LabeledTexts

_LABEL = "label"


def add_data_arguments(
    parser: argparse.ArgumentParser,
    what: str,
    *,
    required: bool,
    labels: bool = True,
    positional: bool = False,
    split: str = "test",
) -> None:
    """``--data``, or ``DATA``, and what its columns are called.

    Args:
        parser: of the command.
        what: it is, for the help.
        required: whether it must be given.
        labels: whether they are read, where there are any.
        positional: whether the data come without an option's name.
        split: that is read of a dataset by default.
    """
    options: dict[str, Any] = {"metavar": "DATA"} if positional else {"required": required}
    parser.add_argument(
        "data" if positional else "--data",
        **options,
        help=f"{what}: a JSONL or CSV file, {'' if required else 'a TXT file with a text a line, '}or "
        "the name of a dataset",
    )
    name = "DATA" if positional else "--data"
    parser.add_argument("--text_column", default="text", help=f"of {name}; default: %(default)s")
    if labels:
        parser.add_argument(
            "--label_column", default=_LABEL, help=f"of {name}; default: %(default)s"
        )
    parser.add_argument(
        "--split", default=split, help=f"of {name} given by name; default: %(default)s"
    )


def read_data(args: argparse.Namespace, data: str | None = None) -> LabeledTexts:
    """By these options; ``data`` in place of what they name."""
    from bae_lens.activations.labeled_texts import LabeledTexts

    return LabeledTexts.read(
        args.data if data is None else data,
        text_column=args.text_column,
        label_column=args.label_column,
        split=args.split,
    )


def read_unlabeled(args: argparse.Namespace) -> Dataset:
    """The same without labels, as a store of text takes it."""
    from datasets import Dataset

    from bae_lens.activations.labeled_texts import read_texts

    texts = read_texts(args.data, text_column=args.text_column, split=args.split)
    return Dataset.from_dict({"text": texts})


def has_labels(args: argparse.Namespace) -> bool:
    """Whether there is a column of labels, or one was asked for by its name."""
    from bae_lens.activations.labeled_texts import has_column

    return args.label_column != _LABEL or has_column(args.data, _LABEL, args.split)


def count_or_all(text: str) -> int | None:
    """A number, or None for all."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or all; got {text!r}") from None


def add_outlier_argument(parser: argparse.ArgumentParser) -> None:
    """``--outlier_multiple``."""
    parser.add_argument(
        "--outlier_multiple",
        type=float,
        default=DEFAULT_MULTIPLE,
        help="tokens whose norm is above so many times the reference (attention sinks) are left out as "
        "special tokens are, and counted; 0: none are; default: %(default)g",
    )


def outlier_option(args: argparse.Namespace) -> float | bool:
    """What it stands for as ``exclude_outlier_tokens``.

    Raises:
        ValueError: if it is negative or not finite.
    """
    check("--outlier_multiple", args.outlier_multiple, Number(least=0))
    return args.outlier_multiple or False


def unescaped(text: str) -> str:
    """A template, in which a shell cannot easily write a line end."""
    return text.replace("\\n", "\n")
