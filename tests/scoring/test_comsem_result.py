"""Results of ComSem: scores by hand, files and tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bae_lens.scoring.comsem_result import (
    ComSemResult,
    ComSemSettings,
    LatentRun,
    Votes,
    protocol_distance,
)
from tests.report.helpers import make_comsem, make_records

EVIDENCE = make_records(12)
MENDED, RELEASED = make_comsem(EVIDENCE, 3), make_comsem(EVIDENCE, 3, "released")


def test_scores_by_hand():
    run = LatentRun(0, 0, "explained", "p", Votes(3, 1, 4), Votes(1, 3, 1), Votes(2, 2, 0))
    assert run.balanced_accuracy == (3 / 4 + 5 / 8) / 2
    assert run.positives_only == 3 / 4
    assert LatentRun(0, 0, "explained", "p", Votes(3, 1, 0)).balanced_accuracy is None
    assert LatentRun(0, 0, "no pattern").positives_only is None


def test_json_and_back(tmp_path):
    MENDED.save(tmp_path / "c.json")
    assert ComSemResult.load(tmp_path / "c.json") == MENDED


def test_table():
    table = MENDED.table()
    assert "balanced accuracy; 2 of 3 latents tested have 0.8 or more" in table
    assert "It may know the corpus." in table
    assert "positives only" not in RELEASED.table()


def test_the_distance_of_protocols_by_hand():
    """Explained latents have 1 by the positives, and (0.875 + 0.9375)/2 by both; the other has 0 and 1/2."""
    found = protocol_distance(MENDED, RELEASED)
    assert (found.n_latents, found.n_above) == (3, (2, 2, 2))
    for interval, mean in (
        (found.balanced, (2 * 0.90625 + 0.5) / 3),
        (found.released, 2 / 3),
        (found.difference, (2 * 0.09375 - 0.5) / 3),
    ):
        assert interval is not None
        assert interval.mean == pytest.approx(mean)
    assert found.rank_correlation == pytest.approx(1)


def test_other_results_have_no_distance():
    with pytest.raises(ValueError, match="'balanced' and then"):
        protocol_distance(MENDED, MENDED)
    with pytest.raises(ValueError, match="same judge"):
        protocol_distance(MENDED, replace(RELEASED, judge="other"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "new"},
        {"n_shown": 1},
        {"n_positive": 2},
        {"n_latents": 0},
        {"threshold": -0.1},
        {"seed": -1},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ComSemSettings(**wrong)
