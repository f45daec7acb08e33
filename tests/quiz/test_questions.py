"""Quizzes of planted dictionaries: the page and its key."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bae_lens.quiz.questions import QuizItem, QuizKey, QuizSettings, key_path, write_quiz
from bae_lens.quiz.scores import score_quiz
from bae_lens.scoring.words_and_contexts import words_and_contexts_of
from tests.quiz.quizzes import (
    CLASSES,
    CONCEPTS,
    EVIDENCE,
    N_TEXTS,
    PREDICTIONS,
    RECOVERIES,
    answered,
    known_mean,
    recoverability,
    shown_class,
)
from tests.report.helpers import HOSTILE, Page, make_records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "quiz.html"


def asked(key: QuizKey, dictionary: int, is_control: bool = False) -> list[QuizItem]:
    return [i for i in key.items if (i.dictionary, i.is_control) == (dictionary, is_control)]


# The page and the key


def test_the_page_shows_the_views_and_the_key_says_whose_they_are(path):
    key = write_quiz(path, RECOVERIES, EVIDENCE)

    assert QuizKey.load(path.with_name("quiz.key.json")) == key
    assert sorted(p.name for p in path.parent.iterdir()) == ["quiz.html", "quiz.key.json"]
    data = Page(path).data
    assert data["quiz"] == key.quiz
    assert data["classes"] == list(CLASSES)
    assert len(data["questions"]) == key.n_questions
    assert {item.question for item in key.items} == set(range(key.n_questions))
    for item in key.items:
        name = key.dictionaries[item.dictionary]
        view = words_and_contexts_of(EVIDENCE[name], item.latent)
        assert json.loads(json.dumps(view)) == data["questions"][item.question]
        assert item.predicted == PREDICTIONS[item.text]
        assert item.is_control == (item.latent != CONCEPTS[name][item.text])


def test_the_page_holds_no_answer_and_no_name(path):
    write_quiz(path, RECOVERIES, EVIDENCE)
    assert set(Page(path).data) == {"quiz", "classes", "questions"}
    html = path.read_text()
    for name in (*CONCEPTS, "its architecture", "hook_resid", "latent", "predicted"):
        assert name not in html


def test_all_dictionaries_are_asked_about_the_same_texts_of_each_class(path):
    key = write_quiz(path, RECOVERIES, EVIDENCE, QuizSettings(n_texts=13))
    one, other = ([item.text for item in asked(key, d)] for d in (0, 1))
    assert one == other
    assert len(set(one)) == 13
    assert sorted(Counter(PREDICTIONS[i] for i in one).values()) == [6, 7]
    # Mixed: not all of one dictionary, then all of the other.
    of_question = {item.question: item.dictionary for item in key.items}
    changes = sum(a != b for a, b in pairwise(of_question[q] for q in sorted(of_question)))
    assert changes > 4


def test_where_a_class_is_rare_the_others_fill_up(path):
    predictions = (1, *(0,) * (N_TEXTS - 1))
    own = {name: replace(r, predictions=predictions) for name, r in RECOVERIES.items()}
    key = write_quiz(path, own, EVIDENCE, QuizSettings(n_texts=12))
    assert Counter(item.predicted for item in asked(key, 0)) == {0: 11, 1: 1}


def test_texts_without_a_concept_are_left_out_of_all(path):
    some = recoverability([c if i < 9 else -1 for i, c in enumerate(CONCEPTS["blunt one"])])
    key = write_quiz(path, RECOVERIES | {"blunt one": some}, EVIDENCE)
    assert {item.text for item in asked(key, 0)} == set(range(9))
    assert (key.n_texts, key.n_with_concepts) == (N_TEXTS, 9)
    none = recoverability((-1,) * N_TEXTS)
    with pytest.raises(ValueError, match=r"None of the 40 texts has a concept in each"):
        write_quiz(path, RECOVERIES | {"blunt one": none}, EVIDENCE)


def test_controls_show_the_concept_of_another_class_that_is_asked_nowhere_else(path):
    key = write_quiz(path, RECOVERIES, EVIDENCE, QuizSettings(n_texts=8, n_controls=4))
    controls = asked(key, 0, is_control=True)
    assert [item.text for item in controls] == [item.text for item in asked(key, 0)][:4]
    assert Counter(item.predicted for item in controls) == {0: 2, 1: 2}
    assert all(shown_class(item) != item.predicted for item in controls)
    latents = [item.latent for item in controls]
    assert not set(latents) & {item.latent for item in asked(key, 0)}
    assert len(set(latents)) == 4


def test_one_concept_for_all_texts_has_no_control_and_one_question(path):
    key = write_quiz(path, {"one": recoverability((7,) * N_TEXTS)}, {"one": EVIDENCE["sharp one"]})
    assert (len(key.items), key.n_questions) == (12, 1)
    result = score_quiz(key, [answered(key, lambda item: 1)])
    assert known_mean(result.accuracy("one")) == 0.5
    assert result.tally("one") == (6, 6, 0, 0)


def test_the_same_view_of_two_dictionaries_is_asked_once(path):
    own = {"one": RECOVERIES["sharp one"], "two": RECOVERIES["sharp one"]}
    records = dict.fromkeys(own, EVIDENCE["sharp one"])
    key = write_quiz(path, own, records, QuizSettings(n_controls=0))
    assert len(key.items) == 24
    assert key.n_questions == len({item.latent for item in key.items})
    result = score_quiz(key, [answered(key, shown_class)])
    assert result.accuracy("one") == result.accuracy("two")


def test_the_seed_decides_all_of_it(tmp_path):
    keys = [
        write_quiz(tmp_path / f"{i}.html", RECOVERIES, EVIDENCE, QuizSettings(seed=seed))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert keys[0] == keys[1]
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()
    assert keys[0].quiz != keys[2].quiz


def test_hostile_text_stays_data(path):
    words = (*HOSTILE, " plain")
    names = {"class_names": HOSTILE[:2]}
    key = write_quiz(
        path,
        {"one": recoverability([i % len(words) for i in range(N_TEXTS)], **names)},
        {"one": make_records(len(words) + 1, words)},
        QuizSettings(n_texts=N_TEXTS),
    )
    write_quiz(path.with_name("other.html"), RECOVERIES, EVIDENCE)
    html, harmless = Page(path), Page(path.with_name("other.html"))
    assert html.tags == harmless.tags
    assert html.scripts[1:] == harmless.scripts[1:]
    assert html.data["classes"] == list(HOSTILE[:2]) == list(key.class_names)
    assert "default-src 'none'" in html.policy
    assert not set(html.scripts[0]) & set("<>&\x00\x1b\x7f\n\r\t")


@pytest.mark.parametrize(
    ("recoverabilities", "records", "message"),
    [
        ({}, {}, "one dictionary at least"),
        (RECOVERIES, {"sharp one": EVIDENCE["sharp one"]}, "each with its examples"),
        (
            RECOVERIES | {"blunt one": recoverability((0,) * N_TEXTS, predictions=(1,) * N_TEXTS)},
            EVIDENCE,
            "'blunt one' is not of the same texts and predictions as 'sharp one'",
        ),
        (
            RECOVERIES | {"blunt one": recoverability((0,) * N_TEXTS, class_names=("no", "yes"))},
            EVIDENCE,
            "one RecoverabilityTask",
        ),
        (
            RECOVERIES,
            EVIDENCE | {"blunt one": make_records(28)},
            "'blunt one' has concept 28, and its examples are of 28 latents",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    path, recoverabilities, records, message
):
    with pytest.raises(ValueError, match=message):
        write_quiz(path, recoverabilities, records)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_texts": 0},
        {"n_texts": 2.0},
        {"n_controls": -1},
        {"n_controls": True},
        {"n_controls": 13},
        {"n_words": 0, "n_contexts": 0},
        {"seed": -1},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        QuizSettings(**wrong)


def test_what_is_no_key(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        QuizKey.load(tmp_path / "none.json")
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="is no key of a quiz: it has no 'quiz', 'class_names'"):
        QuizKey.load(tmp_path / "no.json")
    write_quiz(path, RECOVERIES, EVIDENCE)
    values = json.loads(key_path(path).read_text())
    for changes in ({"items": [{"question": 0}]}, {"items": 3}, {"settings": {"x": 1}}):
        (tmp_path / "no.json").write_text(json.dumps(values | changes))
        with pytest.raises(ValueError, match=r"no\.json is no key of a quiz"):
            QuizKey.load(tmp_path / "no.json")
