"""A classifier that knows words."""

from __future__ import annotations

import pytest

from bae_lens.scoring.bag_of_words import CANNOT_TELL, PlainReader

TEXTS = [
    "a fine film",
    "fine and warm",
    "such fine acting",
    "a dull film",
    "dull acting",
    "so dull",
]
CLASSES = [1, 1, 1, 0, 0, 0]


def test_that_it_reads_words_in_any_order_and_place() -> None:
    reader = PlainReader.fit(TEXTS, CLASSES)
    assert reader.read(["Fine", "it is dull", "dull dull dull fine dull"]) == (1, 0, 0)


def test_that_it_cannot_tell_from_words_it_does_not_know() -> None:
    reader = PlainReader.fit(TEXTS, CLASSES)
    assert reader.read(["", "that did not pass of", "fine"]) == (CANNOT_TELL, CANNOT_TELL, 1)


def test_that_a_rare_class_is_told_as_well() -> None:
    # Unweighted, the best guess from a common word would be the common class.
    texts = ["red car"] * 3 + ["red car", "blue car"] * 20
    reader = PlainReader.fit(texts, [1] * 3 + [0] * 40)
    assert reader.read(["red", "blue"]) == (1, 0)


def test_that_a_class_too_rare_to_learn_is_not_told() -> None:
    reader = PlainReader.fit([*TEXTS, "odd", "odd"], [*CLASSES, 2, 2])
    assert reader.read(["fine", "dull", "odd"]) == (1, 0, CANNOT_TELL)


def test_that_it_is_deterministic() -> None:
    weights = [PlainReader.fit(TEXTS, CLASSES, seed=3).classifier.coef_ for _ in range(2)]
    assert (weights[0] == weights[1]).all()


@pytest.mark.parametrize("classes", [[1] * 6, [1, 1, 1, 1, 1, 0]])
def test_that_it_wants_texts_of_each_class(classes: list[int]) -> None:
    with pytest.raises(ValueError, match="Give more reference texts"):
        PlainReader.fit(TEXTS, classes)
