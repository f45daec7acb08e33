"""A server that runs beside the test."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple

from bae_lens.report.live_server import LiveServer


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        return json.loads(self.body)


@contextmanager
def served(page: str, answer: Callable[[str], Any]) -> Iterator[LiveServer]:
    server = LiveServer()
    thread = Thread(target=server.serve, args=(page, answer), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def request(
    server: LiveServer,
    path: str,
    body: bytes | None = None,
    method: str | None = None,
    **headers: str,
) -> Reply:
    """One request; ``body`` makes it a POST of JSON. Names of headers have _ for -."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given = {"Content-Type": "application/json", **given}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, given)
        response = connection.getresponse()
        return Reply(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def ask(server: LiveServer, text: Any) -> Reply:
    return request(server, f"/{server.token}/latents", json.dumps({"text": text}).encode())
