"""The file: a template with its style, script and data."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from bae_lens.evals.code_statistics import CodeSummary
from bae_lens.interp.evidence import Evidence
from bae_lens.report.content import Compared, comparison_content, report_content
from bae_lens.report.sentences import CodedSentence

logger = logging.getLogger(__name__)

_LARGE = 10_000_000
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(
    path: str | Path,
    evidence: Evidence,
    summary: CodeSummary | Mapping[str, Any] | None = None,
    training: Mapping[str, Sequence[float]] | None = None,
    sentences: Sequence[CodedSentence] | None = None,
    scores: Mapping[str, Sequence[float | None]] | None = None,
    phrases: Sequence[str | None] | None = None,
    title: str | None = None,
) -> None:
    """Write what is known of a dictionary as one HTML file, all or nothing.

    It opens from disk, requests nothing, and shows whatever the corpus holds as text. The same input
    gives the same bytes.

    Args:
        path: of the file.
        evidence: of the dictionary, see ``collect_evidence``.
        summary: numbers for the overview: statistics of the code, or metrics by name, in groups or
            without, as ``run_evals`` returns them.
        training: columns of the metric log (``read_metric_log``), for the entropy over training.
        sentences: texts with their codes, see ``collect_sentences``.
        scores: numbers for each latent by what they are called: columns of the list.
        phrases: what each latent stands for, in words.
        title: of the page; default: the architecture and hook point.

    Raises:
        ValueError: if an input does not fit the evidence.
    """
    title = title or f"{evidence.dictionary} at {evidence.hook_name}"
    own = Compared(title, evidence, summary, training)
    _write(Path(path), report_content(title, own, sentences or (), scores or {}, phrases))


def write_comparison(
    path: str | Path, dictionaries: Sequence[Compared], title: str = "Comparison of dictionaries"
) -> None:
    """Write the overviews of several dictionaries side by side as one HTML file, all or nothing.

    Args:
        path: of the file.
        dictionaries: two at least.
        title: of the page.

    Raises:
        ValueError: if there are fewer than two, two have the same name, or a link is no relative
            path.
    """
    _write(Path(path), comparison_content(title, dictionaries))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    html = _page(content).encode("utf-8")
    if len(html) > _LARGE:
        logger.warning(
            "%s is large: %.0f MB. Fewer examples, or shorter ones (n_left, n_right), make it smaller.",
            *(path, len(html) / 1e6),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(html)
    partial.replace(path)


def _page(content: Mapping[str, Any]) -> str:
    style, script = _resource("style.css"), _resource("script.js")
    parts = {
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": _as_json(content),
    }
    # In one go, since the data may hold what looks like a place.
    return _PLACE.sub(lambda place: parts[place[1]], _resource("template.html"))


def _as_json(content: Mapping[str, Any]) -> str:
    """JSON in ASCII that has no meaning to HTML: nothing in it can end the element it stands in."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return re.sub("[<>&]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def _resource(name: str) -> str:
    return (resources.files("bae_lens.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """For the page's policy, which lets this very text run and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()
