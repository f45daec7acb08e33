"""Tables, and that files of results keep their layout."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bae_lens.concept_ablation import ConceptAblationResult
from bae_lens.examples import LatentRecords
from bae_lens.quiz import QuizKey
from bae_lens.quiz.scores import QuizAnswers
from bae_lens.results import Table
from bae_lens.scoring import ComSemResult, IntruderResult, Ranking, Recoverability
from tests.test_saved import FOLDERS

TABLE = Table(("", "score"), (("a|b", "0.50"), ("longer", "–")), ("Of ten texts.",), "A caveat.")


def test_markdown() -> None:
    assert TABLE.markdown().split("\n") == [
        *("| | score |", "| --- | --- |", "| a\\|b | 0.50 |", "| longer | – |"),
        *("", "Of ten texts.", "", "A caveat."),
    ]
    assert Table(("a",), ()).markdown() == "| a |\n| --- |"


def test_text() -> None:
    assert TABLE.text().split("\n")[:3] == ["        score", "a|b     0.50", "longer  –"]
    assert TABLE.text().endswith("\n\nOf ten texts.\n\nA caveat.")


def test_that_rows_have_as_many_cells_as_the_head() -> None:
    with pytest.raises(ValueError, match="for each of 2 columns; got \\('a',\\)"):
        Table(("", "score"), (("a",),))


# Names and values of 2026-11, and what they are called today.
RENAMED = {
    "background": "corpus_tokens",
    "centre": "center",
    "concept_in_evidence": "concept_in_rationale",
    "evidence_words": "rationale_words",
    "in_evidence": "in_rationale",
    "mended": "balanced",
    "n_background": "n_corpus_tokens",
    "n_neighbours": "n_neighbors",
    "neighbour_measure": "neighbor_measure",
    "neighbours": "neighbors",
    "view": "words and contexts",
}


def with_new_names(content: Any) -> Any:
    """What a file of an older version says, in the names of today."""
    if isinstance(content, dict):
        return {RENAMED.get(n, n): with_new_names(value) for n, value in content.items()}
    if isinstance(content, list):
        return [with_new_names(value) for value in content]
    return RENAMED.get(content, content) if isinstance(content, str) else content


# What came since, of which a file that does not say it means this: it was so.
WAS_SO = {"predicted_by": "probe"}


def without_what_came_since(after: Any, before: Any) -> Any:
    """The content of ``after`` under the names that ``before`` has; others must say nothing, or what was so."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in after.keys() - before.keys():
            assert not after[name] or after[name] == WAS_SO.get(name)
        return {n: without_what_came_since(after[n], before[n]) for n in after if n in before}
    if isinstance(before, list) and isinstance(after, list):
        return [without_what_came_since(a, b) for a, b in zip(after, before, strict=True)]
    return after


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("answers.json", QuizAnswers),
        ("comsem.json", ComSemResult),
        ("concept_ablation.json", ConceptAblationResult),
        ("evidence.json", LatentRecords),
        ("intruder.json", IntruderResult),
        ("quiz.key.json", QuizKey),
        ("ranking.json", Ranking),
        ("recovery.json", Recoverability),
    ],
)
def test_that_what_is_loaded_is_written_as_it_was(folder: Any, name: str, kind: Any) -> None:
    before = with_new_names(json.loads((folder / name).read_text()))
    after = json.loads(json.dumps(kind.load(folder / name).to_dict(), allow_nan=False))
    assert without_what_came_since(after, before) == before
