"""``bae-lens quiz PATH … --data FILE --reference FILE``: what a bag-of-words classifier tells of a model's
predictions from the concepts of saved SAEs, and a page that asks people the same."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bae_lens.cli.data import add_data_arguments, count_or_all, read_data, unescaped
from bae_lens.cli.saved import add_saved_arguments, check_output, load_saved, names_of, saved_folder
from bae_lens.concept_ablation.settings import (
    AblationSettings,
    Attribution,
    PredictedBy,
    Readout,
)
from bae_lens.files.json_file import read_json
from bae_lens.quiz.settings import QuizSettings

if TYPE_CHECKING:
    from bae_lens.examples.records import LatentRecords
    from bae_lens.scoring.recoverability import RecoverabilityTask
    from bae_lens.scoring.recoverability_result import Recoverability

_OUTPUT, _RECOVERABILITY = "quiz.html", "recoverability.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of a saved SAE (cfg.json and sae_weights.safetensors), all of one model; all are "
        "asked about the same texts",
    )
    add_data_arguments(parser, "labeled texts to ask about", required=True)
    parser.add_argument(
        "--class_names",
        nargs="+",
        metavar="NAME",
        help="what people are told that the classes are called, in the order of the labels; default: "
        "the labels",
    )
    parser.add_argument(
        "--reference",
        required=True,
        help="other texts of the same kind (column text), from which words and contexts are shown: a "
        "file, or the name of a dataset (split train)",
    )
    parser.add_argument(
        "--n_reference",
        type=int,
        default=1000,
        help="reference texts that are used, the first; default: %(default)s",
    )
    parser.add_argument(
        "--hook_name_out",
        help="where a probe that predicts reads; default: where the SAE writes or, if it reads there "
        "too, the same point of the last block",
    )
    _add_settings(parser)
    add_saved_arguments(parser)
    parser.add_argument(
        "--output",
        default=_OUTPUT,
        help="HTML file to write; its key is written beside it (.key.json); default: %(default)s",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each of the ``QuizSettings``, and for some of the ``AblationSettings``."""
    own = {field.name: field.default for field in fields(QuizSettings)}
    defaults = {f.name: f.default for f in fields(AblationSettings)} | own

    def add(name: str, words: str, **options: Any) -> None:
        default = defaults[name]
        words += "" if default is None else f"; default: {default}"
        parser.add_argument(f"--{name}", default=default, help=words, **options)

    add("n_texts", "texts that people are asked about, of each SAE the same", type=int)
    add("n_controls", "controls of each SAE: concepts of other texts", type=int)
    add("n_words", "words of a concept at most", type=int)
    add("n_contexts", "contexts of a concept at most", type=int)
    add("readout", "what a text's vector is; default: by the model", choices=get_args(Readout))
    add("template", "what the model reads, with {text} in it; \\n is a line end", type=unescaped)
    add("label_words", "what the model would say for each class, in their order", nargs="+")
    add(
        "predicted_by",
        "whose prediction people are asked for; default: the head of a classifier, else label words where "
        "they are given, else a probe",
        choices=get_args(PredictedBy),
    )
    add("context_size", "tokens of a text at most", type=int)
    add("max_examples", "labeled texts that are used, or all", type=count_or_all)
    add("salient", "how salient tokens are found", choices=(*get_args(Attribution), "readout"))
    add("n_steps", "gradients a text, of integrated gradients", type=int)
    add(
        "n_folds",
        "a probe predicts each text that has learned from the others; default: 5",
        type=int,
    )
    add("batch_size", "texts a forward pass", type=int)
    add("seed", "of samples, folds, probes and the quiz", type=int)


def run_quiz(args: argparse.Namespace) -> int:
    from bae_lens.activations.labeled_texts import read_texts
    from bae_lens.checks.fields import check, whole
    from bae_lens.concept_ablation.predictors import predictor
    from bae_lens.concept_ablation.run import probed_hooks
    from bae_lens.quiz.questions import key_path, write_quiz
    from bae_lens.scoring.recoverability import RecoverabilityTask
    from bae_lens.scoring.recoverability_result import RecoverabilitySettings

    folders = [saved_folder(path) for path in args.paths]
    settings = QuizSettings(**_given(args, QuizSettings))
    recoverability_settings = RecoverabilitySettings(**_given(args, RecoverabilitySettings))
    # Nothing is ablated.
    ablation = AblationSettings(**_given(args, AblationSettings), causal=False, n_ordinary=0)
    check("--n_reference", args.n_reference, whole(1))
    output = Path(args.output)
    for path in (output, key_path(output), *(folder / _RECOVERABILITY for folder in folders)):
        check_output(path, *folders, args.data, args.reference)
    _check_models(folders)
    data, reference = read_data(args), read_texts(args.reference, args.n_reference)
    class_names = _class_names(args, data.label_names)
    # One for each pair of hook points.
    tasks: dict[tuple[str, str], RecoverabilityTask] = {}
    recoverabilities: dict[str, Recoverability] = {}
    records: dict[str, LatentRecords] = {}
    for name, folder in zip(names_of(folders), folders, strict=True):
        saved = load_saved(folder, args)
        sae = saved.folded()
        hooks = probed_hooks(saved.model, sae, args.hook_name_out)
        if not tasks:
            by = predictor(saved.model, ablation.predicted_by, ablation.label_words)
            if by == "probe":
                _check_probe(saved.model, folders, args.hook_name_out)
        if hooks not in tasks:
            tasks[hooks] = RecoverabilityTask.prepare(
                *(saved.model, hooks, data, reference, recoverability_settings, ablation),
                class_names=class_names,
            )
        records[name] = tasks[hooks].collect(sae)
        recoverabilities[name] = tasks[hooks].recover(sae, records[name], name)
        print(f"{recoverabilities[name].table()}\n")
        recoverabilities[name].save(folder / _RECOVERABILITY)
        print(f"Written to {folder / _RECOVERABILITY}\n")
    key = write_quiz(output, recoverabilities, records, settings)
    n_asked = len({item.text for item in key.items})
    print(
        f"{key.n_questions} questions about {n_asked} texts. Give people {output}, and keep "
        f"{key_path(output)} from them; score the files that they save with\n\n"
        f"    bae-lens score-quiz answers.json --key {key_path(output)}"
    )
    return 0


def _given(args: argparse.Namespace, settings: Any) -> dict[str, Any]:
    """The values of those settings that are options."""
    return {f.name: getattr(args, f.name) for f in fields(settings) if f.name in args}


def _check_models(folders: list[Path]) -> None:
    """Check that people can compare: predictions are of one model."""
    configs = [read_json(folder / "cfg.json", "config of an SAE") for folder in folders]
    found = {(config.get("metadata") or {}).get("model_name") for config in configs}
    if len(found) > 1:
        raise ValueError(
            "A quiz asks about the predictions of one model; the SAEs are of "
            f"{', '.join(map(repr, sorted(map(str, found))))}. Write one quiz for each model."
        )


def _check_probe(model: Any, folders: list[Path], hook_name_out: str | None) -> None:
    """The same: probes of different hook points predict differently."""
    from bae_lens.concept_ablation.run import probed_hooks
    from bae_lens.loading.saved_saes import load_sae

    found = {probed_hooks(model, load_sae(f), hook_name_out)[1] for f in folders}
    if len(found) > 1:
        raise ValueError(
            "A quiz asks about the predictions of one probe; by where the SAEs write it would read at "
            f"{', '.join(map(repr, sorted(found)))}. Choose one of them as --hook_name_out."
        )


def _class_names(args: argparse.Namespace, label_names: list[str]) -> list[str] | None:
    names = args.class_names
    if names is not None and (len(set(names)) < len(names) or len(names) != len(label_names)):
        raise ValueError(
            f"--class_names must name each of the labels {', '.join(label_names)} differently; "
            f"got {', '.join(names)}."
        )
    return names
