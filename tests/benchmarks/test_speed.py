"""The speed benchmark: what it times is what it says, and its peers compute the same."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput

from bae_lens import TrainingBAE, TrainingBAEConfig
from bae_lens.nn import sample_codes
from tests.helpers import grad_of, make_activations

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
speed: Any = importlib.import_module("speed")
timing: Any = importlib.import_module("speed_timing")


@pytest.mark.parametrize(("second", "calls"), [(0.01, 2), (1.0, 1)])
def test_calls_take_turns_and_short_ones_are_timed_after_one_like_it(monkeypatch, second, calls):
    made: list[str] = []
    monkeypatch.setattr(timing, "timed", lambda call, *_: (call(), second * len(made))[1])

    seconds = timing.take_turns(
        {"a": lambda: made.append("a"), "b": lambda: made.append("b")}, rounds=3
    )

    assert made == (["a"] * calls + ["b"] * calls) * 3
    # The last of each turn, in the second of three rounds.
    assert seconds == {"a": second * 3 * calls, "b": second * 4 * calls}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells")
def test_peak_memory_is_that_of_the_call():
    found = timing.peak_megabytes(lambda: torch.ones(48, 2**18).sum())
    if found is None:
        pytest.skip("the high-water mark cannot be reset here")
    # 48 MB of floats; the rest of the process moves by a little.
    assert 40 < found < 70


@pytest.mark.parametrize("n_on", [4, 16, 64])
def test_codes_have_so_many_bits_on(n_on):
    codes = speed.draw_code(500, 128, n_on, "cpu")
    assert codes.sum(1).mean().item() == pytest.approx(n_on, rel=0.15)
    assert set(codes.unique().tolist()) == {0, 1}


def test_every_method_gives_the_gradient_of_the_definition():
    codes = speed.draw_code(61, 40, 8, "cpu")
    calls = speed.penalty_calls(codes, ("torch.cov", *speed.METHODS))

    expected = calls["torch.cov"]()

    assert calls.keys() == {"torch.cov", *speed.METHODS}
    for call in calls.values():
        torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-6)


def test_what_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(speed, "LONGEST", 0.0)
    assert speed.penalty_calls(speed.draw_code(61, 40, 8, "cpu"), ("torch.cov", "tiles")) == {}


def test_the_plain_training_step_has_the_same_gradients():
    cfg = TrainingBAEConfig(d_in=16, d_sae=64, target_entropy="d_in", covariance_coefficient=0.01)
    torch.manual_seed(0)
    ours = TrainingBAE(cfg)
    plain = speed.PlainBAE(cfg)
    plain.load_state_dict(ours.state_dict())
    x = make_activations(61, 16)

    for sae, is_plain in ((ours, False), (plain, True)):
        with speed.plain_covariance(is_plain):
            step = TrainStepInput(
                sae_in=x,
                coefficients={"entropy": 0.1, "covariance": 0.01, "density": 1.0},
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
            sae.training_forward_pass(step).loss.backward()

    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            grad_of(parameter), grad_of(plain.get_parameter(name)), rtol=1e-4, atol=1e-5, msg=name
        )


def test_the_loop_draws_from_the_same_codes():
    torch.manual_seed(0)
    distances = torch.rand(20, 9)
    nearest = distances.topk(3, largest=False).indices
    for drawn in (speed.sample_one_by_one(distances, 3, 1.0), sample_codes(distances, 3, 1.0)):
        assert (nearest == drawn[:, None]).any(1).all()


def test_the_slope_is_the_exponent():
    points = [(x, 3.0 * x**1.5) for x in (1, 2, 4, 8, 16)]
    assert speed.slope(points) == pytest.approx(1.5)
    # What is small beside a constant does not count.
    assert speed.slope([(x, 1 + x) for x in (1, 10, 10**4, 10**5, 10**6)]) == pytest.approx(
        1, abs=0.01
    )


def test_the_parts_on_the_cpu_print_their_tables(capsys, monkeypatch):
    monkeypatch.setattr(speed, "N_ON", 8)
    args = speed.parse(["--quick", "--rounds", "1"])
    rows = [
        {"n": 31, "d_sae": d, "code": "8 on"}
        | speed.time_penalty(speed.draw_code(31, d, 8, "cpu"), ("torch.cov", *speed.METHODS), 1)
        for d in (64, 96, 128)
    ]

    speed.show_covariance(rows)
    speed.show_growth(rows)
    speed.show_steps(speed.steps_part(args))

    out = capsys.readouterr().out
    for said in ("| 31 |   128 | 8 on |", "slope", "SAELens standard", "BAE, both penalties"):
        assert said in out
