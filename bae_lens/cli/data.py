"""Options of commands that read labelled texts."""

from __future__ import annotations

import argparse

from bae_lens.evals.concept_ablation import LabelledTexts


def add_data_arguments(parser: argparse.ArgumentParser, what: str, *, required: bool) -> None:
    """``--data`` and what its columns are called.

    Args:
        parser: of the command.
        what: it is, for the help.
        required: whether it must be given.
    """
    parser.add_argument(
        "--data",
        required=required,
        help=f"{what}: a JSONL or CSV file, or the name of a dataset",
    )
    parser.add_argument("--text_column", default="text", help="of --data; default: %(default)s")
    parser.add_argument("--label_column", default="label", help="of --data; default: %(default)s")
    parser.add_argument(
        "--split", default="test", help="of --data given by name; default: %(default)s"
    )


def read_data(args: argparse.Namespace) -> LabelledTexts:
    """By these options."""
    return LabelledTexts.read(
        args.data,
        text_column=args.text_column,
        label_column=args.label_column,
        split=args.split,
    )


def count_or_all(text: str) -> int | None:
    """A number, or None for all."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number or all; got {text!r}") from None


def unescaped(text: str) -> str:
    """A template, in which a shell cannot easily write a line end."""
    return text.replace("\\n", "\n")
