"""``bae-lens upload PATH [PATH …] --repo_id NAME``: saved SAEs to the Hugging Face Hub, in one commit."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="folder of a saved SAE (cfg.json and sae_weights.safetensors)",
    )
    parser.add_argument(
        "--repo_id",
        required=True,
        metavar="OWNER/NAME",
        help="the repository; it is made if there is none",
    )
    parser.add_argument(
        "--sae_ids",
        nargs="+",
        metavar="ID",
        help="what each PATH is to be called there; default: the folders' names",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="a branch, which is made if there is none; SAE.from_pretrained reads the repository's own only",
    )
    parser.add_argument(
        "--private", action="store_true", help="a repository that is made is seen by you alone"
    )
    parser.add_argument(
        "--license", metavar="NAME", help="mit, apache-2.0, …, for the README's header"
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the language model's name, in place of the one in the metadata, which may be a folder of yours",
    )
    parser.add_argument(
        "--overwrite_readme",
        action="store_true",
        help="replace the repository's README, which otherwise stays",
    )
    parser.add_argument(
        "--dry_run",
        metavar="FOLDER",
        help="write what would be sent into a new folder, and send nothing",
    )


def run_upload(args: argparse.Namespace) -> None:
    from bae_lens.hub import upload_saes

    uploaded = upload_saes(
        _by_id(args.paths, args.sae_ids),
        args.repo_id,
        revision=args.revision,
        private=args.private,
        license=args.license,
        model_name=args.model,
        overwrite_readme=args.overwrite_readme,
        dry_run=args.dry_run,
    )
    print("\n".join(uploaded.files))
    if uploaded.url is None:
        print(f"\nWritten to {args.dry_run}; nothing was sent")
    else:
        print(f"\nSent to {args.repo_id}: {uploaded.url}")


def _by_id(paths: list[str], sae_ids: list[str] | None) -> dict[str, Path]:
    """
    Raises:
        ValueError: if there are not as many ids as folders, or two are the same.
    """
    folders = [Path(path) for path in paths]
    ids = sae_ids or [folder.resolve().name for folder in folders]
    if len(ids) != len(folders):
        raise ValueError(
            f"--sae_ids must name one id a PATH; got {len(ids)} ids for {len(folders)} PATHs."
        )
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise ValueError(
            f"Two PATHs are called {twice!r}: give each an id of its own with --sae_ids."
        )
    return dict(zip(ids, folders, strict=True))
