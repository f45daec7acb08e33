"""The endpoint judge against a local server, faults included."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.judges.endpoint import DryRun, EndpointJudge, EndpointSettings
from bae_lens.scoring.judges.judge import JudgeUnavailable, LimitReached, Question
from tests.scoring.chat_server import ChatServer, Raw, completion, serving, speaking

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


@pytest.mark.parametrize("value", ["1e400", "9" * 400, "inf", "Fri, 31 Dec 9999 23:59:59 -2359"])
def test_retry_after_of_a_hostile_size_stops(value):
    with serving(lambda request, i: Raw(429, headers=(("Retry-After", value),))) as server:
        with pytest.raises(JudgeUnavailable, match="more than max_wait") as e:
            judge_of(server).ask(questions(1))
        assert len(server.requests) == 1
        assert len(str(e.value)) < 500


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
    [
        "perhaps",
        completion(None),
        Raw(200, b'{"choices": []}'),
        Raw(200, b'{"choices": [1]}'),
        completion("yes", end="length"),
        completion("yes", end="content_filter"),
        Raw(200, b'{"choices": [{"message": {"content": "no", "refusal": "I cannot"}}]}'),
        Raw(200, b'{"choices": [{"message": {"content": [{"type": "text", "text": "no"}]}}]}'),
        Raw(200, b'{"choices": [{"text": "no"}]}'),
        "\ud800",
    ],
)
def test_what_is_no_answer_stays_open(said, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    with serving(lambda request, i: said) as server:
        assert judge_of(server, path).ask(questions(1)) == [None]
        assert len(server.requests) == 3
        assert "1 of 1 questions are open" in caplog.text
        settings = judge_of(server, path).settings
    assert not path.exists()
    # The next run asks again, and keeps what it gets.
    judge = EndpointJudge(settings, path)
    with serving(right, port=urllib.parse.urlsplit(settings.base_url).port) as server:
        assert judge.ask(questions(1)) == ["yes"]
        assert EndpointJudge(settings, path).ask(questions(1)) == ["yes"]
        assert len(server.requests) == 1


@pytest.mark.parametrize("end", ["stop", "eos", "STOP", None, ""])
def test_answers_that_came_to_their_end(end):
    with serving(lambda request, i: completion("yes", end=end)) as server:
        assert judge_of(server).ask(questions(1)) == ["yes"]


@pytest.mark.parametrize(
    "phrase", ["\ud800 kind", "a\0b", "\x1b[2Jkind", "a\u202eb", "x" * 201, "a\u2028b"]
)
def test_phrases_that_cannot_be_shown_or_saved_are_no_answer(phrase, tmp_path):
    question = Question("explain", "Judge.", "Why?")
    with serving(lambda request, i: phrase if i == 0 else "kind") as server:
        judge = judge_of(server, tmp_path / "a.jsonl")
        assert judge.ask([question]) == ["kind"]
        assert len(server.requests) == 2


def test_caches_of_before(tmp_path, caplog):
    """null, a phrase that nobody can save, a choice that there is none of: asked again, and said."""
    path, asked = tmp_path / "a.jsonl", [*questions(3), Question("explain", "Judge.", "Why? 0")]
    with serving(right) as server:
        judge = judge_of(server, path)
        keys = [judge.key(question) for question in asked]
        answers = ["no", None, "maybe", "\ud800 kind"]
        lines = [
            {"key": k, "answer": a, "kind": "match"} for k, a in zip(keys, answers, strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert judge_of(server, path).ask(asked) == ["no", "no", "yes", "yes"]
        # What was answered stands, right or not.
        assert judge_of(server, path).ask(asked) == ["no", "no", "yes", "yes"]
        assert len(server.requests) == 3
        dry = DryRun(judge_of(server, path))
        dry.ask(asked)
        assert (dry.n_cached, dry.n_again) == (4, 0)
    assert "1 questions had no usable answer when they were asked before" in caplog.text
    assert caplog.text.count("asked before") == 1


def test_a_dry_run_says_what_is_asked_again(tmp_path):
    path = tmp_path / "a.jsonl"
    judge = judge_of("http://127.0.0.1:9/v1", path)
    path.write_text(json.dumps({"key": judge.key(questions(1)[0]), "answer": None}) + "\n")
    dry = DryRun(judge_of("http://127.0.0.1:9/v1", path))
    dry.ask(questions(2))
    assert (dry.n_cached, dry.n_again, dry.expected.calls) == (0, 1, 2)


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
        "from bae_lens.scoring.judges.endpoint import EndpointJudge, EndpointSettings\n"
        "from bae_lens.scoring.judges.judge import Question\n"
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


def test_what_was_said_is_written_for_people(tmp_path):
    with serving(lambda request, i: "perhaps" if i < 2 else "Yes.") as server:
        judge_of(server, tmp_path / "a.jsonl").ask(questions(1))
    [record] = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert record["answer"] == "yes"
    assert record["said"] == ["perhaps", "perhaps", "Yes."]


SECRET = "sk-SECRET/1234567890"


def echo(body: bytes, begin: bytes = b"HTTP/1.1 200 OK\r\n") -> Callable[[socket.socket], None]:
    head = begin + b"Content-Length: %d\r\n\r\n" % len(body)
    return lambda connection: connection.sendall(head + body)


LEAKS = {
    "200": echo(f"<html>Authorization: Bearer {SECRET}</html>".encode()),
    "200, an error": echo(json.dumps({"error": {"message": SECRET}}).encode()),
    "401": echo(SECRET.encode(), b"HTTP/1.1 401 No\r\n"),
    "503": echo(SECRET.encode(), b"HTTP/1.1 503 No\r\n"),
    "escaped": echo(json.dumps(SECRET).replace("/", "\\/").encode(), b"HTTP/1.1 400 No\r\n"),
    "quoted": echo(urllib.parse.quote(SECRET, "").encode(), b"HTTP/1.1 400 No\r\n"),
    "in two": echo(f"{SECRET[:9]}\n{SECRET[9:]}".encode()),
    "at the end of what is shown": echo(b"x" * 190 + SECRET.encode()),
    "status line": lambda c: c.sendall(f"GARBAGE {SECRET}\r\n\r\n".encode()),
    "status": lambda c: c.sendall(f"HTTP/1.1 {SECRET} OK\r\n\r\n".encode()),
    "reason": echo(b"", f"HTTP/1.1 500 {SECRET}\r\n".encode()),
    "location": echo(b"", f"HTTP/1.1 302 No\r\nLocation: http://x/{SECRET}\r\n".encode()),
    "chunk size": echo(
        b"", f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n".encode()
    ),
    "answer": echo(json.dumps({"choices": [{"message": {"content": f"key {SECRET}"}}]}).encode()),
    "end": echo(
        json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": SECRET}]}).encode()
    ),
}


@pytest.mark.parametrize("talk", LEAKS.values(), ids=LEAKS)
def test_a_key_that_is_repeated_is_nowhere(talk, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    question = Question("explain", "Judge.", "Why?")
    path = tmp_path / "a.jsonl"
    with speaking(talk) as url:
        settings = EndpointSettings(url, "tiny-judge", SECRET, n_tries=2, wait=0.001, timeout=5.0)
        try:
            shown = str(EndpointJudge(settings, path).ask([question]))
        except JudgeUnavailable:
            shown = traceback.format_exc()
    if path.exists():
        shown += path.read_text()
    shown += caplog.text + "".join(capfd.readouterr()) + repr(settings)
    shown = shown.replace("\n", "").replace("\\", "")
    for part in (SECRET, SECRET[:12], SECRET[-12:], urllib.parse.quote(SECRET, "")):
        assert part not in shown


def test_a_key_in_a_cache_of_before_is_not_shown(tmp_path):
    question = Question("explain", "Judge.", "Why?")
    judge = EndpointJudge(
        EndpointSettings("http://127.0.0.1:9/v1", "m", SECRET), tmp_path / "a.jsonl"
    )
    judge.cache.put(judge.key(question), f"the key {SECRET}")
    assert judge.ask([question]) == ["the key …"]


@pytest.mark.parametrize("where", ["request", "wait", "long wait"])
def test_ctrl_c_takes_effect_at_once(where, tmp_path, request):
    # SAELens' runner, which ran in this process before, leaves a handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    path = tmp_path / "a.jsonl"

    def reply(asked: dict[str, Any], i: int) -> str | Raw:
        if asked["messages"][1]["content"] == "Question 0":
            return "yes"
        headers = (("Retry-After", "50"),) if where == "long wait" else ()
        return Raw(503, headers=headers, delay=20.0 if where == "request" else 0.0)

    with serving(reply) as server:
        settings = EndpointSettings(server.url, "tiny-judge", timeout=30, wait=30)
        judge = EndpointJudge(settings, path)
        judge.ask(questions(1))
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judge.ask(questions())
        assert time.monotonic() - began < 2
        n_asked = len(server.requests)
        # What was answered is kept; nothing goes on behind the scenes.
        assert EndpointJudge(settings, path).ask(questions(1)) == ["yes"]
        time.sleep(0.3)
        assert len(server.requests) == n_asked <= 1 + 4


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with serving(right) as server:
        with pytest.raises(ValueError, match=r"folder is no file"):
            judge_of(server, tmp_path / "folder")
        with pytest.raises(ValueError, match=r"a\.jsonl cannot be written"):
            judge_of(server, tmp_path / "file" / "a.jsonl").ask(questions(1))
        assert server.requests == []


def test_hostile_json_is_not_of_the_protocol():
    bodies = [b"[" * 10**5, b'{"choices": ' * 10**4, b'{"choices": ' + b"9" * 10**5 + b"}"]
    with serving(lambda request, i: Raw(200, bodies[i]) if i < 3 else right(request)) as server:
        assert judge_of(server).ask(questions(1)) == ["yes"]


def test_usage_that_cannot_be_is_guessed():
    body = {"choices": [{"message": {"content": "yes"}}]}
    usage = {"prompt_tokens": 10**30, "completion_tokens": True}
    with serving(
        lambda request, i: Raw(200, json.dumps(body | {"usage": usage}).encode())
    ) as server:
        judge = judge_of(server)
        assert judge.ask(questions(1)) == ["yes"]
    assert judge.spent[1:3] == (len("Judge.Question 0") // 3 + 1, 2)


def test_a_proxy_is_not_asked_about_this_machine(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:proxy-password@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(right) as server:
        assert judge_of(server).ask(questions(1)) == ["yes"]


def test_a_seed_beyond_64_bits_is_kept_as_well(tmp_path):
    question = Question("match", "Judge.", "Question 0", ("yes", "no"), seed=10**30)
    with serving(right) as server:
        for _ in range(2):
            assert judge_of(server, tmp_path / "a.jsonl").ask([question]) == ["yes"]
        assert len(server.requests) == 1
