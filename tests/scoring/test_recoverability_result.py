"""Scores of what a reader told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from bae_lens.scoring.bag_of_words import CANNOT_TELL
from bae_lens.scoring.recoverability_result import Recovery, RecoverySettings

HOOKS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def make_recovery(**said: tuple[int, ...]) -> Recovery:
    """Four texts of one class and two of another."""
    return Recovery(
        dictionary="planted",
        hook_names=HOOKS,
        class_names=("no", "yes"),
        predictions=(0, 0, 0, 0, 1, 1),
        concepts=(3, 3, 3, 3, 4, -1),
        said={"view": (0, 0, 0, 0, 1, 1), "text": (0, 0, 0, 0, 1, 1)} | said,  # pyright: ignore[reportArgumentType]
        n_learned=10,
        n_shown=10,
        settings=RecoverySettings(),
    )


def test_that_the_score_is_balanced_accuracy() -> None:
    assert make_recovery().score().mean == pytest.approx(1)
    # 3 of 4 and 1 of 2.
    assert make_recovery(view=(0, 0, 0, 1, 1, 0)).score().mean == pytest.approx(0.625)
    assert make_recovery(view=(0,) * 6).score().mean == pytest.approx(0.5)


def test_that_cannot_tell_is_a_guess() -> None:
    assert make_recovery(view=(CANNOT_TELL,) * 6).score().mean == pytest.approx(0.5)
    assert make_recovery(view=(0, 0, 0, 0, 1, CANNOT_TELL)).score().mean == pytest.approx(0.875)


def test_that_beyond_is_paired_by_text() -> None:
    recovery = make_recovery(view=(0, 0, 0, 1, 1, 1), word=(0, 1, 1, 1, 1, 0))
    beyond = recovery.beyond("word")
    assert beyond.mean == pytest.approx(recovery.score().mean - recovery.score("word").mean)
    assert recovery.beyond("view") == (0, 0, 0)


def test_that_texts_of_one_concept_count_together() -> None:
    predictions, own = (0, 1) * 20, (0, 1, 1, 0) * 10
    changes = {"predictions": predictions, "said": {"view": own, "word": own}}
    apart = replace(make_recovery(), **changes, concepts=tuple(range(40)))
    together = replace(make_recovery(), **changes, concepts=tuple(i // 10 for i in range(40)))
    widths = [r.score().high - r.score().low for r in (apart, together)]
    assert apart.score().mean == together.score().mean == 0.5
    assert widths[1] >= widths[0]
    right = tuple(int((i // 10 % 2) == p) for i, p in enumerate(predictions))
    few = replace(together, said={"view": right, "word": right})
    # All texts of a concept are right or all are wrong: four throws, not forty.
    assert few.score().high - few.score().low > 2 * widths[0]
    # A word's texts are no concept's.
    assert few.score("word").high - few.score("word").low < 2 * widths[0]


def test_that_a_difference_is_paired_and_of_the_same_texts() -> None:
    best, other = make_recovery(), make_recovery(view=(0, 0, 0, 1, 1, 0))
    assert best.difference(other).mean == pytest.approx(0.375)
    assert best.difference(best) == (0, 0, 0)
    with pytest.raises(ValueError, match="one RecoveryTask"):
        best.difference(replace(other, predictions=(1, 0, 0, 0, 1, 1)))


def test_that_only_what_was_told_has_a_score() -> None:
    with pytest.raises(ValueError, match="'words'"):
        make_recovery().score("words")


def test_that_json_holds_everything(tmp_path: Any) -> None:
    recovery = make_recovery(words=(0, 0, 1, 1, -1, 1))
    assert Recovery.from_dict(json.loads(json.dumps(recovery.to_dict()))) == recovery
    recovery.save(tmp_path / "recovery.json")
    assert Recovery.load(tmp_path / "recovery.json") == recovery


def test_that_the_table_has_each_number_beside_its_control() -> None:
    table = make_recovery(words=(0, 0, 1, 1, -1, 1), word=(0,) * 6).table()
    assert "| its words | 0.625" in table
    assert "| 0.500 [0.500, 0.500] |" in table
    assert "| the whole text | 1.000 [1.000, 1.000] | – |" in table
    assert "4 no, 2 yes; chance is 0.500" in table


@pytest.mark.parametrize("name", ["n_words", "n_contexts"])
def test_that_settings_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        RecoverySettings(**{name: 0})
