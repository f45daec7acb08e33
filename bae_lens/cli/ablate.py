"""``bae-lens ablate PATH --data FILE``: concept ablation of a saved SAE, on the model its metadata names."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bae_lens import offline as demo
from bae_lens.cli.data import add_data_arguments, count_or_all, read_data, unescaped
from bae_lens.cli.plots import add_plot_argument, plot_path, write_plot
from bae_lens.cli.saved import add_saved_arguments, check_output, load_saved, saved_folder
from bae_lens.concept_ablation.settings import (
    AblationSettings,
    Attribution,
    PredictedBy,
    ProbeKind,
    Protocol,
    Readout,
    Vectors,
)
from bae_lens.files.json_file import write_json

if TYPE_CHECKING:
    from sae_lens import SAE

    from bae_lens.concept_ablation import ConceptAblationResult

_OUTPUT = "concept_ablation.json"
_SHOWN_WORDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a saved SAE (cfg.json and sae_weights.safetensors)")
    add_data_arguments(parser, "labeled texts", required=True)
    parser.add_argument(
        "--reference_data",
        help="unlabeled texts (column text) to describe the concepts by: a file, or the name of a "
        "dataset (split train); default: what the SAE was trained on, if that is bae-lens/ text",
    )
    parser.add_argument(
        "--n_reference",
        type=int,
        default=1000,
        help="reference texts that are used, the first; 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--hook_name_out",
        help="where the probe reads; default: where the SAE writes or, if it reads there too, the "
        "same point of the last block",
    )
    _add_settings(parser)
    add_saved_arguments(parser)
    parser.add_argument("--output", help=f"JSON file to write; default: PATH/{_OUTPUT}")
    add_plot_argument(parser, "accuracy after each removal, with intervals")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each of the ``AblationSettings``, with its default."""
    defaults = {field.name: field.default for field in fields(AblationSettings)}

    def add(name: str, words: str, **options: Any) -> None:
        default = defaults[name]
        words += "" if default is None else f"; default: {default}"
        parser.add_argument(f"--{name}", default=default, help=words, **options)

    add("protocol", "released: the arithmetic of the CLVQ-VAE release", choices=get_args(Protocol))
    add("readout", "what a text's vector is; default: by the model", choices=get_args(Readout))
    add("template", "what the model reads, with {text} in it; \\n is a line end", type=unescaped)
    add("label_words", "what the model would say for each class, in their order", nargs="+")
    add(
        "predicted_by",
        "whose prediction is attributed; default: the head of a classifier, else label words where they "
        "are given, else the probe",
        choices=get_args(PredictedBy),
    )
    add("context_size", "tokens of a text at most", type=int)
    add("max_examples", "labeled texts that are used, or all", type=count_or_all)
    add("salient", "how salient tokens are found", choices=(*get_args(Attribution), "readout"))
    add("n_steps", "gradients a text, of integrated gradients", type=int)
    add("rank", "latents or codes of a token that are removed together", type=int)
    add("vectors", "of an SAE: what a latent's direction is", choices=get_args(Vectors))
    add("probe", "default: by the protocol", choices=get_args(ProbeKind))
    add("n_folds", "default: by the protocol", type=int)
    add(
        "causal",
        "also ablate inside the forward pass; default: by the protocol",
        action=argparse.BooleanOptionalAction,
    )
    add("n_ordinary", "texts whose cross-entropy is measured under ablation", type=int)
    add("batch_size", "texts a forward pass", type=int)
    add("seed", "of sample, folds, probes and random controls", type=int)


def run_ablate(args: argparse.Namespace) -> int:
    from bae_lens.checks.fields import check, whole
    from bae_lens.concept_ablation.removals import leace_fitters
    from bae_lens.concept_ablation.run import concept_ablation
    from bae_lens.concept_ablation.verdict import ablation_verdict
    from bae_lens.fingerprint import weights_sha256

    path = saved_folder(args.path)
    chosen = {f.name: getattr(args, f.name) for f in fields(AblationSettings) if f.name in args}
    settings = AblationSettings(**chosen)
    check("--n_reference", args.n_reference, whole(0))
    output = Path(args.output) if args.output else path / _OUTPUT
    check_output(output, path, args.data, args.reference_data)
    plot = plot_path(args, output, path, args.data, args.reference_data)
    # LEACE comes last, and its package should not be missed only then.
    leace_fitters(0, 1, 2)
    data = read_data(args)
    saved = load_saved(path, args)
    sha256 = weights_sha256(saved.sae)  # Of the folder's weights, before anything is folded in.
    result = concept_ablation(
        saved.model,
        saved.folded(),
        data,
        settings,
        hook_name_out=args.hook_name_out,
        reference_texts=_reference_texts(args, saved.sae),
    )
    print_summary(result)
    print(f"\n{result.table()}\n")
    print(f"What the concept costs beyond random directions:\n\n{result.excess_table()}")
    verdict = ablation_verdict(result)
    written = replace(result, weights_sha256=sha256).to_dict()
    write_json(output, written | {"verdict": verdict._asdict()})
    print(f"\nWritten to {output}")
    write_plot(plot, lambda: result.plot(f"{result.dictionary}, {' → '.join(result.hook_names)}"))
    print(f"\n{verdict}")
    return 0


def _reference_texts(args: argparse.Namespace, sae: SAE[Any]) -> list[str] | None:
    from bae_lens.activations.labeled_texts import read_texts

    data, trained_on = args.reference_data, sae.cfg.metadata.dataset_path
    if not args.n_reference:
        return None
    if data is None and trained_on:
        # None where it is not ours.
        data = demo.load_dataset(trained_on)
    return None if data is None else read_texts(data, args.n_reference)


def print_summary(result: ConceptAblationResult) -> None:
    """What was read, and where the attributions point."""
    settings, salient = result.settings, result.salient
    counts = Counter(result.labels)
    classes = ", ".join(f"{counts[i]} of {name!r}" for i, name in enumerate(result.label_names))
    words = [word for word in salient.words if word]
    lines = {
        "dictionary": result.dictionary,
        "hook points": " → ".join(result.hook_names),
        "texts": f"{len(result.labels)}: {classes}",
        "cut to the context": f"{result.n_truncated}",
        "predicted by": _predictor(result),
        "probe": f"{settings['probe']}, {settings['n_folds']} folds",
        "salient words": ", ".join(words[:_SHOWN_WORDS]),
        "lie in the rationale": _share(salient.in_rationale),
        "any word would": _share(salient.rationale_words),
        "their concepts do": _share(result.concept_in_rationale),
        "readout attributed most": _share(salient.readout_share),
        "missing of the attributions": _share(salient.missing),
        "ordinary text": ""
        if result.ordinary_ce is None
        else f"{result.ordinary_ce:.3f} nats per token",
    }
    for name, value in lines.items():
        if value:
            print(f"{name:<28} {value}")


def _predictor(result: ConceptAblationResult) -> str:
    said = zip(result.predictions, result.labels, strict=True)
    right = sum(one == label for one, label in said) / len(result.labels)
    signal = "" if result.has_signal else ", which is not told from chance: without signal"
    return f"{result.predicted_by}, rightly of {right:.1%}{signal}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
