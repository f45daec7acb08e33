"""Requests that end in time."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bae_lens.scoring.judges.exchange import NoResponse, Response, Stopped, post
from tests.scoring.chat_server import Raw, drip, serving, speaking

OK = b"HTTP/1.1 200 OK\r\n"


def post_to(url: str, seconds: float = 5.0, stop: threading.Event | None = None) -> Response:
    stop = stop or threading.Event()
    return post(url, b"{}", {"A": "b"}, seconds=seconds, max_bytes=1000, stop=stop)


def silent(connection: socket.socket) -> None:
    time.sleep(20)


HOLDING = {
    "nothing": silent,
    "a byte of the status line": drip(b"HTTP", b" "),
    "endless continue": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an endless header": drip(OK + b"X: ", b"x"),
    "endless headers": drip(OK, b"X: y\r\n", 0.2),
    "a byte of the body": drip(OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "chunks": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "an endless chunk size": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "endless trailers": drip(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("talk", HOLDING.values(), ids=HOLDING)
def test_whatever_is_dripped_the_time_is_of_all(talk: Callable[[socket.socket], None]) -> None:
    with speaking(talk) as url:
        began = time.monotonic()
        with pytest.raises(NoResponse, match=r"within 0\.2 s"):
            post_to(url, 0.2)
        assert 0.15 < time.monotonic() - began < 2


def test_tls_that_is_never_answered() -> None:
    with speaking(drip(b"\x16", b"")) as url:
        began = time.monotonic()
        with pytest.raises(NoResponse, match=r"within 0\.2 s"):
            post_to(url.replace("http:", "https:"), 0.2)
        assert time.monotonic() - began < 2


def test_the_connection_is_shut_down_when_the_wait_ends() -> None:
    is_shut = threading.Event()

    def talk(connection: socket.socket) -> None:
        connection.settimeout(5)
        while connection.recv(2**16):
            pass  # The rest of the request.
        is_shut.set()

    with speaking(talk) as url:
        with pytest.raises(NoResponse):
            post_to(url, 0.3)
        assert is_shut.wait(2)


def test_that_a_wait_can_be_stopped() -> None:
    stop = threading.Event()
    with speaking(silent) as url:
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            post_to(url, 30, stop)
        assert time.monotonic() - began < 1


def test_no_more_of_a_body_is_read_than_asked_for() -> None:
    bomb = gzip.compress(bytes(10**7))
    with serving(lambda request, i: Raw(200, bomb, (("Content-Encoding", "gzip"),))) as server:
        assert post_to(server.url).body == bomb[:1000]

    def talk(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 99999999999999999999\r\n\r\n" + b"x" * 10**5)

    with speaking(talk) as url:
        assert post_to(url).body == b"x" * 1000


def test_redirects_and_errors_are_answers() -> None:
    with serving(lambda request, i: "never") as other:
        moved = (("Location", other.url),)
        for status in (301, 302, 303, 307, 308, 401, 500):
            with serving(lambda request, i, s=status: Raw(s, b"why", moved)) as server:
                found = post_to(server.url)
                assert (found.status, found.body) == (status, b"why")
                assert found.headers["location"] == other.url
        assert other.requests == []


def test_a_wrong_answer_leaves_nothing_on_the_exception() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b"GARBAGE of the server\r\n\r\n")

    with speaking(talk) as url, pytest.raises(NoResponse, match="BadStatusLine: GARBAGE") as e:
        post_to(url)
    assert e.value.__cause__ is None
    assert e.value.__context__ is None


def test_no_connection() -> None:
    with pytest.raises(NoResponse, match="refused"):
        post_to("http://127.0.0.1:9/v1")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=judge -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *made.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    drops = [OK + b"Content-Length: 2\r\n\r\nhi", OK + b"Content-Length: 200\r\n\r\nhi"]

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as own:
            own.recv(2**16)
            own.sendall(drops.pop(0))
            own.settimeout(20)
            while own.recv(2**16):
                pass

    with speaking(talk, reads_first=False) as url:
        url = url.replace("http:", "https:")
        with pytest.raises(NoResponse, match="CERTIFICATE_VERIFY_FAILED"):
            post_to(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert post_to(url).body == b"hi"
        began = time.monotonic()
        with pytest.raises(NoResponse, match="within"):
            post_to(url, 0.5)
        assert time.monotonic() - began < 2
