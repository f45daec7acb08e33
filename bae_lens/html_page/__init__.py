"""One static HTML file of a template, its style and script, and data: nothing else runs in it.

``style.css`` and ``elements.js`` (tables, numbers, text whose every character can be seen) are here and in
every page; what only one page has lies in its own package.
"""

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
    content: Mapping[str, Any],
    package: str,
    template: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    asks_server: bool = False,
) -> str:
    """Put everything into the places of a template.

    Args:
        content: The data, for JSON; it may hold any text.
        package: The package in which the files lie, as ``bae_lens.report``.
        template: Name of a file with the places ``style``, ``style_hash``, ``script``,
            ``script_hash`` and ``data``, each in ``{{ }}``.
        styles: Names of style sheets, which come after the common one.
        scripts: Names of scripts, which come after the common one.
        asks_server: Whether the page's policy lets it ask whoever served it. The template has the place
            ``connect`` then.

    Raises:
        ValueError: If a number in the content is NaN or infinite.
    """
    style = _joined("style.css", package, styles)
    # In a function, so that names of theirs are not the window's.
    script = f'(() => {{\n"use strict";\n{_joined("elements.js", package, scripts)}}})();\n'
    parts = {
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": _as_json(content),
        "connect": "connect-src 'self'; " if asks_server else "",
    }
    # In one go, since the data may hold what looks like a place.
    return _PLACE.sub(lambda place: parts[place[1]], _resource(package, template))


def _as_json(content: Mapping[str, Any]) -> str:
    """JSON in ASCII that has no meaning to HTML: nothing in it can end the element it stands in."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _joined(common: str, package: str, names: Sequence[str]) -> str:
    return "\n".join([_resource(__name__, common), *(_resource(package, name) for name in names)])


def _resource(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """For the page's policy, which lets this very text run and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
