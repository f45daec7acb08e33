"""ComSem of planted latents, by judges that follow rules and by an endpoint."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bae_lens.scoring import prompts
from bae_lens.scoring.comsem import comsem_test
from bae_lens.scoring.comsem_result import ComSemResult, ComSemSettings, protocol_distance
from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.judges.endpoint import DryRun, EndpointJudge, EndpointSettings
from bae_lens.scoring.judges.judge import LimitReached, Question
from tests.examples.planted import (
    MIXED,
    PURE,
    TOKEN,
    RuleJudge,
    class_encoder,
    planted_records,
)
from tests.helpers import known
from tests.scoring.chat_server import Raw, serving

SETTINGS = ComSemSettings(n_latents=None)
RELEASED = replace(SETTINGS, protocol="released")


def marked(text: str) -> list[str]:
    """Tokens with their marks."""
    return re.findall("«(.*?)»", text)


def fits(phrase: str, token: str) -> bool:
    return phrase == "word" or token == phrase or token.rstrip("0123456789") == phrase


def careful(question: Question) -> str:
    """The narrowest of token and class that fits all examples."""
    return careful_text(question.kind, question.user)


def careful_text(kind: str, user: str) -> str:
    if kind == "explain":
        tokens = set(marked(user))
        classes = {token.rstrip("0123456789") for token in tokens}
        return next((min(own) for own in (tokens, classes) if len(own) == 1), "No pattern.")
    first, second = user.splitlines()
    if kind == "same":
        return "yes" if first.split(": ")[1] == second.split(": ")[1] else "no"
    [token] = marked(second)
    return "yes" if fits(first.split('"')[1], token) else "no"


def lazy(question: Question) -> str:
    """Everything is a word."""
    return "word" if question.kind == "explain" else "yes"


def wide(question: Question) -> str:
    """The class in place of the token."""
    answer = careful(question)
    is_phrase = question.kind == "explain" and "pattern" not in answer
    return answer.rstrip("0123456789") if is_phrase else answer


def mean(interval) -> float:
    return known(None if interval is None else interval.mean)


def result_of(rule=careful, settings=SETTINGS, **kwargs) -> ComSemResult:
    return comsem_test(planted_records(), RuleJudge(rule), settings, **kwargs)


def test_planted_latents():
    result = result_of(encoder=class_encoder)

    assert result.latents == (PURE, TOKEN, MIXED)
    assert (result.n_latents, result.n_firing, result.n_enough) == (4, 3, 3)
    assert result.scores() == {PURE: 1.0, TOKEN: 1.0, MIXED: 0.5}
    assert result.scores(explained_only=True) == {PURE: 1.0, TOKEN: 1.0}
    assert mean(result.explained) == pytest.approx(2 / 3)
    assert mean(result.score(explained_only=True)) == 1
    assert (result.n_above(), result.n_above(0.5)) == (2, 3)
    assert mean(result.share_above()) == pytest.approx(2 / 3)
    assert mean(result.optimism) == 0
    assert {run.phrase for run in result.runs} == {"cat", "dog3", None}
    assert mean(result.same_phrase) == 1
    assert mean(result.named_twice) == pytest.approx(2 / 3)


def test_a_phrase_that_fits_everything_is_worth_nothing():
    result = result_of(lazy, encoder=class_encoder)

    assert set(result.scores().values()) == {0.5}
    assert mean(result.positives_only) == 1
    assert mean(result.optimism) == 0.5
    assert result.n_above() == 0
    # Which the release does not see.
    released = result_of(lazy, RELEASED)
    assert set(released.scores().values()) == {1.0}
    assert released.n_above() == 3
    distance = protocol_distance(result, released)
    assert (mean(distance.difference), distance.n_above) == (0.5, (0, 3, 0))
    assert distance.rank_correlation is None
    assert "0.500" in distance.table()


def test_hard_negatives_find_phrases_that_are_too_wide():
    without = result_of(wide)
    found = result_of(wide, replace(SETTINGS, n_hard=5), encoder=class_encoder)

    assert not without.has_hard
    assert without.false_yes("hard") is None
    assert "no hard negatives" in without.table()
    # Half of the negatives are other dogs.
    assert found.scores()[TOKEN] < 0.8 < without.scores()[TOKEN]
    assert all(run.hard.n_no == 0 for run in found.runs if run.latent == TOKEN)


def test_questions():
    records = planted_records()
    judge = RuleJudge(careful)

    result = comsem_test(records, judge, SETTINGS, encoder=class_encoder)

    by_text = {str(b.example.text): b.latents for b in records.corpus_tokens or ()}
    assert len(judge.of_kind("explain")) == 9
    tests = judge.of_kind("match")
    assert len(tests) == sum(
        sum(sum(v) for v in (r.positive, r.random, r.hard)) for r in result.runs
    )
    for question in tests:
        [[example]] = question.groups
        text = re.findall(r"\d+", example.before)[0]
        latent = PURE if '"cat"' in question.user else TOKEN
        assert text not in by_text or latent not in by_text[text]
    for run in result.runs:
        if run.status == "explained":
            n = sum(run.positive)
            assert 3 <= n <= 8
            assert (sum(run.random), sum(run.hard)) == (n - n // 2, n // 2)
    # Nothing that is tested was shown: words before a token name its text.
    for question, run in zip(judge.of_kind("explain"), result.runs, strict=True):
        shown = set(re.findall(r"before(\d+)", question.user))
        assert len(shown) == SETTINGS.n_shown
        own = [q for q in tests if q.seed == question.seed and f'"{run.phrase}"' in q.user]
        assert not shown & {re.findall(r"before(\d+)", q.user)[0] for q in own}


def test_released_protocol():
    records = planted_records(n_examples=14)
    judge = RuleJudge(careful)

    result = comsem_test(replace(records, corpus_tokens=None), judge, RELEASED)

    # The first five in the order of the corpus, then the next eight; nothing else.
    order = sorted(e.text for e in records[PURE].random)
    texts = [
        [int(t) for t in re.findall(r"before(\d+)", q.user)]
        for q in (judge.of_kind("explain")[0], *judge.of_kind("match")[:8])
    ]
    assert texts[0] == order[:5]
    assert [t for [t] in texts[1:]] == order[5:13]
    assert len(judge.asked) == 3 + 2 * 8
    assert result.scores() == {PURE: 1.0, TOKEN: 1.0, MIXED: 0.0}


def test_the_seed_and_the_latent_decide():
    assert result_of(encoder=class_encoder) == result_of(encoder=class_encoder)
    one = result_of(settings=replace(SETTINGS, n_latents=1), encoder=class_encoder)
    assert set(one.runs) < set(result_of(encoder=class_encoder).runs)


def test_what_is_not_answered():
    def rule(question: Question) -> str | None:
        if question.kind == "explain" and question.seed == 1:
            return None
        return None if question.kind == "same" else careful(question)

    result = result_of(rule)

    assert {run.status for run in result.runs if run.seed == 1} == {"no answer"}
    # "cat" and "cat" are the same without a judge.
    assert mean(result.same_phrase) == 1
    assert result.scores() == {PURE: 1.0, TOKEN: 1.0, MIXED: 0.5}
    assert result.n_unanswered == 3
    assert "3 questions are open" in result.table()
    assert "No question is open" in result_of().table()


def test_what_is_open_is_no_failure():
    """Everything about one latent, and one seed of another, is unanswered."""

    def rule(question: Question) -> str | None:
        answer = careful(question)
        is_open = answer == "dog3" or (answer == "cat" and question.seed == 2)
        return None if is_open else answer

    result, whole = result_of(rule), result_of()

    assert result.scores() == {PURE: 1.0, MIXED: 0.5}
    assert mean(whole.explained) == pytest.approx(2 / 3)
    assert mean(result.explained) == 0.5  # of the cats and the mixed ones
    assert mean(result.share_above()) == 0.5
    assert mean(result.named_twice) == 0.5
    assert "1 of 2 latents with a score (3 were tested) have 0.8 or more" in result.table()

    # The release's score, too, is of what was answered.
    def every_second(question: Question) -> str | None:
        is_odd = question.kind == "match" and question.groups[0][0].before[-1] in "13579"
        return None if is_odd else careful(question)

    half = result_of(every_second, RELEASED)
    assert half.n_unanswered > 0
    assert half.scores() == result_of(careful, RELEASED).scores()


def test_answers_that_are_none():
    """Of a judge of somebody else's."""
    wrong = {"explain": "\ud800 kind", "match": "perhaps", "same": "tie"}
    result = result_of(lambda q: wrong[q.kind])
    assert {run.status for run in result.runs} == {"no answer"}
    result = result_of(lambda q: "kind" if q.kind == "explain" else wrong[q.kind])
    assert result.n_unanswered == sum(
        sum(sum(v) for v in (r.positive, r.random, r.hard)) for r in result.runs
    )
    assert result.scores() == {}
    assert result.share_above() is None

    class Short(RuleJudge):
        def ask(self, questions):
            return super().ask(questions)[:-1]

    with pytest.raises(ValueError, match="8 answers to 9 questions"):
        comsem_test(planted_records(), Short(careful), SETTINGS)


def test_evidence_that_is_too_little():
    with pytest.raises(ValueError, match="n_corpus_tokens"):
        comsem_test(replace(planted_records(), corpus_tokens=None), RuleJudge(careful))
    with pytest.raises(ValueError, match="8 texts"):
        comsem_test(planted_records(7), RuleJudge(careful))


def test_through_an_endpoint_with_faults_and_limits(tmp_path):
    """Stopped, resumed, and the same as without faults."""

    def reply(request, i) -> str | Raw:
        if i % 7 == 3:
            return Raw(503)
        system, user = (message["content"] for message in request["messages"][:2])
        kinds = {"explain": prompts._EXPLAIN, "match": prompts._MATCH, "same": prompts._SAME}
        return careful_text(next(k for k, own in kinds.items() if own == system), user)

    with serving(reply) as server:

        def judge(max_calls: int | None = None) -> EndpointJudge:
            settings = EndpointSettings(server.url, "rule", limits=Limits(max_calls=max_calls))
            return EndpointJudge(settings, tmp_path / "a.jsonl", sleep=lambda s: None)

        dry = DryRun(judge())
        comsem_test(planted_records(), dry, SETTINGS, encoder=class_encoder)
        assert server.requests == []
        for _ in range(2):
            with pytest.raises(LimitReached):
                comsem_test(planted_records(), judge(40), SETTINGS, encoder=class_encoder)
        found = comsem_test(planted_records(), judge(), SETTINGS, encoder=class_encoder)

        expected = result_of(encoder=class_encoder)
        assert replace(found, judge="rule", caveat=expected.caveat) == expected
        asked = [
            (r["messages"][0]["content"], r["messages"][1]["content"], r["seed"])
            for r in server.requests
        ]
        n_faults = len(range(3, len(asked), 7))
        assert len(asked) == len(set(asked)) + n_faults
        # A dry run takes every latent for explained.
        assert len(set(asked)) <= dry.expected.calls <= 3 * (3 * (1 + 16) + 3)


def test_what_is_shown_is_not_tested_where_texts_are_repeated():
    records = planted_records()
    own = records[PURE]
    # Every one of the strongest is among the random ones again, as of another text.
    again = tuple(e._replace(text=e.text + 10**6) for e in own.strongest)
    latents = (replace(own, random=(*again, *own.random)), *records.latents[1:])
    judge = RuleJudge(lambda q: "cat" if q.kind == "explain" else "yes")

    comsem_test(replace(records, latents=latents), judge, SETTINGS)

    # Latents are asked about in order, this one first, with as many questions each.
    explained, tested = judge.of_kind("explain"), judge.of_kind("match")
    n = len(tested) // len(explained)
    for i, question in enumerate(explained[: SETTINGS.n_seeds]):
        shown = set(re.findall(r"before\d+", question.user))
        assert len(shown) == SETTINGS.n_shown
        about = {q.groups[0][0].before.strip() for q in tested[n * i : n * (i + 1)]}
        assert not shown & about
