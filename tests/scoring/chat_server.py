"""A small local server that speaks chat completions, and fails as it is told to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Raw(NamedTuple):
    """A response as it is."""

    status: int
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0


def completion(
    text: str | None, tokens: tuple[int, int] | None = (10, 2), end: str | None = None
) -> Raw:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if end is not None:
        choice["finish_reason"] = end
    values: dict[str, Any] = {"choices": [choice]}
    if tokens is not None:
        values["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Raw(200, json.dumps(values).encode())


class ChatServer:
    """Answers by ``reply(request, i)``, of the i-th request: a text or a ``Raw``.

    Attributes:
        url: for ``base_url``.
        requests: bodies in the order of arrival.
        headers: of them.
    """

    def __init__(
        self, reply: Callable[[dict[str, Any], int], str | Raw], port: int | None = None
    ) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    i = len(server.requests)
                    server.requests.append(body)
                    server.headers.append(dict(self.headers))
                    server.paths.append(self.path)
                found = reply(body, i)
                raw = completion(found) if isinstance(found, str) else found
                time.sleep(raw.delay)
                try:
                    self.send_response(raw.status)
                    for name, value in raw.headers:
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw.body)))
                    self.end_headers()
                    self.wfile.write(raw.body)
                except OSError:
                    pass  # Nobody waits any more.

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port or 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def questions(self) -> list[str]:
        """What was asked."""
        return [request["messages"][1]["content"] for request in self.requests]


@contextmanager
def serving(
    reply: Callable[[dict[str, Any], int], str | Raw], port: int | None = None
) -> Iterator[ChatServer]:
    server = ChatServer(reply, port)
    thread = threading.Thread(target=server._server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server._server.shutdown()
        server._server.server_close()
        thread.join()


@contextmanager
def speaking(talk: Callable[[socket.socket], None], *, reads_first: bool = True) -> Iterator[str]:
    """A server below HTTP: ``talk`` has each connection, by default once a request has begun, in a
    thread of its own. Gives the base URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            if reads_first:
                connection.recv(2**16)
            talk(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        # Wakes the thread that accepts, which closing alone does not.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def drip(begin: bytes, drop: bytes, pause: float = 0.02) -> Callable[[socket.socket], None]:
    """Of ``speaking``: a beginning, and then a drop now and then without end."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:
            connection.sendall(drop)
            time.sleep(pause)

    return talk
