"""Quizzes answered by readers who follow rules."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bae_lens.quiz.questions import QuizKey, QuizSettings, write_quiz
from bae_lens.quiz.scores import QuizAnswer, QuizAnswers, QuizResult, score_quiz
from bae_lens.stats import Interval
from tests.helpers import known
from tests.quiz.quizzes import (
    EVIDENCE,
    N_TEXTS,
    RECOVERIES,
    answered,
    known_mean,
    shown_class,
)


@pytest.fixture
def key(tmp_path: Path) -> QuizKey:
    return write_quiz(
        tmp_path / "quiz.html", RECOVERIES, EVIDENCE, QuizSettings(n_texts=8, n_controls=4)
    )


def test_who_reads_what_is_shown_is_right_but_in_controls(key):
    result = score_quiz(key, [answered(key, shown_class)])

    assert result.accuracy("sharp one") == (1, 1, 1)
    assert result.accuracy("sharp one", control=True) == (0, 0, 0)
    assert result.tally("sharp one") == (8, 0, 0, 0)
    assert result.tally("sharp one", control=True) == (0, 4, 0, 0)
    # All of its latents look alike to that reader.
    assert known_mean(result.accuracy("blunt one")) == 0.5
    assert result.chance == 0.5


def test_cannot_tell_is_worth_a_guess_and_what_is_unanswered_nothing(key):
    result = score_quiz(key, [answered(key, lambda item: -1)])
    assert result.accuracy("sharp one") == (0.5, 0.5, 0.5)
    assert result.tally("sharp one") == (0, 0, 8, 0)

    rule = lambda item: shown_class(item) if shown_class(item) else None  # noqa: E731
    result = score_quiz(key, [answered(key, rule)])
    assert result.accuracy("sharp one") == (1, 1, 1)
    assert result.tally("sharp one") == (4, 0, 0, 4)

    result = score_quiz(key, [answered(key, lambda item: None)])
    assert result.accuracy("sharp one") is None
    assert result.median_seconds() is None
    assert result.tally("sharp one") == (0, 0, 0, 8)
    assert "| sharp one | anna | – | – | 0 | 0 | 0 | 8 |" in result.table()


def test_classes_weigh_the_same(tmp_path):
    """Whoever always says the same is at chance, however many texts of it there are."""
    predictions = (1, 1, 1, *(0,) * (N_TEXTS - 3))
    own = {"one": replace(RECOVERIES["sharp one"], predictions=predictions)}
    key = write_quiz(tmp_path / "quiz.html", own, {"one": EVIDENCE["sharp one"]})
    result = score_quiz(key, [answered(key, lambda item: 0)])
    assert result.tally("one") == (9, 3, 0, 0)
    assert result.accuracy("one") == (0.5, 0.5, 0.5)


def test_of_a_text_that_several_answered_their_mean_counts(key):
    half = [answered(key, shown_class), answered(key, lambda item: 1 - shown_class(item), "ben")]
    result = score_quiz(key, half)
    assert result.accuracy("sharp one") == (0.5, 0.5, 0.5)
    only = replace(half[1], answers=())
    assert score_quiz(key, [half[0], only]).accuracy("sharp one") == (1, 1, 1)


def test_the_interval_holds_the_score(key):
    wrong = next(item.question for item in key.items if item.dictionary == 0)
    own = answered(key, lambda i: 1 - shown_class(i) if i.question == wrong else shown_class(i))
    interval = score_quiz(key, [own]).accuracy("sharp one")
    assert interval is not None
    assert interval.mean == 1 - 1 / 8
    assert 0.5 <= interval.low < interval.mean < interval.high == 1


def test_several_readers_by_themselves_and_together(key):
    readers = [answered(key, shown_class), answered(key, lambda item: 1 - shown_class(item), "ben")]
    result = score_quiz(key, readers)

    assert result.readers == ("anna", "ben")
    assert known_mean(result.accuracy("sharp one")) == 0.5
    assert known_mean(result.accuracy("sharp one", "anna")) == 1
    assert known_mean(result.accuracy("sharp one", "ben")) == 0
    assert result.tally("sharp one") == (8, 8, 0, 0)
    lines = result.table().splitlines()
    assert [line.split(" | ")[1] for line in lines[2:8]] == ["all", "anna", "ben"] * 2
    with pytest.raises(ValueError, match="no reader 'carl'; there are anna, ben"):
        result.accuracy("sharp one", "carl")
    with pytest.raises(ValueError, match="no dictionary 'x'"):
        result.tally("x")


def test_agreement_of_readers(key, monkeypatch):
    one = answered(key, shown_class)
    assert score_quiz(key, [one]).alpha() is None
    two = score_quiz(key, [one, replace(one, reader="ben", answers=one.answers[::-1])])
    monkeypatch.setitem(sys.modules, "krippendorff", None)
    assert "[interp]" in two.table()
    monkeypatch.undo()
    pytest.importorskip("krippendorff")
    assert known(two.alpha()) == pytest.approx(1)
    assert "alpha of the readers: 1.00" in two.table()
    other = answered(key, lambda item: 1 - shown_class(item), "ben")
    assert known(score_quiz(key, [one, other]).alpha()) < 0


def test_median_seconds(key):
    answers = [QuizAnswer(q, 0, s) for q, s in enumerate((1.0, 2.0, 30.0))]
    one = QuizAnswers(key.quiz, "anna", tuple(answers))
    two = QuizAnswers(key.quiz, "ben", (QuizAnswer(0, 1, 4.0),))
    result = score_quiz(key, [one, two])
    assert result.median_seconds() == 3
    assert (result.median_seconds("anna"), result.median_seconds("ben")) == (2, 4)
    assert "Median seconds a question: anna 2.0, ben 4.0." in result.table()


def test_readers_of_one_name_get_numbers_and_a_copy_is_refused(key):
    one, other = answered(key, shown_class), answered(key, shown_class, seconds=3.0)
    assert score_quiz(key, [one, other]).readers == ("anna", "anna (2)")
    with pytest.raises(ValueError, match="given twice"):
        score_quiz(key, [one, other, replace(one, reader="somebody else")])
    with pytest.raises(ValueError, match="no answers"):
        score_quiz(key, [])


def test_answers_that_do_not_fit_the_key_are_refused(key):
    own = answered(key, shown_class)
    with pytest.raises(ValueError, match=r"'anna' are of another quiz \(00000000"):
        score_quiz(key, [replace(own, quiz="0" * 64)])
    for question in (-1, key.n_questions):
        with pytest.raises(ValueError, match=f"answered question {question}; .* 0 to "):
            score_quiz(key, [replace(own, answers=(QuizAnswer(question, 0, 1.0),))])
    for choice in (-2, 2):
        with pytest.raises(ValueError, match=f"chose {choice} in question 0; .* 0 to 1, and -1"):
            score_quiz(key, [replace(own, answers=(QuizAnswer(0, choice, 1.0),))])


# Files


def saved(answer: Any = None, **changes: Any) -> Any:
    own = {"question": 0, "choice": 1, "seconds": 1.5} | (answer or {})
    return {"quiz": "a", "reader": "", "answers": [own]} | changes


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "\x00",
        "9" * 5000,
        *map(
            json.dumps,
            [
                saved(quiz=3),
                saved(reader=None),
                saved(answers={}),
                saved(answers=[3]),
                saved(answers=[{"question": 0}]),
                saved(answers=saved()["answers"] * 2),
                saved({"question": "0"}),
                saved({"question": True}),
                saved({"choice": None}),
                saved({"choice": 0.5}),
                saved({"seconds": "1"}),
                saved({"seconds": -1}),
                saved({"seconds": float("nan")}),
                saved({"seconds": float("inf")}),
                saved({"seconds": 10**400}),
            ],
        ),
        "[" * 100_000,
        "\xff\xfe",
    ],
)
def test_malformed_answers_are_refused(tmp_path, content):
    path = tmp_path / "answers.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"answers\.json is no file of answers that a quiz saved"):
        QuizAnswers.load(path)


def test_a_reader_without_a_name_is_called_as_the_file_and_no_name_breaks_the_table(tmp_path, key):
    def load(reader: str) -> QuizAnswers:
        path = tmp_path / "carla.json"
        path.write_text(json.dumps(saved(quiz=key.quiz, reader=reader)))
        return QuizAnswers.load(path)

    assert load(" \n\u202e\ud800").reader == "carla"
    own = load("a | b\n| c\u202e" + "x" * 100)
    assert own.reader.startswith("a | b | c x") or own.reader.startswith("a | b | cx")
    assert len(own.reader) <= 60
    table = score_quiz(key, [own]).table()
    assert "| a \\| b \\| c" in table
    assert len({line.replace("\\|", "").count("|") for line in table.splitlines()[:4]}) == 1


def test_json_and_back(tmp_path, key):
    result = score_quiz(key, [answered(key, shown_class), answered(key, lambda _: -1, "ben")])
    result.save(tmp_path / "r.json")
    assert QuizResult.load(tmp_path / "r.json") == result
    values = json.loads((tmp_path / "r.json").read_text())
    row = values["scores"][1]
    assert (row["dictionary"], row["reader"]) == ("sharp one", "anna")
    assert row["accuracy"] == [1, 1, 1]
    assert row["tally"]["n_right"] == 8


def test_one_answer_has_no_interval(tmp_path, key):
    first = next(item.question for item in key.items if item.dictionary == 0)
    rule = lambda item: shown_class(item) if item.question == first else None  # noqa: E731
    result = score_quiz(key, [answered(key, rule)])
    interval = result.accuracy("sharp one")
    assert interval == Interval.of_one(1.0)
    assert "| sharp one | anna | 1.000 |" in result.table()
    result.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["scores"][0]["accuracy"] == [1, None, None]
    assert QuizResult.load(tmp_path / "r.json") == result
