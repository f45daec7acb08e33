"""What an answer says, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.scoring.judges.chat import (
    NotOfTheProtocol,
    Reply,
    expected_tokens,
    read_reply,
    retry_after,
)
from bae_lens.scoring.judges.judge import MAX_PHRASE, is_answer, read_answer

REQUEST = {"messages": [{"role": "user", "content": "Why? \ud800"}], "max_tokens": 7}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=3), own, max_size=3),
    max_leaves=8,
)
NAMES = ("choices", "usage", "error", "message", "content", "finish_reason", "prompt_tokens")


def reply_of(**changes: Any) -> Reply:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    return read_reply(json.dumps({"choices": [choice], **changes}).encode(), REQUEST)


def test_a_reply() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    assert reply_of(usage=usage) == ("yes", "", 3, 4)
    assert reply_of() == ("yes", "", expected_tokens(REQUEST)[0], 2)
    assert expected_tokens(REQUEST) == (3, 7)


@pytest.mark.parametrize("count", [-1, True, 1.5, "3", None, 10**30, [1]])
def test_counts_that_cannot_be_are_guessed(count: Any) -> None:
    usage = {"prompt_tokens": count, "completion_tokens": count}
    assert reply_of(usage=usage) == reply_of()


@pytest.mark.parametrize("changes", [{"error": {"message": "overloaded"}}, {"choices": 3 * [None]}])
def test_an_outage_is_no_answer(changes: dict[str, Any]) -> None:
    if "error" in changes:
        with pytest.raises(NotOfTheProtocol):
            reply_of(**changes)
    else:
        assert reply_of(**changes).text == ""


@settings(max_examples=300, deadline=None)
@given(
    values=JSON, name=st.sampled_from(NAMES), where=st.sampled_from(["top", "choice", "message"])
)
def test_any_json_is_a_reply_or_not_of_the_protocol(values: Any, name: str, where: str) -> None:
    message: dict[str, Any] = {"content": "yes"}
    choice: dict[str, Any] = {"message": message, "finish_reason": "stop"}
    top: dict[str, Any] = {"choices": [choice], "usage": {}}
    {"top": top, "choice": choice, "message": message}[where][name] = values
    for content in (top, values):
        try:
            reply = read_reply(json.dumps(content).encode(), REQUEST)
        except NotOfTheProtocol:
            continue
        assert isinstance(reply.text, str)
        assert reply.tokens_in >= 0
        assert reply.tokens_out >= 0


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_not_of_the_protocol(content: bytes) -> None:
    with pytest.raises(NotOfTheProtocol):
        read_reply(content, REQUEST)


@settings(max_examples=200, deadline=None)
@given(value=st.text(max_size=40) | st.floats().map(str) | st.integers().map(str))
def test_any_wait_is_bounded(value: str) -> None:
    assert 0 <= retry_after(value) <= 1e9


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(), max_size=300), choices=st.sampled_from([(), ("yes", "no")]))
def test_any_answer_can_be_saved(text: str, choices: tuple[str, ...]) -> None:
    answer = read_answer(text, choices)
    if answer is not None:
        assert is_answer(answer, choices)
        assert len(answer) <= MAX_PHRASE
        assert json.loads(json.dumps(answer).encode("utf-8")) == answer
        answer.encode("utf-8")
        assert len(answer.splitlines()) == 1
