"""Secrets that somebody repeats."""

from __future__ import annotations

import base64
import html
import json
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.scoring.judges.redaction import Redactor

KEY = "sk-SEC/ret+12&34567890"
redacted = Redactor([KEY, None, "", "x"])


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        json.dumps(KEY),
        "".join(f"\\u{ord(c):04X}" for c in KEY),
        "".join(f"\\\\u{ord(c):04x}" for c in KEY),
        KEY.replace("/", "\\/"),
        urllib.parse.quote(KEY, safe=""),
        urllib.parse.quote(urllib.parse.quote(KEY, safe=""), safe=""),
        html.escape(KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        "".join(f"\\x{ord(c):02x}" for c in KEY),
        KEY.encode().hex(),
        KEY.encode().hex(":").upper(),
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(f":{KEY}".encode()).decode(),
        base64.urlsafe_b64encode(f"user:{KEY}".encode()).decode(),
        base64.encodebytes(f"Authorization: Bearer {KEY}".encode() * 3).decode(),
        f"{KEY[:5]}\n{KEY[5:]}",
        f"{KEY[:5]}\\n    {KEY[5:]}",
        f"{KEY[:5]}<br/>{KEY[5:9]}\u200b{KEY[9:]}",
        f'"{KEY[:5]}"\n "{KEY[5:]}"',
        " ".join(KEY),
    ],
)
def test_spellings_of_a_secret_are_found(form: str) -> None:
    found = redacted(f"Before {form} after")
    assert "…" in found
    assert found.startswith("Before ")
    assert found.endswith(" after")
    rest = found.replace("…", "")
    assert not any(part in rest for part in (KEY[:6], KEY[-6:], KEY.encode().hex()[:12]))
    # What base64 has left is what other bytes decide as well.
    assert len(rest) <= len("Before  after") + 100


def test_ordinary_text_is_left_alone() -> None:
    text = "x, xx and sk- are parts of it; c2st is base64. 東京"
    assert redacted(text) == text
    assert Redactor([])(text) == text
    # A placeholder in place of a key: the words themselves, not their letters in other words.
    assert Redactor(["none"])("none, nine, n\none") == "…, nine, n\none"


def test_hostile_text_takes_no_time() -> None:
    began = time.monotonic()
    for secret in (KEY, "a" * 60 + "b", KEY * 100):
        own = Redactor([secret])
        for text in (secret[:-1] * 2_000, (secret[0] + " " * 60) * 1_000, " " * 10**5):
            assert own(text) == text
    assert time.monotonic() - began < 10


@settings(max_examples=50, deadline=None)
@given(
    secret=st.text(
        st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60
    ).filter(lambda secret: sum(map(str.isalnum, secret)) > 4),
    before=st.text(max_size=20),
    after=st.text(max_size=20),
)
def test_any_secret_is_found_as_it_is_and_escaped(secret: str, before: str, after: str) -> None:
    own = Redactor([secret])
    for form in (secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret), html.escape(secret)):
        assert form not in own(before + form + after)
