"""Names that begin with ``bae-lens/``: real models and real text that install from PyPI.

They stand wherever SAELens takes a name, in configs and in the metadata of a saved SAE, so that
either rebuilds everything by itself with no hub in reach. Any other name is SAELens' to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from bae_lens.offline.names import DATASET_NAME, ENCODER_NAME, MODEL_NAME

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import HookedSAETransformer, SAETransformerBridge

__all__ = [
    "DATASET_NAME",
    "ENCODER_NAME",
    "MODEL_NAME",
    "is_demo_dataset",
    "is_demo_model",
    "load_dataset",
    "load_model",
]

_PREFIX = "bae-lens/"
_HOOKED = ("HookedTransformer", "HookedSAETransformer")
_BRIDGE = ("TransformerBridge", "SAETransformerBridge")


def is_demo_model(name: str) -> bool:
    """Whether ``load_model`` knows the name."""
    return name in (MODEL_NAME, ENCODER_NAME)


def is_demo_dataset(name: str) -> bool:
    """Whether ``load_dataset`` knows the name."""
    return name == DATASET_NAME


def load_model(
    model_name: str,
    model_class_name: str = "HookedTransformer",
    device: Any = "cpu",
    **model_from_pretrained_kwargs: Any,
) -> HookedSAETransformer | SAETransformerBridge | None:
    """SmolLM2-135M or all-MiniLM-L6-v2 by name; None where the name is SAELens' to load.

    Args:
        model_name: ``"bae-lens/smollm2-135m"``, a decoder, ``"bae-lens/minilm-l6"``, an encoder
            without a language-model head, or any other name.
        model_class_name: ``"TransformerBridge"`` gives a SAETransformerBridge,
            ``"HookedTransformer"`` a HookedSAETransformer, of the decoder only.
        device: where to put the model.
        **model_from_pretrained_kwargs: SAELens' options for loading. The weights are taken as they
            are, so a kind of processing can be switched off here (which changes nothing), not on.

    Raises:
        ValueError: if the name begins with ``bae-lens/`` and is not a model, or the class or an
            option is not one that this model has.
        ImportError: if the packages that carry the weights are missing; the message is the command
            to run.
    """
    if not is_demo_model(model_name):
        _refuse_unknown(model_name, "model", MODEL_NAME, ENCODER_NAME)
        return None
    wanted = [name for name, value in model_from_pretrained_kwargs.items() if value]
    if wanted:
        raise ValueError(
            f"{model_name} is loaded with its weights as they are, and takes no "
            f"model_from_pretrained_kwargs; got {', '.join(wanted)}."
        )
    if model_class_name in _BRIDGE:
        from bae_lens.offline import minilm, smollm2

        return (minilm if model_name == ENCODER_NAME else smollm2).load_bridge(device)
    if model_class_name in _HOOKED and model_name == MODEL_NAME:
        from bae_lens.offline.smollm2 import load_hooked

        return load_hooked(device)
    classes = f"{_BRIDGE[0]!r}"
    if model_name == MODEL_NAME:
        classes = f"{_HOOKED[0]!r} or {classes}"
    raise ValueError(f"{model_name} comes as model_class_name {classes}; got {model_class_name!r}.")


def load_dataset(path: str, split: Literal["train", "test"] = "train") -> Dataset | None:
    """Movie reviews by name, or None where the name is not ours and SAELens is to load it.

    Args:
        path: ``"bae-lens/movie-reviews"``, or any other name.
        split: ``"train"`` or the held-out ``"test"``.

    Raises:
        ValueError: if the name begins with ``bae-lens/`` and is not a dataset, or there is no such
            split.
        ImportError: if the package that carries the text is missing; the message is the command to
            run.
    """
    if not is_demo_dataset(path):
        _refuse_unknown(path, "dataset", DATASET_NAME)
        return None
    from bae_lens.offline.movie_reviews import load_movie_reviews

    return load_movie_reviews(split)


def _refuse_unknown(name: str, kind: str, *valid: str) -> None:
    if not name.startswith(_PREFIX):
        return
    other = "a model" if is_demo_model(name) else "a dataset" if is_demo_dataset(name) else None
    hint = f" {name!r} is {other}." if other else ""
    names = " or ".join(map(repr, valid))
    raise ValueError(f"There is no {kind} {name!r}; did you mean {names}?{hint}")
