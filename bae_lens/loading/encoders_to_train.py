"""An encoder of transformers with a new classification head, to be fine-tuned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bae_lens import offline as demo
from bae_lens.encoders import ENCODER_CLASSES
from bae_lens.loading.classifiers import class_names
from bae_lens.loading.language_models import is_folder, reading_as_data
from bae_lens.loading.model_folders import check_files, check_finite, check_tokenizer
from bae_lens.loading.pooling import Pooling

logger = logging.getLogger(__name__)

# What transformers may call the parts of a head, or what pools a text for it: these may be new.
_HEAD = ("classifier", "pooler", "pre_classifier", "head", "score")
_CLASS = "AutoModelForSequenceClassification"


class EncoderToTrain(NamedTuple):
    """A model of transformers with its classification head, and its tokenizer."""

    model: Any
    tokenizer: Any


def load_encoder(
    name: str, labels: Sequence[str], head: Pooling = "cls", source: str = "--model"
) -> EncoderToTrain:
    """An encoder with a head whose weights are drawn anew.

    Args:
        name: ``bae-lens/minilm-l6``, a folder, or a name on the hub.
        labels: what the classes are called, in the order of the logits.
        head: what the head reads: ``"cls"``, the vector of the first token as transformers' own class
            pools it, or the ``"mean"`` over the tokens, which few architectures of transformers offer.
        source: who named the model, in messages.

    Raises:
        ValueError: if there is no such model, it is none that looks both ways and has a class for
            classification in transformers, a weight that is not of the head is missing or not finite,
            it cannot read the mean, or it classifies already, and other classes.
        ImportError: if a ``bae-lens/`` name is given and its package is missing.
    """
    path = _path_of(name)
    with reading_as_data(name, _CLASS, source):
        if is_folder(str(path)):
            check_files(Path(path))
        config = AutoConfig.from_pretrained(path)
        _check_kind(config)
        options = _pooling(config, head)
        names = list(labels)
        if str((config.architectures or [""])[0]).endswith("ForSequenceClassification"):
            there = list((config.id2label or {}).values())
            if there != names:
                raise ValueError(
                    f"it classifies already, into {', '.join(there)[:80]}, and the data have other classes. "
                    "Give the encoder that it was made of"
                )
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            id2label=dict(enumerate(names)),
            label2id={label: i for i, label in enumerate(names)},
            problem_type="single_label_classification",
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        _check_weights(model, info["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(path)
        check_tokenizer(tokenizer, model)
        assert class_names(model) == tuple(names)
    if type(model).__name__ not in ENCODER_CLASSES:
        logger.warning(
            "A %s can be fine-tuned, and not be loaded as a TransformerBridge to be studied: that is made "
            "of a BERT or RoBERTa.",
            type(model).__name__,
        )
    return EncoderToTrain(model, tokenizer)


def _path_of(name: str) -> str | Path:
    if name == demo.ENCODER_NAME:
        from bae_lens.offline import minilm

        return minilm.model_folder()
    if name == demo.MODEL_NAME:
        raise ValueError(
            f"{name} is a decoder; what is fine-tuned is an encoder, such as {demo.ENCODER_NAME}."
        )
    demo.load_model(name)  # None for names that are not ours; refuses those that only look like it.
    return name


def _check_kind(config: Any) -> None:
    kind = type(config)
    if (
        kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        or kind not in MODEL_FOR_MASKED_LM_MAPPING
        or config.is_encoder_decoder
    ):
        raise ValueError(
            f"it is a {config.model_type}, and no encoder that transformers has a classification head for"
        )


def _pooling(config: Any, head: Pooling) -> dict[str, Any]:
    if hasattr(config, "classifier_pooling"):
        return {"classifier_pooling": head}
    if head == "cls":
        return {}
    raise ValueError(
        f"the head of a {config.model_type} in transformers reads the first token, and no other head could "
        "be loaded without code of its own: a head of the mean is for models whose config has "
        "classifier_pooling, such as ModernBERT. Take the head cls"
    )


def _check_weights(model: Any, missing: Sequence[str]) -> None:
    prefix = f"{model.base_model_prefix}."
    new = [name for name in missing if name.removeprefix(prefix).split(".")[0] not in _HEAD]
    if new:
        raise ValueError(
            f"{len(new)} tensors of a {type(model).__name__} are not among its weights, such as "
            f"{', '.join(sorted(new)[:2])}, and would be made up at random"
        )
    check_finite(model)
