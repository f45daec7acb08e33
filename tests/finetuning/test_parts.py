"""Texts to train on and texts to measure on: of each class its share, and none in both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bae_lens.activations.labeled_texts import LabeledTexts
from bae_lens.finetuning import FinetuningSettings
from bae_lens.finetuning.parts import split, texts_sha256


def labeled(texts: list[str], labels: list[int], names: list[str] | None = None) -> LabeledTexts:
    names = [str(i) for i in range(max(labels) + 1)] if names is None else names
    return LabeledTexts(texts, torch.tensor(labels), names, [None] * len(texts))


def settings(**values: Any) -> FinetuningSettings:
    return FinetuningSettings(**values)


def test_parts_are_stratified_whole_and_decided_by_the_seed() -> None:
    data = labeled([f"text {i}" for i in range(100)], [int(i % 5 == 0) for i in range(100)])

    one, same, other = (split(data, settings(held_out=0.3, seed=seed)) for seed in (0, 0, 1))

    assert data.labels[one.held_out].bincount().tolist() == [24, 6]
    assert sorted(one.train.tolist() + one.held_out.tolist()) == list(range(100))
    assert one.n_duplicates == 0
    assert torch.equal(one.held_out, same.held_out)
    assert not torch.equal(one.held_out, other.held_out)


def test_so_many_texts_are_used() -> None:
    data = labeled([f"text {i}" for i in range(100)], [i % 4 for i in range(100)])

    parts = split(data, settings(max_texts=40, held_out=0.5))

    assert len(parts.train) == len(parts.held_out) == 20
    assert data.labels[parts.train].bincount().tolist() == [5] * 4
    assert not set(parts.train.tolist()) & set(parts.held_out.tolist())


def test_a_text_that_is_held_out_too_is_not_trained_on() -> None:
    # Every text is there three times, in other letters and with other space.
    texts = [how(f"the film {i}") for i in range(30) for how in (str, str.upper, " {} ".format)]
    data = labeled(texts, [i // 3 % 2 for i in range(90)])

    parts = split(data, settings(held_out=0.2))

    def normal(i: int) -> str:
        return " ".join(texts[i].lower().split())

    held_out = {normal(i) for i in parts.held_out.tolist()}
    assert parts.n_duplicates > 0
    assert len(parts.train) + len(parts.held_out) + parts.n_duplicates == 90
    assert not held_out & {normal(i) for i in parts.train.tolist()}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 20 + [1], "needs a text held out; got 4 of '0', 0 of '1'"),
        ([0, 1], "needs a text to train on; got"),
    ],
)
def test_a_class_that_is_missing_from_a_part(labels: list[int], words: str) -> None:
    data = labeled([f"text {i}" for i in range(len(labels))], labels)

    with pytest.raises(ValueError, match=words):
        split(data, settings(held_out=0.2 if len(labels) > 2 else 0.9))


def test_a_hash_is_of_texts_labels_and_order() -> None:
    one = labeled(["a", "b"], [0, 1])

    assert texts_sha256(one) == texts_sha256(labeled(["a", "b"], [0, 1]))
    others = [
        labeled(["b", "a"], [0, 1]),
        labeled(["a", "b"], [1, 0]),
        labeled(["a", "c"], [0, 1]),
        labeled(["a", "b"], [0, 1], ["x", "y"]),
    ]
    assert texts_sha256(one) not in map(texts_sha256, others)
