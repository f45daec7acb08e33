"""``bae-lens probe PATH --data FILE``: sparse probing of a saved SAE, on the model its metadata names."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bae_lens.cli.data import (
    add_data_arguments,
    add_outlier_argument,
    count_or_all,
    outlier_option,
    read_data,
)
from bae_lens.cli.saved import add_saved_arguments, check_output, load_saved, saved_folder
from bae_lens.scoring.probing_settings import ChosenBy, SparseProbingSettings

if TYPE_CHECKING:
    from bae_lens.scoring import SparseProbingResult

PROBING_FILENAME = "sparse_probing.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a saved SAE (cfg.json and sae_weights.safetensors)")
    add_data_arguments(parser, "labeled texts", required=True)
    parser.add_argument(
        "--test_data",
        help="held-out texts, with the same columns and classes; default: a share of --data",
    )
    _add_settings(parser)
    add_outlier_argument(parser)
    add_saved_arguments(parser)
    parser.add_argument("--output", help=f"JSON file to write; default: PATH/{PROBING_FILENAME}")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each of the ``SparseProbingSettings`` but the outliers', with its default."""
    defaults = {field.name: field.default for field in fields(SparseProbingSettings)}

    def add(name: str, words: str, **options: Any) -> None:
        default = defaults[name]
        given = " ".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(
            f"--{name}", default=default, help=f"{words}; default: {given}", **options
        )

    add("k", "how many latents a probe reads", type=int, nargs="+")
    add(
        "chosen_by",
        "which: those whose class means differ most, or in units of their standard deviation",
        choices=get_args(ChosenBy),
    )
    add("max_examples", "labeled texts that are used, or all", type=count_or_all)
    add("test_share", "share of each class that is held out", type=float)
    add("context_size", "tokens of a text at most", type=int)
    add("n_draws", "random latents, and shuffled labels, of each k", type=int)
    add("batch_size", "texts a forward pass", type=int)
    add("seed", "of sample, split, probes and draws", type=int)


def run_probe(args: argparse.Namespace) -> int:
    from bae_lens.fingerprint import weights_sha256
    from bae_lens.scoring import sparse_probing

    path = saved_folder(args.path)
    chosen = {
        f.name: getattr(args, f.name) for f in fields(SparseProbingSettings) if f.name in args
    }
    settings = SparseProbingSettings(**chosen, exclude_outlier_tokens=outlier_option(args))
    output = Path(args.output) if args.output else path / PROBING_FILENAME
    check_output(output, path, args.data, args.test_data)
    data = read_data(args)
    test_data = None if args.test_data is None else read_data(args, args.test_data)
    saved = load_saved(path, args)
    sha256 = weights_sha256(saved.sae)  # Of the folder's weights, before anything is folded in.
    result = sparse_probing(saved.model, saved.folded(), data, settings, test_dataset=test_data)
    result = replace(result, data=Path(args.data).name, weights_sha256=sha256)
    print_summary(result)
    print(f"\n{result.table()}")
    result.save(output)
    print(f"\nWritten to {output}")
    return 0


def print_summary(result: SparseProbingResult) -> None:
    """What was read."""
    counts = Counter(result.labels)
    classes = ", ".join(
        f"{n_train} and {counts[i]} of {name!r}"
        for i, (n_train, name) in enumerate(zip(result.n_train, result.label_names, strict=True))
    )
    lines = {
        "dictionary": result.dictionary,
        "hook point": result.hook_name,
        "training and held-out texts": classes,
        "cut to the context": f"{result.n_truncated}",
        "left out, read as others are": f"{result.n_repeated}",
        "left out, of several classes": f"{result.n_ambiguous}",
        "outlier tokens left out": f"{result.n_outlier_tokens}",
    }
    for name, value in lines.items():
        print(f"{name:<30} {value}")
