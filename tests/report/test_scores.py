"""Results of tests as columns, tables and phrases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bae_lens.report.scores import (
    Section,
    best_phrases,
    check_results,
    list_columns,
    list_means,
    list_said,
    list_sections,
)
from bae_lens.scoring.comsem_result import ComSemResult, LatentRun, Votes
from bae_lens.scoring.intruder_result import LatentTrials, Tally
from tests.report.helpers import make_comsem, make_intruder, make_records
from tests.scoring.planted_probing import make_probing

EVIDENCE = make_records(12)
INTRUDER = make_intruder(EVIDENCE, 4)
MENDED = make_comsem(EVIDENCE, 3)
RELEASED = make_comsem(EVIDENCE, 3, "released", phrase="words")
BOTH = [RELEASED, MENDED]


def test_columns_of_an_intruder_test():
    random, hard, purity = list_columns([INTRUDER])

    assert [column.name for column in (random, hard, purity)] == [
        *("intruder score", "hard-intruder score", "token purity"),
    ]
    assert random.values == {0: 1, 1: 0.9, 2: 0.8, 3: 0.7}
    assert all(low <= random.values[j] <= high for j, (low, high) in random.bounds.items())
    assert random.beside == "shuffled latents: 0.20; guessing: 0.20"
    # Guessing says nothing of hard ones.
    assert hard.beside == "shuffled latents: 0.10"
    assert hard.values[0] == 0.5
    assert (purity.values[3], purity.bounds) == (0.5, {})
    assert all(column.about.endswith(".") for column in (random, hard, purity))


def test_what_has_no_answers_has_no_value():
    none, some = (Tally(0, 0, 10),), (Tally(5, 5, 0),)
    trials = (LatentTrials(2, 9, 0.5, some, ()), LatentTrials(5, 9, 0.5, none, ()))
    columns = list_columns([replace(INTRUDER, latents=trials, control=trials)])
    assert [(column.name, dict(column.values)) for column in columns] == [
        ("intruder score", {2: 0.5}),
        ("token purity", {2: 0.5, 5: 0.5}),
    ]


def test_columns_of_comsem():
    released, balanced = list_columns(BOTH)
    assert balanced.name == "ComSem score"
    assert dict(balanced.values) == {0: pytest.approx(0.906), 1: 0.5, 2: balanced.values[0]}
    assert balanced.beside == "guessing, or no pattern: 0.5"
    assert released.name == "ComSem score, released"
    assert dict(released.values) == {0: 1, 1: 0, 2: 1}
    assert released.beside == "no pattern: 0"


def test_phrases():
    phrases = best_phrases([INTRUDER, *BOTH], 12)
    # The second seed's hold best, and latent 1 has none.
    assert phrases == ["words like 0, 1", None, "words like 2, 1", *[None] * 9]
    assert best_phrases([RELEASED], 12) == ["words 0, 0", None, "words 2, 0", *[None] * 9]
    assert best_phrases([INTRUDER], 12) is None


def test_of_equal_phrases_the_first_and_one_without_answers_last():
    def run(seed: int, phrase: str, positive: Votes) -> LatentRun:
        return LatentRun(0, seed, "explained", phrase, positive, Votes(0, 4), Votes(0, 4))

    runs = [run(0, "none", Votes(0, 0, 8)), run(1, "a", Votes(8, 0)), run(2, "b", Votes(8, 0))]
    assert best_phrases([replace(MENDED, runs=tuple(runs))], 1) == ["a"]
    assert best_phrases([replace(MENDED, runs=tuple(runs[:1]))], 1) == ["none"]


def test_what_judges_said():
    said = list_said(BOTH)
    assert list(said) == [0, 1, 2]
    assert [(own.run, own.phrase) for own in said[0]] == [
        ("released", "words 0, 0"),
        ("balanced, 1", "words like 0, 0"),
        ("balanced, 2", "words like 0, 1"),
    ]
    assert [(own.status, own.score) for own in said[1]] == [
        *[("no pattern", None)] * 2,
        ("no answer", None),
    ]
    assert list_said([INTRUDER]) == {}


def test_sections_have_all_of_the_results_tables():
    sections = list_sections([INTRUDER, *BOTH])
    assert [section.title for section in sections] == [
        *("Intruder test", "ComSem, released", "ComSem, balanced"),
        "How far the protocols are apart",
    ]
    for section, result in zip(sections, [INTRUDER, *BOTH], strict=False):
        assert section.caveat == result.caveat
        for part in [*section.notes, *(cell for row in section.rows for cell in row)]:
            assert part in result.table()
        assert len(section.rows) == result.table().count("\n|") - 1
        assert not any(result.caveat in note for note in section.notes)
    intruder, balanced = sections[0], sections[2]
    assert intruder.head == ["", "latents", "shuffled latents"]
    assert intruder.rows[0][0] == "accuracy, random intruder"
    assert "Chance is 0.200" in intruder.notes[0]
    # The title stands above it already.
    assert balanced.head == []
    assert sections[3].rows[2][0] == "released − balanced"
    assert "says which is the intruder" in intruder.about
    assert all(section.about.endswith(".") for section in sections)


def test_one_protocol_has_no_distance():
    assert len(list_sections([RELEASED])) == len(list_sections([MENDED])) == 1
    assert all(isinstance(own, Section) for own in list_sections([MENDED]))


def test_means_stand_beside_their_controls():
    means = {mean.name: mean for mean in list_means([INTRUDER, MENDED])}
    assert means["intruder test: latents tested"][1:3] == ("4 of 12", "judge: embeddings of a test")
    own = means["intruder score"]
    assert own.value.startswith("0.85 [")
    assert own.beside == "shuffled latents: 0.20 [0.20, 0.20]"
    assert means["ComSem score"].beside == "guessing, or no pattern: 0.5"
    assert own.about == list_columns([INTRUDER])[0].about != ""
    assert means["explained, balanced"].value.startswith("0.67 [")


def test_sparse_probing_has_its_tables_and_no_column():
    probing = replace(make_probing(), data="reviews.jsonl")
    assert list_columns([probing]) == []
    first, by_class = list_sections([probing])
    assert (first.title, by_class.title) == (
        *("Sparse probing, reviews.jsonl", "Sparse probing, by class"),
    )
    assert "labeled texts" in first.about
    assert first.rows[0][0] == "latents"
    assert by_class.rows[0][0] == "class 1"
    own = list_means([probing])[0]
    assert own.name == "sparse probing, reviews.jsonl, k = 1"
    assert own.value == "1.00 [1.00, 1.00]"
    assert "random latents: " in own.beside
    assert "whole activation: " in own.beside


@pytest.mark.parametrize(
    "changes", [{"n_latents": 13}, {"dictionary": "other"}, {"hook_name": "elsewhere"}]
)
def test_results_of_another_dictionary_are_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"the examples are of 12 latents of bae at blocks\.1"):
        check_results(EVIDENCE, [replace(INTRUDER, **changes)])


def test_results_of_other_weights_are_refused():
    """As far as it can be told: earlier versions did not write it."""
    own = replace(EVIDENCE, weights_sha256="a" * 64)
    check_results(own, [replace(INTRUDER, weights_sha256="a" * 64)])
    check_results(own, [replace(INTRUDER, weights_sha256=None)])
    check_results(EVIDENCE, [replace(INTRUDER, weights_sha256="b" * 64)])
    with pytest.raises(ValueError, match=r"of other weights \(b+\) than the examples \(a+\)"):
        check_results(own, [replace(INTRUDER, weights_sha256="b" * 64)])


def test_two_results_of_one_test_are_refused():
    with pytest.raises(ValueError, match="got ComSem, balanced, ComSem, balanced"):
        check_results(EVIDENCE, [MENDED, ComSemResult.from_dict(MENDED.to_dict())])
