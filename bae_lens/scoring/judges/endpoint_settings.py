"""Where an endpoint is, what it is sent, and how long it is waited for."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bae_lens.checks.fields import Flag, Number, Text, check, check_fields, positive, shown, whole
from bae_lens.scoring.judges.budget import Limits
from bae_lens.scoring.judges.redaction import Redactor

URL_VARIABLE, KEY_VARIABLE = "OPENAI_BASE_URL", "OPENAI_API_KEY"
MODEL_VARIABLE = "BAE_LENS_JUDGE_MODEL"

# As api_key, apiKey and X-Auth-Token, and not as tokenizer.
_SECRET_NAME = re.compile(r"(?:key|token|secret|password|auth|authorization)$", re.IGNORECASE)
# More than a day is a mistake, and more than a clock's waits take.
_LONGEST = 86_400
_RULES = {
    "model": Text(may_be_empty=False),
    "timeout": positive(most=_LONGEST),
    "n_tries": whole(1),
    "n_reminders": whole(0),
    "wait": Number(least=0, most=_LONGEST),
    "max_wait": Number(least=0, most=_LONGEST),
    "n_parallel": whole(1, 1000),
    "allow_plain_http": Flag(),
}


@dataclass(frozen=True)
class EndpointSettings:
    """Settings of ``EndpointJudge``.

    Args:
        base_url (str): Up to and without ``/chat/completions``.
        model (str): As the endpoint calls it.
        api_key (str | None): Sent as a bearer token; None: nothing is sent. Never shown or written, nor
            is what an endpoint repeats of it (see ``Redactor``).
        body (Mapping[str, Any]): More of the request, as ``{"reasoning_effort": "low"}``; None takes
            a name out that is there by default (``temperature``, ``max_tokens``, ``seed``). A model that
            reasons before it answers needs a larger ``max_tokens``.
        timeout (float): Seconds for a whole request, from the connection to the last byte.
        n_tries (int): Of a request that fails in a way that may pass: no connection, timeout,
            status 408, 409, 425, 429 or 5xx, an answer that is not of the protocol.
        n_reminders (int): How often to ask again where the model's answer is none of the choices, no
            phrase, or cut short.
        wait (float): Seconds before the second try. They double each time, up to ``max_wait``, and
            vary at random; a ``Retry-After`` of the endpoint is heeded where it is longer.
        max_wait (float): Seconds. An endpoint that asks for a longer wait counts as unavailable.
        n_parallel (int): Requests at a time.
        limits (Limits): What may be spent.
        allow_plain_http (bool): Send the key over ``http://`` to another machine, where everyone on the
            way can read it. Not needed for this machine (``localhost``), nor without a key.

    Raises:
        ValueError: if a value is outside its range, or the key would go over plain HTTP.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timeout: float = 60.0
    n_tries: int = 5
    n_reminders: int = 2
    wait: float = 1.0
    max_wait: float = 60.0
    n_parallel: int = 4
    limits: Limits = field(default_factory=Limits)
    allow_plain_http: bool = False

    def __post_init__(self) -> None:
        _check_key(self.api_key)
        _check_url(self.base_url, Redactor([self.api_key]))
        check_fields(self, _RULES)
        # It is written into results and onto pages.
        if not self.model.isprintable():
            raise ValueError(f"model must be a name on one line; got {shown(self.model)}.")
        _check_body(self.body)
        is_plain = self.base_url[:5].lower() == "http:"
        if self.api_key and is_plain and not (self.is_this_machine or self.allow_plain_http):
            raise ValueError(
                f"base_url {self.shown_url} is no https://, so that the key could be read by everyone "
                "on the way. Use https, send no key (unset OPENAI_API_KEY or give api_key=None), or say "
                "that it may: allow_plain_http=True, --allow_plain_http."
            )

    @classmethod
    def from_environment(cls, **overrides: Any) -> EndpointSettings:
        """Base URL from ``OPENAI_BASE_URL``, key from ``OPENAI_API_KEY`` (none if unset), model from
        ``BAE_LENS_JUDGE_MODEL``.

        Args:
            **overrides: any of the settings, these three too.

        Raises:
            ValueError: if there is no base URL or model, or a value is outside its range.
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

    @property
    def secrets(self) -> list[str]:
        """The key, and what stands in ``body`` under a name that says that it is one."""
        found = [] if self.api_key is None else [self.api_key]
        return [*found, *_secrets_in(self.body)]

    @property
    def shown_url(self) -> str:
        """For messages: without the key, if it is in there."""
        return Redactor(self.secrets)(self.base_url)

    @property
    def is_this_machine(self) -> bool:
        """Whether the endpoint can be nowhere else, by its address."""
        host = urllib.parse.urlsplit(self.base_url).hostname or ""
        if host == "localhost":
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        own = getattr(address, "ipv4_mapped", None) or address
        return own.is_loopback or own.is_unspecified


def _check_key(key: Any) -> None:
    """The message never shows the value."""
    if key is not None and not isinstance(key, str):
        raise ValueError(f"api_key must be a string or None; got a {type(key).__name__}.")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(
            "api_key must be printable ASCII without spaces; it has other characters, perhaps a line "
            "end."
        )


def _check_url(url: Any, redacted: Redactor) -> None:
    """The message shows nothing that could be a password or a token."""
    if not isinstance(url, str):
        raise ValueError(f"base_url must be a string; got a {type(url).__name__}.")
    if not (url.isascii() and url.isprintable()) or set(" \\") & set(url):
        raise ValueError(
            "base_url must be printable ASCII without spaces or backslashes; it has other characters. "
            "Write those of a path as %XX, and a host's name in its xn-- form."
        )
    try:
        parts = urllib.parse.urlsplit(url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        parts, is_complete = None, False
    # Not while the other is handled, which shows what stands in place of a port.
    if parts is None:
        raise ValueError("base_url is no URL: its host or port cannot be read.")
    if "@" in parts.netloc or set("?#;") & set(url):
        raise ValueError(
            "base_url must have no user, password, query, parameter or fragment. Use api_key and body."
        )
    if not is_complete:
        # A key or "user:password@host" in the wrong place is not to be seen on a screen.
        is_address = re.fullmatch(r"[\w.-]+:\d+(/[^@]*)?|\w+:/[^@]*", url)
        got = repr(redacted(url)[:80]) if is_address else f"{len(url)} other characters"
        raise ValueError(f"base_url must begin with http:// or https:// and a host; got {got}.")


def _check_body(body: Any) -> None:
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be a mapping of names to values; got a {type(body).__name__}.")
    if {"model", "messages", "stream", "n"} & set(body):
        raise ValueError("body cannot hold model, messages, stream or n.")
    try:
        json.dumps(dict(body), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"body must hold what JSON can: {error}.") from None
    for name in ("max_tokens", "max_completion_tokens", "seed"):
        if body.get(name) is not None:
            check(f"body[{name!r}]", body[name], whole(None if name == "seed" else 1))


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and _SECRET_NAME.search(name):
        yield value
    elif isinstance(value, Mapping):
        for own, part in value.items():
            yield from _secrets_in(part, str(own))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _secrets_in(part, name)
