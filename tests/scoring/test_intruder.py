"""The intruder test of planted latents."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bae_lens.scoring import intruder
from bae_lens.scoring.intruder import intruder_test
from bae_lens.scoring.intruder_result import IntruderResult, IntruderSettings, Tally
from bae_lens.scoring.judges.embedding import EmbeddingJudge
from bae_lens.scoring.judges.judge import Question
from tests.examples.planted import (
    DEAD,
    MIXED,
    PURE,
    TOKEN,
    RuleJudge,
    class_encoder,
    planted_records,
)
from tests.helpers import known

SMALL = IntruderSettings(n_trials=15)


def result_of(**overrides) -> IntruderResult:
    return intruder_test(
        planted_records(), None, replace(SMALL, **overrides), encoder=class_encoder
    )


def mean(interval) -> float:
    return known(None if interval is None else interval.mean)


def test_planted_latents_are_told_apart():
    result = result_of()
    found = {own.latent: own for own in result.latents}

    assert (result.n_latents, result.n_firing, result.n_enough) == (4, 3, 3)
    assert DEAD not in found
    assert mean(found[PURE].accuracy()) == mean(found[TOKEN].accuracy()) == 1
    assert mean(found[MIXED].accuracy()) < 0.5
    assert found[TOKEN].purity == 1 > found[PURE].purity
    assert result.n_passed() == 2
    assert result.chance == 0.2
    # All three that could be asked about were; of a single token is one of the two that pass.
    passed = result.n_passed_of_all()
    assert passed is not None
    assert passed.mean == 2
    assert 0 < passed.low < 2 < passed.high < 3
    assert mean(result.n_passed_of_all(max_purity=0.5)) == 1
    assert mean(result.n_passed_of_all(control=True)) == 0
    assert mean(result.accuracy(max_purity=0.5)) == pytest.approx(
        (1 + mean(found[MIXED].accuracy())) / 2
    )
    assert mean(result.accuracy()) > mean(result.accuracy(control=True))
    assert mean(result.excess_over_control()) == pytest.approx(
        mean(result.accuracy()) - mean(result.accuracy(control=True))
    )


def test_trials():
    records = planted_records()
    judge = RuleJudge(lambda q: q.choices[0])

    result = intruder_test(records, judge, SMALL, encoder=class_encoder)

    n = SMALL.n_trials * SMALL.n_seeds
    assert len(judge.asked) == 2 * 2 * 3 * n  # Kinds, controls, latents.
    firing = {b.example.strings: b.latents for b in records.corpus_tokens or ()}
    own = {e.strings for e in records[PURE].random}
    for question in judge.asked[: 2 * n]:
        groups = [tuple(text) for [text] in question.groups]
        assert len(set(groups)) == SMALL.n_shown
        [odd] = [g for g in groups if g not in own]
        assert PURE not in firing[odd]
    # Whoever always says the first is right as often as by chance.
    assert mean(result.accuracy()) == pytest.approx(0.2, abs=0.1)


def test_hard_intruders_are_alike():
    result = result_of(n_hard=5)
    own = {found.latent: found for found in result.latents}
    # Other dogs are silent for the latent of one dog.
    judge = RuleJudge(lambda q: "1")
    intruder_test(planted_records(), judge, replace(SMALL, n_hard=5), encoder=class_encoder)
    hard = judge.asked[3 * 2 * 15 + 15 : 3 * 2 * 15 + 30]
    assert all(text.token.startswith(" dog") for q in hard for [text] in q.groups)
    assert mean(own[TOKEN].accuracy("hard")) == 1


def test_other_judges_without_an_encoder_have_no_hard_ones():
    result = intruder_test(planted_records(), RuleJudge(lambda q: "1"), SMALL)
    assert result.accuracy("hard") is None
    assert result.accuracy() is not None
    assert "–" in result.table()


def test_what_is_not_answered_counts_for_nothing():
    def rule(question: Question) -> str | None:
        return None if question.seed == 0 else "1"

    result = intruder_test(planted_records(), RuleJudge(rule), SMALL)
    assert result.latents[0].random[0] == Tally(0, 0, 15)
    assert result.latents[0].by_seed()[0] is None
    assert result.accuracy() is not None
    n_each = len(result.latents) * 15  # As many controls.
    assert result.n_unanswered == 2 * n_each
    assert f"{2 * n_each} trials are open" in result.table()
    assert "open" not in result_of().table()
    for answer in (None, "99"):
        nothing = intruder_test(planted_records(), RuleJudge(lambda q, a=answer: a), SMALL)
        assert nothing.accuracy() is None
        assert "0 of the 0 with any answer" in nothing.table()


def test_questions_are_asked_in_parts(monkeypatch):
    asked = []

    class Counting(EmbeddingJudge):
        def ask(self, questions):
            asked.append(len(questions))
            return super().ask(questions)

    records, whole = planted_records(), result_of()
    monkeypatch.setattr(intruder, "_CASES_AT_ONCE", 2)
    assert intruder_test(records, Counting(class_encoder), SMALL) == whole
    assert asked == [2 * 2 * SMALL.n_trials * SMALL.n_seeds] * 3


def test_the_seed_and_the_latent_decide():
    assert result_of() == result_of()
    assert result_of().latents[2].random != result_of(seed=5).latents[2].random
    one = result_of(n_latents=1).latents[0]
    assert one in result_of().latents


def test_json_and_back(tmp_path):
    result = result_of()
    result.save(tmp_path / "i.json")
    assert IntruderResult.load(tmp_path / "i.json") == result
    (tmp_path / "no.json").write_text(json.dumps({"latents": []}))
    with pytest.raises(ValueError, match="intruder_test"):
        IntruderResult.load(tmp_path / "no.json")


def test_table_says_what_the_judge_cannot():
    table = result_of().table()
    assert EmbeddingJudge.caveat in table
    assert "Chance is 0.200" in table
    assert "token purity" in table


def test_evidence_that_is_too_little():
    with pytest.raises(ValueError, match="n_corpus_tokens"):
        intruder_test(replace(planted_records(), corpus_tokens=None), encoder=class_encoder)
    with pytest.raises(ValueError, match="4 texts"):
        intruder_test(planted_records(3), encoder=class_encoder)


@pytest.mark.parametrize(
    "wrong",
    [{"n_shown": 2}, {"n_latents": 0}, {"n_trials": 0}, {"threshold": 2.0}, {"n_seeds": 1.5}],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IntruderSettings(**wrong)
