"""One request over HTTP that ends in time, whatever the other side does.

The client of the package openai does not: its timeout is of one read, so that a server that sends a byte every half
second held a request of ``timeout=2`` for 20 seconds (openai 3.57), and it takes organization and proxy from the
environment.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

# Seconds after which a wait looks whether it is to stop.
_LOOK = 0.1


class Response(NamedTuple):
    """An answer of any status; redirects are not followed.

    Attributes:
        status: as 200.
        headers: by name, in any case.
        body: its beginning, as many bytes as were asked for at most.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class NoResponse(Exception):
    """No whole answer came. The message may repeat what the other side has sent."""


class Stopped(Exception):
    """The wait was ended from outside."""


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float,
    max_bytes: int,
    stop: threading.Event,
    uses_proxy: bool = True,
) -> Response:
    """Send a request and wait for its whole answer.

    The time is of all of it by the clock: name, connection, TLS, headers, body. When it is over, or
    ``stop`` is set, the connection is shut down and the wait ends, even where the operating system
    goes on waiting (for a name server), which is left to a thread that holds up nothing.

    Args:
        url: http or https.
        body: what is sent.
        headers: of the request.
        seconds: for the whole request.
        max_bytes: of the answer's body that are read. Nothing is decompressed.
        stop: ends the wait within a tenth of a second.
        uses_proxy: whether to go through one that the environment names.

    Raises:
        NoResponse: if there is no whole answer in that time.
        Stopped: if ``stop`` was set before.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    deadline = time.monotonic() + seconds
    exchange = _Exchange(request, seconds, max_bytes, uses_proxy)
    exchange.start()
    try:
        while not exchange.is_done.wait(max(0.0, min(_LOOK, deadline - time.monotonic()))):
            if stop.is_set():
                raise Stopped
            if time.monotonic() >= deadline:
                raise NoResponse(f"TimeoutError: no whole answer within {seconds:g} s")
    finally:
        exchange.cancel()
    if isinstance(exchange.found, Response):
        return exchange.found
    # Raised here and not there, so that nothing that the other side sent hangs on the exception.
    raise NoResponse(exchange.found or "no answer")


class _Exchange(threading.Thread):
    """The request in a thread of its own, which may be left behind.

    Attributes:
        is_done: set at the end.
        found: the answer, or why there is none.
    """

    def __init__(
        self, request: urllib.request.Request, seconds: float, max_bytes: int, uses_proxy: bool
    ) -> None:
        super().__init__(daemon=True)
        self.is_done = threading.Event()
        self.found: Response | str = ""
        self._request, self._seconds, self._max_bytes = request, seconds, max_bytes
        self._uses_proxy = uses_proxy
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._is_cancelled = False

    def run(self) -> None:
        try:
            self.found = self._exchange()
        # Whatever a server can make the libraries raise, or a name that is none.
        except Exception as error:
            self.found = f"{type(error).__name__}: {error}"
        finally:
            self.is_done.set()

    def cancel(self) -> None:
        """Shut the connection down, now or as soon as there is one."""
        with self._lock:
            self._is_cancelled = True
            if self._connection is not None:
                with suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                self._connection.close()
                self._connection = None

    def _exchange(self) -> Response:
        handlers: list[Any] = [_Http(self._watch), _Https(self._watch), _AnyStatus()]
        if not self._uses_proxy:
            handlers.append(urllib.request.ProxyHandler({}))
        opener = urllib.request.build_opener(*handlers)
        with opener.open(self._request, timeout=self._seconds) as response:
            body = response.read(self._max_bytes)
            return Response(response.status, response.headers, body)

    def _watch(self, connection: socket.socket) -> None:
        with self._lock:
            if self._is_cancelled:
                raise TimeoutError("too late")
            # TLS takes the socket itself away; one more handle to the same connection shuts down both.
            self._connection = connection.dup()


class _Watched(http.client.HTTPConnection):
    def __init__(
        self, *args: Any, watch: Callable[[socket.socket], None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._watch = watch

    def connect(self) -> None:
        super().connect()
        if self._watch is not None:
            self._watch(self.sock)


# HTTPSConnection.connect calls that of the next class, which is _Watched, and then begins with TLS.
class _WatchedTls(http.client.HTTPSConnection, _Watched):
    def __init__(
        self, *args: Any, watch: Callable[[socket.socket], None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._watch = watch


class _Http(urllib.request.HTTPHandler):
    def __init__(self, watch: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._watch = watch

    def http_open(self, req: urllib.request.Request) -> Any:
        connection: Any = partial(_Watched, watch=self._watch)
        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, watch: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._watch = watch

    def https_open(self, req: urllib.request.Request) -> Any:
        connection: Any = partial(_WatchedTls, watch=self._watch)
        return self.do_open(connection, req)


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """No status is an error, and none is followed: a redirect would turn the question into a GET, and
    may carry the key elsewhere."""

    def http_response(self, request: Any, response: Any) -> Any:  # noqa: ARG002
        return response

    https_response = http_response
