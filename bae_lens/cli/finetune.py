"""``bae-lens finetune``: an encoder becomes a classifier, in a folder of Hugging Face's own format."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bae_lens import offline as demo
from bae_lens.cli.data import add_data_arguments, count_or_all, read_data
from bae_lens.cli.saved import check_output
from bae_lens.files.whole import write_text
from bae_lens.finetuning.settings import FinetuningSettings
from bae_lens.loading.pooling import Pooling

if TYPE_CHECKING:
    from bae_lens.activations.labeled_texts import LabeledTexts
    from bae_lens.finetuning import FinetuningResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, "labeled texts", required=True, positional=True, split="train")
    parser.add_argument(
        "--model",
        metavar="NAME",
        default=demo.ENCODER_NAME,
        help="the encoder: a name or a folder; default: %(default)s",
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--held_out_output",
        metavar="FILE",
        help="JSONL file to write the held-out texts and labels to, which the model can be studied on",
    )
    defaults = {field.name: field.default for field in fields(FinetuningSettings)}

    def add(name: str, words: str, **options: Any) -> None:
        default = defaults[name]
        words += f"; default: {'all' if default is None else default}"
        parser.add_argument(f"--{name}", default=default, help=words, **options)

    add("epochs", "passes over the training texts", type=int)
    add("learning_rate", "of AdamW, at its highest", type=float)
    add("batch_size", "texts a step", type=int)
    add("context_size", "tokens of a text at most", type=int)
    add("head", "what the head reads; mean: not of a BERT", choices=get_args(Pooling))
    add("held_out", "share of the texts that accuracy is measured on", type=float)
    add("max_texts", "texts that are used, held-out ones among them, or all", type=count_or_all)
    add("seed", "of sample, split, head, dropout and order", type=int)
    parser.add_argument("--device", default="cpu")


def run_finetune(args: argparse.Namespace) -> int:
    from bae_lens.finetuning import finetune_classifier

    chosen = {f.name: getattr(args, f.name) for f in fields(FinetuningSettings)}
    settings = FinetuningSettings(**chosen)
    if args.held_out_output:
        check_output(Path(args.held_out_output), args.data)
    data = read_data(args)
    result = finetune_classifier(
        data,
        Path(args.output),
        args.model,
        settings,
        device=args.device,
        verbose=True,
        data_name=args.data,
    )
    print_summary(result, data)
    if args.held_out_output:
        write_text(args.held_out_output, "".join(map(_line, _rows(data, result.held_out))))
    print(f"\nWritten to {' and '.join(filter(None, (args.output, args.held_out_output)))}")
    return 0


def _rows(data: LabeledTexts, numbers: list[int]) -> Iterator[dict[str, str]]:
    """As ``LabeledTexts.read`` reads them again."""
    for i in numbers:
        row = {"text": data.texts[i], "label": data.label_names[int(data.labels[i])]}
        rationale = data.rationales[i]
        yield row if rationale is None else row | {"rationale": rationale}


def _line(row: dict[str, str]) -> str:
    return json.dumps(row) + "\n"


def print_summary(result: FinetuningResult, data: LabeledTexts) -> None:
    """What it was trained and measured on, and how well it does."""
    counts = Counter(data.labels[i].item() for i in result.held_out)
    classes = ", ".join(f"{counts[i]} of {name!r}" for i, name in enumerate(result.class_names))
    mean, low, high = result.accuracy
    lines = {
        "trained on": f"{result.n_train} texts",
        "held out": f"{len(result.held_out)} texts: {classes}",
        "left out, as held out too": f"{result.n_duplicates}",
        "cut to the context": f"{result.n_truncated}",
        "accuracy, held out": f"{mean:.3f} [{low:.3f}, {high:.3f}]",
        "most frequent class": f"{result.chance:.3f}",
    }
    for name, value in lines.items():
        print(f"{name:<28} {value}")
