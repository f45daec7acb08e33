"""Scores at equal firing rates, on latents whose answer is known."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.helpers import make_intruder, make_records

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
module: Any = importlib.import_module("equal_rates")


def latents(
    rate: float, n: int, n_passed: int, *, level: int = 0, seed: int = 0, purity: float = 0.2
) -> list[Any]:
    return [module.ScoredLatent(level, seed, rate, i < n_passed, purity) for i in range(n)]


@pytest.mark.parametrize(
    ("rate", "number"), [(0.001, -6), (0.00101, -6), (0.0031, -6), (0.0032, -5), (0.01, -4), (1, 0)]
)
def test_bins_are_halves_of_decades(rate, number):
    assert module.bin_of(rate) == number
    assert module.bin_of(0.001, 4) == -12


def test_titles_of_bins_are_percents():
    assert module.bin_title(-6) == "0.1–0.32 %"
    assert module.bin_title(-1) == "32–100 %"
    assert module.bin_title(-5, 4) == "5.6–10 %"


def test_latents_of_a_cell_have_their_own_rate():
    result = make_intruder(make_records(12), 3)
    tried = result.latents[0]
    silent = replace(tried, random=tuple(t._replace(n_right=0, n_wrong=0) for t in tried.random))
    result = replace(result, latents=(tried, silent, replace(tried, purity=0.9)))
    cell = {"result": result.to_dict(), "rates": [0.01, 0.02, 0.03]}
    found = list(module.scored_latents(cell, 2, 5))
    # Of the one without any answer nothing is known.
    assert [(t.rate, t.purity) for t in found] == [(0.01, tried.purity), (0.03, 0.9)]
    accuracy = tried.accuracy()
    assert accuracy is not None
    assert {t.passed for t in found} == {accuracy.mean >= result.settings.threshold}
    assert {(t.level, t.seed) for t in found} == {(2, 5)}


def test_shares_by_rate_have_a_column_a_bin():
    table = module.by_rate({"a": latents(0.002, 10, 5) + latents(0.02, 4, 0), "b": []})
    assert table.head == ["fires at", "0.1–0.32 %", "1–3.2 %"]
    assert table.rows == [
        ["a", "0.50 [0.24, 0.76] of 10", "0.00 [0.00, 0.49] of 4"],
        ["b", "–", "–"],
    ]


def test_a_code_that_leads_by_its_rare_latents_alone_does_not_lead_at_equal_rates():
    # Of each rate as many pass of both; but the first has more of those that fire seldom.
    one = latents(0.001, 400, 320) + latents(0.1, 100, 20)
    other = latents(0.001, 100, 80) + latents(0.1, 400, 80)
    assert sum(t.passed for t in one) > 2 * sum(t.passed for t in other)
    [row] = module.differences({"a": one, "b": other}, [("a", "b")], {0: "level"}).rows
    assert row[0] == "a less b"
    for cell in row[1:]:
        assert cell.startswith("+0.00 [-0.")
        assert cell.endswith(", 200")


def test_levels_are_compared_each_by_itself_and_together():
    one = latents(0.001, 50, 50) + latents(0.001, 50, 0, level=1)
    other = latents(0.001, 50, 0) + latents(0.001, 10, 0, level=1, seed=1)
    table = module.differences({"a": one, "b": other}, [("a", "b")], {0: "x", 1: "y"})
    assert table.head == ["", "x", "y", "all levels", "all, bins half as wide"]
    [[_, first, second, *both]] = table.rows
    assert first == "+1.00 [+1.00, +1.00], 50"
    # Too few, of which nothing is said.
    assert second == "–, 10"
    assert all(cell.startswith("+0.50 [") and cell.endswith(", 60") for cell in both)
    # A latent for one token does not count as one that passes.
    one = [replace(latent, purity=0.9) for latent in one]
    [[_, first, *_]] = module.differences(
        {"a": one, "b": other}, [("a", "b")], {0: "x", 1: "y"}, max_purity=0.5
    ).rows
    assert first == "+0.00 [+0.00, +0.00], 50"


def test_bins_half_as_wide_tell_what_differs_within_a_bin():
    one, other = latents(0.0011, 100, 100), latents(0.003, 100, 0)
    [[*_, coarse, fine]] = module.differences({"a": one, "b": other}, [("a", "b")], {0: "x"}).rows
    assert coarse == "+1.00 [+1.00, +1.00], 100"
    assert fine == "–, 0"
