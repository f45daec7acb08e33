"""Which trainings ``benchmarks/convergence.py`` asks for, and which of them count."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import convergence  # pyright: ignore[reportMissingImports]

OTHERS = [name for name in convergence.SCHEDULES if name != convergence.PLAIN]
ARGS = argparse.Namespace(
    steps=[500, 10_000], widths=[2, 8], budgets=[0, 1], rates=[1e-3, 4e-3], schedules=OTHERS
)


def test_the_longest_are_trained_first_and_wide_ones_at_the_budget_for_reading():
    points = convergence.plain_points(ARGS)

    assert len(points) == len(set(points)) == 2 * 2 * 2 * 3
    assert [p.steps for p in points] == sorted((p.steps for p in points), reverse=True)
    assert {p.budget for p in points if p.width == 8} == {convergence.READ}
    assert {p.arch for p in points} == {convergence.BAE, convergence.PEER}


def test_other_schedules_are_of_bae_and_each_once():
    points = convergence.scheduled_points(ARGS)

    assert len(points) == len(set(points)) == 2 * 2 * 2 * 3
    assert convergence.PLAIN not in {p.schedule for p in points}
    assert {p.arch for p in points} == {convergence.BAE}
    assert all(s.warm_up + s.decay <= 1 for s in convergence.SCHEDULES.values())


def test_the_rate_that_counts_explains_most_of_the_validation_split():
    points = [p for p in convergence.plain_points(ARGS) if p.steps == 500 and p.width == 2]
    cells = {p.key: {"validation_ev": math.nan if p.lr == 4e-3 else 0.5} for p in points}
    best = convergence.best_points(points, cells)

    assert len(best) == 4
    assert {p.lr for p in best} == {1e-3}
    assert convergence.best_of(points, {}) is None
