"""The benchmark of sparse probing: its trainings in order, its means and differences, and its tables."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bae_lens.scoring.probing_result import LATENTS, RANDOM
from tests.scoring.planted_probing import planted_task, random_labels, reads_dimensions

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
benchmark: Any = importlib.import_module("sparse_probing")

TASK = benchmark.lm_task(15, l0s=benchmark.L0S, entropies=benchmark.ENTROPIES)
ARGS = Namespace(seeds=[0, 1], levels=[1, 2], datasets=["ag_news", "movie"])


def cell(trial: Any, planted: bool) -> dict[str, Any]:
    """Of two datasets, of three classes and of two."""
    sae = reads_dimensions()
    results = {
        name: benchmark.probe_latents(
            planted_task(random_labels(n), planted, k=(1, 2), n_draws=2), sae
        ).to_dict()
        for name, n in (("ag_news", 3), ("movie", 2))
    }
    numbers = {"ev": 0.5, "l0": 4.0, "bits": 20.0}
    return {**numbers, "recipe": benchmark.recipe_of(trial, TASK), "results": results}


@pytest.fixture(scope="module")
def found() -> Any:
    """The BAE's label is in one latent, TopK's in none; of the others there is nothing yet."""
    made = {arch: cell_of for arch, cell_of in (("bae", True), ("topk", False))}
    asked = benchmark.trials(TASK, ARGS)
    kept = [t for t in asked if t.arch in made and t.level == 1]
    cells = {arch: cell(next(t for t in kept if t.arch == arch), made[arch]) for arch in made}
    return benchmark.Found({t.key: cells[t.arch] for t in kept}, asked)


def test_the_first_seed_comes_first_and_random_directions_once() -> None:
    found = benchmark.trials(TASK, ARGS)
    assert len(found) == len(set(found)) == 2 * (6 + 5)
    assert [t.seed for t in found] == sorted(t.seed for t in found)
    assert all(t.lr == benchmark.LEARNING_RATES[t.arch][t.level] for t in found)
    assert {t.seed for t in found if t.arch == benchmark.RANDOM} == {0}


def test_datasets_weigh_alike_whatever_their_classes(found: Any) -> None:
    [one, other] = (found.of(arch, 1)[:1] for arch in ("bae", "topk"))
    by_dataset = [r.accuracy(LATENTS, 1).mean for r in found.results[one[0]].values()]
    assert found.accuracy(one[0], LATENTS, 1) == pytest.approx(np.mean(by_dataset))
    difference = found.accuracy(one[0], LATENTS, 1) - found.accuracy(other[0], LATENTS, 1)
    interval = found.difference(one, other, 1)
    assert interval.mean == pytest.approx(difference)
    assert interval.low > 0.2
    assert found.difference(one, one, 1) == (0, 0, 0)
    own = found.accuracy(one[0], LATENTS, 2) - found.accuracy(one[0], RANDOM, 2)
    assert found.excess(one, RANDOM, 2).mean == pytest.approx(own)


def test_the_tables_have_what_there_is(found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.report(found, TASK, ARGS)
    out = capsys.readouterr().out
    assert "## 37.5 bits, L0 4\n" in out
    assert "75 bits" not in out
    assert "Latents are chosen by difference." in out
    lines = {line.split("|")[1].strip(): line for line in out.splitlines() if "|" in line}
    assert "+0." in lines["BAE less TopK"]
    assert lines["BAE less BatchTopK"].count("–") == 2
    assert lines["TopK less random latents"].count("[") == 2
    benchmark.report(benchmark.Found({}, []), TASK, ARGS)
    assert "Nothing is measured yet" in capsys.readouterr().out
