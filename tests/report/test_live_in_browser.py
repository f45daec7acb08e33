"""One's own text on a page that is served, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bae_lens.examples import ExampleSettings, collect_examples
from bae_lens.report import Compared, collect_sentences
from bae_lens.report.live import LiveText
from bae_lens.report.live_server import LiveServer
from bae_lens.report.page import live_page
from tests.browser import Browser
from tests.helpers import (
    CONTEXT_SIZE,
    HOOK,
    between,
    make_model,
    make_text,
    make_transcoder,
)
from tests.report.helpers import HOSTILE
from tests.report.serving import ask, served

TEXT = "word3 word17 word4 word17"


@pytest.fixture(scope="module")
def parts() -> tuple[str, LiveText]:
    model, sae = make_model(), make_transcoder()
    between(sae, HOOK, None)
    texts = list(make_text(40, 9)["text"])
    records = collect_examples(model, sae, texts, ExampleSettings(n_tokens=None, n_neighbors=0))
    sentences = collect_sentences(model, sae, texts, records, n_sentences=3)
    live = LiveText(model, sae, records)
    return live_page(Compared("one", records), sentences, [], "A title", live.n_tokens), live


@pytest.fixture
def server(parts: tuple[str, LiveText]) -> Iterator[LiveServer]:
    with served(*parts) as server:
        yield server


def load(browser: Browser, server: LiveServer, fragment: str) -> None:
    browser.driver.get("about:blank")
    browser.logs()
    browser.driver.get(server.address + fragment)
    assert browser.all("[data-ready]"), browser.driver.get_log("browser")


def type_text(browser: Browser, text: str) -> str:
    """What is said of it in the end."""
    browser.run(
        "document.querySelector('#live-status').textContent = '';"
        "const f = document.querySelector('#live'); f.value = arguments[0];"
        "f.dispatchEvent(new Event('input'));",
        text,
    )
    return wait_for(browser)


def wait_for(browser: Browser) -> str:
    for _ in range(200):
        said = browser.one("#live-status").text
        if said not in ("", "Reading…"):
            return said
        time.sleep(0.05)
    raise AssertionError("no answer")


def test_a_sentence_is_typed_and_its_latents_are_shown(
    browser: Browser, server: LiveServer, parts: tuple[str, LiveText]
) -> None:
    load(browser, server, "#live")
    assert browser.texts("#nav a[aria-current]") == ["Your own text"]
    # As a user types, who presses Enter; letters are no keys of the page here.
    browser.one("#live").send_keys(TEXT + " /\n")
    assert wait_for(browser) == "6 tokens"
    assert browser.fragment == "#live"
    browser.run(
        "const f = document.querySelector('#live'); f.value = ' ';"
        "f.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' }));"
    )
    assert (browser.one("#live-status").text, browser.all(".shaded")) == ("", [])
    assert type_text(browser, TEXT) == "5 tokens"

    answer: Any = ask(server, TEXT).said
    own = answer["codes"][2]
    assert browser.texts(".tokens .tok .code") == [
        "–",
        *(str(codes[0][0]) for codes in answer["codes"][1:]),
    ]
    browser.all(".tokens .tok")[2].click()
    assert browser.texts(".codes tbody th a") == [f"Latent {j}" for j, _ in own]
    assert len(browser.all(".tok[aria-pressed=true]")) == 1
    # The strongest shades the text, until another one is asked to.
    best = own[0][0]
    assert browser.texts(".live .note a") == [f"Latent {best}"]
    n_fires = sum(best in [j for j, _ in codes] for codes in answer["codes"])
    assert len(browser.all(".shaded .act")) == n_fires > 0
    browser.run("document.querySelectorAll('.codes .shade')[1].click()")
    other = own[1][0]
    assert browser.texts(".live .note a") == [f"Latent {other}"]
    assert {b.get_attribute("data-latent") for b in browser.all(".shade[aria-pressed=true]")} == {
        str(other)
    }

    # On the latent's own page the text is there too, with the same shades.
    shades = browser.run(
        "return [...document.querySelectorAll('.shaded .act')].map((e) => e.className)"
    )
    browser.go(f"#latent-{other}")
    assert "In your own text" in browser.texts("#view-one h3")
    assert (
        browser.run(
            "return [...document.querySelectorAll('#view-one .shaded .act')].map((e) => e.className)"
        )
        == shades
    )
    browser.go("#live")
    assert browser.one("#live").get_attribute("value") == TEXT

    messages, asked = browser.logs()
    assert [m for m in messages if "favicon" not in m] == []
    assert {url.split("#")[0] for url in asked} - {server.address, f"{server.address}latents"} == (
        set()
    )


def test_long_hostile_and_lost(browser: Browser, parts: tuple[str, LiveText]) -> None:
    with served(*parts) as server:
        load(browser, server, "#sentences")
        assert "of your own" in browser.one("#view-sentences .note").text
        assert "no model" not in browser.one("#view-sentences").text
        browser.go("#live")
        said = type_text(browser, " ".join(["word3"] * 40))
        assert said == f"The first {CONTEXT_SIZE} tokens of 41: no more are read."
        # The driver cannot type half a character.
        for text in (text for text in HOSTILE if "\ud800" not in text):
            type_text(browser, text)
        assert browser.run("return window.pwned") is None
        # A page that is served may ask its server, and still nobody else.
        browser.run("fetch('http://127.0.0.1:9/x').catch(() => 0)")
        browser.settle()
        messages, asked = browser.logs()
        assert not any(":9/" in url for url in asked)
        assert any("Content Security Policy" in message for message in messages)
    assert "Does bae-lens serve still run?" in type_text(browser, "word5")


def test_the_page_fits(browser: Browser, server: LiveServer, tmp_path: Path) -> None:
    for width in (360, 1280):
        browser.resize(width, 800)
        load(browser, server, "#live")
        type_text(browser, TEXT)
        browser.driver.save_screenshot(str(tmp_path / f"{width}.png"))
        wide, seen = browser.run(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= seen
