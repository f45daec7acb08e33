"""``bae-lens report PATH …``: what the latents of saved SAEs stand for, as HTML files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from bae_lens.checks.fields import is_valid, whole
from bae_lens.cli.data import add_data_arguments, add_outlier_argument, outlier_option
from bae_lens.cli.eval import EXTENT
from bae_lens.cli.eval import METRICS_FILENAME as EVAL_FILENAME
from bae_lens.cli.reading import Read, References, Texts
from bae_lens.cli.saved import (
    add_saved_arguments,
    check_output,
    names_of,
    saved_folder,
)
from bae_lens.cli.scores import Scoring, add_score_arguments, saved_probing
from bae_lens.examples.records import ExampleSettings, LatentRecords, check_records_of
from bae_lens.files.json_file import read_json
from bae_lens.fingerprint import is_of_weights, weights_sha256

if TYPE_CHECKING:
    from sae_lens import SAE

    from bae_lens.report import CodedSentence, Compared, Result
    from bae_lens.steering import LogitEffects

_OUTPUT, _COMPARISON = "report.html", "comparison.html"
EXAMPLES_FILENAME = "examples.json"
_CODE_TOKENS = 65_536
_N_EFFECTS = 8
# Of what a file says that it was measured on: it may be anybody's.
_MOST_TEXT = 10_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of a saved SAE (cfg.json and sae_weights.safetensors); of several, a comparison "
        "is written as well",
    )
    parser.add_argument(
        "--examples",
        # The name of an older version.
        "--evidence",
        dest="examples",
        nargs="+",
        metavar="FILE",
        help="examples that were saved, one file a PATH, in place of collecting it",
    )
    parser.add_argument(
        "--save_examples",
        "--save_evidence",
        dest="save_examples",
        action="store_true",
        help=f"write what is collected to PATH/{EXAMPLES_FILENAME}, for --examples of another run",
    )
    add_reading_arguments(parser)
    add_score_arguments(parser)
    parser.add_argument(
        "--output",
        help=f"HTML file to write; default: PATH/{_OUTPUT}; of several PATHs, the comparison: "
        f"{_COMPARISON}",
    )


def add_reading_arguments(
    parser: argparse.ArgumentParser, n_code_tokens: int | None = None
) -> None:
    """Options of what is read for a page, by which model, and how much of it is kept.

    Args:
        parser: that gets them.
        n_code_tokens: the default of the option; None: by what was measured before.
    """
    add_data_arguments(
        parser, "texts to read in place of --dataset, labeled or not", required=False
    )
    parser.add_argument(
        "--dataset", help="another dataset than the one in the metadata: a name, or a file of texts"
    )
    _add_settings(parser)
    parser.add_argument(
        "--n_sentences",
        type=int,
        default=40,
        help="texts that are stored with their codes; 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--n_effects",
        type=int,
        help="tokens that each latent raises most by itself, and as many that it lowers, by its logit effects; "
        f"0 for none; default: {_N_EFFECTS}, or 0 without sentences, which need the model too",
    )
    default = n_code_tokens
    if n_code_tokens is None:
        default = f"as many as that file is of, or {_CODE_TOKENS}"
    parser.add_argument(
        "--n_code_tokens",
        type=int,
        default=n_code_tokens,
        help=f"tokens for the metrics of an SAE without {EVAL_FILENAME} (of bae-lens eval) of its own "
        f"weights; 0 for none; default: {default}",
    )
    add_outlier_argument(parser)
    add_saved_arguments(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for most of the ``ExampleSettings``, with its default."""
    defaults = {field.name: field.default for field in fields(ExampleSettings)}
    words = {
        "n_tokens": "tokens to read",
        "n_strongest": "strongest examples per latent",
        "n_random": "random examples per latent",
        "n_left": "tokens of an example before the marked one",
        "n_right": "tokens after it",
        "n_top_tokens": "most frequent tokens per latent",
        "n_neighbors": "neighbors per latent",
        "batch_size": "texts per forward pass",
        "seed": "of the random examples and the order of texts",
    }
    for name, text in words.items():
        # With the British spelling of an older version.
        flags = [f"--{name}", *(["--n_neighbours"] if name == "n_neighbors" else [])]
        parser.add_argument(
            *flags, type=int, default=defaults[name], help=f"{text}; default: %(default)s"
        )
    parser.add_argument("--lemmas", help="language of lemmas to count, as en; default: none")


def reading_settings(args: argparse.Namespace) -> ExampleSettings:
    """By ``add_reading_arguments``.

    Raises:
        ValueError: if a number is out of its range.
    """
    for name in ("n_sentences", "n_effects", "n_code_tokens"):
        value = getattr(args, name)
        if value is not None and value < 0:
            raise ValueError(f"--{name} must be at least 0; got {value}.")
    return ExampleSettings(
        **{f.name: getattr(args, f.name) for f in fields(ExampleSettings) if f.name in args}
    )


def run_report(args: argparse.Namespace) -> int:
    from bae_lens.loading.saved_saes import load_sae
    from bae_lens.report import write_comparison, write_report

    folders = [saved_folder(path) for path in args.paths]
    settings = reading_settings(args)
    is_one = len(folders) == 1
    comparison = Path(args.output or _COMPARISON)
    outputs = [Path(args.output or folders[0] / _OUTPUT)] if is_one else []
    outputs = outputs or [folder / _OUTPUT for folder in folders]
    if args.dry_run:
        # Only the examples are asked about.
        args.n_sentences = args.n_effects = args.n_code_tokens = 0
    else:
        read = [*folders, args.data, args.dataset, *(args.examples or ())]
        for output in outputs:
            check_output(output, *read)
        if not is_one:
            check_output(comparison, *read, *outputs)
    # The weights themselves say what is theirs: what lies beside them may be of those before.
    sha256s = [weights_sha256(load_sae(folder)) for folder in folders]
    all_records = _read_all_records(args.examples, folders, sha256s)
    all_probing = [saved_probing(*own) for own in zip(folders, sha256s, strict=True)]
    references = References(outlier_option(args), {})
    texts = Texts.read(args)
    names = names_of(folders)
    scoring = Scoring.of(args)
    for file, records in zip(args.examples or (), all_records, strict=False):
        if records is not None:
            scoring.check(records, file)
    compared = []
    for name, folder, sha256, records, probing, output in zip(
        names, folders, sha256s, all_records, all_probing, outputs, strict=True
    ):
        link = quote(Path(os.path.relpath(output, comparison.parent)).as_posix())
        score = partial(scoring.scores, name, output=output, known=probing)
        # Nothing is loaded where all is given.
        read = Read.opener(folder, args, texts, settings.batch_size)
        own, sentences, effects = collect(
            args, folder, name, sha256, records, settings, texts, references, score, read
        )
        if args.dry_run:
            continue
        write_report(
            output,
            own.records,
            own.summary,
            own.training,
            sentences,
            results=own.results,
            effects=effects,
            title=f"{name}: {own.records.dictionary} at {own.records.hook_name}",
            about=own.about,
        )
        print(f"Written to {output}")
        compared.append(own._replace(records=_without_examples(own.records), link=link))
    if args.dry_run:
        print(scoring.count)
    elif not is_one:
        write_comparison(comparison, compared)
        print(f"Written to {comparison}")
    return 0


def collect(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    sha256: str,
    records: LatentRecords | None,
    settings: ExampleSettings,
    texts: Texts,
    references: References,
    score: Callable[[LatentRecords], Sequence[Result]],
    read: Callable[[], Read],
) -> tuple[Compared, list[CodedSentence], list[LogitEffects]]:
    """All that the reports show of one SAE.

    Args:
        args: of ``add_reading_arguments``, and ``examples``, ``save_examples`` and ``dry_run``.
        folder: of the SAE.
        name: of the SAE.
        sha256: of its weights.
        records: that are there; None: they are collected.
        settings: of ``reading_settings``.
        texts: that are read.
        references: by which outliers are told, of all SAEs together.
        score: the latents.
        read: opens the model, at most once.
    """
    from sae_lens.evals import get_eval_everything_config

    from bae_lens.activations.held_out import held_out_store
    from bae_lens.activations.hook_points import hook_names
    from bae_lens.evals import run_evals
    from bae_lens.examples import collect_examples
    from bae_lens.report import Compared, collect_sentences
    from bae_lens.training.metric_log import read_metric_log
    from bae_lens.training.outputs import METRICS_FILENAME

    summary, extent, is_of = _read_metrics(folder / EVAL_FILENAME, sha256, args.n_code_tokens != 0)
    n_code_tokens = extent.get("n_code_tokens", _CODE_TOKENS)
    if args.n_code_tokens is not None:
        n_code_tokens = args.n_code_tokens
    log = folder / METRICS_FILENAME
    training = read_metric_log(log) if log.is_file() else None
    measures = summary is None and n_code_tokens > 0
    if records is None:
        _, sae, _ = read().given
        records = collect_examples(
            *read().given,
            settings,
            labels=texts.labels,
            exclude_outlier_tokens=references.at(sae, hook_names(sae)[:1]),
            verbose=True,
            **read().options,
        )
        if records.outliers is not None:
            references.note(sae, records.hook_name, records.outliers.reference_norm)
        if args.save_examples and not args.dry_run:
            records.save(folder / EXAMPLES_FILENAME)
            print(f"Written to {folder / EXAMPLES_FILENAME}")
    # First, since a judge may stop.
    results = score(records)
    sentences = []
    if args.n_sentences > 0:
        options = {"n_sentences": args.n_sentences, "labels": texts.labels, **read().options}
        sentences = collect_sentences(*read().given, records, **options)
    if measures:
        model, sae, _ = read().given
        # The metrics are of the held-out text, whatever labeled texts the examples are of.
        text = args.dataset if texts.labels is not None else texts.source
        n_prompts = extent.get("batch_size_prompts", settings.batch_size)
        store = held_out_store(sae, model, text, n_prompts)
        names = hook_names(sae)
        options = {"n_code_tokens": n_code_tokens, **read().options}
        if extent:
            n = extent["n_eval_batches"]
            options["eval_config"] = get_eval_everything_config(n_prompts, n, n)
        options["exclude_outlier_tokens"] = references.at(sae, names)
        summary, _ = run_evals(sae, store, model, verbose=True, **options)
        found = summary.get("outlier_tokens", {})
        for hook, field in zip(names, ("reference_norm", "reference_norm_out"), strict=True):
            if field in found:
                references.note(sae, hook, found[field])
    effects = []
    n_effects = args.n_effects
    if n_effects is None:
        # Not where nothing else may need the model: a report of saved examples is that of collected ones.
        n_effects = _N_EFFECTS if args.n_sentences > 0 else 0
    if n_effects:
        effects = effects_of(*read().given[:2], n_effects, "report")
    about = _about(args, folder) | {"weights": f"{sha256[:12]}…"}
    if is_of not in ("", f"{about.get('text')}, {about.get('model')}"):
        # They were measured before, and stay what they are.
        print(f"bae-lens: the metrics in {folder / EVAL_FILENAME} are of {is_of}", file=sys.stderr)
        about["metrics"] = f"of {is_of}"
    return Compared(name, records, summary, training, None, results, about), sentences, effects


def effects_of(model: Any, sae: SAE[Any], k: int, of: str) -> list[LogitEffects]:
    """Of all latents; none, and a line on stderr, where there is no way from them to logits.

    Args:
        model: the language model.
        sae: whose latents they are.
        k: tokens at each end.
        of: what has them, for the message.
    """
    from bae_lens.steering import logit_effects

    try:
        return logit_effects(model, sae, k=k)
    except ValueError as error:
        print(f"bae-lens: the {of} has no logit effects. {error}", file=sys.stderr)
        return []


def _about(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """What a reader of the report should know of the model and the text."""
    metadata = read_json(folder / "cfg.json", "config of an SAE").get("metadata") or {}
    # Examples that were saved may be of any text; a file's folder is nobody else's business.
    trained_on = None if args.examples else metadata.get("dataset_path")
    text = Path(args.data).name if args.data else args.dataset or trained_on
    found = {
        "writes at": metadata.get("hook_name_out"),
        "model": args.model or metadata.get("model_name"),
        "text": text,
    }
    return {name: str(value) for name, value in found.items() if value}


def _without_examples(records: LatentRecords) -> LatentRecords:
    """They are what takes memory, and a comparison shows none."""
    bare = (
        replace(latent, strongest=(), random=(), more_random=None, lift_tokens=None)
        for latent in records.latents
    )
    return replace(records, latents=tuple(bare))


def _read_metrics(
    path: Path, sha256: str, measures: bool
) -> tuple[dict[str, Any] | None, dict[str, int], str]:
    """What ``bae-lens eval`` has written; None where there is nothing, or it is of other weights.

    Args:
        path: of its file.
        sha256: of the weights.
        measures: whether what is missing is measured, for the message.

    Returns:
        The metrics; of how much text (``EXTENT``) those of other weights are, so that they can be
        measured anew as they were; and which text and model they are of, "" where that is not said.
    """
    if not path.is_file():
        return None, {}, ""
    summary = read_json(path, "file of metrics")
    summary.pop("verdict", None)
    about = summary.pop("sae", None)
    about = about if isinstance(about, dict) else {}
    if is_of_weights(about.get("weights_sha256"), sha256, str(path)):
        text, model = about.get("text"), about.get("model_name")
        return summary, {}, "" if text is None or model is None else f"{text}, {model}"
    what = "measured anew" if measures else "left out; bae-lens eval measures these"
    print(f"bae-lens: {path} is of other weights: {what}", file=sys.stderr)
    extent = {name: about.get(name) for name in EXTENT}
    is_known = all(is_valid(value, whole(1, _MOST_TEXT)) for value in extent.values())
    return None, {k: v for k, v in extent.items() if v is not None} if is_known else {}, ""


def _read_all_records(
    files: list[str] | None, folders: list[Path], sha256s: list[str]
) -> list[LatentRecords | None]:
    """One for each folder; None where it is to be collected."""
    if files is None:
        return [None] * len(folders)
    if len(files) != len(folders):
        raise ValueError(
            f"--examples must name one file a PATH; got {len(files)} files for {len(folders)} PATHs."
        )
    return [
        read_records(Path(file), folder, sha256)
        for file, folder, sha256 in zip(files, folders, sha256s, strict=True)
    ]


def read_records(path: Path, folder: Path, sha256: str) -> LatentRecords:
    """Examples of the SAE in a folder.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if they are of another SAE.
    """
    records = LatentRecords.load(path)
    cfg = read_json(folder / "cfg.json", "config of an SAE")
    n_latents, hook_name = cfg.get("d_sae"), (cfg.get("metadata") or {}).get("hook_name")
    if (len(records), records.hook_name) != (n_latents, hook_name):
        raise ValueError(
            f"{path} holds examples of {len(records)} latents at {records.hook_name!r}, and the SAE in "
            f"{folder} has {n_latents} at {hook_name!r}. Give the examples that were collected of it."
        )
    check_records_of(records, len(records), sha256, str(path))
    return records
