"""The verdict of a concept ablation, on results by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from bae_lens.concept_ablation import AblationRow, AblationSettings, ConceptAblationResult
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.verdict import ablation_verdict
from tests.concept_ablation.test_result import make_result, row

N = 100


def rows(place: str = names.EVERYWHERE, read_by: str = names.PROBE, **right: int) -> list[AblationRow]:  # fmt: skip
    """Rows of a hundred texts, of which so many are predicted rightly: the first ones."""
    methods = {
        "none": "none",
        "concept": names.CONCEPT,
        "random": names.RANDOM_EQUAL,
        "other": names.RANDOM_CONCEPT,
        "class_": names.OTHER_CLASS,
        "mean": names.MEAN,
        "leace": names.LEACE,
        "retrained": names.CONCEPT + names.RETRAINED,
    }
    return [
        row(methods[name], 0, place, read_by=read_by, correct=tuple(i < n for i in range(N)))
        for name, n in right.items()
    ]


def result(found: list[AblationRow], **overrides: Any) -> ConceptAblationResult:
    settings = AblationSettings(**overrides.pop("settings", {})).to_dict()
    values: dict[str, Any] = {"labels": (0, 1) * (N // 2), "concept_ids": ()}
    return make_result(
        **{**values, "rows": tuple(found), "settings": settings, "predictions": (), **overrides}
    )


ALL: dict[str, Any] = {"none": 90, "random": 88, "other": 85, "class_": 84, "mean": 90, "leace": 50}


def test_beyond_every_control():
    verdict = ablation_verdict(result(rows(concept=60, **ALL, retrained=62)))
    found = verdict.finding
    assert found.startswith("Taking the concept out of all tokens costs the probe +0.280 [+0.190, ")
    assert found.endswith(
        "more accuracy than a random direction of equal norm does, and more than a random concept, a concept of "
        "another class and the mean direction."
    )
    assert "--seed 1" in verdict.advice
    assert str(verdict) == f"{verdict.finding} {verdict.advice}"


def test_a_probe_that_is_fitted_anew_and_loses_nothing():
    verdict = ablation_verdict(result(rows(concept=60, **ALL, retrained=90)))
    assert "it loses +0.000 [+0.000, +0.000]" in verdict.advice
    assert "--rank 4." in verdict.advice
    more = ablation_verdict(result(rows(concept=60, **ALL, retrained=90), settings={"rank": 3}))
    assert "--rank 12." in more.advice


def test_controls_that_cost_as_much_are_named():
    verdict = ablation_verdict(result(rows(concept=60, **{**ALL, "other": 58, "mean": 61})))
    # One text of a hundred is not off zero.
    assert (
        "and more than a concept of another class; but no more, as far as 100 texts can tell, than"
        in verdict.finding
    )
    assert (
        "than a random concept (-0.020 [-0.050, +0.000]) or the mean direction (+0.010 ["
        in verdict.finding
    )
    assert "--rank 4:" in verdict.advice
    sampled = ablation_verdict(
        result(rows(concept=60, **{**ALL, "other": 58}), settings={"max_examples": N})
    )
    assert "--max_examples all" in sampled.advice
    none = ablation_verdict(result(rows(none=90, concept=60, random=80, other=60)))
    assert "does, but no more, as far as" in none.finding
    released = result(
        rows(concept=60, **{**ALL, "mean": 60}), settings={"protocol": "released", "center": False}
    )
    assert "--protocol controlled" in ablation_verdict(released).advice


@pytest.mark.parametrize("concept", [87, 88, 90])
def test_nothing_beyond_a_random_direction(concept):
    verdict = ablation_verdict(result(rows(concept=concept, **ALL)))
    assert "costs the probe no more accuracy, as far as 100 texts can tell, than a random" in (
        verdict.finding
    )
    # Of the other controls nothing is said.
    assert "concept of another class" not in verdict.finding


def test_less_than_a_random_direction():
    verdict = ablation_verdict(result(rows(concept=90, **{**ALL, "random": 60})))
    assert "costs the probe less accuracy than a random direction of equal norm does (-0.300 [" in (
        verdict.finding
    )


def test_where_leace_takes_nothing_that_is_seen_neither_could_a_concept():
    verdict = ablation_verdict(result(rows(concept=88, **{**ALL, "leace": 90})))
    assert (
        "LEACE, which has seen the labels, is not shown to take anything there either"
        in verdict.advice
    )
    assert "--hook_name_out a," in verdict.advice
    # 0.01 whose interval touches 0 is not nothing, and is not said to be.
    touches = ablation_verdict(result(rows(concept=88, **{**ALL, "leace": 89}))).advice
    assert "is not shown to take anything there either (+0.010 [+0.000, +0.030])" in touches
    same = result(rows(concept=88, **{**ALL, "leace": 90}), hook_names=("a", "a"))
    assert "LEACE" not in ablation_verdict(same).advice


def test_below_chance_nothing_is_gained():
    # An inversion: raw, it would cost 0.5 more than the random direction, which is at chance.
    verdict = ablation_verdict(result(rows(none=90, concept=0, random=50, leace=50)))
    assert "no more accuracy" in verdict.finding
    assert "(+0.000 [" in verdict.finding
    assert verdict.finding.endswith("what falls below chance is inversion, and is not counted.")


def test_the_row_is_chosen_by_place_and_reader_and_not_by_its_figures():
    none: dict[str, Any] = {"none": 90, "concept": 88, "random": 88}
    strong: dict[str, Any] = {"none": 90, "concept": 60, "random": 88}
    found = [*rows(names.LOWER, **strong), *rows(names.SALIENT, **none)]
    assert "out of the salient token costs the probe no more" in ablation_verdict(
        result(found)
    ).finding  # fmt: skip
    assert "out of the lower vector costs the probe +0.280" in ablation_verdict(
        result(rows(names.LOWER, **strong))
    ).finding  # fmt: skip
    own = [*rows(**none), *rows(read_by=names.LABEL_WORDS, **strong)]
    settings = {"label_words": ["yes", "no"], "predicted_by": "label_words"}
    assert "costs the model +0.280" in ablation_verdict(result(own, settings=settings)).finding


@pytest.mark.parametrize(
    ("by", "settings", "advised"),
    [
        ("label_words", {"label_words": ["yes", "no"]}, "--predicted_by probe"),
        ("head", {}, "--predicted_by probe"),
        ("probe", {"max_examples": N}, "--max_examples all"),
        ("probe", {}, "--readout mean"),
        ("probe", {"readout": "mean"}, "an SAE of a later layer"),
    ],
)
def test_without_signal_nothing_is_said_of_concepts(by, settings, advised):
    generator = random.Random(0)
    verdict = ablation_verdict(
        result(
            rows(concept=10, **ALL),
            settings={**settings, "predicted_by": by},
            predictions=tuple(generator.randrange(2) for _ in range(N)),
        )
    )
    assert verdict.finding.startswith("Nothing can be said of concepts: ")
    assert "predicts no better than chance, as far as 100 texts can tell" in verdict.finding
    assert advised in verdict.advice


def test_results_of_older_versions_without_controls():
    verdict = ablation_verdict(result(rows(none=90, concept=60)))
    assert verdict.finding.startswith("No concept was ablated beside a random direction")
    # Ten texts, in which the interval of so small a difference reaches zero or does not: it decides.
    assert ablation_verdict(make_result()).finding
