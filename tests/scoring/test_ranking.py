"""Rankings of planted dictionaries."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest

from bae_lens.examples.records import LatentRecords
from bae_lens.scoring.judges.embedding import EmbeddingJudge
from bae_lens.scoring.judges.judge import Question
from bae_lens.scoring.ranking import Comparison, Ranking, RankingSettings, rank_dictionaries
from tests.examples.planted import MIXED, PURE, RuleJudge, class_encoder, planted_records
from tests.helpers import known

SETTINGS = RankingSettings(n_pairs=6)


def dictionary_of(*latents: int) -> LatentRecords:
    whole = planted_records()
    own = tuple(replace(whole[j], index=i) for i, j in enumerate(latents))
    return replace(whole, latents=own)


CLEAR, HALF, VAGUE = (
    dictionary_of(PURE, PURE),
    dictionary_of(PURE, MIXED),
    dictionary_of(MIXED, MIXED),
)
THREE = {"vague one": VAGUE, "clear one": CLEAR, "half one": HALF}


def n_classes(question: Question) -> list[int]:
    groups = question.groups
    return [len({t.token.strip().rstrip("0123456789") for t in group}) for group in groups]


def fair(question: Question) -> str:
    one, other = n_classes(question)
    return "tie" if one == other or min(one, other) > 1 else "A" if one < other else "B"


class Named(RuleJudge):
    def __init__(self, name, rule):
        super().__init__(rule)
        self.name = name


def mean(interval) -> float:
    return known(None if interval is None else interval.mean)


def test_the_clearer_dictionary_wins():
    ranking = rank_dictionaries(THREE, RuleJudge(fair), SETTINGS)

    assert ranking.order == ("clear one", "half one", "vague one")
    assert mean(ranking.win_rate("clear one", "vague one")) == 1
    assert mean(ranking.win_rate("vague one", "clear one")) == 0
    assert mean(ranking.win_rate("clear one", "half one")) == 0.75
    assert mean(ranking.win_rate("clear one")) > 0.75
    with pytest.raises(ValueError, match="'clear one' was not compared with itself"):
        ranking.win_rate("clear one", "clear one")
    assert ranking.consistency("rule") == 1
    assert ranking.first_bias("rule") == 0
    assert ranking.alpha() is None
    assert rank_dictionaries(THREE, EmbeddingJudge(class_encoder), SETTINGS).order == ranking.order


def test_judges_are_blind_and_see_both_orders():
    judge = RuleJudge(fair)
    ranking = rank_dictionaries(THREE, judge, SETTINGS)

    assert len(judge.asked) == 2 * len(ranking.comparisons)
    asked = [question.groups for question in judge.asked]
    assert all(groups[::-1] in asked for groups in asked)
    assert not any(name in q.system + q.user for name in THREE for q in judge.asked)
    # Mixed: a pair's other order does not as a rule come next.
    n_next = sum(one == other[::-1] for one, other in pairwise(asked))
    assert n_next < len(asked) / 4


def test_who_always_says_the_first_makes_ties():
    ranking = rank_dictionaries(THREE, RuleJudge(lambda q: "A"), SETTINGS)

    assert {mean(ranking.win_rate(name)) for name in THREE} == {0.5}
    assert ranking.consistency("rule") == 0
    assert ranking.first_bias("rule") == 1


def test_unanswered_comparisons_are_left_out():
    ranking = rank_dictionaries(THREE, RuleJudge(lambda q: None), SETTINGS)
    assert ranking.win_rate("clear one") is None
    assert ranking.consistency("rule") is None
    assert "–" in ranking.table()
    assert f"{len(ranking.comparisons)} comparisons had no usable answer" in ranking.table()
    assert (
        rank_dictionaries(THREE, RuleJudge(lambda q: "C"), SETTINGS).win_rate("clear one") is None
    )
    assert Comparison(0, (0, 1), (0, 0), (1, None)).outcome is None
    assert Comparison(0, (0, 1), (0, 0), (1, 0)).outcome == 0
    assert Comparison(0, (0, 1), (0, 0), (-1, -1)).outcome == -1


def test_several_judges(monkeypatch):
    seen = {}

    def alpha(reliability_data, level_of_measurement):
        seen.update(table=reliability_data, level=level_of_measurement)
        return 0.25

    monkeypatch.setitem(sys.modules, "krippendorff", SimpleNamespace(alpha=alpha))
    judges = [Named("fair", fair), Named("first", lambda q: "A")]

    ranking = rank_dictionaries(THREE, judges, SETTINGS)

    assert ranking.alpha() == 0.25
    assert seen["level"] == "ordinal"
    assert seen["table"].shape == (2, len(ranking.comparisons) // 2)
    assert set(seen["table"][1]) == {0}
    assert mean(ranking.win_rate("clear one", "vague one")) == 0.75
    assert mean(ranking.win_rate("clear one", "vague one", "fair")) == 1
    assert "alpha of the judges: 0.25" in ranking.table()


def test_alpha_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    judges = [Named("fair", fair), Named("first", lambda q: "A")]
    ranking = rank_dictionaries(THREE, judges, SETTINGS)
    with pytest.raises(ImportError, match=r"krippendorff.* pip install .*interp"):
        ranking.alpha()
    assert "krippendorff, which is missing" in ranking.table()


def test_json_and_back(tmp_path):
    ranking = rank_dictionaries(THREE, RuleJudge(fair), SETTINGS)
    ranking.save(tmp_path / "r.json")
    assert Ranking.load(tmp_path / "r.json") == ranking
    assert ranking == rank_dictionaries(THREE, RuleJudge(fair), SETTINGS)


def test_what_cannot_be_ranked():
    with pytest.raises(ValueError, match="two dictionaries"):
        rank_dictionaries({"one": CLEAR}, RuleJudge(fair))
    with pytest.raises(ValueError, match="names of their own"):
        rank_dictionaries(THREE, [RuleJudge(fair), RuleJudge(fair)])
    with pytest.raises(ValueError, match="'none'"):
        rank_dictionaries({"none": dictionary_of(3), "clear": CLEAR}, RuleJudge(fair))
    with pytest.raises(ValueError, match="no dictionary 'x'"):
        rank_dictionaries(THREE, RuleJudge(fair), SETTINGS).win_rate("x")


@pytest.mark.parametrize("wrong", [{"n_pairs": 0}, {"n_shown": 1}, {"seed": -1}])
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RankingSettings(**wrong)
