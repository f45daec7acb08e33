"""Whether a model is a classifier, and what its classes are called."""

from __future__ import annotations

from typing import Any

from bae_lens.checks.fields import shown

_HEAD = "ForSequenceClassification"


def class_names(model: Any) -> tuple[str, ...] | None:
    """The classes of a model's head, in the order of its logits.

    This is the way to ask whether a model is a classifier.

    Args:
        model: a hooked model, or one of transformers.

    Returns:
        The names, as the config's ``id2label`` has them, of a model that transformers calls
        ``…ForSequenceClassification``; None for any other, which has no logits of classes.

    Raises:
        ValueError: if it is such a model, and its head is not one of two classes or more of which a
            text has one: a regression, a head of several labels a text, or classes that are not named
            one by one.
    """
    model = getattr(model, "original_model", model)
    if not type(model).__name__.endswith(_HEAD):
        return None
    return check_classes(model.config)


def check_classes(config: Any) -> tuple[str, ...]:
    """The names in a config of transformers.

    Raises:
        ValueError: as ``class_names``.
    """
    n, names, kind = config.num_labels, config.id2label, config.problem_type
    if n < 2 or kind == "regression":
        raise ValueError(
            f"its head has {n} output{'s' * (n != 1)}"
            f"{' and is a regression' * (kind == 'regression')}, and no two classes"
        )
    if kind == "multi_label_classification":
        raise ValueError(
            "its head gives a text any number of labels (problem_type is multi_label_classification); "
            "here a text has one class"
        )
    if set(names) != set(range(n)) or len({str(name) for name in names.values()}) < n:
        raise ValueError(
            f"id2label must have a name of its own for each class from 0 to {n - 1}; got {shown(names)}"
        )
    return tuple(str(names[i]) for i in range(n))
