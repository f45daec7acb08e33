"""Results whose counts and numbers do not fit together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bae_lens.concept_ablation import ConceptAblationResult
from bae_lens.examples import LatentRecords
from bae_lens.quiz import QuizKey, QuizResult
from bae_lens.quiz.questions import write_quiz
from bae_lens.quiz.scores import score_quiz
from bae_lens.scoring import ComSemResult, IntruderResult, Ranking, Recoverability
from bae_lens.scoring.ranking import rank_dictionaries
from tests.concept_ablation.test_result import make_result
from tests.quiz.quizzes import EVIDENCE, RECOVERIES, answered, shown_class
from tests.report.helpers import make_comsem, make_intruder, make_records, with_windows
from tests.scoring.test_ranking import SETTINGS, THREE, Named, fair
from tests.scoring.test_recoverability_result import make_recoverability

SEEN = with_windows(make_records(6, n_examples=3))
HUGE = 2**53


def quiz(folder: Path) -> QuizResult:
    key = write_quiz(folder / "quiz.html", RECOVERIES, EVIDENCE)
    return score_quiz(key, [answered(key, shown_class, name, i) for i, name in enumerate("ab")])


GOOD = {
    LatentRecords: lambda folder: SEEN,
    IntruderResult: lambda folder: make_intruder(SEEN, 3),
    ComSemResult: lambda folder: make_comsem(SEEN, 3),
    ConceptAblationResult: lambda folder: make_result(),
    Recoverability: lambda folder: make_recoverability(),
    Ranking: lambda folder: rank_dictionaries(THREE, Named("x", fair), SETTINGS),
    QuizKey: lambda folder: quiz(folder).key,
    QuizResult: quiz,
}
CHANGES: list[tuple[Any, str, Any]] = [
    (LatentRecords, "n_tokens", -1),
    (LatentRecords, "class_shares", [0.5]),
    (LatentRecords, "latents 0 index", 1),
    (LatentRecords, "latents 0 strongest 0 marked", HUGE),
    (LatentRecords, "latents 0 random 0 marked", -1),
    (LatentRecords, "latents 0 strongest 0 activations", [1.0]),
    (LatentRecords, "latents 0 histogram first", HUGE),
    (LatentRecords, "latents 0 histogram counts", [-1]),
    (LatentRecords, "latents 0 levels", {"values": [1.0, 2.0], "counts": [1]}),
    (LatentRecords, "latents 0 neighbors 0 latent", 6),
    (LatentRecords, "latents 0 class_shares", [1.0, 0.0, 0.0]),
    (LatentRecords, "corpus_tokens", [{"example": None, "latents": [HUGE]}]),
    (IntruderResult, "n_latents", 1),
    (IntruderResult, "control", []),
    (IntruderResult, "latents 0 latent", -1),
    (IntruderResult, "latents 0 random", []),
    (IntruderResult, "latents 0 random 0", [-1, 2, 0]),
    (IntruderResult, "settings n_seeds", HUGE),
    (ComSemResult, "n_firing", -1),
    (ComSemResult, "runs 0 latent", HUGE),
    (ComSemResult, "runs 0 seed", 1),
    (ComSemResult, "runs 0 positive", [-1, 2, 0]),
    (ComSemResult, "settings n_seeds", HUGE),
    (ComSemResult, "pairs", [[5, [0, 1], True]]),
    (ConceptAblationResult, "labels 0", HUGE),
    (ConceptAblationResult, "labels 0", -1),
    (ConceptAblationResult, "labels", []),
    (ConceptAblationResult, "concept_ids", [[1]]),
    (ConceptAblationResult, "rows 1 correct", "01"),
    (ConceptAblationResult, "rows 0 method", "other"),
    (ConceptAblationResult, "rows 0 concept_of", "word"),
    (ConceptAblationResult, "rows 1 place", "nowhere"),
    (Recoverability, "predictions 0", HUGE),
    (Recoverability, "predictions", []),
    (Recoverability, "concepts", [1]),
    (Recoverability, "concepts 0", -2),
    (Recoverability, "said text", [0]),
    (Recoverability, "said text 0", 2),
    (Ranking, "names 0", "clear one"),
    (Ranking, "caveats", []),
    (Ranking, "comparisons 0", [1, [0, 1], [0, 0], [1, 1]]),
    (Ranking, "comparisons 0", [0, [0, 3], [0, 0], [1, 1]]),
    (Ranking, "comparisons 0", [0, [0, 1], [0, 0], [1, 2]]),
    (QuizKey, "n_questions", HUGE),
    (QuizKey, "n_questions", 0),
    (QuizKey, "items 0 question", HUGE),
    (QuizKey, "items 0 dictionary", 2),
    (QuizKey, "items 0 predicted", 2),
    (QuizKey, "dictionaries 0", "blunt one"),
    (QuizResult, "key n_questions", HUGE),
    (QuizResult, "answers 0 answers 0 question", HUGE),
    (QuizResult, "answers 0 answers 0 choice", 2),
    (QuizResult, "answers 1 reader", "a"),
]


@pytest.mark.parametrize("kind", GOOD)
def test_that_a_good_one_is_loaded(kind: Any, tmp_path: Path) -> None:
    result = GOOD[kind](tmp_path)
    result.save(tmp_path / "x.json")
    assert kind.load(tmp_path / "x.json") == result


@pytest.mark.parametrize(("kind", "where", "value"), CHANGES)
def test_that_parts_that_do_not_fit_are_refused(
    kind: Any, where: str, value: Any, tmp_path: Path
) -> None:
    """At once, and before anything is allocated for them."""
    GOOD[kind](tmp_path).save(tmp_path / "x.json")
    values = json.loads((tmp_path / "x.json").read_text())
    *names, last = [int(name) if name.isdecimal() else name for name in where.split()]
    place = values
    for name in names:
        place = place[name]
    place[last] = value
    if last == "corpus_tokens":
        value[0]["example"] = values["latents"][0]["random"][0]
    (tmp_path / "x.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"x\.json is no .*(must|is of|answered|chose|positive)"):
        kind.load(tmp_path / "x.json")
