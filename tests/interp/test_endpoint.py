"""The endpoint judge against a local server, faults included."""

from __future__ import annotations

import email.utils
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bae_lens.interp.budget import Limits
from bae_lens.interp.endpoint import DryRun, EndpointJudge, EndpointSettings
from bae_lens.interp.judges import JudgeUnavailable, LimitReached, Question
from tests.interp.chat_server import ChatServer, Raw, completion, serving

MOVED = Raw(307, headers=(("Location", "http://127.0.0.1:9/v1/chat/completions"),))


def questions(n: int = 6) -> list[Question]:
    return [Question("match", "Judge.", f"Question {i}", ("yes", "no")) for i in range(n)]


def expected(n: int = 6) -> list[str]:
    return [("yes", "no")[i % 2] for i in range(n)]


def right(request: dict[str, Any], i: int = 0) -> str:
    return expected(100)[int(request["messages"][1]["content"].split()[-1])]


def judge_of(
    server: ChatServer | str, cache: Path | None = None, **overrides: Any
) -> EndpointJudge:
    url = server if isinstance(server, str) else server.url
    fast = {"wait": 0.001, "timeout": 5.0}
    settings = EndpointSettings(url, "tiny-judge", "secret", **{**fast, **overrides})
    return EndpointJudge(settings, cache, sleep=lambda seconds: None)


def test_answers_in_order_over_the_protocol(tmp_path):
    with serving(right) as server:
        judge = judge_of(server, tmp_path / "a.jsonl", body={"seed": None, "top_p": 0.5})
        assert judge.ask(questions()) == expected()

        assert sorted(server.questions) == [f"Question {i}" for i in range(6)]
        assert server.paths[0] == "/v1/chat/completions"
        assert server.headers[0]["Authorization"] == "Bearer secret"
        request = server.requests[0]
        assert request["model"] == "tiny-judge"
        assert (request["temperature"], request["max_tokens"], request["top_p"]) == (0.0, 16, 0.5)
        assert "seed" not in request
        assert judge.spent[:3] == (6, 60, 12)
    assert "secret" not in (tmp_path / "a.jsonl").read_text() + repr(judge.settings)


def test_nothing_is_asked_twice(tmp_path):
    with serving(right) as server:
        judge = judge_of(server, tmp_path / "a.jsonl")
        assert judge.ask([*questions(), *questions()]) == 2 * expected()
        assert judge.ask(questions()) == expected()
        assert judge_of(server, tmp_path / "a.jsonl").ask(questions()) == expected()
        assert len(server.requests) == 6

        # What decides the answer is in the key.
        one = questions(1)
        for other in (
            judge_of(server, tmp_path / "a.jsonl", body={"temperature": 1.0}),
            EndpointJudge(EndpointSettings(server.url, "other"), tmp_path / "a.jsonl"),
        ):
            other.ask(one)
        assert len(server.requests) == 8


@pytest.mark.parametrize(
    "fault",
    [
        Raw(429, b'{"error": "slow down"}'),
        Raw(500),
        Raw(503, b"<html>"),
        Raw(200, b"<html>not JSON"),
        Raw(200, b'{"choices"'),
        Raw(200, b'{"error": {"message": "overloaded"}}'),
        Raw(200, b"[]"),
        Raw(200, delay=1.0),
    ],
    ids=["429", "500", "503", "html", "cut", "error", "list", "timeout"],
)
def test_faults_that_pass_lose_nothing(fault, tmp_path):
    n_faults = 4

    def reply(request: dict[str, Any], i: int) -> str | Raw:
        return fault if i < n_faults else right(request)

    with serving(reply) as server:
        judge = judge_of(server, tmp_path / "a.jsonl", timeout=0.3, n_parallel=2)
        assert judge.ask(questions()) == expected()
        assert len(server.requests) == 6 + n_faults == judge.spent.calls
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("fault", [Raw(500), Raw(401, b"no such key: secret"), MOVED])
def test_faults_that_stay_keep_what_was_answered(fault, tmp_path):
    def reply(request: dict[str, Any], i: int) -> str | Raw:
        return fault if request["messages"][1]["content"] == "Question 3" else right(request)

    with serving(reply) as server:
        judge = judge_of(server, tmp_path / "a.jsonl", n_parallel=1, n_tries=3)
        with pytest.raises(JudgeUnavailable, match=f"status {fault.status}") as e:
            judge.ask(questions())
        assert "secret" not in str(e.value)
        n_tries = 3 if fault.status == 500 else 1
        assert len(server.requests) == 3 + n_tries
    with serving(right) as server:
        settings = judge.settings
        again = EndpointJudge(settings, tmp_path / "a.jsonl")
        # The key is of the old address, so that only the cache can answer these.
        assert again.ask(questions(3)) == expected(3)
        assert server.requests == []


def test_no_connection():
    judge = judge_of("http://127.0.0.1:9/v1", n_tries=2)
    with pytest.raises(JudgeUnavailable, match=r"127\.0\.0\.1:9"):
        judge.ask(questions(1))
    assert judge.spent.calls == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_heeded(as_date):
    value = email.utils.formatdate(time.time() + 8, usegmt=True) if as_date else "7"
    waits: list[float] = []

    def reply(request: dict[str, Any], i: int) -> str | Raw:
        return Raw(429, headers=(("Retry-After", value),)) if i == 0 else right(request)

    with serving(reply) as server:
        settings = EndpointSettings(server.url, "tiny-judge", wait=0.01)
        assert EndpointJudge(settings, sleep=waits.append).ask(questions(1)) == ["yes"]
    assert len(waits) == 1
    assert 6 <= waits[0] <= 8


def test_retry_after_that_is_too_long_stops():
    with serving(lambda request, i: Raw(429, headers=(("Retry-After", "3600"),))) as server:
        with pytest.raises(JudgeUnavailable, match="3600"):
            judge_of(server).ask(questions(1))
        assert len(server.requests) == 1


def test_waits_double_up_to_a_bound():
    waits: list[float] = []
    with serving(lambda request, i: Raw(500)) as server:
        settings = EndpointSettings(server.url, "tiny-judge", wait=1.0, max_wait=3.0, n_tries=5)
        with pytest.raises(JudgeUnavailable):
            EndpointJudge(settings, sleep=waits.append).ask(questions(1))
    for wait, (low, high) in zip(waits, [(0.5, 1.5), (1, 3), (2, 3), (3, 3)], strict=True):
        assert low <= wait <= high


def test_wrong_answers_are_asked_again_with_a_reminder():
    def reply(request: dict[str, Any], i: int) -> str:
        return "Well, yes and no" if len(request["messages"]) == 2 else right(request)

    with serving(reply) as server:
        assert judge_of(server).ask(questions(1)) == ["yes"]
        [first, second] = server.requests
        assert second["messages"][:2] == first["messages"]
        assert second["messages"][2] == {"role": "assistant", "content": "Well, yes and no"}
        assert "yes, no" in second["messages"][3]["content"]
        assert second["seed"] != first["seed"]


@pytest.mark.parametrize(
    "said",
    ["perhaps", completion(None), Raw(200, b'{"choices": []}'), Raw(200, b'{"choices": [1]}')],
)
def test_no_answer_is_kept_as_such(said, tmp_path):
    with serving(lambda request, i: said) as server:
        judge = judge_of(server, tmp_path / "a.jsonl")
        assert judge.ask(questions(1)) == [None]
        assert len(server.requests) == 3
        assert judge_of(server, tmp_path / "a.jsonl").ask(questions(1)) == [None]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_calls=3),
        # 12 each, and 22 set aside for the next one.
        Limits(max_tokens=48),
        Limits(max_cost=48e-6, price_in=1.0, price_out=1.0),
    ],
)
@pytest.mark.parametrize("n_parallel", [1, 4])
def test_limits_stop_and_a_rerun_goes_on(limits, n_parallel, tmp_path):
    with serving(right) as server:
        judge = judge_of(server, tmp_path / "a.jsonl", limits=limits, n_parallel=n_parallel)
        with pytest.raises(LimitReached, match="max_"):
            judge.ask(questions())
        n_asked = len(server.requests)
        assert n_asked == judge.spent.calls == len(judge.cache)
        assert n_asked == 3 or (n_parallel == 4 and 1 <= n_asked <= 3)
        if limits.max_cost is not None:
            assert judge.spent.cost <= limits.max_cost

        assert judge_of(server, tmp_path / "a.jsonl").ask(questions()) == expected()
        assert sorted(server.questions) == [f"Question {i}" for i in range(6)]


def test_failed_calls_count_for_the_limit():
    with serving(lambda request, i: Raw(500)) as server:
        with pytest.raises(LimitReached):
            judge_of(server, limits=Limits(max_calls=2)).ask(questions(1))
        assert len(server.requests) == 2


@pytest.mark.parametrize(("fault", "n_tokens"), [(Raw(429), 12), (Raw(200, b"<html>"), 34)])
def test_answers_that_came_to_nothing_may_be_charged(fault, n_tokens):
    with serving(lambda request, i: fault if i == 0 else right(request)) as server:
        judge = judge_of(server)
        judge.ask(questions(1))
    assert judge.spent.tokens_in + judge.spent.tokens_out == n_tokens


def test_usage_that_is_missing_is_guessed():
    with serving(lambda request, i: completion("yes", None)) as server:
        judge = judge_of(server)
        judge.ask(questions(1))
    assert judge.spent.tokens_in == len("Judge.Question 0") // 3 + 1
    assert judge.spent.tokens_out == 2


def test_a_killed_process_loses_nothing_that_was_answered(tmp_path):
    """Killed without a chance to clean up, while an answer is outstanding."""

    def reply(request: dict[str, Any], i: int) -> str | Raw:
        return completion(right(request))._replace(delay=30.0 if i == 3 else 0.0)

    code = (
        "import sys\n"
        "from bae_lens.interp.endpoint import EndpointJudge, EndpointSettings\n"
        "from bae_lens.interp.judges import Question\n"
        "settings = EndpointSettings(sys.argv[1], 'tiny-judge', n_parallel=1)\n"
        "EndpointJudge(settings, sys.argv[2]).ask([Question('match', 'Judge.', f'Question {i}',"
        " ('yes', 'no')) for i in range(6)])\n"
    )
    path = tmp_path / "a.jsonl"
    with serving(reply) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url, str(path)])
        try:
            deadline = time.monotonic() + 300  # Imports take long on a busy machine.
            while len(server.requests) < 4 and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            process.kill()
            process.wait()
        assert len(server.requests) == 4
        judge = EndpointJudge(EndpointSettings(server.url, "tiny-judge", n_parallel=1), path)
        assert judge.ask(questions()) == expected()
        # Only what was outstanding is asked again.
        assert server.questions == [f"Question {i}" for i in (0, 1, 2, 3, 3, 4, 5)]


def test_dry_run_counts_and_asks_nothing(tmp_path):
    with serving(right) as server:
        limits = Limits(price_in=1.0, price_out=2.0)
        judge = judge_of(server, tmp_path / "a.jsonl", limits=limits)
        judge.ask(questions(2))
        dry = DryRun(judge)

        answers = dry.ask([*questions(), *questions(), Question("explain", "", "Why?")])

        assert answers[:6] == ["yes", "no", "yes", "yes", "yes", "yes"]
        assert str(answers[-1]).startswith("(phrase")
        assert (dry.n_cached, dry.expected.calls, dry.expected.tokens_out) == (2, 5, 5 * 16)
        assert dry.expected.cost == pytest.approx(
            (dry.expected.tokens_in + 2 * dry.expected.tokens_out) / 1e6
        )
        assert len(server.requests) == 2
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 2


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("BAE_LENS_JUDGE_MODEL", "m")
    assert EndpointSettings.from_environment(n_tries=2) == EndpointSettings(
        "http://localhost:1/v1", "m", None, n_tries=2
    )
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.setenv("BAE_LENS_JUDGE_MODEL", "")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL and no BAE_LENS_JUDGE_MODEL"):
        EndpointJudge()


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": "http://host/v1?key=1"},
        {"model": ""},
        {"api_key": "key\n"},
        {"n_tries": 0},
        {"n_parallel": 0},
        {"n_reminders": -1},
        {"timeout": 0.0},
        {"wait": -1.0},
        {"body": {"stream": True}},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EndpointSettings(**{"base_url": "http://host/v1", "model": "m", **wrong})


@pytest.mark.parametrize("wrong", [{"max_calls": -1}, {"max_cost": 1.0}, {"price_in": -1.0}])
def test_wrong_limits(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_what_was_said_is_written_for_people(tmp_path):
    with serving(lambda request, i: "perhaps" if i < 2 else "Yes.") as server:
        judge_of(server, tmp_path / "a.jsonl").ask(questions(1))
    [record] = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert record["answer"] == "yes"
    assert record["said"] == ["perhaps", "perhaps", "Yes."]
