"""Texts that somebody types, against the dictionary asked by hand, and over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
import torch

from bae_lens.examples import ExampleSettings, collect_examples
from bae_lens.report.live import LiveText
from bae_lens.report.live_server import MOST_BYTES, LiveServer
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    between,
    make_bae,
    make_clvq,
    make_model,
    make_sinking_model,
    make_text,
    make_transcoder,
)
from tests.report.serving import ask, request, served

SETTINGS = ExampleSettings(n_tokens=None, n_strongest=2, n_random=2, n_neighbors=0)
TEXT = "word3 word17 word4 word17"
PAGE = "<!DOCTYPE html><title>the page</title>"


def live_of(sae: Any, model: Any = None, **options: Any) -> LiveText:
    between(sae, HOOK, None)
    model = model or make_model()
    records = collect_examples(model, sae, list(make_text(20, 7)["text"]), SETTINGS, **options)
    return LiveText(model, sae, records)


def activations(model: Any, text: str) -> torch.Tensor:
    """Of the tokens after BOS."""
    _, cache = model.run_with_cache(model.to_tokens(text), names_filter=HOOK)
    return cache[HOOK][0, 1:]


# What is read


@torch.no_grad()
def test_every_latent_that_fires_with_its_activation():
    sae = make_transcoder()
    answer = live_of(sae)(TEXT)
    acts = sae.encode(activations(make_model(), TEXT))
    assert [s.strip() for s in answer["tokens"][1:]] == TEXT.split()
    assert (answer["counts"], answer["nTokens"]) == ([False, True, True, True, True], 5)
    assert answer["codes"][0] == []
    for codes, own in zip(answer["codes"][1:], acts, strict=True):
        values, latents = own.sort(descending=True)
        assert [j for j, _ in codes] == latents[values > 0].tolist()
        assert [v for _, v in codes] == pytest.approx(values[values > 0].tolist(), rel=1e-4)


@torch.no_grad()
def test_of_a_dense_code_all_that_fire():
    """However many: of one that is left out the page would say that it does not fire."""
    sae = make_transcoder(d_sae=600)
    sae.b_enc.fill_(50.0)
    answer = live_of(sae)(TEXT)
    assert [len({j for j, _ in codes}) for codes in answer["codes"]] == [0, 600, 600, 600, 600]


@torch.no_grad()
def test_of_bits_how_rare_they_are_and_their_margins():
    sae = make_bae()
    live = live_of(sae)
    margins: list[torch.Tensor] = []
    sae.hook_sae_acts_pre.register_forward_hook(lambda *args: margins.append(args[2].abs()))
    acts = sae.encode(activations(make_model(), TEXT))
    [expected] = margins
    answer = live(TEXT)
    records = live._strongest  # Its polarity is tested with the stored sentences.
    for codes, bits, own in zip(answer["codes"][1:], acts, expected, strict=True):
        on = {j for j, bit in enumerate(bits.tolist()) if (bit != 0) != bool(records._when_off[j])}
        assert {j for j, *_ in codes} == on
        rarity = [strength for _, strength, _ in codes]
        assert rarity == sorted(rarity, reverse=True)
        assert [m for *_, m in codes] == pytest.approx(
            [float(own[int(j)]) for j, *_ in codes], rel=2e-3
        )


def test_a_code_a_token():
    answer = live_of(make_clvq())(TEXT)
    assert [len(codes) for codes in answer["codes"]] == [0, 1, 1, 1, 1]
    assert all(distance <= 0 for [(_, distance)] in answer["codes"][1:])


@torch.no_grad()
def test_a_text_begins_as_those_that_the_dictionary_was_trained_on():
    """With BOS before it, or without: tokens after it have other latents."""
    sae, model = make_transcoder(), make_model()
    between(sae, HOOK, None).cfg.metadata.prepend_bos = False
    records = collect_examples(model, sae, list(make_text(20, 7)["text"]), SETTINGS)
    answer = LiveText(model, sae, records)(TEXT)
    assert [s.strip() for s in answer["tokens"]] == TEXT.split()
    assert (answer["counts"], answer["nTokens"]) == ([True] * 4, 4)
    _, cache = model.run_with_cache(model.to_tokens(TEXT, prepend_bos=False), names_filter=HOOK)
    for codes, own in zip(answer["codes"], sae.encode(cache[HOOK][0]), strict=True):
        values, latents = own.sort(descending=True)
        assert [j for j, _ in codes] == latents[values > 0].tolist()
    # And the examples are of texts that begin so.
    assert records.n_tokens == sum(map(len, map(str.split, make_text(20, 7)["text"])))


def test_a_long_text_is_cut_and_the_answer_says_so():
    live = live_of(make_transcoder())
    assert live.n_tokens == CONTEXT_SIZE
    answer = live(" ".join(["word3"] * 50))
    assert (len(answer["tokens"]), answer["nTokens"]) == (CONTEXT_SIZE, 51)
    answer = live(" ".join(["word3"] * (CONTEXT_SIZE - 1)))
    assert len(answer["tokens"]) == answer["nTokens"] == CONTEXT_SIZE


def test_an_outlier_does_not_count():
    live = live_of(make_transcoder(), make_sinking_model(), exclude_outlier_tokens=10.0)
    answer = live("word3 word16 word4")  # SINK
    assert answer["counts"] == [False, True, False, True]
    assert answer["codes"][2] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "empty"), (" \n\t", "empty"), ("word1 \ud800", "half of a surrogate pair")],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        live_of(make_transcoder())(text)


def test_examples_of_another_dictionary():
    sae = make_transcoder()
    between(sae, HOOK, None)
    model = make_model()
    records = collect_examples(model, sae, list(make_text(20, 7)["text"]), SETTINGS)
    other = make_transcoder(seed=1)
    between(other, HOOK, None)
    with pytest.raises(ValueError, match="other weights"):
        LiveText(model, other, records)


# Over HTTP


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with served(PAGE, live_of(make_transcoder())) as server:
        yield server


def test_the_page_and_an_answer(server):
    page = request(server, f"/{server.token}/")
    assert (page.status, page.body.decode()) == (200, PAGE)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert not any(name.lower().startswith("access-control") for name in page.headers)
    answer = ask(server, TEXT)
    assert answer.status == 200
    assert answer.said == live_of(make_transcoder())(TEXT)


def test_nothing_without_the_token(server):
    for path in ("/", "/latents", "/favicon.ico", f"/{server.token[:-1]}/", f"/x{server.token}/"):
        reply = request(server, path)
        assert (reply.status, "whole address" in reply.said["error"]) == (403, True), path
        assert server.token.encode() not in reply.body
    assert request(server, "/wrong/latents", b'{"text": "word3"}').status == 403
    assert request(server, "/%C3%A9/").status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_names_and_sites_are_refused(server, headers):
    body = json.dumps({"text": TEXT}).encode()
    assert request(server, f"/{server.token}/", **headers).status == 403
    assert request(server, f"/{server.token}/latents", body, **headers).status == 403


def test_its_own_names_are_not(server):
    own = f"localhost:{server.server_port}"
    assert request(server, f"/{server.token}/", Host=own, Origin=f"http://{own}").status == 200


def test_there_is_nothing_else(server):
    for path in ("latents", "cfg.json", "../cfg.json", "page/"):
        assert request(server, f"/{server.token}/{path}").status == 404
    # The page's own question would go elsewhere.
    assert request(server, f"/{server.token}").status == 404
    assert request(server, f"/{server.token}/", b"{}").status == 404
    assert request(server, f"/{server.token}/latents", method="DELETE").status == 501


def test_questions_that_are_none(server):
    path = f"/{server.token}/latents"
    for body in (b"", b"{", b"[]", b'"text"', b"{}", b'{"text": 3}', b"\xff", b"[" * 9000):
        reply = request(server, path, body)
        assert (reply.status, reply.said["error"]) == (400, 'A question is {"text": "…"}.'), body
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert request(server, path, b"text=word3", **form).status == 415
    assert request(server, path, b'{"text": "word3"}', Content_Type="text/plain").status == 415
    assert request(server, path, b"{}", Content_Length="x").status == 411
    assert request(server, path, b"{}", Content_Length="-1").status == 411
    assert ask(server, " ").said == {"error": "The text is empty. Type a sentence."}
    assert ask(server, "\ud800").status == 400


def test_a_question_that_is_too_large(server):
    reply = ask(server, "a" * MOST_BYTES)
    assert (reply.status, "at most" in reply.said["error"]) == (413, True)
    assert ask(server, "word3 " * 10_000).said["nTokens"] == 10_001
    assert ask(server, "\U0001f600" * (MOST_BYTES // 20)).status == 200


def test_what_fails_is_told_and_the_next_text_is_read(caplog):
    def answer(text: str) -> Any:
        if text == "bad":
            raise RuntimeError("secret details")
        return {"text": text}

    with served(PAGE, answer) as server:
        reply = ask(server, "bad")
        assert (reply.status, b"secret" in reply.body) == (500, False)
        assert "secret details" in caplog.text
        assert ask(server, "good").said == {"text": "good"}


@pytest.mark.parametrize("bad", [float("nan"), {1, 2}])
def test_an_answer_that_is_no_json_is_told_too(caplog, bad):
    with served(PAGE, lambda text: {"text": text, "value": bad}) as server:
        reply = ask(server, "word3")
        assert (reply.status, "The model failed" in reply.said["error"]) == (500, True)
    assert "A text could not be read" in caplog.text


def test_activations_that_are_no_numbers_are_told():
    model = make_model()
    live = live_of(make_bae(), model)
    with torch.no_grad():
        model.W_E.fill_(torch.nan)
    with served(PAGE, live) as server:
        reply = ask(server, TEXT)
    assert reply.status == 400
    assert "NaN or infinite at 4 of 4 tokens" in reply.said["error"]


def test_one_text_at_a_time():
    running: list[str] = []
    most: list[int] = []

    def answer(text: str) -> Any:
        running.append(text)
        most.append(len(running))
        time.sleep(0.01)
        running.remove(text)
        return text

    with served(PAGE, answer) as server:
        threads = [Thread(target=ask, args=(server, f"{i}")) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1] * 8


def test_ports():
    with served(PAGE, str) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"
        with pytest.raises(ValueError, match=f"port {server.server_port} .* cannot be listened on"):
            LiveServer(server.server_port)
    with LiveServer() as one, LiveServer() as other:
        assert one.token != other.token
        assert len(one.token) >= 32
    for port in (-1, 65_536, True):
        with pytest.raises(ValueError, match="port must be"):
            LiveServer(port)
