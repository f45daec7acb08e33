"""Intruder test: can the token at which a latent does not fire be told from those at which it fires?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bae_lens.examples.records import Example, LatentRecords
from bae_lens.scoring.intruder_result import (
    KINDS,
    IntruderKind,
    IntruderResult,
    IntruderSettings,
    LatentTrials,
    Tally,
)
from bae_lens.scoring.judges.embedding import Embedder, EmbeddingJudge, Encoder
from bae_lens.scoring.judges.judge import Judge, MarkedText, Question, answers_of
from bae_lens.scoring.prompts import intruder as intruder_question
from bae_lens.scoring.tested_latents import TestedLatents, draw, n_texts, one_per_text, purity, some

if TYPE_CHECKING:
    pass

# Latents, or controls, that are asked about at once, so that a judge can take questions side by side; of
# all latents of a large dictionary they would be gigabytes.
_CASES_AT_ONCE = 64


def intruder_test(
    records: LatentRecords,
    judge: Judge | None = None,
    settings: IntruderSettings | None = None,
    *,
    encoder: Encoder | None = None,
) -> IntruderResult:
    """How often a judge finds the one token at which a latent does not fire among those where it does.

    A trial shows random examples of a latent, each from another text, and one token drawn at random
    from the corpus, at which the latent does not fire, from yet another text. So a judge cannot go by
    texts, and what it tells is not "some other latent" but "not this one". Which latents, examples and
    intruders are drawn depends on the seed and the latent only.

    Neither paper has such a test; it stands in for judges that name concepts, and needs no network.

    Args:
        records: with corpus tokens, see ``ExampleSettings.n_corpus_tokens``.
        judge: who is asked; None: the offline ``EmbeddingJudge`` with the encoder, or MiniLM.
        settings: see ``IntruderSettings``.
        encoder: finds hard intruders; None: the offline judge's own, and with any other judge there
            are no hard ones.

    Raises:
        ImportError: if MiniLM is needed and missing.
        LimitReached, JudgeUnavailable: see ``Judge``.
        ValueError: if the records have no corpus tokens, no latent has enough texts, or the judge gives
            more or fewer answers than it was asked questions.
    """
    settings = settings or IntruderSettings()
    tested = TestedLatents(records)  # Before an encoder is loaded.
    judge = EmbeddingJudge(encoder) if judge is None else judge
    tested = TestedLatents(records, _embedder(judge, encoder))
    enough = tested.with_texts(settings.n_shown - 1)
    if not enough:
        raise ValueError(
            f"No latent has random examples from {settings.n_shown - 1} texts, which a trial shows. "
            "Collect examples of more tokens, or lower n_shown."
        )
    chosen = draw(enough, settings.n_latents, settings.seed)
    cases = [_Case(latent, latent, tested.examples(latent)) for latent in chosen]
    cases += [_shuffled(case, tested, enough, settings.seed) for case in cases]
    found: list[LatentTrials] = []
    for begin in range(0, len(cases), _CASES_AT_ONCE):
        part = cases[begin : begin + _CASES_AT_ONCE]
        trials = [_trials(case, tested, settings) for case in part]
        answers = iter(answers_of(judge, [trial.question for own in trials for trial in own]))
        found += [
            _counted(case, [(trial, next(answers)) for trial in own], settings)
            for case, own in zip(part, trials, strict=True)
        ]
    return IntruderResult(
        dictionary=records.dictionary,
        hook_name=records.hook_name,
        judge=judge.name,
        caveat=judge.caveat,
        settings=settings,
        n_latents=len(records),
        n_firing=tested.n_firing,
        n_enough=len(enough),
        latents=tuple(found[: len(chosen)]),
        control=tuple(found[len(chosen) :]),
        weights_sha256=records.weights_sha256,
    )


@dataclass(frozen=True, eq=False)
class _Case:
    """A latent, or a control (``non_activating_of`` is None), and its examples."""

    latent: int
    non_activating_of: int | None
    examples: tuple[Example, ...]


class _Trial(NamedTuple):
    kind: IntruderKind
    seed: int
    question: Question
    right: str


def _embedder(judge: Judge, encoder: Encoder | None) -> Embedder | None:
    if encoder is None:
        return judge.embedder if isinstance(judge, EmbeddingJudge) else None
    own = judge.embedder if isinstance(judge, EmbeddingJudge) else None
    return own if own is not None and own.encoder is encoder else Embedder(encoder)


def _shuffled(case: _Case, tested: TestedLatents, enough: Sequence[int], seed: int) -> _Case:
    """Draw as many examples as a case has, each of another latent while there are any, and of another text."""
    rng = np.random.default_rng([seed, case.latent, 1])
    found: list[Example] = []
    while len(found) < len(case.examples):
        before = len(found)
        for latent in rng.permutation(enough):
            found += some(rng, tested.examples(int(latent)), 1)
            found = list(one_per_text(found))
            if len(found) == len(case.examples):
                break
        if len(found) == before:  # Fewer texts than that, in all latents together.
            break
    return _Case(case.latent, None, tuple(found))


def _trials(case: _Case, tested: TestedLatents, settings: IntruderSettings) -> list[_Trial]:
    non_activating = tested.non_activating(case.non_activating_of, case.examples)
    pools = {"random": non_activating.examples, "hard": non_activating.hardest(settings.n_hard)}
    trials = []
    for s in range(settings.n_seeds):
        is_control = int(case.non_activating_of is None)
        rng = np.random.default_rng([settings.seed + s, case.latent, is_control, 2])
        for kind in KINDS:
            n = (
                settings.n_trials
                if pools[kind] and len(case.examples) >= settings.n_shown - 1
                else 0
            )
            trials += [_trial(case.examples, kind, s, pools[kind], rng, settings) for _ in range(n)]
    return trials


def _trial(
    positives: Sequence[Example],
    kind: IntruderKind,
    s: int,
    pool: Sequence[Example],
    rng: np.random.Generator,
    settings: IntruderSettings,
) -> _Trial:
    examples = some(rng, positives, settings.n_shown - 1)
    place = int(rng.integers(settings.n_shown))
    examples.insert(place, pool[int(rng.integers(len(pool)))])
    question = intruder_question([MarkedText.of(e) for e in examples], settings.seed + s)
    return _Trial(kind, s, question, question.choices[place])


def _counted(
    case: _Case, answered: Sequence[tuple[_Trial, str | None]], settings: IntruderSettings
) -> LatentTrials:
    def tally(kind: IntruderKind, s: int) -> Tally:
        own = [(t.right, a) for t, a in answered if (t.kind, t.seed) == (kind, s)]
        n_none = sum(a is None for _, a in own)
        n_right = sum(a == right for right, a in own)
        return Tally(n_right, len(own) - n_none - n_right, n_none)

    return LatentTrials(
        latent=case.latent,
        n_texts=n_texts(case.examples),
        purity=purity(case.examples),
        random=tuple(tally("random", s) for s in range(settings.n_seeds)),
        hard=tuple(tally("hard", s) for s in range(settings.n_seeds)),
    )
