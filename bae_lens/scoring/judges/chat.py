"""The protocol of chat completions: what is sent, and what an answer says."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from bae_lens.scoring.judges.judge import Question

# Characters of what a model said that go into a reminder.
_MAX_SHOWN = 200
# How models say that they came to an end by themselves. Everything else ("length", "content_filter",
# "error", …) is an answer that somebody cut short.
_ENDS = frozenset(
    {"", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "end"}
)
# No answer has more tokens, and no endpoint asks for a wait that matters beyond this many seconds.
_MOST_TOKENS, _LONGEST_WAIT = 10**8, 1e9
# Digits of the longest integer that is read as one.
_MOST_DIGITS = 20


class NotOfTheProtocol(ValueError):
    """An answer that says nothing of what the model answered."""


class Reply(NamedTuple):
    """Of one request.

    Attributes:
        text: that the model gave; empty if it gave none.
        end: why it ends there, where that is not the model's own end; empty: it is.
        tokens_in, tokens_out: that were used.
    """

    text: str
    end: str
    tokens_in: int
    tokens_out: int


def read_reply(body: bytes, request: Mapping[str, Any]) -> Reply:
    """What the JSON of an answer says.

    Raises:
        NotOfTheProtocol: if it is something else, an error for example.
    """
    try:
        values = json.loads(body, parse_int=_parse_int)
        choices = values["choices"]
        usage = values.get("usage") or {}
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        has_failed = bool(values.get("error"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NotOfTheProtocol from None
    if has_failed:
        raise NotOfTheProtocol
    try:
        message, end = choices[0]["message"], choices[0].get("finish_reason")
        text, end = message["content"], "refusal" if message.get("refusal") else end
    except (LookupError, TypeError, AttributeError):
        text, end = None, None
    text = text if isinstance(text, str) else ""
    end = end if isinstance(end, str) else ""
    guesses = (expected_tokens(request)[0], len(text) // 3 + 1)
    used = [
        count if type(count) is int and 0 <= count <= _MOST_TOKENS else guess
        for count, guess in zip(counts, guesses, strict=True)
    ]
    return Reply(text, "" if end.casefold() in _ENDS else end, *used)


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def expected_tokens(request: Mapping[str, Any]) -> tuple[int, int]:
    """About how many tokens a request's question has, and how many its answer may have."""
    contents = (message["content"] for message in request["messages"])
    n_bytes = sum(len(content.encode("utf-8", "surrogatepass")) for content in contents)
    n_out = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return n_bytes // 3 + 1, int(n_out)


def reminder(said: str, question: Question) -> list[dict[str, str]]:
    """Messages that ask again for the form of an answer."""
    form = "one line with a short phrase and nothing else"
    if question.choices:
        form = f"exactly one of these and nothing else: {', '.join(question.choices)}"
    return [
        {"role": "assistant", "content": said[:_MAX_SHOWN] or "(nothing)"},
        {"role": "user", "content": f"That is not in the form asked for. Reply with {form}."},
    ]


def retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After``, which are a number or a date; 0 if it is neither."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError, LookupError, AttributeError):
            return 0.0
    # min and max take NaN as it comes.
    return 0.0 if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_WAIT)
