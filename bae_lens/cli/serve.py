"""``bae-lens serve PATH``: the report of a saved SAE with a field whose text the model on this machine reads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bae_lens.checks.fields import check, whole
from bae_lens.cli.data import outlier_option
from bae_lens.cli.reading import Read, References, Texts
from bae_lens.cli.report import (
    EXAMPLES_FILENAME,
    add_reading_arguments,
    collect,
    read_records,
    reading_settings,
)
from bae_lens.cli.saved import names_of, saved_folder
from bae_lens.cli.scores import saved_probing, saved_scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="folder of a saved SAE (cfg.json and sae_weights.safetensors); scores that lie in it are shown",
    )
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help=f"examples that were saved; default: PATH/{EXAMPLES_FILENAME} if it is there, otherwise they are collected",
    )
    parser.add_argument(
        "--save_examples",
        action="store_true",
        help=f"write what is collected to PATH/{EXAMPLES_FILENAME}, where the next time it is found",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="of this machine, on which the page is to be had; nobody else can reach it; default: a free one",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    # The page is to be there at once: what takes minutes to measure is for eval and report.
    add_reading_arguments(parser, n_code_tokens=0)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, which is how it ends: status 0."""
    from bae_lens.fingerprint import weights_sha256
    from bae_lens.loading.saved_saes import load_sae
    from bae_lens.report.live import LiveText
    from bae_lens.report.live_server import LiveServer
    from bae_lens.report.page import live_page

    port = check("--port", args.port, whole(0, 65_535))
    folder = saved_folder(args.path)
    settings = reading_settings(args)
    sha256 = weights_sha256(load_sae(folder))
    file = Path(args.examples or folder / EXAMPLES_FILENAME)
    records = None
    if args.examples or file.is_file():
        records = read_records(file, folder, sha256)
    # As bae-lens report has them: several files, and no counting only.
    args.examples, args.dry_run = [str(file)] if records else None, False
    results = [*saved_scores(folder, sha256), *saved_probing(folder, sha256)]
    texts, references = Texts.read(args), References(outlier_option(args), {})
    read = Read.opener(folder, args, texts, settings.batch_size)
    [name] = names_of([folder])
    # Before what takes long, so that a port in use is told at once.
    try:
        server = LiveServer(port)
    except ValueError as error:
        raise ValueError(f"--{error}") from error
    try:
        own, sentences, effects = collect(
            *(args, folder, name, sha256, records, settings, texts, references),
            lambda _: results,
            read,
        )
        model, sae, _ = read().given
        live = LiveText(model, sae, own.records, **read().options)
        title = f"{name}: {own.records.dictionary} at {own.records.hook_name}"
        page = live_page(own, sentences, effects, title, live.n_tokens)
        address = f"{server.address}#live"
        print("Served on this machine only, to whoever knows the address; Ctrl-C ends it.")
        print(address, flush=True)
        if args.open:
            _open(address)
        server.serve(page, live)
    except KeyboardInterrupt:
        if not server.is_serving:
            raise
    finally:
        server.server_close()
    return 0


def _open(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        print("bae-lens: no browser could be opened: open the address yourself", file=sys.stderr)
