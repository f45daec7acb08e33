"""``bae-lens export FORMAT PATH``: a saved SAE and its examples in the formats of other tools."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bae_lens.checks.fields import check, whole
from bae_lens.cli.data import add_outlier_argument, outlier_option
from bae_lens.cli.report import EXAMPLES_FILENAME, effects_of, read_records
from bae_lens.cli.saved import add_saved_arguments, folded, load_saved, saved_folder
from bae_lens.cli.scores import saved_scores

if TYPE_CHECKING:
    from bae_lens.examples import LatentRecords
    from bae_lens.scoring import ComSemResult, IntruderResult
    from bae_lens.steering import LogitEffects

_N_EFFECTS = 10
# What each format asks for, beyond PATH, --output and the options of a model.
_OPTIONS = {
    "csv": ("examples", "n_effects"),
    "neuronpedia": ("examples", "n_effects", "model_id", "set_name"),
    "delphi": ("dataset", "n_tokens", "n_splits", "batch_size"),
    "saebench": (),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "format",
        choices=tuple(_OPTIONS),
        help="csv: a row a latent, as CSV and Parquet; neuronpedia: the requests of its upload, which are written and not "
        "sent; delphi: its cache of every nonzero activation; saebench: a custom SAE",
    )
    parser.add_argument("path", help="folder of a saved SAE (cfg.json and sae_weights.safetensors)")
    parser.add_argument("--output", help="folder to write; default: PATH/FORMAT")
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="csv, neuronpedia: what bae-lens report PATH --save_examples wrote; default: "
        f"PATH/{EXAMPLES_FILENAME}",
    )
    parser.add_argument(
        "--n_effects",
        type=int,
        help="csv, neuronpedia: tokens that each latent raises most, and as many that it lowers, by its logit effects; 0 for "
        f"none, which needs no model; default: {_N_EFFECTS}",
    )
    parser.add_argument(
        "--model_id",
        help="neuronpedia: of the model there, as gemma-2-2b; default: by the model's name",
    )
    parser.add_argument(
        "--set_name",
        help="neuronpedia: the source set, as my-res-16k; default: as res-bae-2304",
    )
    parser.add_argument(
        "--dataset",
        help="delphi: another dataset than the one in the metadata: a name, or a file of texts",
    )
    for name, words in (
        ("n_tokens", "tokens to read; default: 200000"),
        ("n_splits", "files that the latents are in; default: 5"),
        ("batch_size", "texts per forward pass; default: 8"),
    ):
        parser.add_argument(f"--{name}", type=int, help=f"delphi: {words}")
    add_outlier_argument(parser)
    add_saved_arguments(parser)


def run_export(args: argparse.Namespace) -> int:
    from bae_lens.export.folder import check_export_folder
    from bae_lens.fingerprint import weights_sha256
    from bae_lens.loading.saved_saes import load_sae

    for name in sorted({name for names in _OPTIONS.values() for name in names}):
        if getattr(args, name) is not None and name not in _OPTIONS[args.format]:
            of = " or ".join(kind for kind, names in _OPTIONS.items() if name in names)
            raise ValueError(f"--{name} is of {of}, and not of {args.format}. Leave it out.")
    outlier_option(args)  # Refused now, if it is none.
    if args.n_effects is not None:
        check("--n_effects", args.n_effects, whole(0))
    folder = saved_folder(args.path)
    output = Path(args.output) if args.output else folder / args.format
    sae = load_sae(folder)
    sha256 = weights_sha256(sae)
    try:
        check_export_folder(output, args.format, sha256)
    except ValueError as error:
        raise ValueError(f"--output {error}") from error
    {"csv": _csv, "neuronpedia": _neuronpedia, "delphi": _delphi, "saebench": _saebench}[
        args.format
    ](args, folder, sae, sha256, output)
    print(f"Written to {output}")
    return 0


def _csv(args: argparse.Namespace, folder: Path, sae: Any, sha256: str, output: Path) -> None:
    from bae_lens.export import write_table

    records, results = _seen(args, folder, sha256)
    write_table(output, records, sae, results, _effects(args, folder))


def _neuronpedia(
    args: argparse.Namespace, folder: Path, sae: Any, sha256: str, output: Path
) -> None:
    from bae_lens.export import NeuronpediaSource, write_neuronpedia
    from bae_lens.export.neuronpedia import firing_latents

    source = NeuronpediaSource.of(sae, args.model_id, args.set_name)
    records, results = _seen(args, folder, sha256)
    firing_latents(records)  # Refused before the model is loaded.
    n = write_neuronpedia(output, records, sae, source, results, _effects(args, folder))
    print(f"{n:,} features of {source.model_id}/{source.source}. Nothing was sent.")


def _delphi(args: argparse.Namespace, folder: Path, sae: Any, sha256: str, output: Path) -> None:  # noqa: ARG001
    from bae_lens.export import DelphiSettings, write_delphi

    given = {name: getattr(args, name) for name in ("n_tokens", "n_splits", "batch_size")}
    settings = DelphiSettings(**{name: n for name, n in given.items() if n is not None})
    saved = load_saved(folder, args)
    n = write_delphi(
        output,
        saved.model,
        saved.sae,
        args.dataset,
        settings,
        activation_scaler=saved.scaler,
        exclude_special_tokens=saved.sae.cfg.metadata.exclude_special_tokens or False,
        exclude_outlier_tokens=outlier_option(args),
    )
    print(f"{n:,} nonzero activations")


def _saebench(args: argparse.Namespace, folder: Path, sae: Any, sha256: str, output: Path) -> None:  # noqa: ARG001
    from bae_lens.export import write_saebench
    from bae_lens.loading.saved_saes import load_scaler

    write_saebench(output, folded(sae, load_scaler(folder)), sha256)


def _seen(
    args: argparse.Namespace, folder: Path, sha256: str
) -> tuple[LatentRecords, list[IntruderResult | ComSemResult]]:
    """The examples, and the scores that lie beside the SAE."""
    file = Path(args.examples) if args.examples else folder / EXAMPLES_FILENAME
    if not file.is_file():
        raise FileNotFoundError(
            f"There are no examples in {file}, of which {args.format} is made. Collect them with: bae-lens report "
            f"{shlex.quote(str(folder))} --save_examples"
        )
    return read_records(file, folder, sha256), saved_scores(folder, sha256)


def _effects(args: argparse.Namespace, folder: Path) -> list[LogitEffects]:
    k = _N_EFFECTS if args.n_effects is None else args.n_effects
    if k == 0:
        return []
    saved = load_saved(folder, args)
    return effects_of(saved.model, saved.sae, k, "export")
