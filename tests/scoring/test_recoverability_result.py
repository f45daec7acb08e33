"""Scores of what a reader told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bae_lens.scoring.bag_of_words import CANNOT_TELL
from bae_lens.scoring.recoverability_result import Recoverability, RecoverabilitySettings

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def make_recoverability(
    shown: tuple[int, ...] = (0, 0, 0, 0, 1, 1), **said: tuple[int, ...]
) -> Recoverability:
    """Four texts of one class and two of another."""
    return Recoverability(
        dictionary="planted",
        hook_names=HOOKS,
        class_names=("no", "yes"),
        predictions=(0, 0, 0, 0, 1, 1),
        concepts=(3, 3, 3, 3, 4, -1),
        said={"words and contexts": shown, "text": (0, 0, 0, 0, 1, 1)} | said,  # pyright: ignore[reportArgumentType]
        n_learned=10,
        n_shown=10,
        settings=RecoverabilitySettings(),
    )


def test_that_the_score_is_balanced_accuracy() -> None:
    assert make_recoverability().score().mean == pytest.approx(1)
    # 3 of 4 and 1 of 2.
    assert make_recoverability(shown=(0, 0, 0, 1, 1, 0)).score().mean == pytest.approx(0.625)
    assert make_recoverability(shown=(0,) * 6).score().mean == pytest.approx(0.5)


def test_that_cannot_tell_is_a_guess() -> None:
    assert make_recoverability(shown=(CANNOT_TELL,) * 6).score().mean == pytest.approx(0.5)
    assert make_recoverability(shown=(0, 0, 0, 0, 1, CANNOT_TELL)).score().mean == pytest.approx(
        0.875
    )


def test_that_beyond_is_paired_by_text() -> None:
    recoverability = make_recoverability(shown=(0, 0, 0, 1, 1, 1), word=(0, 1, 1, 1, 1, 0))
    excess_over = recoverability.excess_over("word")
    assert excess_over.mean == pytest.approx(
        recoverability.score().mean - recoverability.score("word").mean
    )
    assert recoverability.excess_over("words and contexts") == (0, 0, 0)


def test_that_texts_of_one_concept_count_together() -> None:
    predictions, own = (0, 1) * 20, (0, 1, 1, 0) * 10
    changes = {"predictions": predictions, "said": {"words and contexts": own, "word": own}}
    apart = replace(make_recoverability(), **changes, concepts=tuple(range(40)))
    together = replace(make_recoverability(), **changes, concepts=tuple(i // 10 for i in range(40)))
    widths = [r.score().high - r.score().low for r in (apart, together)]
    assert apart.score().mean == together.score().mean == 0.5
    assert widths[1] >= widths[0]
    right = tuple(int((i // 10 % 2) == p) for i, p in enumerate(predictions))
    few = replace(together, said={"words and contexts": right, "word": right})
    # All texts of a concept are right or all are wrong: four throws, not forty.
    assert few.score().high - few.score().low > 2 * widths[0]
    # A word's texts are no concept's.
    assert few.score("word").high - few.score("word").low < 2 * widths[0]


def test_that_a_difference_is_paired_and_of_the_same_texts() -> None:
    best, other = make_recoverability(), make_recoverability(shown=(0, 0, 0, 1, 1, 0))
    assert best.difference(other).mean == pytest.approx(0.375)
    assert best.difference(best) == (0, 0, 0)
    with pytest.raises(ValueError, match="one RecoverabilityTask"):
        best.difference(replace(other, predictions=(1, 0, 0, 0, 1, 1)))


def test_that_only_what_was_told_has_a_score() -> None:
    with pytest.raises(ValueError, match="'words'"):
        make_recoverability().score("words")


def test_that_json_holds_everything(tmp_path: Any) -> None:
    recoverability = make_recoverability(words=(0, 0, 1, 1, -1, 1))
    assert (
        Recoverability.from_dict(json.loads(json.dumps(recoverability.to_dict()))) == recoverability
    )
    recoverability.save(tmp_path / "recoverability.json")
    assert Recoverability.load(tmp_path / "recoverability.json") == recoverability


def test_that_the_table_has_each_number_beside_its_control() -> None:
    table = make_recoverability(words=(0, 0, 1, 1, -1, 1), word=(0,) * 6).table()
    assert "| its words | 0.625" in table
    assert "| 0.500 [0.500, 0.500] |" in table
    assert "| the whole text | 1.000 [1.000, 1.000] | – |" in table
    assert "4 no, 2 yes; chance is 0.500" in table


@pytest.mark.parametrize("name", ["n_words", "n_contexts"])
def test_that_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RecoverabilitySettings(**{name: 0})
