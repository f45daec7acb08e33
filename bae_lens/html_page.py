"""One static HTML file of a template, its style and script, and data: nothing else runs in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

_PLACE = re.compile(r"\{\{(\w+)\}\}")


def html_page(
    content: Mapping[str, Any], template: str, styles: Sequence[str], scripts: Sequence[str]
) -> str:
    """The template with everything in its places.

    Args:
        content: the data, for JSON; it may hold any text.
        template: name of a file in this package with the places ``style``, ``style_hash``,
            ``script``, ``script_hash`` and ``data``, each in ``{{ }}``.
        styles: names of its style sheets, which become one.
        scripts: names of its scripts, which become one.

    Raises:
        ValueError: if a number in the content is NaN or infinite.
    """
    style, joined = ("\n".join(map(_resource, names)) for names in (styles, scripts))
    # In a function, so that names of theirs are not the window's.
    script = f'(() => {{\n"use strict";\n{joined}}})();\n'
    parts = {
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": _as_json(content),
    }
    # In one go, since the data may hold what looks like a place.
    return _PLACE.sub(lambda place: parts[place[1]], _resource(template))


def _as_json(content: Mapping[str, Any]) -> str:
    """JSON in ASCII that has no meaning to HTML: nothing in it can end the element it stands in."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _resource(name: str) -> str:
    return (resources.files("bae_lens.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """For the page's policy, which lets this very text run and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
