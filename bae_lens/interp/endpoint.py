"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bae_lens.interp.answer_cache import AnswerCache, key_of
from bae_lens.interp.budget import Budget, Limits, Spent
from bae_lens.interp.judges import JudgeUnavailable, LimitReached, Question, read_answer

logger = logging.getLogger(__name__)

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
MODEL_VARIABLE = "BAE_LENS_JUDGE_MODEL"

# Statuses after which the same request may succeed.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Bytes of an answer that are read; characters of a wrong one that are shown.
_MAX_BODY, _MAX_SHOWN = 2**20, 200


@dataclass(frozen=True)
class EndpointSettings:
    """Settings of ``EndpointJudge``.

    Args:
        base_url (str): Up to and without ``/chat/completions``.
        model (str): As the endpoint calls it.
        api_key (str | None): Sent as a bearer token; None: nothing is sent. Never shown or written.
        body (Mapping[str, Any]): More of the request, as ``{"reasoning_effort": "low"}``; None takes
            a name out that is there by default (``temperature``, ``max_tokens``, ``seed``). A model that
            reasons before it answers needs a larger ``max_tokens``.
        timeout (float): Seconds without a byte after which a request is given up.
        n_tries (int): Of a request that fails in a way that may pass: no connection, timeout,
            status 408, 409, 425, 429 or 5xx, an answer that is not of the protocol.
        n_reminders (int): How often to ask again where the model's answer is none of the choices, or
            no phrase.
        wait (float): Seconds before the second try. They double each time, up to ``max_wait``, and
            vary at random; a ``Retry-After`` of the endpoint is heeded where it is longer.
        max_wait (float): Seconds. An endpoint that asks for a longer wait counts as unavailable.
        n_parallel (int): Requests at a time.
        limits (Limits): What may be spent.

    Raises:
        ValueError: if a value is outside its range.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 60.0
    n_tries: int = 5
    n_reminders: int = 2
    wait: float = 1.0
    max_wait: float = 60.0
    n_parallel: int = 4
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"base_url must begin with http:// or https://; got {self.base_url!r}."
            )
        if parts.username or parts.query or parts.fragment:
            raise ValueError("base_url must have no user, query or fragment. Use api_key and body.")
        if not self.model:
            raise ValueError("model must be a name; got ''.")
        for name, least in (("n_tries", 1), ("n_parallel", 1), ("n_reminders", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} at least; got {value!r}.")
        for name in ("wait", "max_wait"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(f"{name} must not be negative; got {value!r}.")
        key = self.api_key or ""
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                "api_key must be printable ASCII without spaces; it has other characters, perhaps a "
                "line end."
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0; got {self.timeout!r}.")
        if {"model", "messages", "stream", "n"} & set(self.body):
            raise ValueError("body cannot hold model, messages, stream or n.")

    @classmethod
    def from_environment(cls, **overrides: Any) -> EndpointSettings:
        """Base URL from ``OPENAI_BASE_URL``, key from ``OPENAI_API_KEY`` (none if unset), model from
        ``BAE_LENS_JUDGE_MODEL``.

        Args:
            **overrides: any of the settings, these three too.

        Raises:
            ValueError: if there is no base URL or model.
        """
        names = {"base_url": URL_VARIABLE, "api_key": KEY_VARIABLE, "model": MODEL_VARIABLE}
        own: dict[str, Any] = {
            name: os.environ.get(variable) or None for name, variable in names.items()
        }
        own |= overrides
        missing = [names[name] for name in ("base_url", "model") if own[name] is None]
        if missing:
            raise ValueError(
                f"The environment has no {' and no '.join(missing)}, which say where the judge is "
                "and which model answers. Set them, or give base_url and model."
            )
        return cls(**own)


class _Reply(NamedTuple):
    """Of one request: the model's text, None if it gave none, and tokens used."""

    text: str | None
    tokens_in: int
    tokens_out: int


class _Failed(Exception):
    """A request failed in a way that may pass, ``after`` so many seconds."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class _Refused(_Failed):
    """The endpoint says that it did not answer, which is taken for no charge."""


class EndpointJudge:
    """A language model behind an endpoint that speaks OpenAI's chat completions.

    Each answer is in the cache before it is given back, and what is in the cache is not asked, so that
    a run that was killed, or stopped by a limit, goes on where it was. A question that the model
    never answered in the form asked for is kept as "no answer" and not asked again either. Failures
    of the endpoint are kept nowhere. A request that timed out may have been answered, and charged,
    unseen.

    Args:
        settings: see ``EndpointSettings``; None: from the environment.
        cache: file of answers, see ``AnswerCache``; None: in memory, gone with the judge.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        settings: EndpointSettings | None = None,
        cache: str | Path | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings or EndpointSettings.from_environment()
        self.cache = AnswerCache(cache)
        self._budget = Budget(self.settings.limits)
        self._sleep = sleep
        # No redirects: they would turn the question into a GET, and may carry the key elsewhere.
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.settings.model

    @property
    def caveat(self) -> str:
        """See ``Judge``."""
        return (
            f"{self.name} judges from text. It may know the corpus, prefer familiar or broad phrases, "
            "and follow habits that people do not share; no person was asked."
        )

    @property
    def spent(self) -> Spent:
        """Used since the judge was made; answers from the cache are free."""
        return self._budget.spent

    def key(self, question: Question) -> str:
        """Of its answer in the cache."""
        return key_of(
            {
                "url": self.settings.base_url.rstrip("/"),
                "request": self.request(question),
                "choices": question.choices,
            }
        )

    def request(self, question: Question) -> dict[str, Any]:
        """What is sent for it, as the protocol has it."""
        own: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": question.max_tokens,
            "seed": question.seed,
            **self.settings.body,
        }
        messages = [
            {"role": "system", "content": question.system},
            {"role": "user", "content": question.user},
        ]
        request = {name: value for name, value in own.items() if value is not None}
        return {"model": self.settings.model, "messages": messages, **request}

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """See ``Judge``.

        Raises:
            LimitReached: before a limit would be passed.
            JudgeUnavailable: if requests keep failing, or the endpoint refuses them.
        """
        keys = [self.key(question) for question in questions]
        new = {
            key: question
            for key, question in zip(keys, questions, strict=True)
            if key not in self.cache
        }
        if new:
            self._ask_all(new)
        return [self.cache[key] for key in keys]

    def _ask_all(self, questions: Mapping[str, Question]) -> None:
        """Into the cache. After a failure no more are begun; those under way are waited for."""
        failures: list[BaseException] = []

        def one(key: str, question: Question) -> None:
            if failures:
                return
            try:
                self._ask_one(key, question)
            except Exception as e:
                failures.append(e)

        with ThreadPoolExecutor(self.settings.n_parallel) as pool:
            try:
                for future in [pool.submit(one, *item) for item in questions.items()]:
                    future.result()
            except BaseException as e:  # Ctrl-C
                failures.append(e)
                raise
        if failures:
            # A limit is reached by every one after the first; what is wrong with the endpoint matters more.
            raise next((e for e in failures if not isinstance(e, LimitReached)), failures[0])

    def _ask_one(self, key: str, question: Question) -> None:
        answer, texts = None, []
        for i in range(1 + self.settings.n_reminders):
            request = self.request(question)
            if texts:
                # The same request would bring the same answer.
                request["messages"] = [*request["messages"], *_reminder(texts[-1], question)]
                if "seed" in request:
                    request["seed"] += 1_000_003 * i
            reply = self._send_until_it_works(request)
            texts.append(reply.text or "")
            answer = read_answer(texts[-1], question.choices)
            if answer is not None:
                break
        about = {"kind": question.kind, "model": self.name, "seed": question.seed}
        self.cache.put(key, answer, {**about, "said": [t[: 10 * _MAX_SHOWN] for t in texts]})

    def _send_until_it_works(self, request: Mapping[str, Any]) -> _Reply:
        settings, why = self.settings, ""
        for i in range(settings.n_tries):
            try:
                return self._send_within_budget(request)
            except _Failed as e:
                why, after = str(e), e.after
            if i + 1 == settings.n_tries:
                break
            wait = min(settings.wait * 2**i * random.uniform(0.5, 1.5), settings.max_wait)
            if after > settings.max_wait:
                why += f"; it asks to wait for {after:.0f} s, more than max_wait = {settings.max_wait:g}"
                break
            logger.info("Asking again in %.1f s: %s", max(wait, after), why)
            self._sleep(max(wait, after))
        raise JudgeUnavailable(
            f"The judge at {settings.base_url} could not be asked: {why}. Answers up to now are "
            "in the cache: run again to go on."
        )

    def _send_within_budget(self, request: Mapping[str, Any]) -> _Reply:
        expected = expected_tokens(request)
        self._budget.take(expected)
        # Unless it is known better: what comes to nothing may have been charged all the same.
        used = expected
        try:
            reply = self._send(request)
            used = (reply.tokens_in, reply.tokens_out)
            return reply
        except (_Refused, JudgeUnavailable):
            used = (0, 0)
            raise
        finally:
            self._budget.settle(expected, used)

    def _send(self, request: Mapping[str, Any]) -> _Reply:
        settings = self.settings
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        http_request = urllib.request.Request(
            settings.base_url.rstrip("/") + "/chat/completions",
            data=json.dumps(request).encode(),
            headers=headers,
            method="POST",
        )
        try:
            with self._opener.open(http_request, timeout=settings.timeout) as response:
                body = response.read(_MAX_BODY)
        except urllib.error.HTTPError as e:
            with e:
                raise self._refusal(e) from None
        except (OSError, http.client.HTTPException) as e:
            # Timeouts and broken connections, in or out of a URLError.
            raise _Failed(f"{type(e).__name__}: {e}") from e
        return _read_reply(body, request)

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            shown = error.read(_MAX_BODY).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            shown = ""
        if self.settings.api_key:
            # Some endpoints repeat the key that they do not know.
            shown = shown.replace(self.settings.api_key, "…")
        why = f"status {error.code}: {shown[:_MAX_SHOWN]!r}"
        if error.code in _PASSING or error.code >= 500:
            return _Refused(why, _retry_after(error.headers.get("Retry-After")))
        return JudgeUnavailable(
            f"{self.settings.base_url} refuses the question with {why}. Look at base_url, the key, "
            "model and body."
        )


class DryRun:
    """Counts what a judge would be asked, and asks nothing.

    What is in the judge's cache is answered from it. Otherwise the answer is the first choice, or a
    placeholder for a phrase: so every latent counts as explained, and the count is the most that a
    run can need but for repeated requests.

    Args:
        judge: whose cache, prices and requests are used. Nothing is sent or written.

    Attributes:
        n_cached: questions answered from the cache.
        expected: what the others would use: one call each, tokens as a third of the bytes and
            the longest answer allowed.
    """

    caveat = "A dry run: no judge was asked, and the scores mean nothing."

    def __init__(self, judge: EndpointJudge) -> None:
        self.judge = judge
        self.n_cached = 0
        self.expected = Spent()
        self._seen: set[str] = set()

    @property
    def name(self) -> str:
        """Of the judge."""
        return f"{self.judge.name} (dry run)"

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """See ``Judge``."""
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> str | None:
        key = self.judge.key(question)
        if key not in self._seen:
            self._seen.add(key)
            self.n_cached += key in self.judge.cache
            if key not in self.judge.cache:
                self._count(question)
        if key in self.judge.cache:
            return self.judge.cache[key]
        return question.choices[0] if question.choices else f"(phrase {key[:8]})"

    def _count(self, question: Question) -> None:
        n_in, n_out = expected_tokens(self.judge.request(question))
        cost = self.judge.settings.limits.cost_of(n_in, n_out)
        now = self.expected
        self.expected = Spent(
            now.calls + 1, now.tokens_in + n_in, now.tokens_out + n_out, now.cost + cost
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


def expected_tokens(request: Mapping[str, Any]) -> tuple[int, int]:
    """About how many tokens a request's question has, and how many its answer may have."""
    n_bytes = sum(len(message["content"].encode()) for message in request["messages"])
    n_out = request.get("max_tokens", request.get("max_completion_tokens", 0))
    return n_bytes // 3 + 1, int(n_out)


def _reminder(said: str, question: Question) -> list[dict[str, str]]:
    form = "one line with a short phrase and nothing else"
    if question.choices:
        form = f"exactly one of these and nothing else: {', '.join(question.choices)}"
    return [
        {"role": "assistant", "content": said[:_MAX_SHOWN] or "(nothing)"},
        {"role": "user", "content": f"That is not in the form asked for. Reply with {form}."},
    ]


def _read_reply(body: bytes, request: Mapping[str, Any]) -> _Reply:
    """Of the protocol's JSON. Choices without text are the model's answer, and no usable one: a
    filter may have emptied them, and would again.

    Raises:
        _Failed: if it is something else, which says nothing of the model's answer.
    """
    try:
        values = json.loads(body)
        choices = values["choices"]
        usage = values.get("usage") or {}
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    except (ValueError, KeyError, TypeError, AttributeError):
        shown = body[:_MAX_SHOWN].decode("utf-8", "replace")
        raise _Failed(f"the answer is not of the protocol: {shown!r}") from None
    try:
        text = choices[0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    text = text if isinstance(text, str) else None
    guesses = (expected_tokens(request)[0], len(text or "") // 3 + 1)
    used = [
        count if isinstance(count, int) and count >= 0 else guess
        for count, guess in zip(counts, guesses, strict=True)
    ]
    return _Reply(text, *used)


def _retry_after(value: str | None) -> float:
    """Seconds of a ``Retry-After``, which are a number or a date; 0 if it is neither."""
    if value is None:
        return 0.0
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0
