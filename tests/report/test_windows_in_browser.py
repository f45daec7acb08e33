"""What a latent has at every token, how strongly it fires, its link, and the orders by these, in a browser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bae_lens.examples import LatentRecords, LevelCounts
from bae_lens.report import write_report
from tests.browser import SIZES, Browser, contrast, over
from tests.report.helpers import make_effects, make_records, with_windows

N = 24


def given(strength: str = "activation") -> LatentRecords:
    """One window of latent 2 is known: it fires at tokens 1, 4 (marked) and 6."""
    records = with_windows(make_records(N, strength=strength))
    own = records[2]
    size = (None, 0.0, 0.0, 8.0, 10.0, 0.0, 1.0, 0.0, 0.0)
    sign = -1 if strength == "nearness" else 1
    values = tuple(v and v * sign for v in size)
    if strength == "nearness":
        values = tuple(v or None for v in values)
    margin = 10.0 if strength == "surprise" else None
    first = own.strongest[0]._replace(activations=values, strength=10.0 * sign, margin=margin)
    latents = list(records.latents)
    latents[2] = replace(own, strongest=(first,), random=(first,))
    return replace(records, latents=tuple(latents))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windows") / "report.html"
    write_report(path, given(), effects=make_effects(N))
    return path


def titles(browser: Browser) -> list[str]:
    script = (
        "return [...document.querySelectorAll('.examples li:first-child .act')].map((e) => e.title)"
    )
    return browser.run(script)


def shades(browser: Browser) -> list[int]:
    script = (
        "return [...document.querySelector('.examples li').querySelectorAll('.act')]"
        ".map((e) => Number([...e.classList].find((c) => /^a[0-9]+$/.test(c)).slice(1)))"
    )
    return browser.run(script)


def test_tokens_are_shaded_and_say_their_value(browser, report):
    browser.open(report, "#latent-2")
    strings = given()[2].strongest[0].strings
    assert titles(browser)[:3] == ["activation 8", "activation 10", "activation 1"]
    assert shades(browser) == [8, 10, 1]
    fired = [strings[k].strip() for k in (3, 4, 6)]
    first = browser.one(".examples li")
    assert [e.text for e in first.find_elements("css selector", ".act")] == fired
    assert first.find_element("css selector", "mark.act").text == fired[1]
    # The text is whole, and said to those who do not see shades.
    assert first.find_element("css selector", ".text").text == "".join(strings).strip()
    said = f"Fires at: {fired[0]} 8; {fired[1]} 10; {fired[2]} 1."
    assert said in browser.run("return document.querySelector('.examples .unseen').textContent")
    assert browser.logs()[0] == []


def test_values_are_shown_by_a_tap_or_for_all_tokens(browser, report):
    browser.open(report, "#latent-2")
    content = "return [...document.querySelectorAll('.examples li:first-child .act')].map((e) => getComputedStyle(e, '::after').content)"
    assert set(browser.run(content)) == {"none"}
    browser.one(".examples .act").click()
    assert browser.run(content)[:2] == ['"8"', "none"]
    [button] = [e for e in browser.all("button") if e.text == "Values at every token"]
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert browser.run(content)[:3] == ['"8"', '"10"', '"1"']
    # Of the next latent too.
    browser.go("#latent-3")
    assert "none" not in browser.run(content)
    assert browser.one("[aria-pressed]").get_attribute("aria-pressed") == "true"
    browser.resize(*SIZES["phone"])
    assert browser.run("return document.documentElement.scrollWidth") <= SIZES["phone"][0]


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        ("surprise", ["margin 8", "margin 10", "margin 1"]),
        ("nearness", ["minus squared distance −8", "minus squared distance −10"]),
    ],
)
def test_of_bits_and_codes(browser, tmp_path, strength, expected):
    write_report(tmp_path / "r.html", given(strength))
    unit = "code" if strength == "nearness" else "latent"
    browser.open(tmp_path / "r.html", f"#{unit}-2")
    assert titles(browser)[: len(expected)] == expected
    # What is nearest is darkest.
    assert shades(browser) == ([3, 1, 9] if strength == "nearness" else [8, 10, 1])
    label = browser.one("#view-one .chart").get_attribute("aria-label")
    assert ("squared distance" if strength == "nearness" else "margin") in label


def test_examples_of_older_files_are_as_they_were(browser, tmp_path):
    write_report(tmp_path / "r.html", make_records(N))
    browser.open(tmp_path / "r.html", "#latent-2")
    assert browser.logs()[0] == []
    assert not browser.all(".act, .unseen, #view-one .chart, [aria-pressed]")
    assert browser.all(".examples mark")
    browser.go("#latents")
    keys = browser.run("return [...document.querySelectorAll('#sort option')].map((e) => e.value)")
    assert not {"window", "median", "levels", "effect"} & set(keys)
    assert "class" in keys


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_shade_can_be_read_on(browser, report, scheme):
    browser.prefer(prefers_color_scheme=scheme)
    browser.open(report, "#latent-2")
    browser.one("[aria-pressed]").click()
    paper = browser.one("body").value_of_css_property("background-color")
    for token in browser.all(".act"):
        own = over(token.value_of_css_property("background-color"), paper)
        assert contrast(own, token.value_of_css_property("color")) >= 4.5
    [weak, strong] = [
        over(browser.one(f".a{k}").value_of_css_property("background-color"), paper)
        for k in (1, 10)
    ]
    assert contrast(strong, paper) > contrast(weak, paper) > 1.04


def test_a_histogram_has_its_quantiles_and_numbers(browser, report):
    browser.open(report, "#latent-2")
    histogram = given()[2].histogram
    assert histogram is not None
    [chart] = browser.all("#view-one .chart")
    label = chart.get_attribute("aria-label")
    assert label.startswith("How strongly it fires.")
    assert f"half of at most {histogram.quantile(0.5):.4g}" in label
    browser.run("document.querySelector('#view-one figure details').open = true")
    browser.settle()
    cells = browser.texts("#view-one figure td")
    bins = [tuple(map(float, cell.split(" to "))) for cell in cells[::2]]
    # Bins are joined in pairs here, and lose nothing; each count is there once.
    assert bins[0][0] <= histogram.edges[0] * 1.001
    assert bins[-1][1] >= histogram.edges[-1] * 0.999
    assert [begin for begin, _ in bins[1:]] == [end for _, end in bins[:-1]]
    assert sum(int(n.replace(",", "")) for n in cells[1::2]) == sum(histogram.counts)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The strongest example of latent 2 is negative, and stronger than any of latent 3."""
    records = given()
    latents = list(records.latents)
    own = latents[2].strongest[0]
    least = own._replace(
        strength=-40.0, activations=tuple(v and -4 * v for v in own.activations or ())
    )
    latents[2] = replace(latents[2], strongest=(least, own), random=(least, own))
    path = tmp_path_factory.mktemp("signed") / "report.html"
    write_report(path, replace(records, latents=tuple(latents)), effects=make_effects(N))
    return path


def test_activations_of_either_sign_are_as_strong_as_their_magnitude(browser, signed, report):
    browser.open(signed, "#latent-2")
    assert titles(browser)[:3] == ["activation −32", "activation −40", "activation −4"]
    assert shades(browser) == [8, 10, 1]
    text = browser.one("#view-one").text
    assert "5 % of its firings have a magnitude of at most" in text
    assert "Activations of either sign count by their magnitude." in text
    assert "Where its activation is negative, it is the other way round." in text
    browser.go("#latents")
    sort = "const s = document.querySelector('#sort'); s.value = 'strongest'; s.dispatchEvent(new Event('change'))"
    browser.run(sort)
    assert browser.texts(".list tbody a")[0] == "Latent 2"
    assert browser.texts(".list tbody [data-label='strongest']")[0] == "−40"
    assert browser.logs()[0] == []
    # Nothing is said of magnitudes where there is one sign.
    browser.open(report, "#latent-2")
    assert "magnitude" not in browser.one("#view-one").text
    assert "5 % of its firings have an activation of at most" in browser.one("#view-one").text


def test_shares_of_levels_and_the_orders_there_are(browser, tmp_path):
    records = given()
    latents = [
        replace(
            latent,
            histogram=None,
            lift_tokens=latent.top_tokens,
            levels=LevelCounts((0.5, 1.0, 2.0), (j, 1, 1) if latent.n_firings else (0, 0, 0)),
        )
        for j, latent in enumerate(records.latents)
    ]
    path = tmp_path / "levels.html"
    write_report(path, replace(records, latents=tuple(latents)), effects=make_effects(N))
    browser.open(path, "#latent-2")
    assert "Its level is worth 1.5 bits, of 1.585 at most." in browser.one("#view-one").text
    rows = [r.split("\t")[:3] for r in browser.texts("#view-one tbody tr")[:3]]
    assert rows == [["1", "0.5", "50 %"], ["2", "1", "25 %"], ["3", "2", "25 %"]]
    browser.go("#latents")
    options = "return [...document.querySelectorAll('#sort option')].map((e) => e.value)"
    assert browser.run(options)[-6:] == [
        *("window", "median", "levels", "highest-lift", "class", "effect"),
    ]
    sort = (
        "const s = document.querySelector('#sort'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change')); return document.querySelector('.list').innerText"
    )
    assert "bits of its level" in browser.run(sort, "levels")
    assert browser.texts(".list tbody a")[:3] == ["Latent 1", "Latent 2", "Latent 3"]
    shown = browser.texts(".list [data-label='bits of its level']")
    assert (shown[0], shown[-1]) == ("1.585", "–")
    assert "bits of its level" not in browser.run(sort, "rate").split("Latent 0")[0]
    # What never fires is last either way.
    for way in ("ascending", "descending"):
        browser.one("#sort + button").click()
        assert way in browser.one("#sort + button").text
        assert browser.texts(".list tbody a")[-1] == f"Latent {N - 1}"


def test_a_link_to_a_latent(browser, report):
    browser.open(report, "#latent=5")
    assert browser.texts("#view-one h2") == ["Latent 5"]
    browser.go("#latent-7")
    browser.go("#latents")
    for step, expected in ((-1, "#latent-7"), (-1, "#latent=5"), (1, "#latent-7")):
        browser.step(step)
        assert browser.fragment == expected
        browser.settle()
        assert browser.texts("#view-one h2") == [f"Latent {expected[-1]}"]
    clipboard = (
        "Object.defineProperty(navigator, 'clipboard', {configurable: true, value: {writeText: "
        "async (text) => { if (arguments[0]) throw new Error(); window.copied = text; }}})"
    )
    expected = report.as_uri() + "#latent-7"
    [button] = [e for e in browser.all("#view-one button") if e.text == "Copy link"]
    browser.run(clipboard, False)
    button.click()
    browser.settle()
    assert browser.run("return window.copied") == expected
    assert browser.one("#view-one [role=status]").text == "Copied."
    # Where a page may not write there, it is shown, to be copied by hand.
    browser.run(clipboard, True)
    button.click()
    browser.settle()
    field = browser.one("#view-one [role=status] input")
    assert field.get_attribute("value") == expected
    assert browser.run("return getSelection().toString()") == expected
