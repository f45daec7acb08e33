"""The file: a template with its style, script and data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bae_lens.evals.code_summary import CodeSummary
from bae_lens.examples.records import LatentRecords
from bae_lens.files.whole import write_bytes
from bae_lens.html_page import html_page
from bae_lens.report.content import Compared, comparison_content, report_content
from bae_lens.report.scores import Result
from bae_lens.report.sentences import CodedSentence

if TYPE_CHECKING:
    from bae_lens.steering import LogitEffects

logger = logging.getLogger(__name__)

_LARGE = 15_000_000
SCRIPTS = tuple(
    f"{name}.js"
    for name in ("charts", "data", "overview", "list", "windows", "latent", "sentences", "page")
)


def write_report(
    path: str | Path,
    records: LatentRecords,
    summary: CodeSummary | Mapping[str, Any] | None = None,
    training: Mapping[str, Sequence[float]] | None = None,
    sentences: Sequence[CodedSentence] | None = None,
    *,
    results: Sequence[Result] = (),
    scores: Mapping[str, Sequence[float | None]] | None = None,
    phrases: Sequence[str | None] | None = None,
    effects: Sequence[LogitEffects] = (),
    title: str | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write what is known of a dictionary as one HTML file, all or nothing.

    It opens from disk, requests nothing, and shows whatever the corpus holds as text. The same input
    gives the same bytes.

    Args:
        path: of the file.
        records: of the dictionary, see ``collect_examples``.
        summary: numbers for the overview: statistics of the code, or metrics by name, in groups or
            without, as ``run_evals`` returns them.
        training: columns of the metric log (``read_metric_log``), for the entropy over training.
        sentences: texts with their codes, see ``collect_sentences``.
        results: of ``intruder_test`` and ``comsem_test`` with this examples, one of each test and
            protocol: their scores become columns of the list, their tables a part of the overview,
            with their controls and what the judge cannot say.
        scores: more numbers for each latent by what they are called, None where there is none.
        phrases: what each latent stands for, in words; None: the judge's of the results, of each
            latent the one that held best.
        effects: tokens that latents raise and lower by themselves, see ``logit_effects``; of all
            latents, or some.
        title: of the page; default: the architecture and hook point.
        about: more that a reader should know, by what it is called: the model, the text.

    Raises:
        ValueError: if an input does not fit the examples.
    """
    title = f"{records.dictionary} at {records.hook_name}" if title is None else title
    own = Compared(title, records, summary, training, None, results, about or {})
    _write(Path(path), report_content(title, own, sentences or (), scores or {}, phrases, effects))


def live_page(
    own: Compared,
    sentences: Sequence[CodedSentence],
    effects: Sequence[LogitEffects],
    title: str,
    n_tokens: int,
) -> str:
    """The page of ``write_report`` with a part in which one's own text is read by whoever serves it.

    Args:
        own: the dictionary.
        sentences: see ``write_report``.
        effects: see ``write_report``.
        title: see ``write_report``.
        n_tokens: of a text that are read at most.
    """
    content = report_content(title, own, sentences, {}, None, effects)
    return html_page(
        content | {"live": {"nTokens": n_tokens}},
        "bae_lens.report",
        "report.html",
        styles=["live.css"],
        scripts=[*SCRIPTS, "live.js"],
        asks_server=True,
    )


def write_comparison(
    path: str | Path, dictionaries: Sequence[Compared], title: str = "Comparison of dictionaries"
) -> None:
    """Write the overviews of several dictionaries side by side as one HTML file, all or nothing.

    Args:
        path: of the file.
        dictionaries: two at least.
        title: of the page.

    Raises:
        ValueError: if there are fewer than two, two have the same name, a link is no relative path,
            or a result is of another dictionary.
    """
    _write(Path(path), comparison_content(title, dictionaries))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    html = html_page(content, "bae_lens.report", "report.html", scripts=SCRIPTS).encode("utf-8")
    if len(html) > _LARGE:
        logger.warning(
            "%s is large: %.0f MB. Fewer examples, or shorter ones (n_left, n_right), make it smaller.",
            *(path, len(html) / 1e6),
        )
    write_bytes(path, html)
