"""ComSem: does a phrase that was made from a few examples of a latent hold for others?

The score is of the BAE paper (arXiv 2509.20997, §5.1). Its release shows five examples, tests the phrase
on up to eight more, and takes the share of "yes": "word" holds for all of them, and so scores 1. Here
the test has non-activating tokens, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from bae_lens.examples.records import Example, LatentRecords
from bae_lens.scoring import prompts
from bae_lens.scoring.comsem_result import (
    ComSemResult,
    ComSemSettings,
    LatentRun,
    PhrasePair,
    Role,
    Status,
    Votes,
)
from bae_lens.scoring.judges.embedding import Embedder, Encoder
from bae_lens.scoring.judges.judge import Judge, MarkedText, Question, answers_of
from bae_lens.scoring.tested_latents import TestedLatents, draw, one_per_text, some

# Examples of the release: shown, and tested at most.
_SHOWN, _TESTED = 5, 8


def comsem_test(
    records: LatentRecords,
    judge: Judge,
    settings: ComSemSettings | None = None,
    *,
    encoder: Encoder | None = None,
) -> ComSemResult:
    """Phrases for latents, and whether they hold where they were not made.

    Of each latent and seed a judge sees a few examples and gives one phrase or "no pattern". It is
    then asked of single tokens whether the phrase fits: of further examples, and of as many tokens at
    which the latent does not fire, half of them random ones of the corpus and half hard ones, near the
    examples in an encoder. Examples are each from another text, and negatives from none of theirs.
    That is 1 question to explain and up to 2 · ``n_positive`` to test, for each latent and seed, and
    one for each two phrases of a latent that are not the same word for word.

    The ``"released"`` protocol keeps what decides the release's score, and not its prompts, nor how
    it tells which tokens a latent fires at (the ten latents of a token that are farthest from their
    means): those are the examples's, so that two protocols differ in nothing else. It takes the random
    examples, of which there have to be 13 (``ExampleSettings.n_random``) for 8 to be tested.

    Args:
        records: with corpus tokens, see ``ExampleSettings.n_corpus_tokens``.
        judge: who is asked; one that reads, see ``EndpointJudge``.
        settings: see ``ComSemSettings``.
        encoder: finds hard negatives, as ``ModelEncoder.minilm()``; None: all negatives are random.

    Raises:
        LimitReached, JudgeUnavailable: see ``Judge``. With a cache a rerun goes on from there.
        ValueError: if the records have no corpus tokens (balanced), no latent has enough texts, or the
            judge gives more or fewer answers than it was asked questions.
    """
    settings = settings or ComSemSettings()
    is_balanced = settings.protocol == "balanced"
    tested = TestedLatents(
        records, Embedder(encoder) if encoder and is_balanced else None, is_balanced
    )
    enough = tested.with_texts(settings.n_needed)
    if not is_balanced:
        enough = [own.index for own in records.latents if len(own.random) >= settings.n_needed]
    if not enough:
        raise ValueError(
            f"No latent has random examples from {settings.n_needed} texts, which the protocol "
            "needs. Collect examples of more tokens, with a larger n_random, or lower n_shown or "
            "n_min_positive."
        )
    cases = [
        _balanced_case(tested, latent, s, settings)
        if is_balanced
        else _released_case(records, latent)
        for latent in draw(enough, settings.n_latents, settings.seed)
        for s in range(settings.n_runs)
    ]
    runs = _run(cases, judge, settings.seed)
    return ComSemResult(
        dictionary=records.dictionary,
        hook_name=records.hook_name,
        judge=judge.name,
        caveat=judge.caveat,
        settings=settings,
        n_latents=len(records),
        n_firing=tested.n_firing,
        n_enough=len(enough),
        has_hard=tested.embedder is not None,
        runs=runs,
        pairs=_compared(runs, judge, settings) if settings.compare_phrases else (),
        weights_sha256=records.weights_sha256,
    )


class _Case(NamedTuple):
    """What a latent is explained by, and tested on."""

    latent: int
    seed: int
    shown: tuple[Example, ...]
    tested: tuple[tuple[Role, Example], ...]


def _balanced_case(tested: TestedLatents, latent: int, s: int, settings: ComSemSettings) -> _Case:
    rng = np.random.default_rng([settings.seed + s, latent])
    strongest = some(rng, tested.examples(latent, "strongest"), settings.n_shown // 2)
    others = one_per_text(tested.examples(latent), besides=strongest)
    others = some(rng, others, len(others))
    n_random = settings.n_shown - len(strongest)
    explained = some(rng, [*strongest, *others[:n_random]], settings.n_shown)
    positives = others[n_random:][: settings.n_positive]
    non_activating = tested.non_activating(latent, [*explained, *positives])
    n_hard = len(positives) // 2 if tested.embedder is not None else 0
    hard = some(rng, non_activating.hardest(settings.n_hard), n_hard)
    rest = [e for e in non_activating.examples if e not in hard]
    random = some(rng, rest, len(positives) - len(hard))
    kinds: tuple[tuple[Role, Sequence[Example]], ...] = (
        ("positive", positives),
        ("random", random),
        ("hard", hard),
    )
    cases: tuple[tuple[Role, Example], ...] = tuple((r, e) for r, own in kinds for e in own)
    return _Case(latent, s, tuple(explained), cases)


def _released_case(records: LatentRecords, latent: int) -> _Case:
    examples = sorted(records[latent].random, key=lambda e: (e.text, e.position))
    tested = examples[_SHOWN : _SHOWN + _TESTED]
    return _Case(latent, 0, tuple(examples[:_SHOWN]), tuple(("positive", e) for e in tested))


def _run(cases: Sequence[_Case], judge: Judge, seed: int) -> tuple[LatentRun, ...]:
    explaining = [
        prompts.explain([MarkedText.of(e) for e in case.shown], seed + case.seed) for case in cases
    ]
    phrases = answers_of(judge, explaining)
    testing = [
        _tests(case, phrase, seed) if _status(phrase) == "explained" else []
        for case, phrase in zip(cases, phrases, strict=True)
    ]
    answers = iter(answers_of(judge, [question for own in testing for question in own]))
    return tuple(
        _scored(case, phrase, [next(answers) for _ in own])
        for case, phrase, own in zip(cases, phrases, testing, strict=True)
    )


def _status(phrase: str | None) -> Status:
    if phrase is None:
        return "no answer"
    bare = phrase.strip(" .!\"'").casefold()
    return "no pattern" if bare == prompts.NO_PATTERN else "explained"


def _tests(case: _Case, phrase: str | None, seed: int) -> list[Question]:
    return [prompts.match(phrase or "", MarkedText.of(e), seed + case.seed) for _, e in case.tested]


def _scored(case: _Case, phrase: str | None, answers: Sequence[str | None]) -> LatentRun:
    status = _status(phrase)
    if status != "explained":
        return LatentRun(case.latent, case.seed, status)

    def votes(role: Role) -> Votes:
        own = [a for (r, _), a in zip(case.tested, answers, strict=True) if r == role]
        return Votes(own.count(prompts.YES), own.count(prompts.NO), own.count(None))

    return LatentRun(
        case.latent, case.seed, status, phrase, votes("positive"), votes("random"), votes("hard")
    )


def _compared(
    runs: Sequence[LatentRun], judge: Judge, settings: ComSemSettings
) -> tuple[PhrasePair, ...]:
    by_latent: dict[int, list[LatentRun]] = defaultdict(list)
    for run in runs:
        if run.status == "explained":
            by_latent[run.latent].append(run)
    pairs = [pair for own in by_latent.values() for pair in combinations(own, 2)]
    differ = [(a, b) for a, b in pairs if not _is_alike(a, b)]
    questions = [prompts.same(a.phrase or "", b.phrase or "", settings.seed) for a, b in differ]
    answers = iter(answers_of(judge, questions))
    found = [prompts.YES if _is_alike(a, b) else next(answers) for a, b in pairs]
    return tuple(
        PhrasePair(a.latent, (a.seed, b.seed), None if answer is None else answer == prompts.YES)
        for (a, b), answer in zip(pairs, found, strict=True)
    )


def _is_alike(one: LatentRun, other: LatentRun) -> bool:
    """Word for word, which needs no judge."""
    return (one.phrase or "").casefold() == (other.phrase or "").casefold()
