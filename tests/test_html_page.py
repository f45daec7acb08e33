"""Templates with their style, script and data."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bae_lens.files.whole import write_bytes
from bae_lens.html_page import html_page
from tests.report.helpers import HOSTILE, Page

QUIZ, SHARED = "bae_lens.quiz", "bae_lens.html_page"
OPTIONS: dict[str, Any] = {"styles": ["quiz.css"], "scripts": ["quiz.js"]}


def written(path: Path, content: dict[str, Any]) -> Page:
    write_bytes(path, html_page(content, QUIZ, "quiz.html", **OPTIONS).encode())
    return Page(path)


def resource(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def test_styles_and_scripts_are_joined_and_the_policy_allows_these(tmp_path):
    page = written(tmp_path / "new" / "page.html", {"x": 1})
    [style], [data, script] = page.styles, page.scripts
    assert style == resource(SHARED, "style.css") + "\n" + resource(QUIZ, "quiz.css")
    joined = resource(SHARED, "elements.js") + "\n" + resource(QUIZ, "quiz.js")
    assert script == f'(() => {{\n"use strict";\n{joined}}})();\n'
    assert json.loads(data) == {"x": 1}
    hashes = re.findall(r"-src 'sha256-([^']+)'", page.policy)
    expected = [hashlib.sha256(part.encode()).digest() for part in (style, script)]
    assert [base64.b64decode(value) for value in hashes] == expected
    assert not list(tmp_path.rglob("*.part"))


def test_data_is_data_whatever_it_looks_like(tmp_path):
    content = {text: [text] for text in HOSTILE}
    page = written(tmp_path / "page.html", content)
    assert page.data == content
    assert page.tags == written(tmp_path / "other.html", {}).tags
    assert not set(page.scripts[0]) & set("<>&")


def test_what_json_lacks_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        html_page({"x": math.nan}, QUIZ, "quiz.html", **OPTIONS)


def test_scripts_of_the_quiz_only_ever_make_text():
    for script in (resource(SHARED, "elements.js"), resource(QUIZ, "quiz.js")):
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "fetch(",
        ):
            assert way not in script
    assert "url(" not in resource(QUIZ, "quiz.css")
