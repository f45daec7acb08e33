"""Names that begin with ``bae-lens/``: a real model and real text that install from PyPI.

They stand wherever SAELens takes a name, in configs and in the metadata of a saved SAE, so that
either rebuilds everything by itself with no hub in reach. Any other name is SAELens' to load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset
    from sae_lens import HookedSAETransformer, SAETransformerBridge

__all__ = [
    "DATASET_NAME",
    "MODEL_NAME",
    "is_demo_dataset",
    "is_demo_model",
    "load_dataset",
    "load_model",
]

MODEL_NAME = "bae-lens/smollm2-135m"
DATASET_NAME = "bae-lens/movie-reviews"

_PREFIX = "bae-lens/"
_HOOKED = ("HookedTransformer", "HookedSAETransformer")
_BRIDGE = ("TransformerBridge", "SAETransformerBridge")


def is_demo_model(name: str) -> bool:
    """Whether ``load_model`` knows the name."""
    return name == MODEL_NAME


def is_demo_dataset(name: str) -> bool:
    """Whether ``load_dataset`` knows the name."""
    return name == DATASET_NAME


def load_model(
    model_name: str,
    model_class_name: str = "HookedTransformer",
    device: Any = "cpu",
    **model_from_pretrained_kwargs: Any,
) -> HookedSAETransformer | SAETransformerBridge | None:
    """SmolLM2-135M by name, or None where the name is not ours and SAELens is to load it.

    Args:
        model_name: ``"bae-lens/smollm2-135m"``, or any other name.
        model_class_name: ``"HookedTransformer"`` gives a HookedSAETransformer,
            ``"TransformerBridge"`` a SAETransformerBridge.
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
        _refuse_unknown(model_name, "model", MODEL_NAME)
        return None
    wanted = [name for name, value in model_from_pretrained_kwargs.items() if value]
    if wanted:
        raise ValueError(
            f"{MODEL_NAME} is loaded with its weights as they are, and takes no "
            f"model_from_pretrained_kwargs; got {', '.join(wanted)}."
        )
    if model_class_name in _HOOKED:
        from bae_lens.demo.smollm2 import load_hooked

        return load_hooked(device)
    if model_class_name in _BRIDGE:
        from bae_lens.demo.smollm2 import load_bridge

        return load_bridge(device)
    raise ValueError(
        f"{MODEL_NAME} comes as model_class_name {_HOOKED[0]!r} or {_BRIDGE[0]!r}; "
        f"got {model_class_name!r}."
    )


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
    from bae_lens.demo.movie_reviews import load_movie_reviews

    return load_movie_reviews(split)


def _refuse_unknown(name: str, kind: str, valid: str) -> None:
    if not name.startswith(_PREFIX):
        return
    other = {MODEL_NAME: "a model", DATASET_NAME: "a dataset"}.get(name)
    hint = f" {name!r} is {other}." if other else ""
    raise ValueError(f"There is no {kind} {name!r}; did you mean {valid!r}?{hint}")
