"""Training that begins with saved weights: what it takes from their file and what from the config."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.training.sae_trainer import SAETrainer

from bae_lens.files.json_file import parse_json
from bae_lens.loading.saved_saes import load_sae

logger = logging.getLogger(__name__)

# Fields of a config for inference that do not say what function the weights are.
_FREE = frozenset(
    (
        *("dtype", "device", "metadata", "normalize_activations"),
        # How many latents fire is a setting, as are sequences in a batch.
        *("k", "sequence_length"),
    )
)
_FOLDED = "none"
_UNFOLDABLE = "expected_average_only_in"


class Pretrained(NamedTuple):
    """Saved weights to be trained further.

    Attributes:
        sae: with the weights of the file and every setting of the config.
        is_folded: whether the weights take activations as they are, where the config scales them.
    """

    sae: TrainingSAE[Any]
    is_folded: bool


def sae_to_train(cfg: Any, given: TrainingSAE[Any] | None) -> tuple[TrainingSAE[Any] | None, bool]:
    """What a run begins with: the autoencoder that is handed over, or the saved one that the config names.

    Args:
        cfg: a runner's config.
        given: its argument ``override_sae``.

    Returns:
        The autoencoder, None for a new one, and whether the scale of its inputs is folded into it.

    Raises:
        ValueError: if the saved one is not what ``cfg.sae`` says.
    """
    if given is not None:
        if differing := check_given_sae(given, cfg):
            logger.warning(
                "override_sae is trained by its own settings, and runner_cfg.json will say so: %s.",
                "; ".join(differing).replace(" there", " of it").replace(" here", " in the config"),
            )
        return given, False
    return (None, False) if cfg.from_pretrained_path is None else load_pretrained(cfg)


def load_pretrained(cfg: Any) -> Pretrained:
    """The autoencoder of ``cfg.from_pretrained_path``, to be trained as ``cfg.sae`` says.

    Weights are the file's. What they are trained for (the objective, coefficients, surrogate,
    schedules, dtype) is the config's; what says what they are (architecture, widths, decoder) has to
    be the same in both.

    Args:
        cfg: a runner's config.

    Raises:
        FileNotFoundError: if there is no saved autoencoder.
        ValueError: if the config asks for another kind of autoencoder; names field, value there and
            value here.
    """
    path, asked = Path(cfg.from_pretrained_path), cfg.sae
    for name in (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"from_pretrained_path is {str(path)!r}, which lacks {name}. Give the folder of a "
                "saved autoencoder or of a checkpoint."
            )
    try:
        content = parse_json((path / SAE_CFG_FILENAME).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path / SAE_CFG_FILENAME} cannot be read: {error}.") from error
    there = content.get("architecture", "standard") if isinstance(content, dict) else None
    if there != asked.architecture():
        raise _of_another_kind(path, [_field("architecture", there, asked.architecture())])
    saved = load_sae(path, cfg.device, training=True)
    differing = differing_settings(saved.cfg, asked)
    is_folded = saved.cfg.normalize_activations == _FOLDED != asked.normalize_activations
    if saved.cfg.normalize_activations != asked.normalize_activations and not (
        is_folded and asked.normalize_activations == _UNFOLDABLE
    ):
        kinds = saved.cfg.normalize_activations, asked.normalize_activations
        differing.append(_field("normalize_activations", *kinds))
    if differing:
        raise _of_another_kind(path, differing)
    # Of its own: what a class works out from its config is the new config's.
    sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
    state = saved.state_dict()
    shapes = {
        name: (tuple(state[name].shape) if name in state else None, tuple(value.shape))
        for name, value in sae.state_dict().items()
    }
    if differing := [_field(name, *both) for name, both in shapes.items() if both[0] != both[1]]:
        raise _of_another_kind(path, differing)
    sae.load_state_dict(state)
    if "is_calibrated" in vars(saved):
        sae.is_calibrated = saved.is_calibrated
    return Pretrained(sae, is_folded)


def unfold_scale(trainer: SAETrainer[Any, Any]) -> None:
    """Let weights that take activations as they are take scaled ones, as ``fit`` is about to give.

    The scale is estimated here, in the way and from the batches in which ``fit`` would.
    """
    sae, scaler = trainer.sae, trainer.activation_scaler
    normalization = sae.cfg.normalize_activations
    scaler.estimate_scaling_factor(
        d_in=sae.cfg.d_in,
        data_provider=trainer.data_provider,
        n_batches_for_norm_estimate=trainer.cfg.n_batches_for_norm_estimate,
    )
    assert scaler.scaling_factor is not None
    sae.fold_activation_norm_scaling_factor(1 / scaler.scaling_factor)
    sae.cfg.normalize_activations = normalization


def check_given_sae(sae: TrainingSAE[Any], cfg: Any) -> list[str]:
    """What an autoencoder that is handed over is trained for, and the config would not say.

    Args:
        sae: ``override_sae``.
        cfg: a runner's config.

    Returns:
        Settings of its own that differ from the config's.

    Raises:
        ValueError: if it is of another kind than ``cfg.sae`` says, or the config names saved weights
            as well.
    """
    if cfg.from_pretrained_path is not None:
        raise ValueError(
            f"from_pretrained_path is {cfg.from_pretrained_path!r}, but override_sae is given too: "
            "which of them is to be trained? Leave one out."
        )
    kinds = sae.cfg.architecture(), cfg.sae.architecture()
    differing = [_field("architecture", *kinds)] if kinds[0] != kinds[1] else []
    differing = differing or differing_settings(sae.cfg, cfg.sae)
    if differing:
        raise ValueError(
            f"override_sae is not what the config's section sae describes: {'; '.join(differing)}. "
            "Give sae=override_sae.cfg in the config."
        )
    here = _plain(cfg.sae)
    return [
        _field(name, value, here.get(name))
        for name, value in _plain(sae.cfg).items()
        if value != here.get(name)
    ]


def differing_settings(there: TrainingSAEConfig, here: TrainingSAEConfig) -> list[str]:
    """Fields that say what function weights are and differ, each as "field is … there and … here"."""
    names = {field.name for field in fields(there.get_inference_config_class())} - _FREE
    a, b = _plain(there), _plain(here)
    return [
        _field(name, a[name], b[name])
        for name in a
        if name in names and name in b and a[name] != b[name] and not _is_same(name, a[name])
    ]


def _is_same(name: str, there: Any) -> bool:
    # Norms of 1, which a file that is saved for inference has, rescale nothing.
    return name == "rescale_acts_by_decoder_norm" and there is False


def _plain(cfg: TrainingSAEConfig) -> dict[str, Any]:
    content = json.loads(json.dumps(cfg.to_dict(), default=str))
    if "d_out" in content and content["d_out"] is None:
        content["d_out"] = content["d_in"]
    return {name: value for name, value in content.items() if name not in ("metadata", "device")}


def _field(name: str, there: Any, here: Any) -> str:
    return f"{name} is {there!r} there and {here!r} here"


def _of_another_kind(path: Path, differing: list[str]) -> ValueError:
    return ValueError(
        f"from_pretrained_path is {str(path)!r}, whose weights are not what the config's section sae "
        f"describes: {'; '.join(differing)}. Set these as there, or begin with new weights."
    )
