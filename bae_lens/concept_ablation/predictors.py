"""Who predicts the class of a text: the model itself, by its head or by label words, or a probe of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bae_lens.concept_ablation.passes import Batch, Logits
from bae_lens.concept_ablation.settings import PredictedBy
from bae_lens.evals.reconstruction import predicts_next_token
from bae_lens.loading.classifiers import class_names

logger = logging.getLogger(__name__)


# What transformers calls a class that has no name.
_UNNAMED = re.compile(r"LABEL_(\d+)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class OwnLogits:
    """How a model's own logits of the classes are read off what it returns.

    Attributes:
        by: ``"head"``: the model is a classifier and returns ``[batch, n_head_classes]``; or
            ``"label_words"``: it predicts tokens, at the position that is read, words among them.
        columns: of the data's classes, in their order: the head's classes, or the words' first tokens.
    """

    by: Literal["head", "label_words"]
    columns: Int[Tensor, " n_classes"]

    def logits_at(self, batch: Batch) -> Logits:
        """The positions whose logits a pass has to show."""
        return "all" if self.by == "head" else batch.position

    def read(self, logits: Tensor) -> Float[Tensor, "batch n_classes"]:
        """Logits of the data's classes, float32 on the CPU."""
        of_text = logits if self.by == "head" else logits[:, 0]
        return of_text[:, self.columns.to(logits.device)].float().cpu()


def predictor(
    model: Any, predicted_by: PredictedBy | None, label_words: Sequence[str] | None
) -> PredictedBy:
    """Who predicts: as is said (see ``AblationSettings``) or, if nothing is, by what there is.

    Raises:
        ValueError: if a head is asked for that the model lacks, or label words of a model that has one.
    """
    classes = class_names(model)
    if predicted_by == "head" and classes is None:
        raise ValueError(
            f"predicted_by is 'head', and {type(model).__name__} is no classifier: it has no head. "
            "Give a fine-tuned one (bae-lens finetune makes it), or set predicted_by to 'probe', or to "
            "'label_words' for a decoder."
        )
    if label_words is not None and classes is not None:
        raise ValueError(
            "label_words are what a decoder would say; this model is a classifier, whose head has the "
            f"classes {_listed(classes)}. Leave label_words out."
        )
    if predicted_by is not None:
        return predicted_by
    if classes is not None:
        return "head"
    return "probe" if label_words is None else "label_words"


def own_logits(
    model: Any,
    label_names: Sequence[str],
    predicted_by: PredictedBy | None = None,
    label_words: Sequence[str] | None = None,
) -> OwnLogits | None:
    """How the model itself is asked; None where it is not.

    It is asked where it predicts, and beside a probe that does: by the label words that are given, or
    by a head whose classes are the data's.

    Args:
        model: a decoder, or a classifier.
        label_names: of the data's classes.
        predicted_by: see ``AblationSettings``.
        label_words: one per class.

    Raises:
        ValueError: see ``predictor``; or if the classes of the head are not those of the data, the
            model predicts no next token, or the label words do not tell the classes apart.
    """
    by, classes = predictor(model, predicted_by, label_words), class_names(model)
    if label_words is not None:
        return OwnLogits("label_words", _label_tokens(model, label_words, label_names))
    if classes is None:
        return None
    try:
        return OwnLogits("head", torch.tensor(head_columns(classes, label_names)))
    except ValueError as error:
        if by == "head":
            raise
        logger.info("The head is not asked beside the probe: %s", error)
        return None


def head_columns(classes: Sequence[str], label_names: Sequence[str]) -> list[int]:
    """Which of a head's classes each class of the data is.

    By name, whatever its case. Labels that are numbers (``0``, ``LABEL_0``) are places in the head's
    order, unless numbers are what its own classes are called.

    Raises:
        ValueError: if a label is none of the head's classes, or one of these has no text.
    """
    by_name = {name.strip().casefold(): i for i, name in enumerate(classes)}
    by_name = by_name if len(by_name) == len(classes) else {}
    found = [by_name.get(name.strip().casefold()) for name in label_names]
    if not any(name.strip().isdecimal() for name in classes) and set(found) == {None}:
        places = [_place(name) for name in label_names]
        found = [i if i is not None and i < len(classes) else None for i in places]
    unknown = [name for name, i in zip(label_names, found, strict=True) if i is None]
    if unknown:
        raise ValueError(
            f"The head has the classes {_listed(classes)}, and the texts have labels that it does not "
            f"know: {_listed(unknown)}. {_hint(classes)}, or set predicted_by to 'probe'."
        )
    columns = [i for i in found if i is not None]
    missing = [name for i, name in enumerate(classes) if i not in columns]
    if missing:
        raise ValueError(
            f"The head has the classes {_listed(classes)}, and there is no text of "
            f"{_listed(missing)}. Take texts of each class, or set predicted_by to 'probe'."
        )
    return columns


def _hint(classes: Sequence[str]) -> str:
    if all(_UNNAMED.fullmatch(name.strip()) for name in classes):
        return (
            "They have no names: write these into id2label of the model's config.json, or give labels as "
            "numbers, in the head's order"
        )
    return (
        "Name the labels as the head does (or number them from 0 in its order), take the texts that it "
        "was fine-tuned for"
    )


def _place(name: str) -> int | None:
    number = _UNNAMED.sub(r"\1", name.strip())
    return int(number) if number.isdecimal() else None


def _label_tokens(model: Any, words: Sequence[str], label_names: Sequence[str]) -> Tensor:
    if not predicts_next_token(model):
        raise ValueError("The model predicts no next token, so it has no logits for label_words.")
    if len(words) != len(label_names):
        raise ValueError(
            f"label_words must be one per class, in the order {', '.join(label_names)}; got "
            f"{len(words)}: {', '.join(map(repr, words))}."
        )
    ids = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    if not all(ids):
        raise ValueError(f"One of the label_words {', '.join(map(repr, words))} has no token.")
    tokens = [of_word[0] for of_word in ids]
    if len(set(tokens)) < len(tokens):
        raise ValueError(
            f"Two of the label_words {', '.join(map(repr, words))} begin with the same token, so "
            "they cannot be told apart by it. Choose others."
        )
    return torch.tensor(tokens)


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name) for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
