"""``bae-lens report PATH …``: what the latents of saved SAEs stand for, as HTML files."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from bae_lens.cli.saved import Saved, check_output, load_saved, saved_folder
from bae_lens.evals.concept_ablation.labelled_texts import LabelledTexts
from bae_lens.evals.held_out import held_out_store
from bae_lens.evals.run import run_evals
from bae_lens.interp import Evidence, EvidenceSettings, collect_evidence
from bae_lens.plots import read_metric_log
from bae_lens.report import (
    CodedSentence,
    Compared,
    collect_sentences,
    write_comparison,
    write_report,
)
from bae_lens.training.runner import METRICS_FILENAME

_OUTPUT, _COMPARISON, _METRICS = "report.html", "comparison.html", "eval_metrics.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of a saved SAE (cfg.json and sae_weights.safetensors); of several, a comparison "
        "is written as well",
    )
    parser.add_argument(
        "--evidence",
        nargs="+",
        metavar="FILE",
        help="evidence that was saved, one file a PATH, in place of collecting it",
    )
    parser.add_argument(
        "--data",
        help="labelled texts to read: a JSONL or CSV file, or the name of a dataset; default: "
        "--dataset",
    )
    parser.add_argument("--text_column", default="text", help="of --data; default: %(default)s")
    parser.add_argument("--label_column", default="label", help="of --data; default: %(default)s")
    parser.add_argument(
        "--split", default="test", help="of --data given by name; default: %(default)s"
    )
    parser.add_argument("--dataset", help="another dataset than the one in the metadata")
    _add_settings(parser)
    parser.add_argument(
        "--n_sentences",
        type=int,
        default=40,
        help="texts that are stored with their codes; 0 for none; default: %(default)s",
    )
    parser.add_argument(
        "--n_code_tokens",
        type=int,
        default=65_536,
        help=f"tokens for the metrics of an SAE without {_METRICS} (of bae-lens eval); 0 for none; "
        "default: %(default)s",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--output",
        help=f"HTML file to write; default: PATH/{_OUTPUT}; of several PATHs, the comparison: "
        f"{_COMPARISON}",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for most of the ``EvidenceSettings``, with its default."""
    defaults = {field.name: field.default for field in fields(EvidenceSettings)}
    words = {
        "n_tokens": "tokens to read",
        "n_strongest": "strongest examples a latent",
        "n_random": "random examples a latent",
        "n_left": "tokens of an example before the marked one",
        "n_right": "tokens after it",
        "n_top_tokens": "commonest tokens a latent",
        "n_neighbours": "neighbours a latent",
        "batch_size": "texts a forward pass",
        "seed": "of the random examples and the order of texts",
    }
    for name, text in words.items():
        parser.add_argument(
            f"--{name}", type=int, default=defaults[name], help=f"{text}; default: %(default)s"
        )
    parser.add_argument("--lemmas", help="language of lemmas to count, as en; default: none")


def run_report(args: argparse.Namespace) -> int:
    folders = [saved_folder(path) for path in args.paths]
    settings = EvidenceSettings(
        **{f.name: getattr(args, f.name) for f in fields(EvidenceSettings) if f.name in args}
    )
    for name in ("n_sentences", "n_code_tokens"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must be at least 0; got {getattr(args, name)}.")
    is_one = len(folders) == 1
    comparison = Path(args.output or _COMPARISON)
    outputs = [Path(args.output or folders[0] / _OUTPUT)] if is_one else []
    outputs = outputs or [folder / _OUTPUT for folder in folders]
    for output in [*outputs, *([] if is_one else [comparison])]:
        check_output(output)
    evidences = _read_evidences(args.evidence, folders)
    texts = _Texts.read(args)
    names = _names(folders)
    compared = []
    for name, folder, evidence, output in zip(names, folders, evidences, outputs, strict=True):
        link = quote(Path(os.path.relpath(output, comparison.parent)).as_posix())
        own, sentences = _collect(args, folder, name, evidence, settings, texts)
        write_report(
            output,
            own.evidence,
            own.summary,
            own.training,
            sentences,
            title=f"{name}: {own.evidence.dictionary} at {own.evidence.hook_name}",
        )
        print(f"Written to {output}")
        compared.append(own._replace(evidence=_without_examples(own.evidence), link=link))
    if not is_one:
        write_comparison(comparison, compared)
        print(f"Written to {comparison}")
    return 0


class _Texts(NamedTuple):
    """What is read; no ``source``: the dataset in the metadata."""

    source: Any
    labels: list[str] | None

    @classmethod
    def read(cls, args: argparse.Namespace) -> _Texts:
        if args.data is None:
            return cls(args.dataset, None)
        if args.dataset is not None:
            raise ValueError("Give --data or --dataset: only one of them can be read.")
        data = LabelledTexts.read(
            args.data,
            text_column=args.text_column,
            label_column=args.label_column,
            split=args.split,
        )
        return cls(data.texts, [data.label_names[i] for i in data.labels.tolist()])

    def open(self, saved: Saved, batch_size: int) -> Any:
        """As ``collect_evidence`` takes it."""
        if self.labels is not None:
            return self.source
        return held_out_store(saved.sae, saved.model, self.source, batch_size)


def _collect(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    evidence: Evidence | None,
    settings: EvidenceSettings,
    texts: _Texts,
) -> tuple[Compared, list[CodedSentence]]:
    """All that the reports show of one SAE."""
    summary = _read_object(folder / _METRICS) if (folder / _METRICS).is_file() else None
    log = folder / METRICS_FILENAME
    training = read_metric_log(log) if log.is_file() else None
    measures = summary is None and args.n_code_tokens > 0
    sentences: list[CodedSentence] = []
    if evidence is None or measures or args.n_sentences > 0:
        saved = load_saved(folder, args.device)
        excluded = saved.sae.cfg.metadata.exclude_special_tokens or False
        options: dict[str, Any] = {
            "activation_scaler": saved.scaler,
            "exclude_special_tokens": excluded,
        }
        read = (saved.model, saved.sae, texts.open(saved, settings.batch_size))
        if evidence is None:
            evidence = collect_evidence(
                *read, settings, labels=texts.labels, verbose=True, **options
            )
        if args.n_sentences > 0:
            sentences = collect_sentences(
                *read, evidence, n_sentences=args.n_sentences, labels=texts.labels, **options
            )
        if measures:
            # The metrics are of the held-out text, whatever the examples are of.
            store = held_out_store(saved.sae, saved.model, args.dataset, settings.batch_size)
            summary, _ = run_evals(
                saved.sae,
                store,
                saved.model,
                verbose=True,
                n_code_tokens=args.n_code_tokens,
                **options,
            )
    return Compared(name, evidence, summary, training), sentences


def _without_examples(evidence: Evidence) -> Evidence:
    """They are what takes memory, and a comparison shows none."""
    bare = (replace(latent, strongest=(), random=()) for latent in evidence.latents)
    return replace(evidence, latents=tuple(bare))


def _read_evidences(files: list[str] | None, folders: list[Path]) -> list[Evidence | None]:
    """One for each folder; None where it is to be collected."""
    if files is None:
        return [None] * len(folders)
    if len(files) != len(folders):
        raise ValueError(
            f"--evidence must name one file a PATH; got {len(files)} files for {len(folders)} PATHs."
        )
    return [_read_evidence(Path(file), folder) for file, folder in zip(files, folders, strict=True)]


def _read_evidence(path: Path, folder: Path) -> Evidence:
    values = _read_object(path)
    try:
        evidence = Evidence.from_dict(values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no evidence of collect_evidence: {error!r}.") from error
    n_latents = _read_object(folder / "cfg.json").get("d_sae")
    if len(evidence) != n_latents:
        raise ValueError(
            f"{path} is evidence of {len(evidence)} latents, and the SAE in {folder} has {n_latents}. "
            "Give the evidence that was collected of it."
        )
    return evidence


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(values).__name__}.")
    return values


def _names(folders: list[Path]) -> list[str]:
    """Of folders, or their paths where two are called the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
