"""What tests of latents found: their numbers as columns, tables and phrases of a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bae_lens.examples.records import LatentRecords
from bae_lens.results import Table
from bae_lens.scoring.comsem_result import ComSemResult, LatentRun, protocol_distance
from bae_lens.scoring.intruder_result import KINDS, IntruderResult
from bae_lens.scoring.probing_result import LATENTS, RANDOM, WHOLE, SparseProbingResult
from bae_lens.stats import Interval, shown

Result = IntruderResult | ComSemResult | SparseProbingResult

_INTRUDER = {"random": "intruder score", "hard": "hard-intruder score"}
_PURITY = "token purity"
_COMSEM = {"balanced": "ComSem score", "released": "ComSem score, released"}
_APART = "How far the protocols are apart"
_PROBING, _BY_CLASS = "sparse probing", "Sparse probing, by class"
_ABOUT = {
    "intruder test": "A judge sees tokens at which a latent fires and one at which it does not, the "
    "intruder, each in its context, and says which is the intruder. Accuracy: how often it is right. "
    "Shuffled latents: the same, but with examples of many latents mixed.",
    "ComSem, balanced": "A judge puts a few examples of a latent into one phrase, or says that there is "
    "no pattern. By the phrase alone, it then tells other tokens at which the latent fires from as many "
    "at which it does not. Score: balanced accuracy.",
    "ComSem, released": "As the BAE paper's release has it: a judge puts a few examples into a phrase, "
    "and says of other tokens at which the latent fires whether the phrase fits. Non-activating "
    "tokens are left out, so a phrase that fits everything scores 1.",
    _APART: "Both protocols' scores of the same latents.",
    _PROBING: "Of labeled texts, the mean activations of k latents, those that differ most between a class "
    "and the others, tell the class of held-out texts by a logistic regression. Beside them: as many "
    "random latents, latents chosen for shuffled labels, and k numbers of the activation itself.",
    _BY_CLASS: "Which latents tell each class from the others, and how well.",
    _INTRUDER["random"]: "How often a judge picks out the one token, drawn at random, at which the "
    "latent does not fire, among those at which it fires.",
    _INTRUDER[
        "hard"
    ]: "The same with the non-activating tokens that are most similar to the examples.",
    _PURITY: "Share of the most frequent token among its random examples. At 1 a latent may say no more "
    "than which token it is.",
    _COMSEM["balanced"]: "How well its phrases tell tokens at which it fires from others: balanced "
    "accuracy, a mean over runs.",
    _COMSEM[
        "released"
    ]: "Share of tokens at which it fires that its phrase fits; no others are tested.",
}


class Column(NamedTuple):
    """A number of each latent that has one.

    Attributes:
        name: of the column.
        values: by latent.
        bounds: of their 95 % intervals; empty where there are none.
        beside: what a value is to be read beside.
        about: what it is, in a sentence.
    """

    name: str
    values: Mapping[int, float]
    bounds: Mapping[int, tuple[float, float]]
    beside: str = ""
    about: str = ""


class Section(NamedTuple):
    """A test as a whole.

    Attributes:
        title: of the test.
        about: what is asked in it, and what its score is.
        head: of its table; empty: it has none but the title.
        rows: of its table, as many cells each.
        notes: below it, a paragraph each.
        caveat: what the judge can and cannot say.
    """

    title: str
    about: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]
    caveat: str = ""


class Mean(NamedTuple):
    """A number of a dictionary, to be compared with those of others.

    Attributes:
        name: what it is.
        value: as text.
        beside: what it is to be read beside, as text; empty: nothing.
        about: what it is, in a sentence; empty: its name says it.
    """

    name: str
    value: str
    beside: str = ""
    about: str = ""


class Said(NamedTuple):
    """What a judge said of a latent, one time of several.

    Attributes:
        run: which time.
        status: see ``LatentRun``.
        phrase: None where there is none.
        score: by the protocol, None without one.
    """

    run: str
    status: str
    phrase: str | None
    score: float | None


def check_results(records: LatentRecords, results: Sequence[Result]) -> None:
    """
    Raises:
        ValueError: if a result is of another dictionary than the examples, or of other weights where both say of which,
            or two are of the same test.
    """
    own = (records.dictionary, records.hook_name, len(records))
    for result in results:
        of = (result.dictionary, result.hook_name, result.n_latents)
        if of != own:
            raise ValueError(
                f"The result of the {_title(result)} is of {_named(*of)}; the examples are of "
                f"{_named(*own)}. Give results of this dictionary."
            )
        hashes = {result.weights_sha256, records.weights_sha256} - {None}
        if len(hashes) > 1:
            raise ValueError(
                f"The result of the {_title(result)} is of other weights ({result.weights_sha256}) than the examples "
                f"({records.weights_sha256}): the dictionary may have been trained anew. Run the test again."
            )
    titles = list(map(_title, results))
    if len(set(titles)) < len(titles):
        raise ValueError(f"Give one result of each test and protocol; got {', '.join(titles)}.")


def list_columns(results: Sequence[Result]) -> list[Column]:
    """Scores of latents."""
    return [column for result in results for column in _columns(result)]


def list_sections(results: Sequence[Result]) -> list[Section]:
    """The results' own tables; of two protocols also how far they are apart."""
    found = []
    for result in results:
        found.append(_section(_title(result), result.to_table(), _about(result)))
        if isinstance(result, SparseProbingResult):
            found.append(_section(_BY_CLASS, result.class_table(), _ABOUT[_BY_CLASS]))
    comsem = _comsem(results)
    if len(comsem) == 2:
        distance = protocol_distance(comsem["balanced"], comsem["released"])
        found.append(_section(_APART, distance.to_table(), _ABOUT[_APART]))
    return found


def list_means(results: Sequence[Result]) -> list[Mean]:
    """What a comparison shows of them."""
    return [mean for result in results for mean in _means(result)]


def list_said(results: Sequence[Result]) -> dict[int, list[Said]]:
    """What judges said of each latent that they were asked about."""
    found: dict[int, list[Said]] = defaultdict(list)
    for protocol, result in _comsem(results).items():
        for run in result.runs:
            name = f"{protocol}, {run.seed + 1}" if protocol == "balanced" else protocol
            found[run.latent].append(Said(name, run.status, run.phrase, result.score_of(run)))
    return dict(found)


def best_phrases(results: Sequence[Result], n_latents: int) -> list[str | None] | None:
    """Choose for each latent the phrase that held best, of equal ones the first; None without ComSem.

    The best of several is better than it would be elsewhere: a latent's score is the mean over them.
    """
    comsem = _comsem(results)
    if not comsem:
        return None
    result = comsem.get("balanced") or comsem["released"]
    best: dict[int, LatentRun] = {}
    for run in result.runs:
        if run.phrase is not None:
            best[run.latent] = max(best.get(run.latent, run), run, key=lambda r: _worth(result, r))
    return [best[j].phrase if j in best else None for j in range(n_latents)]


def _worth(result: ComSemResult, run: LatentRun) -> float:
    score = result.score_of(run)
    return -1.0 if score is None else score


def _comsem(results: Sequence[Result]) -> dict[str, ComSemResult]:
    """The ComSem results by protocol."""
    return {r.settings.protocol: r for r in results if isinstance(r, ComSemResult)}


def _title(result: Result) -> str:
    if isinstance(result, SparseProbingResult):
        return f"{_PROBING}, {result.data}" if result.data else _PROBING
    is_intruder = isinstance(result, IntruderResult)
    return "intruder test" if is_intruder else f"ComSem, {result.settings.protocol}"


def _about(result: Result) -> str:
    return _ABOUT[_PROBING if isinstance(result, SparseProbingResult) else _title(result)]


def _named(dictionary: str, hook_name: str, n_latents: int) -> str:
    return f"{n_latents} latents of {dictionary} at {hook_name}"


def _columns(result: Result) -> Iterator[Column]:
    if isinstance(result, SparseProbingResult):
        return  # What it says is of classes.
    if isinstance(result, ComSemResult):
        yield _column(_comsem_name(result), result.scores(), {}, _nothing(result))
        return
    for kind in KINDS:
        found = {own.latent: own.accuracy(kind) for own in result.latents}
        known = {j: interval for j, interval in found.items() if interval is not None}
        if known:
            guessing = f"; guessing: {result.chance:.2f}" if kind == "random" else ""
            beside = f"{_shuffled(_mean(result.accuracy(kind, control=True)))}{guessing}"
            values = {j: interval.mean for j, interval in known.items()}
            bounds = {j: (round(low, 3), round(high, 3)) for j, (_, low, high) in known.items()}
            yield _column(_INTRUDER[kind], values, bounds, beside)
    values = {own.latent: own.purity for own in result.latents}
    yield _column(_PURITY, values, {}, _shuffled(_mean(result.purity(control=True))))


def _column(
    name: str,
    values: Mapping[int, float],
    bounds: Mapping[int, tuple[float, float]],
    beside: str,
) -> Column:
    return Column(name, _rounded(values), bounds, beside, _ABOUT[name])


def _means(result: Result) -> Iterator[Mean]:
    for mean in _values(result):
        yield mean._replace(about=mean.about or _ABOUT.get(mean.name, ""))


def _values(result: Result) -> Iterator[Mean]:
    if isinstance(result, SparseProbingResult):
        for k in result.settings.k:
            controls = (
                (RANDOM, shown(result.accuracy(RANDOM, k), 2)),
                (WHOLE, shown(result.accuracy(WHOLE, None), 2)),
            )
            beside = "; ".join(f"{name}: {value}" for name, value in controls)
            value = shown(result.accuracy(LATENTS, k), 2)
            yield Mean(f"{_title(result)}, k = {k}", value, beside, _ABOUT[_PROBING])
        return
    n = f"{len(result.latents):,} of {result.n_latents:,}"
    n_open = result.n_unanswered
    still_open = f"; {n_open:,} questions are open" if n_open else ""
    yield Mean(f"{_title(result)}: latents tested", n, f"judge: {result.judge}{still_open}")
    if isinstance(result, ComSemResult):
        yield Mean(_comsem_name(result), shown(result.score(), 2), _nothing(result))
        yield Mean(f"explained, {result.settings.protocol}", shown(result.explained, 2))
        return
    for kind in KINDS:
        own, other = result.accuracy(kind), result.accuracy(kind, control=True)
        if own is not None:
            yield Mean(_INTRUDER[kind], shown(own, 2), _shuffled(other))
    yield Mean(_PURITY, shown(result.purity(), 2), _shuffled(result.purity(control=True)))


def _rounded(shares: Mapping[int, float]) -> dict[int, float]:
    return {j: round(share, 3) for j, share in shares.items()}


def _comsem_name(result: ComSemResult) -> str:
    return _COMSEM[result.settings.protocol]


def _nothing(result: ComSemResult) -> str:
    guessing = "guessing, or " if result.settings.protocol == "balanced" else ""
    return f"{guessing}no pattern: {result.settings.nothing:g}"


def _shuffled(control: Interval | float | None) -> str:
    return f"shuffled latents: {shown(control, 2)}"


def _mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _section(title: str, table: Table, about: str) -> Section:
    """A result's table under its title; a head that only says the title again is left out."""
    title = title[:1].upper() + title[1:]
    head = [] if table.head[0] == title else list(table.head)
    return Section(title, about, head, [*map(list, table.rows)], [*table.notes], table.caveat)
