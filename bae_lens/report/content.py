"""What a page holds, as plain values for JSON. ``data.js`` reads them by these names and orders."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bae_lens.evals.code_summary import CodeSummary
from bae_lens.examples.histogram import Histogram
from bae_lens.examples.records import Count, Example, LatentRecord, LatentRecords, Strength
from bae_lens.report.metrics import HEADLINES, OF_LATENTS, list_metrics
from bae_lens.report.packing import ALPHABET, N_STEPS, StringTable, pack, pack_rising
from bae_lens.report.scores import (
    Column,
    Result,
    best_phrases,
    check_results,
    list_columns,
    list_means,
    list_said,
    list_sections,
)
from bae_lens.report.sentences import CodedSentence
from bae_lens.report.windows import Windows
from bae_lens.steering.unembedding import LogitEffects, effects_of_firing

# Of firings, which are below what a page says of them.
QUANTILES = (0.05, 0.5, 0.95)
# Of a training log: more could not be told apart in a chart.
_MAX_POINTS = 300
_STEP, _ENTROPY, _PERPLEXITY = (
    "details/n_training_samples",
    "metrics/entropy",
    "metrics/perplexity",
)


class Compared(NamedTuple):
    """A dictionary in a comparison.

    Attributes:
        name: in the tables.
        records: what was seen of it.
        summary: see ``write_report``.
        training: see ``write_report``.
        link: its own report, relative to the comparison's file; None: there is none.
        results: see ``write_report``.
        about: see ``write_report``.
    """

    name: str
    records: LatentRecords
    summary: CodeSummary | Mapping[str, Any] | None = None
    training: Mapping[str, Sequence[float]] | None = None
    link: str | None = None
    results: Sequence[Result] = ()
    about: Mapping[str, str] = {}


def report_content(
    title: str,
    own: Compared,
    sentences: Sequence[CodedSentence],
    scores: Mapping[str, Sequence[float | None]],
    phrases: Sequence[str | None] | None,
    effects: Sequence[LogitEffects] = (),
) -> dict[str, Any]:
    """Build the content of a report of one dictionary.

    Raises:
        ValueError: if there is not one phrase, or not one score of a name, for each latent, a result
            is of another dictionary, an effect of a latent that is not there, or a sentence has a code that the dictionary lacks or not one
            entry for each token.
    """
    records = own.records
    _check_lengths(records, scores, phrases)
    _check_sentences(records, sentences)
    check_results(records, own.results)
    of_firing = effects_of_firing(records, effects)
    if phrases is None:
        phrases = best_phrases(own.results, len(records))
    columns = [*list_columns(own.results), *_given_columns(scores)]
    said = list_said(own.results)
    table = StringTable(_uses(records, sentences, of_firing))
    return {
        **_page("report", title, [own]),
        "alphabet": ALPHABET,
        "nSteps": N_STEPS,
        "strings": table.strings,
        "strength": records.strength,
        "order": records.order,
        "measure": records.neighbor_measure,
        "classes": records.class_names,
        "classShares": _rounded_all(records.class_shares),
        "phrases": None if phrases is None else list(phrases),
        "scores": [_column(column, len(records)) for column in columns],
        "said": {j: [_rounded_values(run._asdict()) for run in own] for j, own in said.items()},
        "latents": [_latent(latent, table, records.strength) for latent in records.latents],
        "effects": {j: _effects(of, table) for j, of in of_firing.items()},
        "sentences": [_sentence(sentence, table) for sentence in sentences],
    }


def comparison_content(title: str, dictionaries: Sequence[Compared]) -> dict[str, Any]:
    """Build the content of a comparison of several dictionaries, without their latents.

    Raises:
        ValueError: if there are fewer than two, two have the same name, a link is no relative path,
            or a result is of another dictionary.
    """
    names = [own.name for own in dictionaries]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"A comparison needs two dictionaries at least, each with a name of its own; got {names}."
        )
    for own in dictionaries:
        if own.link is not None and urlsplit(own.link)[:2] != ("", ""):
            raise ValueError(
                f"The link of {own.name!r} must be a path relative to the comparison's file; got "
                f"{own.link!r}."
            )
        check_results(own.records, own.results)
    return _page("comparison", title, dictionaries)


def _page(kind: str, title: str, dictionaries: Sequence[Compared]) -> dict[str, Any]:
    overviews = [_overview(own) for own in dictionaries]
    left_out = OF_LATENTS if all(own["unit"] == "code" for own in overviews) else frozenset[str]()
    return {
        "kind": kind,
        "title": title,
        "headlines": [name for name in HEADLINES if name not in left_out],
        "dictionaries": overviews,
    }


def _overview(own: Compared) -> dict[str, Any]:
    records = own.records
    return {
        "name": own.name,
        "link": own.link,
        "architecture": records.dictionary,
        "hook": records.hook_name,
        "about": dict(own.about),
        "unit": "code" if records.strength == "nearness" else "latent",
        "nTokens": records.n_tokens,
        "nTexts": records.n_texts,
        "outliers": records.outliers and _rounded_values(records.outliers._asdict()),
        "nFirings": [latent.n_firings for latent in records.latents],
        "whenOff": [latent.index for latent in records.latents if latent.when_off],
        "metrics": [
            [
                *(metric.name, _rounded(metric.value), metric.explanation, metric.label),
                metric.source,
            ]
            for metric in list_metrics(own.summary)
        ],
        "training": None if own.training is None else _training(own.training),
        "tests": [section._asdict() for section in list_sections(own.results)],
        "means": list_means(own.results),
    }


def _given_columns(scores: Mapping[str, Sequence[float | None]]) -> Iterator[Column]:
    for name, values in scores.items():
        yield Column(name, {j: x for j, x in enumerate(values) if x is not None}, {})


def _column(column: Column, n_latents: int) -> dict[str, Any]:
    """Values and bounds of all latents, None where there are none."""
    bounds = [column.bounds.get(j) for j in range(n_latents)]
    return {
        "name": column.name,
        "values": _rounded_all([column.values.get(j) for j in range(n_latents)]),
        "bounds": bounds if column.bounds else None,
        "beside": column.beside,
        "about": column.about,
    }


def _training(log: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Bits a token over training; None where the run logged none."""
    name = next((n for n in (_ENTROPY, _PERPLEXITY) if n in log), None)
    if name is None or _STEP not in log:
        return None
    pairs = zip(log[_STEP], log[name], strict=True)
    points = [(n, y) for n, y in pairs if math.isfinite(n) and math.isfinite(y)]
    if name == _PERPLEXITY:
        points = [(n, math.log2(y)) for n, y in points if y > 0]
    stride = max(1, -(-len(points) // _MAX_POINTS))
    # From the end, so that the last point is there.
    kept = points[::-1][::stride][::-1]
    return {
        "points": [[_rounded(n, 7), _rounded(y)] for n, y in kept],
        "isOfCodes": name != _ENTROPY,
    }


def _latent(latent: LatentRecord, table: StringTable, strength: Strength) -> list[Any]:
    """Strongest and random examples, tokens, lemmas, how short their counts are, neighbors, classes,
    the tokens of the highest lift, how strongly it fires, and what it has in the windows of its examples."""
    neighbors = latent.neighbors
    windows = Windows.of(latent, strength)
    return [
        _examples(latent.strongest, table, windows),
        _examples(latent.random, table, windows),
        _counts(latent.top_tokens, table),
        _counts(latent.top_lemmas, table),
        latent.count_error,
        neighbors and [[n.latent, _rounded(n.value), n.n_together] for n in neighbors],
        _rounded_all(latent.class_shares),
        _counts(latent.lift_tokens, table),
        _spread(latent, strength),
        windows and [windows.least, windows.greatest, _rounded(windows.share)],
    ]


def _examples(
    examples: Sequence[Example], table: StringTable, windows: Windows | None
) -> list[list[Any]]:
    """Pack examples, with the margin in place of the strength, where there is one: that is the same for all;
    at the end what the latent has in the window, where that is known."""
    return [
        [
            *(table.packed(e.strings), e.marked),
            *(_rounded(e.strength if e.margin is None else e.margin), e.text, e.position),
            *([windows.packed(e)] if windows is not None else []),
        ]
        for e in examples
    ]


def _spread(latent: LatentRecord, strength: Strength) -> list[Any] | None:
    """How strongly a latent fires: quantiles, the number of the first bin with the counts of all, and levels
    with the counts of theirs, in bits what the level is worth; None where that is not known, or it never fires."""
    counted = latent.levels or latent.histogram
    if counted is None or sum(counted.counts) == 0:
        return None
    if isinstance(counted, Histogram):
        known = _extremes(latent, strength)
        quantiles = [_rounded(counted.quantile(share, *known)) for share in QUANTILES]
        return [quantiles, [counted.first, "".join(map(pack, counted.counts))], None, None]
    quantiles = [_rounded(counted.quantile(share)) for share in QUANTILES]
    values = _rounded_all(counted.values)
    return [quantiles, None, [values, counted.counts], _rounded(counted.entropy)]


def _extremes(latent: LatentRecord, strength: Strength) -> tuple[float | None, float | None]:
    """Least and greatest of what a histogram counts, so far as examples tell: the page shows both, and quantiles
    beyond them would contradict it."""
    shown = [abs(e.strength if e.margin is None else e.margin) for e in latent.strongest]
    are_all, is_code = len(shown) == latent.n_firings, strength == "nearness"
    least = min(shown, default=None) if are_all or is_code else None
    greatest = max(shown, default=None) if are_all or not is_code else None
    return least, greatest


def _counts(counts: Sequence[Count] | None, table: StringTable) -> list[list[Any]] | None:
    return counts and [[table[c.string], c.n, _rounded(c.lift)] for c in counts]  # pyright: ignore[reportReturnType]


def _effects(of: LogitEffects, table: StringTable) -> list[list[list[Any]]]:
    """The tokens that a latent's firing raises most, and those that it lowers most."""
    return [[[table[t.string], _rounded(t.value)] for t in end] for end in (of.top, of.bottom)]


def _sentence(sentence: CodedSentence, table: StringTable) -> list[Any]:
    codes = [[[j, _rounded(value)] for j, value in token] for token in sentence.codes]
    others = sentence.others
    packed = None if others is None else [pack_rising(token) for token in others]
    return [table.packed(sentence.strings), codes, sentence.label, packed]


def _uses(
    records: LatentRecords, sentences: Sequence[CodedSentence], effects: Mapping[int, LogitEffects]
) -> Tally[str]:
    """How often each string is referred to."""
    of_effects = (t.string for of in effects.values() for t in chain(of.top, of.bottom))
    of_sentences = (sentence.strings for sentence in sentences)
    return Tally(chain(_strings(records), of_effects, *of_sentences))


def _strings(records: LatentRecords) -> Iterator[str]:
    for latent in records.latents:
        for example in chain(latent.strongest, latent.random):
            yield from example.strings
        counts = (latent.top_tokens, latent.top_lemmas or (), latent.lift_tokens or ())
        for count in chain(*counts):
            yield count.string


def _check_lengths(
    records: LatentRecords,
    scores: Mapping[str, Sequence[float | None]],
    phrases: Sequence[str | None] | None,
) -> None:
    given = {f"scores[{name!r}]": values for name, values in scores.items()}
    for name, values in (given if phrases is None else {"phrases": phrases, **given}).items():
        if len(values) != len(records):
            raise ValueError(
                f"{name} must have one entry for each of the {len(records)} latents (None where "
                f"there is none); got {len(values)}."
            )


def _check_sentences(records: LatentRecords, sentences: Sequence[CodedSentence]) -> None:
    for i, sentence in enumerate(sentences):
        if len(sentence.codes) != len(sentence.strings):
            raise ValueError(
                f"Sentence {i} must have codes for each of its {len(sentence.strings)} tokens (none "
                f"is an empty tuple); got {len(sentence.codes)}."
            )
        others = sentence.others
        if others is not None and len(others) != len(sentence.strings):
            raise ValueError(
                f"Sentence {i} must have the other codes of each of its {len(sentence.strings)} tokens "
                f"(none is an empty tuple); got {len(others)}."
            )
        latents = [j for token in sentence.codes for j, _ in token]
        latents += [j for token in others or () for j in token]
        if latents and not 0 <= min(latents) <= max(latents) < len(records):
            raise ValueError(
                f"Sentence {i} has codes {min(latents)} to {max(latents)}; those of the examples are "
                f"0 to {len(records) - 1}. Is it of this dictionary?"
            )


def _rounded(value: Any, n_digits: int = 4) -> Any:
    """A number with as many digits as are shown, None where JSON has none; anything else as it is."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{n_digits}g}")
    return int(short) if short.is_integer() else short


def _rounded_all(values: Sequence[float | None] | None) -> list[Any] | None:
    return None if values is None else [_rounded(value) for value in values]


def _rounded_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in values.items()}
