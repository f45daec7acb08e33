"""Saved SAEs, read from folders that may be damaged or of somebody else.

The weights are safetensors and the config is JSON: nothing of them is run. What is not as SAELens saves
it is told in one sentence that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.loading.pretrained_sae_loaders import read_sae_components_from_disk
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import SafetensorError

from bae_lens.checks.fields import Flag, OneOf, Rule, Text, check, positive, shown, whole
from bae_lens.checks.finite import check_finite_weights
from bae_lens.checks.suggest import did_you_mean
from bae_lens.files.json_file import read_json
from bae_lens.loading.devices import check_device

# Values of normalize_activations that SAELens folds into the weights at the end of training, and that an SAE of
# inference leaves aside while they are not.
FOLDED_AT_THE_END = ("expected_average_only_in", "covariance_whitening")
_NAME = Text(or_none=True, may_be_empty=False)
_MAYBE = Flag(or_none=True)
# What is read of the metadata, by SAELens or here; the rest is notes. Numbers and lists are below.
_METADATA: Mapping[str, Rule] = {
    "model_name": _NAME,
    "model_class_name": _NAME,
    "hook_name": _NAME,
    "hook_name_out": Text(or_none=True),
    "dataset_path": Text(or_none=True),
    "text_unit": OneOf(("context", "sentence", None)),
    "hook_head_index": whole(None, or_none=True),
    "context_size": whole(1, or_none=True),
    "prepend_bos": _MAYBE,
    "disable_concat_sequences": _MAYBE,
    "sequence_separator_token": whole(or_none=True, words=("bos", "eos", "sep")),
}
# What libraries raise over values and tensors that they do not expect.
_UNEXPECTED = (
    *(OSError, ValueError, LookupError, AttributeError, TypeError, RuntimeError),
    *(ArithmeticError, AssertionError, SafetensorError),
)
_MOST_CHARACTERS = 300


def load_sae(path: str | Path, device: str = "cpu", *, training: bool = False) -> Any:
    """``SAE.load_from_disk``, or ``TrainingSAE.load_from_disk``, which says what is wrong with a folder.

    Args:
        path: the folder that ``save_model`` or a training run wrote.
        device: where to put the SAE.
        training: give it as it is trained.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing in it.
        ValueError: if the device is none, or a file is not what SAELens writes: cut short, of another
            architecture, with other fields or tensors, or with weights that are not finite.
    """
    folder = Path(path)
    check_device("device", device)
    cfg = read_sae_config(folder)
    _check_architecture(
        cfg, SAE_TRAINING_CLASS_REGISTRY if training else SAE_CLASS_REGISTRY, folder
    )
    weights = folder / SAE_WEIGHTS_FILENAME
    try:
        size = weights.stat().st_size
    except OSError as error:
        raise FileNotFoundError(
            f"{folder} is not the folder of a saved SAE: there is no {SAE_WEIGHTS_FILENAME} in it that "
            f"can be read ({error.strerror}). Give the folder that training wrote (output_path)."
        ) from error
    where = "is read"

    def parts(
        path: str | Path,  # noqa: ARG001
        device: str,
        cfg_overrides: dict[str, Any] | None,  # noqa: ARG001
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        nonlocal where
        found = read_sae_components_from_disk(dict(cfg, device=device), weights, device)
        where = "put together"
        _check_layers(cfg, found[1], folder)
        return found

    kind = TrainingSAE if training else SAE
    try:
        sae = kind.load_from_disk(folder, device=device, converter=parts)
    except torch.OutOfMemoryError:
        raise
    except _UNEXPECTED as error:
        if isinstance(error, _Told):
            raise
        reason = _short(error)
        if where == "is read" and isinstance(error, (OSError, SafetensorError)):
            what = (
                "is empty" if not size else f"is cut short or no safetensors file ({size:,} bytes)"
            )
            raise ValueError(_no_sae(folder, f"{SAE_WEIGHTS_FILENAME} {what}: {reason}")) from error
        if isinstance(error, RuntimeError):
            what = (
                f"{SAE_WEIGHTS_FILENAME} does not hold the tensors that {SAE_CFG_FILENAME} asks for"
            )
            raise ValueError(_no_sae(folder, f"{what}: {reason}")) from error
        raise ValueError(_no_sae(folder, f"{SAE_CFG_FILENAME}: {reason}")) from error
    check_finite_weights(sae, str(weights))
    return sae


def read_sae_config(folder: str | Path) -> dict[str, Any]:
    """The ``cfg.json`` of a saved SAE, with fields that can be what they say.

    Raises:
        FileNotFoundError: if there is no such folder, or none in it.
        ValueError: if it is no config of an SAE.
    """
    folder = Path(folder)
    file = folder / SAE_CFG_FILENAME
    if not os.path.isfile(file):
        is_file = os.path.isfile(folder)
        why = "it is a file" if is_file else f"there is no {SAE_CFG_FILENAME} in it"
        raise FileNotFoundError(
            f"{folder} is not the folder of a saved SAE: {why}. Give the folder that training wrote "
            "(output_path)."
        )
    try:
        file.read_bytes().decode("utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            _no_sae(folder, f"{SAE_CFG_FILENAME} is not UTF-8 ({error.reason})")
        ) from error
    cfg = read_json(file, "config of an SAE", "d_in", "d_sae")
    _check_config(cfg, str(file))
    return cfg


def _check_config(cfg: dict[str, Any], file: str) -> None:
    for name in ("d_in", "d_sae"):
        cfg[name] = check(f"{file}: {name}", cfg[name], whole(1))
    metadata = cfg.get("metadata", {})
    if not isinstance(metadata, Mapping):
        raise ValueError(
            f"{file}: metadata must be fields and their values; got {shown(metadata)}."
        )
    for name, rule in _METADATA.items():
        if name in metadata:
            check(f"{file}: metadata.{name}", metadata[name], rule)
    excluded = metadata.get("exclude_special_tokens")
    ids = excluded if isinstance(excluded, list) else []
    if not (isinstance(excluded, (bool, list)) or excluded is None) or not all(
        type(i) is int for i in ids
    ):
        raise ValueError(
            f"{file}: metadata.exclude_special_tokens must be True, False, None or a list of ids of "
            f"tokens; got {shown(excluded)}."
        )
    positions = metadata.get("seqpos_slice")
    if positions is not None and not (
        isinstance(positions, list)
        and 1 <= len(positions) <= 3
        and all(i is None or type(i) is int for i in positions)
    ):
        raise ValueError(
            f"{file}: metadata.seqpos_slice must be one to three whole numbers or None; got "
            f"{shown(positions)}."
        )


def _check_architecture(cfg: Mapping[str, Any], known: Mapping[str, Any], folder: Path) -> None:
    # Files of SAELens before 6.0 have none.
    architecture = cfg.get("architecture", "standard")
    if not isinstance(architecture, str) or architecture not in known:
        hint = did_you_mean(architecture[:80], known) if isinstance(architecture, str) else ""
        raise ValueError(
            f"{folder / SAE_CFG_FILENAME}: architecture must be one that SAELens or a plug-in of it has "
            f"registered; got {shown(architecture)}. {hint}".rstrip()
        )


class _Told(ValueError):
    """It says already what is wrong, and where."""


def _check_layers(cfg: Mapping[str, Any], tensors: Mapping[str, Any], folder: Path) -> None:
    """Layers are made one by one before weights are compared, so a count that is a mere claim would
    keep the machine busy."""
    for name, value in cfg.items():
        if name.endswith("_layers") and isinstance(value, int) and value > len(tensors):
            raise _Told(
                _no_sae(
                    folder,
                    f"{SAE_CFG_FILENAME} has {name} = {shown(value)}, and {SAE_WEIGHTS_FILENAME} only "
                    f"{len(tensors)} tensors",
                )
            )


def load_scaler(folder: str | Path) -> ActivationScaler:
    """The scale of a checkpoint's inputs, which is not folded in yet; of a saved SAE, none.

    Raises:
        ValueError: if its file is not what SAELens writes.
    """
    scaler = ActivationScaler()
    file = Path(folder) / ACTIVATION_SCALER_CFG_FILENAME
    if file.is_file():
        values = read_json(file, "scale of activations", "scaling_factor")
        check(f"{file}: scaling_factor", values["scaling_factor"], positive(or_none=True))
        try:
            scaler.load(file)
        except _UNEXPECTED as error:
            raise ValueError(f"{file} is no scale of activations: {_short(error)}.") from error
    return scaler


def _no_sae(folder: Path, why: str) -> str:
    return f"{folder} is no SAE that can be loaded: {why}."


def _short(error: BaseException) -> str:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= _MOST_CHARACTERS else f"{reason[: _MOST_CHARACTERS - 1]}…"
    if isinstance(error, (LookupError, TypeError, AttributeError, ArithmeticError)):
        reason = f"{type(error).__name__}: {reason}"
    return (reason or type(error).__name__).rstrip(".")
