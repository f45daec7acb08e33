"""The page in a real browser, opened from disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bae_lens.report import Compared, write_comparison, write_report
from bae_lens.stats import shown
from tests.browser import SIZES, Browser, contrast, over
from tests.report.helpers import (
    HOSTILE,
    SUMMARY,
    TRAINING,
    make_comsem,
    make_effects,
    make_intruder,
    make_records,
    make_sentences,
    many,
    with_windows,
    write_hostile,
)

N = 300


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    scores = {"detection": [None if j % 7 == 0 else j / N for j in range(N)]}
    phrases = [None if j == 3 else f"mentions of number {j}" for j in range(N)]
    sentences = make_sentences(20, N)
    write_report(
        path,
        with_windows(make_records(N)),
        SUMMARY,
        TRAINING,
        sentences,
        scores=scores,
        phrases=phrases,
        effects=make_effects(N),
        title="A title",
    )
    return path


def rows(browser: Browser) -> list[str]:
    return browser.texts(".list tbody a")


def by_number(browser: Browser) -> None:
    """Sort the list by the latents' numbers."""
    browser.run(
        "for (const e of document.querySelectorAll('#sort')) {"
        "e.value = 'number'; e.dispatchEvent(new Event('change')); }"
    )


# Loading


@pytest.mark.parametrize(
    "fragment",
    ["", "#latents", "#latent-5", "#latent-999999", "#sentences", "#sentence-3", "#nothing-9"],
)
def test_every_part_opens_without_an_error_or_a_request(browser, report, fragment):
    browser.open(report, fragment)
    messages, asked = browser.logs()
    assert messages == []
    assert asked == {report.as_uri() + fragment} or asked == {report.as_uri()}
    assert len([h for h in browser.all("main h2") if h.is_displayed()]) == 1
    expected = "Latent 5 – A title" if fragment == "#latent-5" else "A title"
    assert browser.driver.title == expected


def test_nothing_can_be_sent(browser, report):
    """What the policy is for: should a script run after all, nothing leaves the page."""
    browser.open(report)
    browser.run(
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x'; document.body.append(image);"
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 1';"
        "document.body.append(script);"
    )
    messages, asked = browser.logs()
    assert not any(url.startswith("http") for url in asked)
    assert any("Content Security Policy" in message for message in messages)
    assert browser.run("return window.pwned") is None


def test_four_thousand_latents_load_in_two_seconds(browser, tmp_path):
    """Of the processor's time, since the clock also tells what else the machine does."""
    path = tmp_path / "large.html"
    records = many(with_windows(make_records(200, n_examples=10, n_window=25), 0.5), 4096)
    write_report(path, records, SUMMARY)
    browser.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    browser.open(path, "#latents")
    metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    [took] = [metric["value"] for metric in metrics if metric["name"] == "TaskDuration"]
    assert 0 < took < 2
    # The rest comes when it is scrolled to.
    assert 0 < len(browser.all(".list tbody tr")) < 1000


# Hostile text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    write_hostile(path)
    return path


def test_hostile_text_is_shown_and_never_run(browser, hostile):
    n = len(HOSTILE) + 2
    browser.open(hostile)
    for fragment in ["", "#latents", *(f"#latent-{j}" for j in range(n)), "#sentence-3"]:
        browser.go(fragment)
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        browser.run("for (const t of document.querySelectorAll('.tok')) t.click()")
    assert browser.run("return window.pwned") is None
    assert browser.logs()[0] == []
    assert not browser.all("main img, main script, main iframe, [onerror], [onmouseover], [style]")
    browser.go("#latent-0")
    assert HOSTILE[0] in browser.one("mark").text
    browser.go("#latent-5")
    assert browser.one("mark").text == HOSTILE[5]


def test_what_cannot_be_seen_is_written_out(browser, hostile):
    browser.open(
        hostile,
        f"#latent-{HOSTILE.index(chr(0x202E) + 'gnp.exe' + chr(0x2066) + chr(0x200B) + chr(0xAD))}",
    )
    marked = browser.texts("mark")[0]
    assert marked == "U+202Egnp.exeU+2066U+200BU+00AD"
    browser.go(f"#latent-{HOSTILE.index(chr(0xD800) + ' and ' + chr(0xDFFF))}")
    assert browser.texts("mark")[0] == "U+D800 and U+DFFF"
    # Nowhere on the page is one left that would change how the rest reads.
    for fragment in ("#overview", "#latents", "#sentences"):
        browser.go(fragment)
    left = browser.run(
        r"return (document.title + document.body.innerText).match(/[\u202a-\u202e\u2066-\u2069\u200b\u200e\u200f]/u)"
    )
    assert left is None


# The list


def test_search_by_phrase_token_number_and_example(browser, report):
    browser.open(report, "#latents")
    by_number(browser)
    search = browser.one("#search")
    assert browser.one("#status").text == f"{N} latents"
    for query, first in (("number 17", "Latent 17"), ("#42", "Latent 42"), ("42", "Latent 42")):
        search.clear()
        search.send_keys(query)
        assert rows(browser)[0] == first
    search.clear()
    search.send_keys("no such thing")
    assert rows(browser) == []
    assert "nothing matches" in browser.one("#status").text
    search.clear()
    search.send_keys("word7 word")
    assert rows(browser) == []
    browser.one("#in-examples").click()
    assert len(rows(browser)) > 0


def test_sorting_by_the_heads_and_by_the_menu(browser, report):
    browser.open(report, "#latents")
    head = browser.one("[data-key=score-0]")
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert rows(browser)[0] == f"Latent {N - 1}"
    head.find_element("css selector", "button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert rows(browser)[0] == "Latent 1"
    browser.run(
        "arguments[0].value = 'rate'; arguments[0].dispatchEvent(new Event('change'))",
        browser.one("#sort"),
    )
    assert rows(browser)[:2] == ["Latent 0", "Latent 1"]
    # What has no score comes last whichever way round.
    for _ in range(2):
        head.find_element("css selector", "button").click()
        browser.run("const s = document.querySelector('#search'); s.focus()")
        browser.press("END")
        browser.run("document.querySelector('.list tbody a').focus()")
        browser.press("END")
        assert browser.texts(".list tbody tr:last-child [data-label=detection]") == ["not scored"]


def test_rows_come_as_they_are_scrolled_to(browser, report):
    browser.open(report, "#latents")
    assert len(rows(browser)) < N
    # A busy machine takes its time to tell the page that its end can be seen.
    for _ in range(60):
        browser.run(
            "scrollTo(0, document.body.scrollHeight); return new Promise((r) => setTimeout(r, 60))"
        )
        if not browser.one(".more").is_displayed():
            break
    assert len(rows(browser)) == N
    assert not browser.one(".more").is_displayed()


def test_the_list_comes_with_the_most_telling_first(browser, report, tmp_path):
    # By score, where there are some: the best last, here, since it fires never.
    browser.open(report, "#latents")
    assert browser.one("#sort").get_attribute("value") == "telling"
    best = sorted((j / N for j in range(N - 1) if j % 7), reverse=True)[:5]
    assert rows(browser)[:5] == [f"Latent {round(x * N)}" for x in best]
    assert "in the order of detection" in browser.one(".list caption").text
    # The user's own order goes on working, and so does the first one.
    by_number(browser)
    assert rows(browser)[:2] == ["Latent 0", "Latent 1"]
    # Without scores: by how surely it fires at one token. Dense ones after others, dead ones last.
    records = make_records(6)
    token = records[0].top_tokens[0]
    firings = [(0, 0), (2, 2), (400, 399), (400, 40), (9000, 9000), (50, 20)]
    latents = [
        replace(x, n_firings=n, rate=n / 10_000, top_tokens=(token._replace(n=k),) if n else ())
        for x, (n, k) in zip(records.latents, firings, strict=True)
    ]
    path = tmp_path / "order.html"
    write_report(path, replace(records, n_tokens=10_000, latents=tuple(latents)))
    browser.open(path, "#latents")
    assert rows(browser) == [f"Latent {j}" for j in (2, 1, 5, 3, 4, 0)]


def test_the_examples_of_a_bit_come_with_their_margins(browser, tmp_path):
    path = tmp_path / "margins.html"
    records = make_records(4, strength="surprise")
    latents = []
    for latent in records.latents:
        strongest = tuple(e._replace(margin=9.0 - k) for k, e in enumerate(latent.strongest))
        lifts = tuple(reversed(latent.top_tokens[:3]))
        latents.append(replace(latent, strongest=strongest, lift_tokens=lifts))
    write_report(path, replace(records, latents=tuple(latents)))
    browser.open(path, "#latent-0")
    text = browser.one("#view-one").text
    assert "Strongest examples" in text
    assert "how far the pre-activation is from the threshold" in text
    assert "margin 9 ·" in browser.texts("#view-one .examples li")[0]
    assert browser.all("#view-one .examples .bar")
    assert "random" not in text.split("Random examples")[0].lower()
    tables = browser.texts("#view-one section h3, #view-one section h4")
    assert "Tokens by lift" in tables


# Keyboard


def test_the_list_by_keyboard_alone(browser, report):
    browser.open(report)
    browser.press("/")
    assert browser.fragment == "#latents"
    by_number(browser)
    browser.press("number 1")
    browser.press("ARROW_DOWN")
    assert browser.focused == "Latent 1"
    browser.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    assert browser.focused == "Latent 10"
    browser.press("ENTER")
    assert browser.fragment == "#latent-10"
    assert browser.focused == "Latent 10: mentions of number 10"
    browser.press("ESCAPE")
    assert browser.fragment == "#latents"
    assert browser.focused == "Latent 10"
    browser.press("HOME", "ARROW_UP")
    browser.press("ESCAPE")
    assert browser.one("#search").get_attribute("value") == ""
    browser.press("ESCAPE", "ESCAPE")
    assert browser.fragment == "#overview"


def test_from_latent_to_latent_by_arrow_keys(browser, report):
    browser.open(report, "#latents")
    by_number(browser)
    browser.one("#search").send_keys("number 1")
    browser.go("#latent-10")
    browser.press("ARROW_RIGHT")
    assert browser.focused == "Latent 11: mentions of number 11"
    browser.press("ARROW_LEFT", "ARROW_LEFT")
    assert browser.fragment == "#latent-1"
    # It is the first that was found.
    browser.press("ARROW_LEFT")
    assert browser.fragment == "#latent-1"
    browser.go("#latents")
    browser.press("ARROW_RIGHT")
    assert browser.fragment == "#latents"


def test_focus_can_be_seen_and_the_content_skipped_to(browser, report):
    browser.open(report)
    browser.press("TAB")
    skip = browser.driver.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert skip.value_of_css_property("outline-style") == "solid"
    assert skip.location["x"] >= 0
    browser.press("ENTER")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "main"


# Sentences


def test_sentences_by_keyboard(browser, report):
    browser.open(report, "#sentences")
    assert "no model" in browser.one("#view-sentences").text
    browser.press("/")
    browser.press("word12 word13 word19")
    assert browser.one("#sentence-status").text == "1 sentence"
    browser.press("ARROW_DOWN", "ENTER")
    assert browser.fragment == "#sentence-4"
    assert "Sentence 4" in browser.one(".detail h3").text
    browser.press("ARROW_RIGHT", "ARROW_RIGHT")
    [pressed] = browser.all(".tok[aria-pressed=true]")
    assert pressed.text.split() == ["␣word14", "6"]
    assert [t.split("\n")[0] for t in browser.texts(".codes tbody th")] == [
        "Latent 6",
        "Latent 7",
        "Latent 8",
    ]
    assert browser.texts(".codes td.n") == ["4", "3", "2"]
    browser.press("ESCAPE")
    assert "word12" in browser.focused


def test_the_chosen_sentence_can_be_seen_in_the_list(browser, report):
    browser.open(report, "#sentence-19")
    own, seen = (
        browser.run("return document.querySelector(arguments[0]).getBoundingClientRect()", selector)
        for selector in (".sentences [aria-current]", ".sentences")
    )
    assert seen["top"] <= own["top"] < own["bottom"] <= seen["bottom"] + 1
    assert browser.run("return scrollY") == 0


def test_share_of_codes_along_a_sentence(browser, tmp_path):
    path = tmp_path / "codes.html"
    write_report(
        path,
        make_records(12, strength="nearness", dictionary="clvq_vae"),
        sentences=make_sentences(8, n_codes=1),
    )
    browser.open(path, "#sentence-0")
    shares = browser.texts(".detail section td.n")
    assert shares == ["25 %"] * 4
    assert browser.all(".detail .strip rect")
    browser.go("#code-3")
    assert "Along the stored sentences" in browser.texts("#view-one h3")
    assert "Distance in the codebook" in browser.one("#view-one").text
    assert browser.logs()[0] == []


# One latent


def test_a_latents_page_has_its_parts(browser, report):
    browser.open(report, "#latent-0")
    assert browser.texts("#view-one h3") == [
        *("Strongest examples", "Random examples", "How strongly it fires"),
        *(
            "Most frequent tokens",
            "Most frequent lemmas",
            "Classes",
            "Logit effects",
            "Neighbors",
            "Along the stored sentences",
        ),
    ]
    records = make_records(N)
    strongest = records[0].strongest[0]
    item = browser.one(".examples li")
    assert f"strength {strongest.strength:.4g}" in item.text
    assert item.find_elements("css selector", ".bar")
    assert browser.one(".examples mark").text == strongest.strings[strongest.marked].strip()
    assert browser.one(".examples .text").text == "".join(strongest.strings).strip()
    browser.one("a[rel=next]").click()
    assert browser.fragment == "#latent-1"


def test_one_that_never_fires_says_so(browser, report):
    browser.open(report, f"#latent-{N - 1}")
    assert browser.one("#view-one").text.count("There are none: it never fired.") == 2
    assert browser.logs()[0] == []


def test_a_dictionary_in_which_nothing_fires(browser, tmp_path):
    path = tmp_path / "silent.html"
    silent = many(replace(make_records(12), n_tokens=1), 24)
    silent = replace(silent, latents=tuple(replace(silent[11], index=j) for j in range(24)))
    write_report(path, silent)
    for fragment in ("#latents", "#latent-3", ""):
        browser.open(path, fragment)
        assert browser.logs()[0] == []
    assert (
        "No metrics were given: bae-lens eval measures them." in browser.one("#view-overview").text
    )
    assert "24 of 24 latents never fired." in browser.one("#view-overview").text


# How it looks


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fragment", ["", "#latents", "#latent-5", "#sentence-3"])
def test_no_part_is_wider_than_the_screen(browser, report, hostile, size, fragment):
    browser.resize(*SIZES[size])
    for path in (report, hostile):
        browser.open(path, fragment)
        assert browser.run("return document.documentElement.scrollWidth") <= SIZES[size][0]


def test_what_is_not_drawn_on_a_phone_has_no_focus(browser, report):
    browser.resize(*SIZES["phone"])
    browser.open(report, "#latents")
    heads = browser.all(".list thead button")
    assert heads
    assert {e.value_of_css_property("visibility") for e in heads} == {"hidden"}
    assert browser.one("#sort").is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, report, scheme):
    browser.prefer(prefers_color_scheme=scheme)
    browser.open(report, "#latent-5")
    paper = browser.one("body").value_of_css_property("background-color")
    assert (contrast(paper, "rgb(0,0,0)") > 10) == (scheme == "light")
    for selector in ("body", ".note", "#view-one a", "dt"):
        assert contrast(paper, browser.one(selector).value_of_css_property("color")) >= 4.5
    mark = browser.one("mark")
    own = over(mark.value_of_css_property("background-color"), paper)
    assert contrast(own, mark.value_of_css_property("color")) >= 4.5
    assert mark.value_of_css_property("text-decoration-line") == "underline"


def test_charts_have_words_and_numbers(browser, report):
    browser.open(report)
    labels = [chart.get_attribute("aria-label") for chart in browser.all(".chart")]
    assert [label.split(".")[0] for label in labels] == [
        "How often each fires",
        "How evenly latents are used",
        "Entropy over training",
    ]
    assert all(chart.get_attribute("role") == "img" for chart in browser.all(".chart"))
    browser.run(
        "document.querySelector('figure details').open = true; return new Promise((r) => setTimeout(r, 50))"
    )
    # Every bin of a histogram has its count once.
    [first, *_] = browser.all("figure details table")
    rows = [row.text for row in first.find_elements("css selector", "tbody tr")]
    assert len(rows) == 30
    assert sum(int(row.split()[-1]) for row in rows) == N - 1
    assert all(" to " in row for row in rows)


def test_on_paper_all_rows_are_there(browser, report):
    browser.open(report, "#latents")
    browser.driver.execute_cdp_cmd("Page.printToPDF", {})
    assert len(rows(browser)) == N


def test_on_paper_the_list_is_a_table_without_controls(browser, report):
    """A page of paper is as narrow as a phone's screen is for a list, and longer."""
    browser.open(report, "#latents")
    browser.resize(700, 1000)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert browser.one(".list tbody tr").value_of_css_property("display") == "table-row"
        assert not [e for e in browser.all("input, select, .keys, kbd") if e.is_displayed()]
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_numbers_are_explained(browser, report, tmp_path):
    browser.open(report)
    assert browser.texts(".metrics tbody th") == [
        *("explained variance", "L0", "dead share", "marginal entropy"),
    ]
    assert all(browser.texts(".metrics tbody td:last-child"))
    path = tmp_path / "report.html"
    records = make_records(12, strength="surprise")
    write_report(path, records, SUMMARY, results=[make_intruder(records, 3)])
    for fragment, title in (("#latents", "columns"), ("#latent-2", "numbers")):
        browser.open(path, fragment)
        details = next(e for e in browser.all("details") if e.is_displayed())
        assert details.text.endswith(f"{title} are")
        browser.run("arguments[0].querySelector('summary').click()", details)
        browser.settle()
        told = dict(row.split("\t") for row in browser.texts("details[open] tr"))
        assert {"surprise", "fires at", "intruder score", "token purity"} <= set(told)
        assert all(told.values())
    assert "surprise\n3.904\nbits" in browser.texts("dl > div")
    # It is the same in each example, so that no bar compares them.
    assert browser.all("#view-one .examples li")
    assert browser.all("#view-one .examples .bar") == []
    assert (
        "Order random: these examples were collected without margins"
        in browser.one("#view-one").text
    )
    browser.open(path)
    assert "A judge sees tokens" in browser.one("#view-overview h4 + .note").text
    assert "Not known: no log of training" in browser.one("#view-overview").text


def test_what_is_said_of_stored_sentences_is_true(browser, tmp_path):
    """A common latent is never among the few strongest of a token, and fires all the same."""
    path = tmp_path / "sentences.html"
    records = make_records(12)
    common = 11
    sentences = make_sentences(3)
    assert not any(common == j for s in sentences for token in s.codes for j, _ in token)
    write_report(path, records, sentences=sentences)
    browser.open(path, f"#latent-{common}")
    text = browser.one("#view-one").text
    assert "In none of" not in text
    assert "Not among the strongest of any token of the 3 stored sentences" in text
    known = [
        s._replace(others=tuple((common,) if codes else () for codes in s.codes)) for s in sentences
    ]
    write_report(path, records, sentences=known)
    browser.open(path, f"#latent-{common}")
    text = browser.one("#view-one").text
    assert "3 of 3 sentences" in text
    assert "Only the strongest" not in text
    browser.go("#sentence-0")
    browser.all(".tok")[1].click()
    details = browser.one(".codes details")
    assert details.text == "and 1 latent more"
    browser.run("arguments[0].querySelector('summary').click()", details)
    browser.settle()
    assert browser.texts(".codes details a") == ["11"]
    # One that fires nowhere in them is said to.
    nowhere = [s._replace(others=tuple(() for _ in s.codes)) for s in sentences]
    write_report(path, records, sentences=nowhere)
    browser.open(path, f"#latent-{common}")
    assert "In none of the 3 stored sentences." in browser.one("#view-one").text


def test_explained_variance_is_listed_once_with_its_tokens(browser, tmp_path):
    path = tmp_path / "comparison.html"
    both = {
        "reconstruction_quality": {"explained_variance": 0.7},
        "token_stats": {"total_tokens_eval_sparsity_variance": 512},
        "code": {"explained_variance": 0.83, "n_tokens": 65_000},
        "outlier_tokens": {
            "n_tokens": 65_036,
            "n_outlier_tokens": 36,
            "explained_variance_with_outliers": 0.374,
        },
    }
    evals = {name: both[name] for name in ("reconstruction_quality", "token_stats")}
    compared = [
        Compared("a", make_records(6), both),
        Compared("b", make_records(6), evals),
        Compared("c", make_records(6), {"code": both["code"]}),
    ]
    write_comparison(path, compared)
    browser.open(path)
    [row] = [r for r in browser.texts(".metrics tr") if "explained variance" in r.lower()]
    for said in (
        "0.83\nof 65,000 tokens; 0.374 with 36 outliers",
        "0.7\nof 512 tokens",
        "0.83\nof 65,000 tokens",
    ):
        assert said in row


# Scores


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scored") / "report.html"
    records = make_records(N)
    results = [
        make_intruder(records, 8),
        make_comsem(records, 4, phrase="words that are like number"),
        make_comsem(records, 4, "released"),
    ]
    write_report(path, records, results=results)
    return path


def test_scores_in_the_overview_stand_beside_their_controls(browser, scored):
    browser.open(scored)
    assert "Scores" in browser.texts("h3")
    assert browser.texts("#view-overview h4") == [
        *("Intruder test", "ComSem, balanced", "ComSem, released"),
        "How far the protocols are apart",
    ]
    accuracy = shown(make_intruder(make_records(N), 8).accuracy())
    assert browser.texts(".tests")[0].split("\n")[:2] == [
        "latents\tshuffled latents",
        f"accuracy, random intruder\t{accuracy}\t0.200 [0.200, 0.200]",
    ]
    assert browser.texts(".caveat")[:2] == ["It hears nothing else.", "It may know the corpus."]
    assert browser.logs()[0] == []


def test_the_list_is_sorted_by_scores_and_says_what_is_not_scored(browser, scored):
    browser.open(scored, "#latents")
    assert f"8 of {N} latents are scored" in browser.one("caption").text
    head = browser.one("[data-key=score-0]")
    for way, first in (("descending", "Latent 0"), ("ascending", "Latent 7")):
        head.find_element("css selector", "button").click()
        assert head.get_attribute("aria-sort") == way
        assert rows(browser)[0] == first
        assert browser.texts("[data-label='intruder score']")[7:10] == [
            "1" if way == "ascending" else "0.3",
            *("not scored", "not scored"),
        ]
    browser.run(
        "const s = document.querySelector('#sort'); s.value = 'number';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert browser.texts("[data-label=phrase]")[:5] == [
        "words that are like number 0, 1",
        "no pattern",
        "words that are like number 2, 1",
        "words that are like number 3, 1",
        "not scored",
    ]
    browser.one("#search").send_keys("like number 2, 1")
    assert rows(browser) == ["Latent 2"]


def test_a_latents_scores_and_phrases(browser, scored):
    browser.open(scored, "#latent-2")
    facts = dict(text.split("\n", 1) for text in browser.texts("dl > div"))
    assert facts["intruder score"] == "0.8 [0.584, 0.919]\nshuffled latents: 0.20; guessing: 0.20"
    assert facts["hard-intruder score"].endswith("\nshuffled latents: 0.10")
    assert facts["ComSem score"] == "0.906\nguessing, or no pattern: 0.5"
    assert "Phrases" in browser.texts("#view-one h3")
    assert browser.texts("#view-one h3 + .note + .wide tbody tr")[:3] == [
        "words that are like number 2, 0\tbalanced, 1\t0.875",
        "words that are like number 2, 1\tbalanced, 2\t0.9375",
        "words like 2, 0\treleased\t1",
    ]
    browser.go("#latent-1")
    assert browser.texts("#view-one h2") == ["Latent 1"]
    assert "no answer" in browser.one("#view-one").text
    browser.go("#latent-9")
    assert browser.texts("dl > div")[-1] == "ComSem score, released\nnot scored"
    assert "Phrases" not in browser.texts("#view-one h3")


def test_scores_fit_a_phone(browser, scored):
    browser.resize(*SIZES["phone"])
    for fragment in ("", "#latents", "#latent-2"):
        browser.open(scored, fragment)
        assert browser.run("return document.documentElement.scrollWidth") <= SIZES["phone"][0]
    browser.open(scored)
    widths = "const t = document.querySelector('.wide:has(.tests)'); return t.scrollWidth - t.clientWidth"
    assert browser.run(widths) <= 0


def test_a_comparison_in_the_browser(browser, report, tmp_path):
    path = tmp_path / "comparison.html"
    log = {"details/n_training_samples": [0.0, 9e5], "metrics/perplexity": [20.0, 400.0]}
    first = make_records(40)
    results = [make_intruder(first, 8)]
    write_comparison(
        path,
        [
            Compared("first", first, SUMMARY, TRAINING, "a%20b/report.html", results),
            Compared("second", make_records(30, strength="nearness"), {"l0": 1.0}, log),
            Compared("</script>third", make_records(20), SUMMARY, about={"model": "<b>gpt</b>"}),
        ],
    )
    browser.open(path)
    assert browser.logs()[0] == []
    facts = [text.split("\t") for text in browser.texts(".facts tr")]
    assert [name.strip() for name, *_ in facts][2:5] == ["hook point", "size", "model"]
    assert [value.strip() for value in facts[4][1:]] == ["–", "–", "<b>gpt</b>"]
    assert browser.one(".facts a").get_attribute("href").endswith("/a%20b/report.html")
    assert browser.texts(".metrics thead th") == ["metric", "first", "second", "</script>third"]
    name, *values = [text.strip() for text in browser.texts(".tests tbody tr")[1].split("\t")]
    assert name.startswith("intruder score\nHow often a judge")
    assert values == [
        f"{shown(results[0].accuracy(), 2)}\nshuffled latents: 0.20 [0.20, 0.20]",
        *("not scored", "not scored"),
    ]
    assert browser.texts(".caveat") == ["It hears nothing else."]
    dashes = browser.run(
        "return [...document.querySelector('.chart').querySelectorAll('.line')].map((l) => getComputedStyle(l).strokeDasharray)"
    )
    assert len(set(dashes)) == 3
    browser.resize(*SIZES["phone"])
    assert browser.run("return document.documentElement.scrollWidth") <= SIZES["phone"][0]


def test_logit_effects_of_a_latent(browser, report):
    browser.open(report, "#latent-5")
    [table] = [e for e in browser.all("section") if e.text.startswith("Logit effects")]
    first = table.find_elements("css selector", "tbody tr")[0]
    assert len(table.find_elements("css selector", "tbody tr")) == 8
    assert [c.text for c in first.find_elements("css selector", "td")][0::2] == ["12.5", "−12.5"]
    assert "where it fires: its decoder row through the unembedding" in table.text
    browser.go(f"#latent-{N - 1}")
    assert not any(e.text.startswith("Logit effects") for e in browser.all("section"))


def test_logit_effects_where_a_bit_is_off(browser, tmp_path):
    effects = [
        own._replace(top=tuple(t._replace(value=t.value * 2) for t in own.top))
        for own in make_effects(12)
    ]
    write_report(tmp_path / "r.html", make_records(12, strength="surprise"), effects=effects)
    for latent, ends, is_off in ((0, ["25", "−12.5"], False), (1, ["12.5", "−25"], True)):
        browser.open(tmp_path / "r.html", f"#latent-{latent}")
        [table] = [e for e in browser.all("section") if e.text.startswith("Logit effects")]
        first = table.find_elements("css selector", "tbody tr")[0]
        assert [c.text for c in first.find_elements("css selector", "td")][0::2] == ends
        assert ("taken away where its bit is off" in table.text) == is_off
    browser.go("#latents")
    sort = "const s = document.querySelector('#sort'); s.value = 'effect'; s.dispatchEvent(new Event('change'))"
    browser.run(sort)
    found = dict(
        zip(
            browser.texts(".list tbody a"),
            browser.texts(".list tbody [data-label='largest logit effect']"),
            strict=True,
        )
    )
    assert (found["Latent 0"], found["Latent 1"]) == ("25", "12.5")
