"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bae_lens.scoring.judges.answer_cache import AnswerCache, key_of
from bae_lens.scoring.judges.budget import Budget, Spent
from bae_lens.scoring.judges.chat import (
    NotOfTheProtocol,
    Reply,
    expected_tokens,
    read_reply,
    reminder,
    retry_after,
)
from bae_lens.scoring.judges.endpoint_settings import (
    KEY_VARIABLE,
    MODEL_VARIABLE,
    URL_VARIABLE,
    EndpointSettings,
)
from bae_lens.scoring.judges.exchange import NoResponse, Response, Stopped, post
from bae_lens.scoring.judges.judge import (
    JudgeUnavailable,
    LimitReached,
    Question,
    is_answer,
    read_answer,
)
from bae_lens.scoring.judges.redaction import Redactor

__all__ = [
    "KEY_VARIABLE",
    "MODEL_VARIABLE",
    "URL_VARIABLE",
    "DryRun",
    "EndpointJudge",
    "EndpointSettings",
]

logger = logging.getLogger(__name__)

# Statuses after which the same request may succeed.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# Bytes of an answer that are read; characters of one that are shown.
_MAX_BODY, _MAX_SHOWN = 2**20, 200
# Seconds for which an interrupted run waits for answers that are being written, and those between two
# looks at whether it was interrupted.
_GRACE, _LOOK = 1.0, 0.2
_LARGEST_SEED = 2**63


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
    a run that was killed, interrupted or stopped by a limit goes on where it was. Only answers are kept:
    a question that the model did not answer in the form asked for, or whose answer was cut short, is
    *open*. ``ask`` gives None for it, logs how many there are, and the next ``ask`` asks again. A request
    that timed out may have been answered, and charged, unseen.

    What the endpoint repeats of the key, or of a proxy's password, is taken out of everything that is
    shown, logged or kept, see ``Redactor``.

    Args:
        settings: see ``EndpointSettings``; None: from the environment.
        cache: file of answers, see ``AnswerCache``; None: in memory, gone with the judge.
        sleep: waits for so many seconds; None: in a way that Ctrl-C ends.
    """

    def __init__(
        self,
        settings: EndpointSettings | None = None,
        cache: str | Path | None = None,
        *,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.settings = settings or EndpointSettings.from_environment()
        self.cache = AnswerCache(cache)
        self._budget = Budget(self.settings.limits)
        self._sleep = sleep
        self._redacted = Redactor([*self.settings.secrets, *_proxy_passwords()])

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

    def known(self, question: Question, key: str) -> str | None:
        """The answer in the cache; None where there is none, or nobody can use what is there."""
        answer = self._redacted(self.cache[key]) if key in self.cache else None
        return answer if is_answer(answer, question.choices) else None

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """See ``Judge``.

        Raises:
            LimitReached: before a limit would be passed.
            JudgeUnavailable: if requests keep failing, or the endpoint refuses them.
            ValueError: if the cache cannot be written.
        """
        keys = [self.key(question) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        new = {key: own for key, own in asked.items() if self.known(own, key) is None}
        if new:
            self.cache.check()
            n_again = len(self.cache.was_open & set(new))
            if n_again:
                logger.warning(
                    "%d questions had no usable answer when they were asked before; they are asked again.",
                    n_again,
                )
            self._ask_all(new)
        return [self.known(own, key) for key, own in zip(keys, questions, strict=True)]

    def _ask_all(self, questions: Mapping[str, Question]) -> None:
        """Into the cache. After a failure no more are begun, and those under way are waited for; after
        Ctrl-C nothing is."""
        # Of daemons, since the interpreter waits at its end for those of a pool.
        left, lock, stop = iter(questions.items()), threading.Lock(), threading.Event()
        failures: list[Exception] = []
        still_open: list[str] = []

        def work() -> None:
            while not (failures or stop.is_set()):
                with lock:
                    item = next(left, None)
                if item is None:
                    return
                try:
                    why = self._ask_one(*item, stop)
                except Stopped:
                    return
                except Exception as error:
                    failures.append(error)
                    return
                if why is not None:
                    still_open.append(why)

        n = min(self.settings.n_parallel, len(questions))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(n)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(_LOOK)
        except BaseException:  # Ctrl-C
            stop.set()
            deadline = time.monotonic() + _GRACE
            for thread in filter(threading.Thread.is_alive, threads):
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if still_open:
            logger.warning(
                "%d of %d questions are open: no answer to them could be used, the last for %s. They "
                "are asked again when they come up again.",
                len(still_open),
                len(questions),
                still_open[-1],
            )
        if failures:
            # A limit is reached by every one after the first; what is wrong with the endpoint matters more.
            raise next((e for e in failures if not isinstance(e, LimitReached)), failures[0])

    def _ask_one(self, key: str, question: Question, stop: threading.Event) -> str | None:
        """Into the cache; if no answer can be used, what came last."""
        texts, why = [], ""
        for i in range(1 + self.settings.n_reminders):
            request = self.request(question)
            if texts:
                # The same request would bring the same answer.
                request["messages"] = [*request["messages"], *reminder(texts[-1], question)]
                if "seed" in request:
                    request["seed"] += 1_000_003 * i
            reply = self._send_until_it_works(request, stop)
            texts.append(self._redacted(reply.text))
            answer = None if reply.end else read_answer(texts[-1], question.choices)
            if answer is not None:
                seed = question.seed if abs(question.seed) < _LARGEST_SEED else str(question.seed)
                about = {"kind": question.kind, "model": self.name, "seed": seed}
                said = [text[: 10 * _MAX_SHOWN] for text in texts]
                self.cache.put(key, answer, {**about, "said": said})
                return None
            end = f", cut short by {self._redacted(reply.end)[:_MAX_SHOWN]!r}" if reply.end else ""
            why = f"{texts[-1][:_MAX_SHOWN]!r}{end}"
        return why

    def _send_until_it_works(self, request: Mapping[str, Any], stop: threading.Event) -> Reply:
        settings, why = self.settings, ""
        for i in range(settings.n_tries):
            try:
                return self._send_within_budget(request, stop)
            except _Failed as e:
                why, after = str(e), e.after
            if i + 1 == settings.n_tries:
                break
            # A float holds no more doublings than 1023.
            wait = min(
                settings.wait * 2.0 ** min(i, 60) * random.uniform(0.5, 1.5), settings.max_wait
            )
            if after > settings.max_wait:
                why += f"; it asks to wait for {after:.0f} s, more than max_wait = {settings.max_wait:g}"
                break
            logger.info("Asking again in %.1f s: %s", max(wait, after), why)
            self._pause(max(wait, after), stop)
        raise JudgeUnavailable(
            f"The judge at {settings.shown_url} could not be asked: {why}. Answers up to now are "
            "in the cache: run again to go on."
        )

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        if self._sleep is None:
            stop.wait(seconds)
        else:
            self._sleep(seconds)
        if stop.is_set():
            raise Stopped

    def _send_within_budget(self, request: Mapping[str, Any], stop: threading.Event) -> Reply:
        expected = expected_tokens(request)
        self._budget.take(expected)
        # Unless it is known better: what comes to nothing may have been charged all the same.
        used = expected
        try:
            reply = self._send(request, stop)
            used = (reply.tokens_in, reply.tokens_out)
            return reply
        except (_Refused, JudgeUnavailable):
            used = (0, 0)
            raise
        finally:
            self._budget.settle(expected, used)

    def _send(self, request: Mapping[str, Any], stop: threading.Event) -> Reply:
        settings = self.settings
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if settings.api_key:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        response, why = None, ""
        try:
            response = post(
                settings.base_url.rstrip("/") + "/chat/completions",
                json.dumps(request).encode(),
                headers,
                seconds=settings.timeout,
                max_bytes=_MAX_BODY,
                stop=stop,
                # A proxy would be another machine.
                uses_proxy=not settings.is_this_machine,
            )
        except NoResponse as e:
            why = self._redacted(str(e))[: 2 * _MAX_SHOWN]
        # Not while the other is handled, which may hold the key: a traceback shows both.
        if response is None:
            raise _Failed(why)
        if not 200 <= response.status < 300:
            raise self._refusal(response)
        try:
            return read_reply(response.body, request)
        except NotOfTheProtocol:
            why = f"the answer is not of the protocol: {self._shown(response.body)}"
        raise _Failed(why)

    def _refusal(self, response: Response) -> Exception:
        why = f"status {response.status}: {self._shown(response.body)}"
        if response.status in _PASSING or response.status >= 500:
            return _Refused(why, retry_after(response.headers.get("Retry-After")))
        return JudgeUnavailable(
            f"{self.settings.shown_url} refuses the question with {why}. Look at base_url, the key, "
            "model and body."
        )

    def _shown(self, body: bytes) -> str:
        """The beginning of what came."""
        return repr(self._redacted(body.decode("utf-8", "replace"))[:_MAX_SHOWN])


class DryRun:
    """Counts what a judge would be asked, and asks nothing.

    What is in the judge's cache is answered from it. Otherwise the answer is the first choice, or a
    placeholder for a phrase: so every latent counts as explained, and the count is the most that a
    run can need but for repeated requests.

    Args:
        judge: whose cache, prices and requests are used. Nothing is sent or written.

    Attributes:
        n_cached: questions answered from the cache.
        n_again: those that were asked before and had no usable answer, which are asked again.
        expected: what the others would use: one call each, tokens as a third of the bytes and
            the longest answer allowed.
    """

    caveat = "A dry run: no judge was asked, and the scores mean nothing."

    def __init__(self, judge: EndpointJudge) -> None:
        self.judge = judge
        self.n_cached = self.n_again = 0
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
        known = self.judge.known(question, key)
        if key not in self._seen:
            self._seen.add(key)
            self.n_cached += known is not None
            self.n_again += key in self.judge.cache.was_open
            if known is None:
                self._count(question)
        if known is not None:
            return known
        return question.choices[0] if question.choices else f"(phrase {key[:8]})"

    def _count(self, question: Question) -> None:
        n_in, n_out = expected_tokens(self.judge.request(question))
        cost = self.judge.settings.limits.cost_of(n_in, n_out)
        now = self.expected
        self.expected = Spent(
            now.calls + 1, now.tokens_in + n_in, now.tokens_out + n_out, now.cost + cost
        )


def _proxy_passwords() -> Iterator[str | None]:
    """Of those that the environment names."""
    for url in urllib.request.getproxies().values():
        try:
            yield urllib.parse.urlsplit(url if "//" in url else f"//{url}").password
        except ValueError:
            continue
