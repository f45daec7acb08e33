"""Folders: saved SAEs, checkpoints, replayed activations; each with one of its files damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from bae_lens.export.folder import NOTE_FILENAME, check_export_folder, export_folder
from bae_lens.training import TrainingRunner
from tests.bad_inputs.damage import Damaged, damaged_bytes, damaged_json
from tests.bad_inputs.readers import Reader
from tests.bad_inputs.trial import Trial, command
from tests.helpers import (
    CONTEXT_SIZE,
    D_IN,
    HOOK,
    make_bae,
    make_clvq,
    make_model,
    make_text,
    runner_cfg,
)

_REPLAYED = 20 * 64
KNOWN = {
    "model_name": "bae-lens/tiny",
    "model_class_name": "HookedTransformer",
    "dataset_path": "bae-lens/tiny-text",
    "hook_name": HOOK,
    "context_size": CONTEXT_SIZE,
    "prepend_bos": True,
    "exclude_special_tokens": True,
}
_SMALL = {
    "eval": ("--n_eval_batches", "1", "--batch_size_prompts", "2", "--n_code_tokens", "64"),
    "report": ("--n_tokens", "64", "--n_code_tokens", "0", "--judge", "none"),
}


def saved_sae(folder: Path, sae: Any = None) -> Path:
    """The folder of a saved SAE that commands can read."""
    sae = make_bae() if sae is None else sae
    for name, value in KNOWN.items():
        sae.cfg.metadata[name] = value
    sae.save_model(folder)
    return folder


def _in_copies(
    good: Path, filename: str, read: Callable[[Path], Any], damaged: Iterator[Damaged], *names: str
) -> Iterator[Trial]:
    """Each content in a copy of the folder, which the message has to name, or the file in it."""
    for i, (name, content, is_told) in enumerate(damaged):

        def call(i: int = i, content: bytes = content) -> None:
            folder = good.with_name(f"{good.name}_{i}")
            shutil.copytree(good, folder, dirs_exist_ok=True)
            (folder / filename).write_bytes(content)
            read(folder)

        yield Trial(name, call, (f"{good.name}_{i}", filename, *names), is_told)


def _without(
    good: Path, read: Callable[[Path], Any], random: Random, *names: str
) -> Iterator[Trial]:
    """A file is missing, or a folder stands in its place."""
    files = sorted(path.name for path in good.iterdir() if path.is_file() and path.name in names)
    while True:
        name = random.choice(files)

        def call(name: str = name, is_folder: bool = random.random() < 0.5) -> None:
            folder = good.with_name(f"{good.name}_without")
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(good, folder)
            (folder / name).unlink()
            if is_folder:
                (folder / name).mkdir()
            read(folder)

        yield Trial(f"{name} is missing, or a folder", call, (f"{good.name}_without", name))


def _taken_in_turn(*trials: Iterator[Trial]) -> Iterator[Trial]:
    while True:
        for one in trials:
            yield next(one)


def _run_command(name: str, folder: Path) -> None:
    command(name, str(folder), *_SMALL[name])()


def _upload(folder: Path) -> None:
    command("upload", str(folder), "--repo_id", "a/b", "--dry_run", str(folder / "to_send"))()


def _saved(
    read: Callable[[Path], None], make: Callable[[], Any]
) -> Callable[[Random, Path], Iterator[Trial]]:
    def trials(random: Random, folder: Path) -> Iterator[Trial]:
        good = saved_sae(folder / "sae", make())
        cfg = (good / "cfg.json").read_bytes()
        # Of what the class itself reads; the rest of the metadata is notes.
        own = json.loads(cfg)
        # SAELens puts the device there that it is asked for.
        untyped = (*own["metadata"], "device")
        weights = (good / "sae_weights.safetensors").read_bytes()
        files = ("cfg.json", "sae_weights.safetensors")
        yield from _taken_in_turn(
            _in_copies(
                good,
                "cfg.json",
                read,
                damaged_json(cfg, random, ("architecture", "d_in", "d_sae"), untyped),
                "sae",
            ),
            _in_copies(
                good, "sae_weights.safetensors", read, damaged_bytes(weights, random, False)
            ),
            _without(good, read, random, *files),
        )

    return trials


def _cfg(folder: Path, **changes: Any) -> Any:
    return runner_cfg(folder, 6, **changes)


def _checkpoint(random: Random, folder: Path) -> Iterator[Trial]:
    model, text = make_model(), make_text()

    def run(path: Path | None) -> None:
        resumed = None if path is None else str(path)
        cfg = _cfg(folder / "run", n_checkpoints=1, resume_from_checkpoint=resumed)
        if path is not None:
            cfg.output_path = cfg.checkpoint_path = None
        TrainingRunner(cfg, text, model, replay_tokens=_REPLAYED).run()

    run(None)
    [good] = (folder / "run" / "checkpoints").glob("*/*")
    # What resuming reads; the sparsity beside it is for people.
    binary = sorted(
        p.name
        for p in good.iterdir()
        if p.suffix in (".safetensors", ".pt") and "sparsity" not in p.name
    )
    made = [
        _in_copies(
            good, name, run, damaged_bytes((good / name).read_bytes(), random, is_checked=False)
        )
        for name in binary
    ]
    content = (good / "runner_cfg.json").read_bytes()
    damaged = damaged_json(content, random, ("seed", "hook_name", "lr"), ("metadata", "logger"))
    made.append(_in_copies(good, "runner_cfg.json", run, damaged, "resume_from_checkpoint"))
    yield from _taken_in_turn(*made, _without(good, run, random, *binary))


def _replay(random: Random, folder: Path) -> Iterator[Trial]:
    model, text = make_model(), make_text()

    def run(path: Path) -> None:
        cfg = _cfg(folder / "run", output_path=None, checkpoint_path=None)
        TrainingRunner(cfg, text, model, replay_tokens=_REPLAYED, replay_path=path).run()

    good = folder / "replay"
    run(good)
    [description] = good.rglob("description.json")
    [rows] = good.rglob("activations.bin")
    inside = description.parent.relative_to(good)
    content = description.read_bytes()
    # A name that is not there is as one of which nothing is said, as in folders of before there was such a field.
    said = tuple(name for name, value in json.loads(content).items() if value is not None)
    yield from _taken_in_turn(
        _in_copies(
            good,
            str(inside / "description.json"),
            run,
            damaged_json(content, random, said),
            "replay_path",
        ),
        _in_copies(
            good, str(inside / "activations.bin"), run, damaged_bytes(rows.read_bytes(), random)
        ),
    )


def _export(random: Random, folder: Path) -> Iterator[Trial]:
    """The note of an earlier export, which says what may be replaced."""
    good, sha256 = folder / "table", "a" * 64
    with export_folder(good, "csv", sha256, {}) as partial_folder:
        (partial_folder / "latents.csv").write_text("latent\n")

    def read(path: Path) -> None:
        check_export_folder(path, "csv", sha256)

    read(good)
    content = (good / NOTE_FILENAME).read_bytes()
    needed = ("export", "weights_sha256", "files")
    yield from _in_copies(good, NOTE_FILENAME, read, damaged_json(content, random, needed))


FOLDERS = (
    Reader(
        "bae-lens eval PATH, a BAE",
        "damaged cfg.json and weights",
        "a folder that SAELens wrote",
        _saved(partial(_run_command, "eval"), make_bae),
    ),
    Reader(
        "bae-lens report PATH, a CLVQ-VAE",
        "damaged cfg.json and weights",
        "a folder that SAELens wrote",
        _saved(partial(_run_command, "report"), partial(make_clvq, d_out=D_IN)),
    ),
    Reader(
        "bae-lens upload PATH, a BAE",
        "damaged cfg.json and weights",
        "a folder that SAELens wrote",
        _saved(_upload, make_bae),
    ),
    Reader(
        "bae-lens export --output",
        "damaged note of an export",
        "an empty folder, or an earlier export of the same",
        _export,
    ),
    Reader(
        "TrainingRunner, resume_from_checkpoint",
        "damaged files of a checkpoint",
        "a whole checkpoint of the same run",
        _checkpoint,
    ),
    Reader(
        "TrainingRunner, replay_path",
        "damaged description and rows",
        "what a run collected, with checksums",
        _replay,
    ),
)
