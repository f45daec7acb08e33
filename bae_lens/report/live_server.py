"""A page and the answers that it asks for, on this machine only, for whoever knows the address.

Three things keep others out: the server listens on the loopback interface; the address has a random token, without
which nothing is answered; and a request has to name this very server (``Host``, ``Origin``), so that a site which
points its own name at 127.0.0.1 is refused. No header lets another site read an answer.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socketserver
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

from bae_lens.checks.fields import check, whole

logger = logging.getLogger(__name__)

_HOST = "127.0.0.1"
# Of a question, in bytes: some ten thousand words.
MOST_BYTES = 65_536
# Of a question that is too large: read all the same up to here, since a browser that is cut off shows no answer.
_MOST_READ = 2**20
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The rest of the page's policy is in the page.
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class LiveServer(ThreadingHTTPServer):
    """Listens from the beginning, so that a port in use is told at once, and answers in ``serve``.

    Args:
        port: to listen on; 0: a free one.

    Attributes:
        token: in the address, a new one for each server.
        is_serving: whether ``serve`` was called.

    Raises:
        ValueError: if the port is no number of a port, or cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        port = check("port", port, whole(0, 65_535))
        self.token = secrets.token_urlsafe(24)
        self.page = b""
        self.answer: Callable[[str], Any] = str
        # One model, one text at a time.
        self.lock = Lock()
        self.is_serving = False
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise ValueError(
                f"port {port} of {_HOST} cannot be listened on: {error.strerror or error}. Name another one, or 0 for "
                "one that is free."
            ) from error

    def server_bind(self) -> None:
        """Without asking any name server what 127.0.0.1 is called, as ``HTTPServer`` does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = _HOST, self.server_address[1]

    @property
    def address(self) -> str:
        """Of the page, token included."""
        return f"http://{_HOST}:{self.server_port}/{self.token}/"

    def serve(self, page: str, answer: Callable[[str], Any]) -> None:
        """Answer until ``shutdown`` is called, or an exception such as Ctrl-C comes.

        Args:
            page: HTML.
            answer: of a text, something for JSON; a ``ValueError`` says what is wrong with the text.
        """
        self.page, self.answer, self.is_serving = page.encode("utf-8"), answer, True
        self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Somebody who has gone away is none."""
        logger.debug("A request failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer  # pyright: ignore[reportIncompatibleVariableOverride]
    # Of seconds without a byte.
    timeout = 30
    server_version, sys_version = "bae-lens", ""

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif path is not None:
            self._refuse(404, "There is nothing here.")

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        if path != "latents":
            self._refuse(404, "There is nothing here.")
            return
        text = self._text()
        if text is None:
            return
        try:
            with self.server.lock:
                answer = self.server.answer(text)
        except ValueError as error:
            self._refuse(400, str(error))
        except Exception:
            self._failed()
        else:
            self._answer(answer)

    def _answer(self, content: Any) -> None:
        try:
            body = _json(content)
        except (ValueError, TypeError):  # NaN, or what JSON has no word for: not the text's fault.
            self._failed()
        else:
            self._send(200, body, "application/json")

    def _failed(self) -> None:
        logger.exception("A text could not be read")
        self._refuse(500, "The model failed on this text: the terminal says how.")

    def _path(self) -> str | None:
        """What is asked for, behind the token; None where the request was refused."""
        port = self.server.server_port
        hosts = {f"{_HOST}:{port}", f"localhost:{port}"}
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in hosts or (origin is not None and origin != f"http://{host}"):
            self._refuse(403, "This server answers under its own address only.")
            return None
        # "/TOKEN/", to which what the page asks for is relative.
        _, token, path, *_ = [*self.path.partition("?")[0].split("/", 2), "?", "?"]
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(403, "Use the whole address that bae-lens serve has printed.")
            return None
        return path

    def _text(self) -> str | None:
        """Of the question; None where it was refused."""
        if self.headers.get_content_type() != "application/json":
            self._refuse(415, "A question is JSON (Content-Type: application/json).")
            return None
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._refuse(411, "A question says how long it is (Content-Length).")
            return None
        n_bytes = int(length[:20])
        body = self.rfile.read(min(n_bytes, _MOST_READ))
        if n_bytes > MOST_BYTES:
            self._refuse(413, f"The text is too long: {MOST_BYTES:,} bytes at most.")
            return None
        try:
            text = json.loads(body)["text"]
        except (ValueError, LookupError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            self._refuse(400, 'A question is {"text": "…"}.')
            return None
        return text

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, _json({"error": reason}), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            **_HEADERS,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """To the log, and only for those who look for faults: the address has the token."""
        logger.debug(format, *args)


def _json(content: Any) -> bytes:
    return json.dumps(content, allow_nan=False).encode()
