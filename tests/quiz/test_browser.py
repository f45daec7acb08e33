"""The quiz in a real browser, opened from disk."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from bae_lens.quiz.questions import QuizKey, QuizSettings, key_path, write_quiz
from bae_lens.quiz.scores import QuizAnswers, score_quiz
from tests.browser import SIZES, Browser, contrast
from tests.quiz.quizzes import CLASSES, EVIDENCE, N_TEXTS, RECOVERIES, recoverability, shown_class
from tests.report.helpers import HOSTILE, Page, make_records


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of each test another one: the browser keeps answers by the quiz, and tests must not share them."""
    return zlib.crc32(request.node.name.encode())


@pytest.fixture
def quiz(tmp_path: Path, seed: int) -> Path:
    path = tmp_path / "quiz.html"
    write_quiz(path, RECOVERIES, EVIDENCE, QuizSettings(n_texts=4, n_controls=1, seed=seed))
    return path


@pytest.fixture
def hostile(tmp_path: Path, seed: int) -> Path:
    path = tmp_path / "hostile.html"
    words = (*HOSTILE, " plain")
    concepts = [i % len(words) for i in range(N_TEXTS)]
    names: Any = {"class_names": (HOSTILE[0], "".join(HOSTILE[1:6]))}
    own = {"one": recoverability(concepts, **names)}
    records = {"one": make_records(len(words) + 1, words)}
    write_quiz(path, own, records, QuizSettings(n_texts=N_TEXTS, seed=seed))
    return path


@contextmanager
def before_loading(browser: Browser, script: str) -> Iterator[None]:
    """A script that runs before those of a page that is opened."""
    added = browser.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": script}
    )
    yield
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def stored_before(browser: Browser, quiz: Path, content: str) -> AbstractContextManager[None]:
    """A quiz finds this where it stores what the reader did."""
    name = f"bae-lens quiz {Page(quiz).data['quiz']}"
    # Not in the empty page that comes first, which may store nothing.
    script = f"localStorage.setItem({json.dumps(name)}, {json.dumps(content)})"
    return before_loading(browser, f"if (location.protocol === 'file:') {script}")


def heading(browser: Browser) -> str:
    return browser.one("main h2").text


def reader(browser: Browser, expected: str) -> str:
    """Who the page believes to read it, who may be told it late."""
    end = time.monotonic() + 20
    while True:
        name = browser.one("#reader").get_attribute("value")
        if name == expected or time.monotonic() > end:
            return name
        browser.settle()


def saved(browser: Browser, folder: Path) -> Path:
    """What the button saves."""
    options = {"behavior": "allow", "downloadPath": str(folder)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", options)
    browser.one("button.primary").click()
    path = folder / "answers.json"
    for _ in range(100):
        if path.exists() and path.stat().st_size:
            return path
        time.sleep(0.05)
    raise AssertionError("Nothing was saved.")


def test_by_keyboard_from_the_name_to_a_score(browser, quiz, tmp_path):
    browser.open(quiz)
    key = QuizKey.load(key_path(quiz))
    choice = {item.question: shown_class(item) for item in key.items}
    assert heading(browser) == "Before you begin"
    assert browser.texts("main li") == list(CLASSES)
    browser.press("TAB")
    browser.press("anna", "ENTER")
    for q in range(key.n_questions):
        assert browser.focused == heading(browser) == f"Question {q + 1} of {key.n_questions}"
        browser.press(str(choice[q] + 1))
        browser.press("ENTER")
    assert browser.focused == heading(browser) == "Save your answers"

    text = browser.one("#answers").get_attribute("value")
    path = saved(browser, tmp_path)

    assert path.read_text() == text
    assert "answers.json" in browser.one("[role=status]").text
    result = score_quiz(key, [QuizAnswers.load(path)])
    assert result.readers == ("anna",)
    assert result.accuracy("sharp one") == (1, 1, 1)
    assert result.tally("sharp one", control=True) == (0, 1, 0, 0)
    seconds = [answer.seconds for answer in result.answers[0].answers]
    assert all(0 < s < 10 for s in seconds)
    messages, asked = browser.logs()
    assert messages == []
    assert {url for url in asked if not url.startswith("blob:")} == {quiz.as_uri()}


def test_a_question_shows_its_view_with_the_token_marked(browser, quiz):
    browser.open(quiz)
    words, contexts = Page(quiz).data["questions"][0]
    browser.one("button.primary").click()
    assert browser.texts(".words li") == words
    assert browser.texts(".examples .text") == ["".join(c).strip() for c in contexts]
    assert browser.texts("mark") == [token.strip() for _, token, _ in contexts]
    mark = browser.one("mark")
    assert mark.value_of_css_property("text-decoration-line") == "underline"
    assert int(mark.value_of_css_property("font-weight")) >= 700
    labels = [text.split("\n")[0] for text in browser.texts(".choice")]
    assert labels == [*CLASSES, "Cannot tell"]


def test_going_back_changing_skipping_and_cannot_tell(browser, quiz):
    browser.open(quiz)
    browser.press("ENTER")
    browser.press("1")
    assert browser.one("button.primary").text == "Next"
    browser.press("ENTER")
    # A second Enter too many skips nothing.
    browser.press("ENTER")
    assert heading(browser).startswith("Question 2")
    assert browser.one("button.primary").text == "Skip"
    browser.press("0")
    browser.press("BACKSPACE")
    assert heading(browser).startswith("Question 1")
    assert browser.run("return document.querySelector(':checked').value") == "0"
    browser.press("2")
    browser.press("ARROW_UP")
    browser.press("ARROW_DOWN")
    browser.press("ENTER")
    browser.press("ENTER")
    browser.one("button.primary").click()
    assert heading(browser).startswith("Question 4")
    browser.one("button.last").click()
    answers = json.loads(browser.one("#answers").get_attribute("value"))["answers"]
    assert [(a["question"], a["choice"]) for a in answers] == [(0, 1), (1, -1)]
    n = len(Page(quiz).data["questions"])
    assert f"You answered 2 of {n} questions." in browser.one("main").text
    left = browser.all("main .buttons button")
    assert left[0].get_attribute("aria-label") == "Question 3"
    left[0].click()
    assert heading(browser).startswith("Question 3")


def test_answers_survive_a_reload_until_they_are_forgotten(browser, quiz):
    browser.open(quiz)
    browser.one("#reader").send_keys("ben")
    browser.press("ENTER")
    browser.press("2")
    browser.press("ENTER")
    assert heading(browser).startswith("Question 2")
    browser.driver.refresh()
    assert reader(browser, "ben") == "ben"
    assert "this browser keeps them" in browser.one("main").text
    # What the file will say of the reader.
    assert "how long you looked at each question" in browser.one("main").text
    browser.press("ENTER")
    assert heading(browser).startswith("Question 2")
    browser.one("button.last").click()
    for accept, expected in ((False, "Save your answers"), (True, "Before you begin")):
        browser.one("button.last").click()
        alert = browser.driver.switch_to.alert
        alert.accept() if accept else alert.dismiss()
        assert heading(browser) == expected
    browser.driver.refresh()
    assert browser.one("#reader").get_attribute("value") == ""
    assert browser.one("button.primary").text == "Begin"
    assert browser.logs()[0] == []


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "null",
        "{",
        '{"reader": 3}',
        '{"reader": "x", "choices": [7], "seconds": [1]}',
        '{"reader": "x", "choices": null, "seconds": "a"}',
    ],
)
def test_what_is_stored_and_no_answer_is_passed_over(browser, quiz, stored):
    with stored_before(browser, quiz, stored):
        browser.open(quiz)
    assert browser.one("#reader").get_attribute("value") == ""
    assert browser.one("button.primary").text == "Begin"
    assert browser.logs()[0] == []


def test_what_is_stored_of_this_quiz_is_taken(browser, quiz):
    n = len(Page(quiz).data["questions"])
    own = {"reader": "x", "choices": [-1, 1, *[None] * (n - 2)], "seconds": [0.5] * n}
    with stored_before(browser, quiz, json.dumps(own)):
        browser.open(quiz)
    assert browser.one("#reader").get_attribute("value") == "x"
    browser.press("ENTER")
    assert heading(browser) == f"Question 3 of {n}"


@pytest.fixture
def neighbor(browser: Browser, tmp_path: Path) -> Iterator[str]:
    """A second window, of a page that may store for the same quizzes."""
    first = browser.driver.current_window_handle
    path = tmp_path / "neighbor.html"
    path.write_text("<title>neighbor</title>")
    browser.driver.switch_to.new_window("tab")
    second = browser.driver.current_window_handle
    browser.driver.get(path.as_uri())
    browser.driver.switch_to.window(first)
    yield second
    browser.driver.switch_to.window(second)
    browser.driver.close()
    browser.driver.switch_to.window(first)


def test_what_was_stored_arrives_late_and_is_not_written_over(browser, quiz, neighbor):
    data = Page(quiz).data
    n, name = len(data["questions"]), f"bae-lens quiz {data['quiz']}"
    own = {"reader": "x", "choices": [-1, 1, *[None] * (n - 2)], "seconds": [0.5] * n}
    stored = "return localStorage.getItem(arguments[0])"
    first = browser.driver.current_window_handle

    browser.open(quiz)
    # Nothing was done: also not when the page is left.
    browser.driver.refresh()
    assert browser.run(stored, name) is None
    browser.driver.switch_to.window(neighbor)
    browser.run("localStorage.setItem(...arguments)", name, json.dumps(own))
    browser.driver.switch_to.window(first)
    assert reader(browser, "x") == "x"
    assert json.loads(browser.run(stored, name)) == own
    browser.press("ENTER")
    assert heading(browser) == f"Question 3 of {n}"


def test_what_another_window_stores_changes_nothing_for_who_has_begun(browser, quiz, neighbor):
    data = Page(quiz).data
    n, name = len(data["questions"]), f"bae-lens quiz {data['quiz']}"
    own = {"reader": "x", "choices": [-1] * n, "seconds": [0.5] * n}
    first = browser.driver.current_window_handle

    browser.open(quiz)
    browser.one("#reader").send_keys("ben")
    browser.driver.switch_to.window(neighbor)
    browser.run("localStorage.setItem(...arguments)", name, json.dumps(own))
    browser.driver.switch_to.window(first)
    end = time.monotonic() + 20
    while json.loads(browser.run("return localStorage.getItem(arguments[0])", name)) != own:
        assert time.monotonic() < end
        browser.settle()
    browser.settle()
    assert browser.one("#reader").get_attribute("value") == "ben"
    browser.press("ENTER")
    assert heading(browser) == f"Question 1 of {n}"


def test_where_nothing_can_be_stored_it_works_and_says_so(browser, quiz):
    broken = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    with before_loading(browser, broken):
        browser.open(quiz)
    assert "does not keep them" in browser.one("main").text
    browser.press("ENTER")
    browser.press("1")
    browser.press("ENTER")
    assert heading(browser).startswith("Question 2")
    assert browser.logs()[0] == []


def test_hostile_text_is_shown_and_never_run(browser, hostile):
    browser.open(hostile)
    seen = [browser.one("body").get_attribute("innerText")]
    browser.press("ENTER")
    for _ in Page(hostile).data["questions"]:
        seen.append(browser.one("body").get_attribute("innerText"))
        browser.press("2")
        browser.press("ENTER")
    seen.append(browser.one("body").get_attribute("innerText"))
    assert browser.run("return window.pwned") is None
    assert browser.logs()[0] == []
    assert not browser.all("main img, main script, main iframe, [onerror], [onmouseover], [style]")
    assert all(any(text in page for page in seen) for text in HOSTILE[:2])
    text = "".join(seen).replace("U+202E", "", 1)
    assert "U+202Egnp.exeU+2066U+200BU+00AD" in text
    assert not set(text) & set("\u202a\u202b\u202d\u202e\u2066\u200b\u200f")


@pytest.mark.parametrize("size", SIZES)
def test_no_part_is_wider_than_the_screen(browser, quiz, hostile, size):
    browser.resize(*SIZES[size])
    for path in (quiz, hostile):
        browser.open(path)
        for press in ("", "ENTER", "0", "ENTER"):
            if press:
                browser.press(press)
            assert browser.run("return document.documentElement.scrollWidth") <= SIZES[size][0]
        browser.one("button.last").click()
        assert browser.run("return document.documentElement.scrollWidth") <= SIZES[size][0]


def test_buttons_are_large_enough_for_a_thumb(browser, quiz):
    browser.resize(*SIZES["phone"])
    browser.open(quiz)
    browser.one("button.primary").click()
    for target in (*browser.all("main button"), *browser.all(".choice")):
        assert target.size["height"] >= 44


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, quiz, scheme):
    browser.prefer(prefers_color_scheme=scheme)
    browser.open(quiz)
    browser.press("ENTER")
    browser.press("1")
    paper = browser.one("body").value_of_css_property("background-color")
    field = browser.one("button.primary").value_of_css_property("background-color")
    for selector, ground in (("body", paper), (".note", paper), (".choice", field)):
        color = browser.one(selector).value_of_css_property("color")
        assert contrast(ground, color) >= 4.5
