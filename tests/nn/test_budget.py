import logging
import math

import pytest
import torch

from bae_lens.nn import check_budget, follow_budget


def follow(log_multiplier: float, entropy: float, target: float = 100.0) -> float:
    return follow_budget(torch.tensor(log_multiplier), torch.tensor(entropy / target)).item()


@pytest.mark.parametrize(
    ("entropy", "step"),
    [
        (100.0, 0.0),
        (110.0, 0.02 * 0.3),
        (95.0, -0.02 * 0.15),
        # a third off target and further
        (400 / 3, 0.02),
        (1e6, 0.02),
        (0.0, -0.02),
    ],
)
def test_one_step(entropy, step):
    assert follow(1.5, entropy) == pytest.approx(1.5 + step, abs=1e-6)


def test_it_stays_within_its_limits():
    up = down = 0.0
    for _ in range(700):
        up, down = follow(up, 1e3), follow(down, 0.0)
    assert (up, down) == (12.0, -12.0)


def test_a_coefficient_that_follows_holds_a_code_that_answers_it_to_its_target():
    # A code whose entropy falls with the coefficient's logarithm, as codes do.
    x, entropies = 0.0, []
    for _ in range(1500):
        entropies.append(300 * math.exp(-0.4 * x))
        x = follow(x, entropies[-1])
    assert entropies[0] == 300
    assert entropies[-1] == pytest.approx(100, rel=0.01)


def test_more_than_a_bit_for_each_latent_is_refused():
    check_budget(64, 64, max_density=None)
    with pytest.raises(ValueError, match="65 bits per token, but 64 bits"):
        check_budget(65, 64, max_density=None)


@pytest.mark.parametrize(
    ("max_density", "target", "is_warned"),
    [
        # H2(0.1) is 0.469
        (0.1, 46.8, False),
        (0.1, 47.0, True),
        # Above one half a cap forbids nothing.
        (0.5, 100.0, False),
        (0.9, 100.0, False),
        (None, 100.0, False),
    ],
)
def test_a_target_beyond_the_cap_is_warned_of(max_density, target, is_warned, caplog):
    with caplog.at_level(logging.WARNING):
        check_budget(target, 100, max_density)
    assert ("will stay below its target" in caplog.text) == is_warned


def test_levels_carry_more_than_bits_and_no_more_than_their_number():
    check_budget(16.0, 8, None, n_levels=3)
    with pytest.raises(ValueError, match="8 latents of 3 levels"):
        check_budget(16.1, 8, None, n_levels=3)


@pytest.mark.parametrize(("target", "is_warned"), [(4.9, False), (5.1, True)])
def test_a_target_beyond_the_cap_of_levels_is_warned_of(target, is_warned, caplog):
    """Eight latents that fire on a tenth of tokens carry 8·(H₂(0.1) + 0.1·log₂ 3) = 5.02 bits."""
    check_budget(target, 8, 0.1, n_levels=3)

    assert bool(caplog.records) == is_warned
