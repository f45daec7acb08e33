"""Checkpoints of a run: whole, exact, and gone on from by that run only."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens.activations.replay import ReplayedActivations
from bae_lens.files.json_file import parse_json, write_json
from bae_lens.loading.saved_saes import FOLDED_AT_THE_END
from bae_lens.training.rank_states import RANDOM_STATE_FILENAME, load_state
from bae_lens.training.run_identity import differing_fields, is_same_model

logger = logging.getLogger(__name__)

# Written last. A checkpoint without it is of an earlier version, or of SAELens' own runner.
RECORD_FILENAME = "checkpoint.json"
_PIECE = 2**20  # bytes that are read at a time
_FILES = (
    TRAINER_STATE_FILENAME,
    SAE_WEIGHTS_FILENAME,
    ACTIVATIONS_STORE_STATE_FILENAME,
    SAE_CFG_FILENAME,
    ACTIVATION_SCALER_CFG_FILENAME,
    # SAELens writes it last: what lacks it was cut off.
    RUNNER_CFG_FILENAME,
)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Beside the files of a checkpoint, with their sizes and checksums.

    Args:
        folder: where the checkpoint is being written.
        record: what belongs to it and is in none of SAELens' files.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    sizes = {file.name: file.stat().st_size for file in files}
    checksums = {file.name: _crc32(file) for file in files}
    write_json(folder / RECORD_FILENAME, {**record, "bytes": sizes, "crc32": checksums})


def check_whole(path: Path) -> dict[str, Any]:
    """Refuse a folder that is no whole checkpoint.

    Returns:
        Its record; empty for one that has none, of an earlier version or of SAELens' own runner.

    Raises:
        FileNotFoundError: if a file is missing or was cut off.
        ValueError: if one cannot be read, or is not what was written there.
    """
    missing = [name for name in _FILES if not (path / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"resume_from_checkpoint is {str(path)!r}, which lacks {', '.join(missing)}. Give the "
            "folder of one checkpoint, named after its number of tokens."
        )
    if not (path / RECORD_FILENAME).is_file():
        _check_old(path)
        return {}
    record = _read(path / RECORD_FILENAME)
    _check_sizes(path, record.get("bytes"))
    _check_checksums(path, record.get("crc32"))
    return record


def check_run(path: Path, record: Mapping[str, Any], cfg: Any, given: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run than the one of this config.

    Args:
        path: of the checkpoint.
        record: of ``check_whole``. If it is empty, a warning says what cannot be told.
        cfg: the config of the run that is to go on with it.
        given: what else that run is given that decides what it trains on, by name, as the record has
            it; what an earlier record lacks is None.

    Raises:
        ValueError: if it is; names each field, its value there and its value here.
    """
    runner_cfg = _read(path / RUNNER_CFG_FILENAME)
    differing = differing_fields(runner_cfg, cfg)
    differing += [
        f"{name} is {record.get(name)!r} there and {value!r} here"
        for name, value in given.items()
        if record and record.get(name) != value
    ]
    if differing:
        raise _of_another_run(path, differing)
    is_scaled = (runner_cfg.get("sae") or {}).get("normalize_activations") in FOLDED_AT_THE_END
    _check_rest(path, cfg, is_scaled, record.get("n_tokens"))
    if not record:
        by = "an earlier version"
        if not (path / RANDOM_STATE_FILENAME).is_file():
            by = "SAELens' own runner; random numbers are drawn anew"
        logger.warning(
            "%s was written by %s. It cannot be told whether its text and its model were these.",
            *(path, by),
        )


def check_given(
    path: Path,
    record: Mapping[str, Any],
    text: Mapping[str, Any] | None,
    model: list[float] | None,
) -> None:
    """Refuse a checkpoint whose run read another text or another model than the ones at hand.

    Args:
        path: of the checkpoint.
        record: of ``check_whole``.
        text: of ``describe_text``; None if it cannot be told.
        model: of ``describe_model``; None if the config names it.

    Raises:
        ValueError: if it did.
    """
    text_there, model_there = record.get("text"), record.get("model")
    if text is not None and text_there is not None and text != text_there:
        what = {
            "rows": "the text's number of rows",
            "sha256_of_some": "the text (a hash of some rows)",
        }
        raise _of_another_run(
            path,
            [
                f"{what.get(name, name)} is {text_there.get(name)!r} there and {value!r} here"
                for name, value in text.items()
                if text_there.get(name) != value
            ][:1],
        )
    if model is not None and model_there is not None and not is_same_model(model_there, model):
        raise _of_another_run(path, ["the language model has other weights there than here"])


def check_replayed(path: Path, store: Any, n_collected: int | None = None) -> None:
    """Refuse a checkpoint without a record whose activations were replayed, where they are not now.

    Args:
        path: of the checkpoint.
        store: of the run that is to go on with it.
        n_collected: activations that are replayed, of all ranks; if omitted, those of the store.

    Raises:
        ValueError: if they were, or others in number.
    """
    # SAELens' store ignores a state that it does not know, and would begin with the first text.
    was_replayed = "n_batches_served" in load_state(path / ACTIVATIONS_STORE_STATE_FILENAME)
    is_replayed = isinstance(store, ReplayedActivations)
    if is_replayed and n_collected is None:
        n_collected = len(store.activations)
    if was_replayed and not is_replayed:
        raise ValueError(
            f"{str(path)!r} was written by a run that replayed its activations. Give replay_tokens "
            "as that run did; metadata.replay_tokens in its cfg.json has the number."
        )
    if is_replayed:
        metadata = _read(path / SAE_CFG_FILENAME).get("metadata") or {}
        there, here = metadata.get("replay_tokens"), n_collected
        if there not in (None, here):
            raise _of_another_run(
                path, [f"the number of replayed tokens is {there} there and {here} here"]
            )


def go_on(trainer: SAETrainer[Any, Any]) -> None:
    """Put right what SAELens does not when it resumes."""
    done = trainer.n_training_samples
    trainer.checkpoint_thresholds = [t for t in trainer.checkpoint_thresholds if t >= done]
    # A checkpoint on a threshold is written before its step is counted.
    trainer.n_training_steps = done // trainer.cfg.train_batch_size_samples


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}. Give a whole checkpoint.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold fields and their values; got {content!r}.")
    return content


def _check_sizes(path: Path, sizes: Any) -> None:
    for name, size in (sizes if isinstance(sizes, dict) else {}).items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise FileNotFoundError(
                f"resume_from_checkpoint is {str(path)!r}, whose {name} {what}; it was written with "
                f"{size} bytes. Give a whole checkpoint."
            )


def _check_checksums(path: Path, checksums: Any) -> None:
    for name, checksum in (checksums if isinstance(checksums, dict) else {}).items():
        if _crc32(path / name) != checksum:
            raise ValueError(
                f"resume_from_checkpoint is {str(path)!r}, whose {name} is not what was written there: "
                "its checksum differs. Give another checkpoint."
            )


def _crc32(file: Path) -> int:
    checksum = 0
    with file.open("rb") as content:
        while piece := content.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _check_old(path: Path) -> None:
    """What has no checksums is read once more for it, since SAELens says no file's name."""
    load_state(path / SAE_WEIGHTS_FILENAME)
    state = path / TRAINER_STATE_FILENAME
    try:
        torch.load(state, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever unpickling makes of it.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{state} cannot be read: {reason[:200]}. Give a whole checkpoint."
        ) from error
    was_replayed = "n_batches_served" in load_state(path / ACTIVATIONS_STORE_STATE_FILENAME)
    is_ours = was_replayed or "hook_name_out" in _read(path / RUNNER_CFG_FILENAME)
    if is_ours and not (path / RANDOM_STATE_FILENAME).is_file():
        # SAELens' own runner writes none; this package always did, in the end.
        raise FileNotFoundError(
            f"resume_from_checkpoint is {str(path)!r}, which lacks {RANDOM_STATE_FILENAME}: the "
            "writing of it was cut off. Give an earlier checkpoint."
        )


def _check_rest(path: Path, cfg: Any, is_scaled: bool, n_tokens: Any) -> None:
    if is_scaled and path.name.startswith("final_"):
        raise ValueError(
            f"{str(path)!r} is the final checkpoint of a run: the scale of the activations is folded "
            "into its weights, and training cannot go on from it. Resume from an earlier one, or "
            "begin a new run with from_pretrained_path."
        )
    if isinstance(n_tokens, int) and n_tokens > cfg.training_tokens:
        raise ValueError(
            f"training_tokens is {cfg.training_tokens}, but {str(path)!r} has {n_tokens} behind it "
            "already. Raise it, or resume from an earlier checkpoint."
        )


def _of_another_run(path: Path, differing: list[str]) -> ValueError:
    return ValueError(
        f"resume_from_checkpoint is {str(path)!r}, a checkpoint of another run: "
        f"{'; '.join(differing)}. Give what that run was given, or begin anew without it."
    )
