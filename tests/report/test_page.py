"""The file as a parser finds it, without a browser."""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bae_lens.evals import CodeSummary
from bae_lens.evals.code_statistics import CodeStatistics
from bae_lens.examples import LevelCounts
from bae_lens.examples.histogram import bins_of, histogram_of
from bae_lens.report import CodedSentence, Compared, page, write_comparison, write_report
from bae_lens.report.metrics import _EXPLANATIONS, HEADLINES, list_metrics
from bae_lens.report.packing import unpack
from bae_lens.steering import LogitEffects, TokenEffect
from tests.helpers import make_activations
from tests.report.helpers import (
    HOSTILE,
    N_TOKENS,
    SUMMARY,
    TRAINING,
    Page,
    example,
    make_comsem,
    make_intruder,
    make_records,
    make_sentences,
    many,
    with_windows,
    write_hostile,
)

N = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "report.html"


def written(path: Path, *args: Any, **options: Any) -> Page:
    write_report(path, *args, **options)
    return Page(path)


def hash_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


# What it holds


def test_examples_tokens_and_numbers_are_all_there(path):
    records = make_records(N)
    data = written(path, records).data
    assert data["title"] == "bae at blocks.1.hook_resid_post"
    assert len(data["latents"]) == N
    for latent, row in zip(records.latents, data["latents"], strict=True):
        strongest, random, tokens, lemmas, error, neighbors, classes, lifts, *rest = row
        assert rest == [None, None], "of examples without windows"
        for given, examples in ((latent.strongest, strongest), (latent.random, random)):
            assert len(given) == len(examples)
            for own, (packed, marked, strength, text, position) in zip(
                given, examples, strict=True
            ):
                assert tuple(unpack(packed, data["strings"])) == own.strings
                assert (marked, text, position) == (own.marked, own.text, own.position)
                assert strength == pytest.approx(own.strength, rel=1e-3)
        assert [data["strings"][s] for s, _, _ in tokens] == [c.string for c in latent.top_tokens]
        assert [n for _, n, _ in tokens] == [c.n for c in latent.top_tokens]
        assert (lemmas is None) == (latent.top_lemmas is None)
        assert error == latent.count_error
        assert [j for j, _, _ in neighbors] == [n.latent for n in latent.neighbors or ()]
        assert classes == list(latent.class_shares or ())
        assert lifts is None
    assert data["dictionaries"][0]["nFirings"] == [x.n_firings for x in records.latents]


def test_what_was_not_collected_is_null(path):
    bare = [
        replace(x, neighbors=None, class_shares=None, top_lemmas=None)
        for x in make_records(N).latents
    ]
    records = make_records(N, latents=tuple(bare), class_names=None, class_shares=None)
    data = written(path, records).data
    assert data["classes"] is data["classShares"] is data["phrases"] is None
    assert data["scores"] == data["sentences"] == []
    assert all(row[3] is row[5] is row[6] is None for row in data["latents"])
    assert data["dictionaries"][0]["training"] is None


@pytest.mark.parametrize("strength", ["activation", "surprise", "nearness"])
def test_what_a_latent_has_in_its_windows_is_there(path, strength):
    records = with_windows(make_records(N, strength=strength))
    data = written(path, records).data
    numbers = list(map(str, range(data["nSteps"] + 1)))
    for latent, row in zip(records.latents, data["latents"], strict=True):
        if latent.n_firings == 0:
            assert row[8] is row[9] is None
            continue
        least, greatest, share = row[9]
        assert 0 <= share < 0.5
        step = (greatest - least) / data["nSteps"]
        for e, (*_, packed) in zip(latent.strongest, row[0], strict=True):
            found = list(map(int, unpack(packed, numbers)))
            places = np.cumsum(np.array(found[::2]) + 1) - 1
            values = dict(
                zip(places.tolist(), [least + step * k for k in found[1::2]], strict=True)
            )
            assert e.activations is not None
            expected = {k: v for k, v in enumerate(e.activations) if v}
            assert values.keys() == expected.keys()
            assert values == pytest.approx(expected, abs=step * 0.51 + 1e-12)
        quantiles, (first, packed), levels, entropy = row[8]
        assert latent.histogram is not None
        counts = list(map(int, unpack(packed, list(map(str, range(5000))))))
        assert (first, tuple(counts)) == latent.histogram
        # Within its bin: that of the examples' strengths is another one here.
        assert quantiles[1] == pytest.approx(latent.histogram.quantile(0.5), rel=0.1)
        assert levels is entropy is None


@pytest.mark.parametrize("strength", ["activation", "surprise", "nearness"])
def test_quantiles_are_between_the_ends_that_stand_beside_them(path, strength):
    records = make_records(N, strength=strength)
    sizes = np.array([2.05, 2.02, 1.05, 1.03] if strength != "nearness" else [1.03, 1.05, 2.02])
    sign = -1 if strength == "nearness" else 1
    shown = [records[2].strongest[0]._replace(strength=sign * size) for size in map(float, sizes)]
    if strength == "surprise":
        shown = [e._replace(strength=3.25, margin=e.strength) for e in shown]
    bins, counts = np.unique(bins_of(sizes), return_counts=True)
    latents = list(records.latents)
    for j, own in ((2, shown), (3, shown[:1])):
        counted = counts if j == 2 else [1]
        histogram = histogram_of(
            bins.tolist() if j == 2 else bins_of(sizes[:1]).tolist(), list(map(int, counted))
        )
        latents[j] = replace(
            latents[j], strongest=tuple(own), histogram=histogram, n_firings=len(own)
        )
    data = written(path, replace(records, latents=tuple(latents))).data["latents"]
    least, middle, most = data[2][8][0]
    assert min(sizes) <= least <= middle <= most <= max(sizes)
    assert data[3][8][0] == [sizes[0]] * 3


def test_tokens_that_do_not_count_are_none_of_a_windows_others(path):
    def share_of(*windows: tuple[float | None, ...], strength: str = "activation") -> float:
        records = make_records(N, strength=strength)
        shown = tuple(
            example([f" w{k}" for k in range(len(values))], 1, 2.0)._replace(activations=values)
            for values in windows
        )
        latents = list(records.latents)
        latents[2] = replace(latents[2], strongest=shown, random=shown)
        return written(path, replace(records, latents=tuple(latents))).data["latents"][2][9][2]

    assert share_of((None, 2.0, 1.0, 0.5)) == 1
    assert share_of((None, 2.0, 1.0, 0.0), (None, 2.0, None, 3.0)) == pytest.approx(2 / 3, abs=1e-3)
    assert share_of((None, 2.0, None)) is None
    # Of a code it is not known which tokens without it count.
    assert share_of((None, -2.0, -1.0), strength="nearness") == 0.5


def test_levels_are_there_with_what_they_are_worth(path):
    records = make_records(N)
    levels = LevelCounts((0.5, 1.0, 2.0), (2, 1, 1))
    first = replace(records[0], levels=levels)
    records = replace(records, latents=(first, *records.latents[1:]))
    row = written(path, records).data["latents"][0]
    assert row[8] == [[0.5, 0.5, 2], None, [[0.5, 1, 2], [2, 1, 1]], 1.5]


def test_bits_that_fire_when_off_are_told(path):
    assert written(path, make_records(N, strength="surprise")).data["dictionaries"][0][
        "whenOff"
    ] == [1]


def test_a_codebook_has_codes_and_all_else_latents(path):
    for strength, unit in (("nearness", "code"), ("activation", "latent"), ("surprise", "latent")):
        data = written(path, make_records(N, strength=strength)).data
        assert data["dictionaries"][0]["unit"] == unit


def test_sentences_scores_and_phrases_are_all_there(path):
    sentences = make_sentences(4)
    scores = {"detection": [None, math.nan, *np.linspace(0, 1, N - 2)]}
    phrases = [None, *(f"phrase {j}" for j in range(1, N))]
    data = written(path, make_records(N), sentences=sentences, scores=scores, phrases=phrases).data
    assert data["phrases"] == phrases
    [column] = data["scores"]
    assert (column["name"], column["bounds"], column["beside"]) == ("detection", None, "")
    assert (column["values"][:3], len(column["values"])) == ([None, None, 0], N)
    for own, (packed, codes, label, others) in zip(sentences, data["sentences"], strict=True):
        assert tuple(unpack(packed, data["strings"])) == own.strings
        assert [[j for j, _ in token] for token in codes] == [
            [j for j, _ in token] for token in own.codes
        ]
        assert label == own.label
        assert others is None


def test_results_become_columns_phrases_and_tables(path):
    records = make_records(N)
    results = [make_intruder(records, 3), make_comsem(records, 2)]
    data = written(path, records, results=results, scores={"own": [0.5] * N}).data
    columns = {column.pop("name"): column for column in data["scores"]}
    assert list(columns) == [
        *("intruder score", "hard-intruder score", "token purity", "ComSem score", "own"),
    ]
    assert columns["intruder score"]["values"] == [1, 0.9, 0.8, *[None] * (N - 3)]
    assert columns["intruder score"]["bounds"][3:] == [None] * (N - 3)
    assert columns["token purity"]["bounds"] is None
    assert data["phrases"] == ["words like 0, 1", *[None] * (N - 1)]
    assert [run["status"] for run in data["said"]["1"]] == ["no pattern", "no answer"]
    [own] = data["dictionaries"]
    assert [test["title"] for test in own["tests"]] == ["Intruder test", "ComSem, balanced"]
    # One's own phrases take the place of the judge's.
    mine = written(path, records, results=results, phrases=["mine"] * N).data
    assert mine["phrases"] == ["mine"] * N


def test_entropy_over_training_is_thinned_and_keeps_its_end(path):
    training = written(path, make_records(N), training=TRAINING).data["dictionaries"][0]["training"]
    assert 200 <= len(training["points"]) <= 300
    assert training["points"][-1] == [900_000, pytest.approx(110.2)]
    assert not training["isOfCodes"]


def test_of_a_codebook_it_is_that_of_the_perplexity(path):
    log = {"details/n_training_samples": [1, 2, 3], "metrics/perplexity": [8.0, 0.0, 16.0]}
    training = written(path, make_records(N), training=log).data["dictionaries"][0]["training"]
    assert training == {"points": [[1, 3], [3, 4]], "isOfCodes": True}


def test_a_run_that_logged_no_entropy_has_none(path):
    log = {"details/n_training_samples": [1.0], "losses/mse_loss": [2.0]}
    assert written(path, make_records(N), training=log).data["dictionaries"][0]["training"] is None


# Metrics


def test_metrics_begin_with_the_headlines_and_nan_is_none():
    metrics = {m.name: m for m in list_metrics(SUMMARY)}
    assert list(metrics)[:3] == ["explained_variance", "code/l0", "code/dead_share"]
    assert metrics["reconstruction_quality/mse"].value is None
    assert metrics["code/of_its_own_kind"].explanation == ""
    assert list_metrics(None) == []


def test_metrics_are_called_as_people_call_them():
    labels = {m.name: m.label for m in list_metrics(SUMMARY)}
    assert labels["code/l0"] == "L0"
    assert labels["code/chow_liu_entropy"] == "Chow–Liu entropy"
    assert labels["code/of_its_own_kind"] == "of its own kind"
    assert labels["reconstruction_quality/mse"] == "reconstruction quality: MSE"


def test_headlines_of_codes_leave_out_what_is_said_of_latents(path):
    codes = make_records(N, strength="nearness")
    assert "code/l0" not in written(path, codes, SUMMARY).data["headlines"]
    assert "code/l0" in written(path, make_records(N), SUMMARY).data["headlines"]
    write_comparison(path, [Compared("a", codes), Compared("b", make_records(N))])
    assert Page(path).data["headlines"] == list(HEADLINES)


def test_all_scalars_of_a_code_are_explained():
    statistics = CodeStatistics(16, pair_counts=True)
    statistics.update((make_activations(64) > 0).float())
    metrics = list_metrics(statistics.compute())
    assert {m.name for m in metrics} == {f"code/{n}" for n in statistics.compute().to_dict()}
    assert all(m.explanation for m in metrics)
    assert {"n_tokens", *CodeSummary.__dataclass_fields__} - set(_EXPLANATIONS) == {
        "firing_rates",
        "l0_counts",
    }


def test_headlines_are_explained():
    assert all(name.split("/")[-1] in _EXPLANATIONS for name in HEADLINES)


def test_a_metric_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"'l0' must be a number, or a group .* got list"):
        list_metrics({"l0": [1, 2]})


# What it may do


def test_the_policy_allows_its_own_style_and_script_only(path):
    html = written(path, make_records(N))
    [style], [_, script] = html.styles, html.scripts
    assert html.policy == (
        f"default-src 'none'; style-src '{hash_of(style)}'; script-src '{hash_of(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_is_loaded_from_elsewhere(path):
    html = written(path, make_records(N), SUMMARY, TRAINING, make_sentences())
    for tag, attributes in html.tags:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "style", "onload", "onclick"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "fetch(",
        "http-equiv",
    ):
        assert name not in html.scripts[1]
    assert "url(" not in html.styles[0]
    assert "@import" not in html.styles[0]


def test_hostile_text_stays_data(path):
    """The tags of the page are those of the template, whatever the text is."""
    write_hostile(path)
    html = Page(path)
    harmless = written(path.with_name("other.html"), make_records(N))
    assert html.tags[:1] == [("html", {"lang": "en"})]
    assert html.tags == harmless.tags
    assert html.scripts[1:] == harmless.scripts[1:]
    data = html.data
    assert data["title"] == "".join(HOSTILE)
    assert set(HOSTILE) <= set(data["strings"])
    group, name = HOSTILE[0], HOSTILE[2]
    assert data["dictionaries"][0]["metrics"] == [
        [f"{group}/{name}", HOSTILE[0], "", f"{group}: {name}", ""]
    ]
    raw = html.scripts[0]
    assert raw.isascii()
    assert not set(raw) & set("<>&\x00\x1b\x7f\n\r\t")


# The file


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in "ab":
        write_report(
            tmp_path / name, make_records(N), SUMMARY, TRAINING, make_sentences(), title="t"
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_four_thousand_latents_stay_below_fifteen_megabytes(path, caplog):
    rng = np.random.default_rng(0)
    words = tuple(f" {rng.integers(10**6):x}{i}" for i in range(50_000))
    # As many different tokens as a large vocabulary has, ten and ten windows of 25 a latent.
    records = with_windows(make_records(128, words, n_examples=10, n_window=25), 0.5)
    with caplog.at_level(logging.WARNING):
        write_report(path, many(records, 4096), sentences=make_sentences(40))
    assert 2e6 < path.stat().st_size < 15e6
    assert not caplog.messages


def test_a_large_file_is_warned_of(path, caplog, monkeypatch):
    monkeypatch.setattr(page, "_LARGE", 1000)
    with caplog.at_level(logging.WARNING):
        write_report(path, make_records(N))
    assert "Fewer examples" in caplog.text


def test_a_failure_leaves_what_was_there(path, monkeypatch):
    write_report(path, make_records(N))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="phrases"):
        write_report(path, make_records(N), phrases=["one"])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phrases": ["one"]}, "phrases must have one entry for each of the 12 latents .* got 1"),
        ({"scores": {"fuzzing": [0.5] * 13}}, r"scores\['fuzzing'\] must have .* got 13"),
        (
            {"sentences": [CodedSentence(("a", "b"), ((),))]},
            "Sentence 0 must have codes for each of its 2 tokens .* got 1",
        ),
        (
            {"sentences": [CodedSentence(("a",), (((12, 1.0),),))]},
            "Sentence 0 has codes 12 to 12; those of the examples are 0 to 11",
        ),
        (
            {"results": [make_intruder(make_records(13), 2)]},
            "is of 13 latents of bae at .*; the examples are of 12",
        ),
    ],
)
def test_what_does_not_fit_the_evidence_is_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        write_report(path, make_records(N), **options)
    assert not path.exists()


def test_a_comparison_takes_no_result_of_another_dictionary(path):
    wrong = Compared("b", make_records(N), results=[make_intruder(make_records(13), 2)])
    with pytest.raises(ValueError, match="is of 13 latents"):
        write_comparison(path, [Compared("a", make_records(N)), wrong])


# Comparison


def test_what_a_reader_should_know_is_there(path):
    about = {"model": "any </script> model", "text": "reviews"}
    [own] = written(path, make_records(N), about=about).data["dictionaries"]
    assert own["about"] == about
    [own] = written(path, make_records(N)).data["dictionaries"]
    assert own["about"] == {}


def test_a_comparison_has_every_overview_and_no_latents(path):
    first = make_records(N)
    write_comparison(
        path,
        [
            Compared("one", first, SUMMARY, TRAINING, "one/report.html", [make_intruder(first, 3)]),
            Compared("two", make_records(5, strength="nearness")),
        ],
    )
    data = Page(path).data
    assert data["kind"] == "comparison"
    one, two = data["dictionaries"]
    assert (one["name"], one["link"], two["name"], two["link"]) == (
        "one",
        "one/report.html",
        "two",
        None,
    )
    assert (one["nTokens"], len(two["nFirings"])) == (N_TOKENS, 5)
    assert [name for name, *_ in one["means"]][1:] == [
        *("intruder score", "hard-intruder score", "token purity"),
    ]
    assert two["means"] == two["tests"] == []
    assert "latents" not in data


def test_a_comparison_needs_two_names(path):
    for names in (["one"], ["one", "one"]):
        with pytest.raises(ValueError, match="two dictionaries at least, each with a name"):
            write_comparison(path, [Compared(name, make_records(N)) for name in names])


@pytest.mark.parametrize("link", ["javascript:alert(1)", "//host/path", "data:text/html,x"])
def test_a_link_elsewhere_is_refused(path, link):
    compared = [Compared(name, make_records(N), link=link) for name in "ab"]
    with pytest.raises(ValueError, match="must be a path relative"):
        write_comparison(path, compared)


def test_logit_effects_of_a_bit_that_says_something_where_it_is_off_are_of_that(path):
    def ends(*values: float) -> tuple[TokenEffect, ...]:
        return tuple(TokenEffect(0, f" w{value}", value) for value in values)

    records = make_records(N, strength="surprise")
    assert [latent.index for latent in records.latents if latent.when_off] == [1]
    effects = [LogitEffects(j, ends(2.5, 1), ends(-4, -3)) for j in (0, 1)]
    data = written(path, records, effects=effects).data
    shown = {
        j: [[(data["strings"][s], value) for s, value in end] for end in both]
        for j, both in data["effects"].items()
    }
    assert shown["0"] == [[(" w2.5", 2.5), (" w1", 1)], [(" w-4", -4), (" w-3", -3)]]
    assert shown["1"] == [[(" w-4", 4), (" w-3", 3)], [(" w2.5", -2.5), (" w1", -1)]]


def test_logit_effects_are_there_for_those_that_have_them(path):
    def of(latent: int, *values: float) -> LogitEffects:
        tokens = [TokenEffect(i, f" w{i}<b>", value) for i, value in enumerate(values)]
        return LogitEffects(latent, tuple(tokens), tuple(tokens[::-1]))

    data = written(path, make_records(N), effects=[of(3, 2.5, -1), of(5, 1, 0.5)]).data
    assert list(data["effects"]) == ["3", "5"]
    top, bottom = data["effects"]["3"]
    assert [(data["strings"][s], value) for s, value in top] == [(" w0<b>", 2.5), (" w1<b>", -1)]
    assert bottom == top[::-1]
    assert written(path, make_records(N)).data["effects"] == {}
    with pytest.raises(ValueError, match="effects"):
        write_report(path, make_records(N), effects=[of(N, 1.0)])
