"""The comparison of architectures: its arithmetic, its file, and one small training of each kind."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Benchmarks are scripts: they import each other as their own folder lets them.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
trials: Any = importlib.import_module("untangling_trials")
benchmark: Any = importlib.import_module("feature_untangling")

TASK = trials.synthetic_task(
    heavy=False,
    d_in=24,
    d_sae=48,
    steps=40,
    l0s=(2, 4, 8),
    entropies=(8, 16, 24),
    n_train=4096,
    n_validation=2048,
    n_test=2048,
    n_quantized=1024,
)


def row_of(points: list[tuple[float | None, float, float]], seed: int = 0, level: int = 1) -> Any:
    return trials.Row(
        trials.Trial("synth", "topk", level, 1e-3, seed), 0.5, 0.5, {"l0": 4.0}, points
    )


def test_a_pareto_front_keeps_what_no_point_beats():
    rows = [row_of([(0, 10.0, 0.5), (4, 30.0, 0.8)]), row_of([(0, 20.0, 0.4), (4, 25.0, 0.7)])]

    assert benchmark.pareto(rows) == [(10.0, 0.5), (25.0, 0.7), (30.0, 0.8)]


def test_an_envelope_is_concave():
    rows = [row_of([(0, 10.0, 0.5), (4, 20.0, 0.52), (6, 29.0, 0.69)]), row_of([(0, 30.0, 0.7)])]

    assert benchmark.envelope(rows) == [(10.0, 0.5), (30.0, 0.7)]
    assert benchmark.envelope([row_of([(0, 10.0, 0.5), (1, 20.0, 0.7), (2, 30.0, 0.8)])]) == [
        (10.0, 0.5),
        (20.0, 0.7),
        (30.0, 0.8),
    ]


def test_interpolation_is_linear_between_constant_after_and_unknown_before():
    points = [(10.0, 0.5), (20.0, 0.7)]

    assert benchmark.interpolate(points, 15.0) == pytest.approx(0.6)
    assert benchmark.interpolate(points, 10.0) == 0.5
    assert benchmark.interpolate(points, 99.0) == 0.7
    assert math.isnan(benchmark.interpolate(points, 9.0))


def test_the_best_point_is_the_cheapest_within_the_tolerance():
    points: list[tuple[float | None, float, float]] = [
        (0, 10.0, 0.5),
        (3, 20.0, 0.795),
        (8, 90.0, 0.8),
    ]

    assert benchmark.best_point(row_of(points)) == (3, 20.0, 0.795)


def test_results_are_resumed_from_their_file(tmp_path):
    path = tmp_path / "results.json"
    row = row_of([(None, 10.0, 0.5)])
    benchmark.Results(path, [TASK]).add(row)

    resumed = benchmark.Results(path, [TASK])

    assert list(resumed.rows) == [row.trial.key]
    assert resumed.rows[row.trial.key].trial == row.trial
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_a_file_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "results.json"
    benchmark.Results(path, [TASK]).add(row_of([(None, 10.0, 0.5)]))

    with pytest.raises(SystemExit, match="other settings"):
        benchmark.Results(path, [trials.synthetic_task(heavy=False)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("activations")
    trials.prepare([TASK], folder, "cpu")
    return folder


@pytest.mark.parametrize("arch", list(trials.NAMES))
def test_every_architecture_is_trained_and_scored(arch, folder):
    n_threads = torch.get_num_threads()
    row = trials.run_trial(
        trials.Trial("synth", arch, 1, 2e-3, 0), TASK, folder, "cpu", score_ce=False
    )
    torch.set_num_threads(n_threads)

    assert len(row.points) == (1 if arch in trials.OURS else len(trials.RESOLUTIONS))
    bits = [bits for _, bits, _ in row.points]
    assert bits == sorted(bits)
    assert min(bits) >= row.code["chow_liu_entropy"] - 1e-6
    # Fine quantization costs next to nothing, and what was saved is what was trained.
    assert row.points[-1][2] == pytest.approx(row.explained_variance, abs=0.05)
    assert row.explained_variance > 0.05
    assert 0 <= row.truth["f1_score"] <= 1
    assert row.truth["true_l0"] > 0
