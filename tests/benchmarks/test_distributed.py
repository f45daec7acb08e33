"""Tests of ``benchmarks/distributed.py``: what is sent, what is counted, what follows for many."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from bae_lens import TrainingBAE, TrainingBAEConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import distributed_worker as worker  # pyright: ignore[reportMissingImports]

# By name, since a folder of tests has it too.
benchmark = cast(Any, importlib.import_module("distributed"))
Machine, Rates, Shape = benchmark.Machine, benchmark.Rates, benchmark.Shape


@pytest.mark.parametrize("shape", [Shape(6, 16), Shape(6, 16, 7, True), Shape(6, 16, 3, False)])
def test_parameters_are_those_of_the_autoencoder(shape):
    sae = TrainingBAE(TrainingBAEConfig(d_in=shape.d_in, **shape.fields))
    assert shape.parameters == sum(p.numel() for p in sae.parameters() if p.requires_grad)


def marks(*rows):
    return [worker.Marks(*row) for row in rows]


def test_rates_are_those_after_the_first_steps_and_before_the_end():
    # Seconds, CPU seconds, steps, tokens, seconds and CPU seconds in collectives, bytes.
    one = marks(
        (0, 0, 0, 0, 0, 0, 0),
        (10, 8, 4, 400, 2, 1, 40),
        (20, 16, 14, 1400, 4, 2, 140),
        (99, 99, 15, 9999, 99, 99, 9999),
    )
    two = marks(
        (0, 0, 0, 0, 0, 0, 0),
        (10, 8, 4, 400, 2, 1, 40),
        (20, 16, 14, 1400, 8, 4, 140),
        (99, 99, 15, 9999, 99, 99, 9999),
    )
    rates = Rates.of([one, two])
    assert rates.tokens_per_second == pytest.approx(2000 / 10)
    assert rates.cpu_seconds == pytest.approx(1000 * 16 / 2000)
    assert rates.communication == pytest.approx((2 + 6) / 20)
    assert rates.own_communication == pytest.approx((1 + 3) / 16)
    assert rates.bytes == pytest.approx(10)


def test_an_all_reduce_in_a_ring_takes_as_long_as_its_formula():
    shape, machine = (
        Shape(4, 8),
        Machine(model_flops=1e3, step_flops=1e3, latency=1e-3, bandwidth=1e4),
    )
    seconds = benchmark.project(4, shape, 100.0, 5, machine)
    assert seconds.model == pytest.approx(2 * 100 * 0.5 * 5 / 1e3)
    assert seconds.step == pytest.approx(12 * 4 * 8 * 5 / 1e3)
    # Of the payload every rank sends three quarters twice, in six hops.
    assert seconds.communication == pytest.approx(1.5 * benchmark.payload(shape) / 1e4 + 6e-3)
    assert seconds.total(False) == pytest.approx(
        seconds.model + seconds.step + seconds.communication
    )
    assert seconds.share(False) == pytest.approx(seconds.communication / seconds.total(False))
    # What the model's time covers is not waited for.
    assert seconds.total(True) == pytest.approx(
        seconds.step + max(seconds.model, seconds.communication)
    )
    assert benchmark.project(1, shape, 100.0, 5, machine).communication == 0.0


def test_what_two_processes_send_is_what_the_formula_says(tmp_path):
    shape = Shape(64, 256, 7, True)
    settings = worker.Settings(1, 64, 64 * 6, None, {}, shape.d_in, shape.fields)
    own = benchmark.run(settings, 2, tmp_path)
    rates = Rates.of(own)
    # A few numbers more: whether all is finite, losses, the budget.
    assert benchmark.payload(shape) <= rates.bytes <= 1.02 * benchmark.payload(shape) + 1024
    assert 0 < rates.communication < 1
    assert [mark.tokens for mark in own[0][:3]] == [0, 32, 64]


def test_projections_are_printed(capsys):
    benchmark.report_projection()
    printed = capsys.readouterr().out
    assert "4,096 → 32,768, 1.07 GB a step" in printed
    assert sum(line.startswith("| 512") for line in printed.splitlines()) == 2
