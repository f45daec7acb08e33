"""What of the folder of a saved SAE is sent: found to be whole, and without what is of this machine alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import SAE
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
)
from sae_lens.loading.pretrained_sae_loaders import read_sae_components_from_disk
from safetensors import SafetensorError, safe_open

from bae_lens.files.json_file import parse_json, read_json
from bae_lens.fingerprint import deciding_fields, weights_sha256
from bae_lens.hub.private import check_no_secrets, is_local_path, without_local_paths
from bae_lens.loading.language_models import is_folder
from bae_lens.loading.saved_saes import (
    FOLDED_AT_THE_END,
    load_sae,
    load_scaler,
    read_sae_config,
)
from bae_lens.results import EVAL_METRICS_FILENAME

logger = logging.getLogger(__name__)

FILENAMES = (
    # What SAELens uploads.
    *(SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, RUNNER_CFG_FILENAME),
    EVAL_METRICS_FILENAME,
)


@dataclass(frozen=True)
class SAEContents:
    """A saved SAE as it is sent.

    Attributes:
        sae: as others will load it.
        files: what is in each file, by its name: the content, or the file here that has it.
        metrics: of ``bae-lens eval``; None where there are none of these weights.
        stamps: of the files here, from before they were checked.
    """

    sae: SAE[Any]
    files: Mapping[str, Path | bytes]
    metrics: dict[str, Any] | None
    stamps: Mapping[Path, tuple[int, ...]]

    def check_unchanged(self) -> None:
        """That the files are still those that were checked.

        Raises:
            ValueError: if one was written meanwhile.
        """
        for file, stamp in self.stamps.items():
            if _stamp(file) != stamp:
                raise ValueError(
                    f"{file} was written while it was checked and sent. Upload again once nothing writes there."
                )


def read_contents(
    sae_id: str, folder: Path, repo_id: str, model_name: str | None = None
) -> SAEContents:
    """Everything that is to be sent of one folder.

    Args:
        sae_id: what it will be called.
        folder: of the saved SAE.
        repo_id: the repository that it is for.
        model_name: the language model's name in place of the one in the metadata.

    Raises:
        FileNotFoundError: if it is not the folder of a saved SAE.
        ValueError: if a file of it is damaged, weights are not finite or do not hold the scale of their inputs yet,
            it holds what looks like a secret, the language model is a folder of this machine and no
            name is given, or ``SAE.from_pretrained`` would make something else of it.
    """
    stamps = {folder / name: _stamp(folder / name) for name in FILENAMES}
    sae = load_sae(folder)
    _check_folded(folder, sae)
    files: dict[str, Path | bytes] = {SAE_WEIGHTS_FILENAME: folder / SAE_WEIGHTS_FILENAME}
    cfg = read_sae_config(folder)
    files[SAE_CFG_FILENAME] = _sent(folder / SAE_CFG_FILENAME, cfg, model_name)
    if (runner := folder / RUNNER_CFG_FILENAME).is_file():
        values = read_json(runner, "config of a run")
        files[RUNNER_CFG_FILENAME] = _sent(runner, values, model_name)
    if (sparsity := folder / SPARSITY_FILENAME).is_file():
        _check_sparsity(sparsity, sae.cfg.d_sae)
        files[SPARSITY_FILENAME] = sparsity
    for file in (folder / SAE_WEIGHTS_FILENAME, sparsity):
        _check_notes(file)
    metrics = _metrics(folder / EVAL_METRICS_FILENAME, sae, model_name)
    if metrics is not None:
        content = _sent(folder / EVAL_METRICS_FILENAME, metrics, model_name)
        files[EVAL_METRICS_FILENAME] = content
        # As it is sent, since the README quotes it.
        metrics = parse_json(content) if isinstance(content, bytes) else metrics
    loaded = _as_others_load_it(sae, files, sae_id, folder, repo_id)
    return SAEContents(loaded, files, metrics, stamps)


def _stamp(file: Path) -> tuple[int, ...]:
    """Another one once a file was written; empty where there is none."""
    try:
        known = file.stat()
    except OSError:
        return ()
    return known.st_ino, known.st_size, known.st_mtime_ns


def _check_folded(folder: Path, sae: SAE[Any]) -> None:
    scaler = load_scaler(folder)
    is_checkpoint = scaler.scaling_factor is not None or scaler.whitening is not None
    if is_checkpoint or sae.cfg.normalize_activations in FOLDED_AT_THE_END:
        raise ValueError(
            f"{folder} is a checkpoint from the middle of a run, or of a like kind: the scale of its inputs is not in "
            "its weights, and SAE.from_pretrained would leave it out. Give the folder that training wrote in the end "
            "(output_path)."
        )


def _sent(file: Path, values: dict[str, Any], model_name: str | None) -> Path | bytes:
    """The file itself, or its content where something in it has to be another."""
    check_no_secrets(values, str(file))
    named = _with_model(values, model_name, str(file))
    cleaned, removed = without_local_paths(named)
    for name in removed:
        logger.warning("%s: %s is a path of this machine, and is left out.", file, name)
    if cleaned == values:
        return file
    return json.dumps(cleaned, allow_nan=False).encode()


def _with_model(values: Any, model_name: str | None, source: str, where: str = "") -> Any:
    """The values with the language model's name, wherever it stands.

    Raises:
        ValueError: if it is a folder here, and no name is given.
    """
    if not isinstance(values, dict):
        return values
    found = {}
    for name, value in values.items():
        if name == "model_name" and isinstance(value, str):
            if model_name is None and (is_local_path(value) or is_folder(value)):
                raise ValueError(
                    f"{source}: {where}{name} is a folder of this machine, from which nobody else can load the "
                    "language model. Give the name by which others find it (model_name; on the command line --model)."
                )
            value = model_name or value
        found[name] = _with_model(value, model_name, source, f"{where}{name}.")
    return found


def _check_sparsity(file: Path, d_sae: int) -> None:
    """That it can be read as ``SAE.from_pretrained`` reads it."""
    try:
        with safe_open(file, framework="pt") as tensors:
            shape = tuple(tensors.get_tensor("sparsity").shape)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no file of how often latents fire: {error}.") from error
    if shape != (d_sae,):
        raise ValueError(
            f"{file} is of another SAE: its tensor has the shape {shape}, and there are {d_sae} latents."
        )


def _check_notes(file: Path) -> None:
    """That the notes which safetensors allows beside tensors hold nothing that must stay here."""
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as tensors:
        notes = dict(tensors.metadata() or {})
    check_no_secrets(notes, str(file))
    if removed := without_local_paths(notes)[1]:
        raise ValueError(
            f"{file}: {removed[0]} among its notes is a path of this machine. Save the SAE anew (save_model), which "
            "writes no notes."
        )


def _metrics(file: Path, sae: SAE[Any], model_name: str | None) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    metrics = read_json(file, "file of metrics")
    about = metrics.get("sae")
    # Of versions that did not say whose they are, it cannot be told.
    if not isinstance(about, dict) or about.get("weights_sha256") != weights_sha256(sae):
        logger.warning("%s is of other weights, and is left out; bae-lens eval writes it.", file)
        return None
    if (differs := _of_another(about, sae, model_name)) is not None:
        logger.warning(
            "%s is of another %s than cfg.json has, and is left out; bae-lens eval writes it.",
            file,
            differs,
        )
        return None
    return metrics


def _of_another(about: Mapping[str, Any], sae: SAE[Any], model_name: str | None) -> str | None:
    """What differs from what was measured, beside weights; None where nothing does, or it is not said."""
    if about.get("model_name") not in (None, sae.cfg.metadata.model_name, model_name):
        return "language model"
    own, measured = deciding_fields(sae), about.get("config")
    measured = measured if isinstance(measured, dict) else {}
    # Another version of SAELens may know other fields.
    return next((name for name, value in own.items() if measured.get(name, value) != value), None)


def _as_others_load_it(
    sae: SAE[Any], files: Mapping[str, Path | bytes], sae_id: str, folder: Path, repo_id: str
) -> SAE[Any]:
    """What ``SAE.from_pretrained`` makes of the very files that are sent.

    Raises:
        ValueError: if it is not what the folder holds.
    """
    content = files[SAE_CFG_FILENAME]
    cfg = parse_json(content if isinstance(content, bytes) else content.read_bytes())

    def loader(
        repo_id: str,  # noqa: ARG001
        folder_name: str,  # noqa: ARG001
        device: str,
        force_download: bool,  # noqa: ARG001
        cfg_overrides: dict[str, Any] | None,
    ) -> tuple[dict[str, Any], dict[str, Any], None]:
        own = {**cfg, "device": device, **(cfg_overrides or {})}
        return *read_sae_components_from_disk(own, folder / SAE_WEIGHTS_FILENAME, device), None

    loaded = SAE.from_pretrained(repo_id, sae_id, dtype=sae.cfg.dtype, converter=loader)
    if type(loaded) is not type(sae) or weights_sha256(loaded) != weights_sha256(sae):
        raise ValueError(
            f"{folder} would not come back as it is: SAE.from_pretrained makes a {type(loaded).__name__} of it whose "
            f"weights differ, or that is no {type(sae).__name__}. Save it anew with this version of SAELens (save_model)."
        )
    return loaded
