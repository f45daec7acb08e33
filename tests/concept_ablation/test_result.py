"""What a result says of its rows, against numbers by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from bae_lens.concept_ablation import (
    AblationRow,
    AblationSettings,
    ConceptAblationResult,
    SalientTokens,
)
from bae_lens.concept_ablation import result as names
from bae_lens.concept_ablation.result import drop_difference
from bae_lens.stats import Interval, paired_bootstrap

N = 10


def row(method: str, n_right: int, place: str = names.LOWER, **overrides: Any) -> AblationRow:
    """The last of ten examples are predicted rightly."""
    values = {
        "place": place,
        "concept_of": "" if method in ("none", names.MEAN, names.LEACE) else "word",
        "method": method,
        "read_by": names.PROBE,
        "rank": 1.0,
        "removed_norm": 0.25,
        "correct": tuple(i >= N - n_right for i in range(N)),
        "fold_accuracies": (0.2, 0.6),
        **overrides,
    }
    return AblationRow(**values)


def make_result(**overrides: Any) -> ConceptAblationResult:
    rows = (
        row("none", 9, removed_norm=0.0),
        row(names.CONCEPT, 3),
        row(names.RANDOM_EQUAL, 8),
        row(names.CONCEPT, 6, concept_of="readout"),
        row(names.RANDOM_EQUAL, 7, concept_of="readout"),
        row(names.LEACE, 6),
        row("none", 8, names.EVERYWHERE),
        row("none", 7, names.EVERYWHERE, read_by=names.LABEL_WORDS),
        row(names.CONCEPT, 7, names.EVERYWHERE, ce_change=(0.5, 0.25, 0.0)),
        row(names.CONCEPT, 5, names.EVERYWHERE, read_by=names.LABEL_WORDS),
    )
    values = {
        "dictionary": "k-means",
        "hook_names": ("a", "b"),
        "label_names": ("bad", "é"),
        "labels": (0,) * 6 + (1,) * 4,
        "settings": AblationSettings(label_words=["yes", "no"]).to_dict(),
        "rows": rows,
        "salient": SalientTokens(("good", "é") * 5, 0.1, 0.9, 0.25, 1e-3),
        "concept_ids": ((1, -1), (2, 3)) * 5,
        "n_truncated": 3,
        "ordinary_ce": 2.5,
        "concept_in_rationale": None,
        **overrides,
    }
    return ConceptAblationResult(**values)


# Numbers


def test_accuracies_and_their_spread_are_of_examples_and_of_folds():
    concept = make_result().row()

    assert concept.accuracy == 0.3
    assert concept.std == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("labels", "chance"), [((0, 1), 0.5), ((0, 1, 1, 2), 0.5), ((1,) * 3 + (0,), 0.75)]
)
def test_chance_is_the_commonest_class(labels, chance):
    assert make_result(labels=labels).chance == chance


@pytest.mark.parametrize(
    ("predictions", "margin", "has_signal"),
    [
        # The commonest class is 6 of 10.
        ((0,) * 6 + (1,) * 4, 0.4, True),
        ((0,) * 10, 0.0, False),
        ((0,) * 6 + (1, 0, 0, 0), 0.1, False),
        ((1,) * 6 + (0,) * 4, -0.6, False),
    ],
)
def test_a_signal_is_better_than_the_commonest_class(predictions, margin, has_signal):
    settings = AblationSettings(label_words=["yes", "no"]).to_dict() | {
        "predicted_by": "label_words"
    }
    result = make_result(predictions=predictions, settings=settings)

    assert result.signal is not None
    assert result.signal.mean == pytest.approx(margin)
    assert result.has_signal == has_signal
    assert ("Without signal" in result.table()) != has_signal
    assert ("Without signal" in result.excess_table()) != has_signal
    assert f"over texts, is {margin:+.3f} [" in result.table()
    assert ConceptAblationResult.from_dict(result.to_dict()).has_signal == has_signal


def test_what_older_versions_did_not_keep_is_not_known():
    values = make_result().to_dict()
    del values["predictions"], values["has_signal"]
    values["settings"] = {k: v for k, v in values["settings"].items() if k != "predicted_by"}

    result = ConceptAblationResult.from_dict(values)

    assert result.signal is None
    assert result.has_signal is None
    # Whatever label words there were, a probe's prediction was attributed.
    assert result.predicted_by == names.PROBE
    assert "ignal" not in result.table()


def test_the_excess_is_of_the_concept_beyond_each_control():
    result = make_result(rows=(*make_result().rows, row(names.RANDOM, 5)))

    lines = result.excess_table().splitlines()[2:]

    assert lines[0].startswith("| lower vector | word | probe | 0.200 [0.000, 0.500] | 0.500 [")
    # Of the label words no control was measured.
    assert lines[-1] == "| all tokens | word | label words | – | – |"


def test_what_is_lost_is_a_paired_difference():
    result = make_result()
    difference = torch.tensor([0.0] + [1.0] * 6 + [0.0] * 3)

    lost = result.change(result.row())

    assert lost == paired_bootstrap(difference, result.settings["seed"])
    assert lost.mean == pytest.approx(0.6)
    assert lost.low < 0.6 < lost.high


def test_a_drop_below_chance_counts_as_one_to_chance():
    result = make_result()

    assert result.chance == 0.6
    assert result.drop(result.row()) == pytest.approx(0.9 - 0.6)
    assert result.drop(result.row(method=names.RANDOM_EQUAL)) == pytest.approx(0.1)
    # The paper's does not stop there.
    assert result.relative_drop(result.row()) == pytest.approx((0.9 - 0.3) / 0.9)


def test_of_nothing_there_is_no_share():
    result = make_result(rows=(row("none", 0), row(names.CONCEPT, 0)))

    assert math.isnan(result.relative_drop(result.row()))


def test_a_concept_is_compared_with_the_control_of_its_own_place():
    result = make_result()

    assert result.excess_over(result.row()).mean == pytest.approx(0.5)
    assert result.excess_over(result.row(concept_of="readout")).mean == pytest.approx(0.1)
    # LEACE is of no position, so it stands beside both.
    for concept_of in ("word", "readout"):
        concept = result.row(concept_of=concept_of)
        assert result.excess_over(concept, names.LEACE).mean == pytest.approx(
            0.6 - concept.accuracy
        )


def test_each_reader_is_compared_with_what_it_said_before():
    result = make_result()

    by_probe, by_words = (
        result.change(result.row(names.EVERYWHERE, read_by=reader)).mean
        for reader in (names.PROBE, names.LABEL_WORDS)
    )
    assert by_probe == pytest.approx(0.1)
    assert by_words == pytest.approx(0.2)


def test_cross_entropy_is_a_mean_over_texts():
    result = make_result()

    change = result.ce_change(result.row(names.EVERYWHERE))

    assert change is not None
    assert change.mean == pytest.approx(0.25)
    assert 0 <= change.low < change.mean < change.high <= 0.5
    assert result.ce_change(result.row()) is None


def test_the_same_predictions_have_no_width():
    result = make_result()

    assert result.change(result.row(method="none")) == (0, 0, 0)


# Rows


def test_a_row_that_is_not_there_is_an_error_with_those_that_are():
    result = make_result()
    with pytest.raises(KeyError) as error:
        result.row(method="concpet")
    message = str(error.value)
    assert "('concpet', 'word', 'probe')" in message
    assert f"('{names.RANDOM_EQUAL}', 'readout', 'probe')" in message
    assert names.LABEL_WORDS not in message  # of another place

    with pytest.raises(KeyError, match=f"{names.LOWER}.*{names.EVERYWHERE}"):
        result.row("lower vektor")


def test_a_row_of_no_position_is_found_for_each():
    result = make_result()

    assert result.row(method=names.LEACE) is result.row(method=names.LEACE, concept_of="readout")


# Tables


def test_the_table_has_a_line_a_row_and_chance():
    result = make_result()

    lines = result.table().splitlines()

    assert len(lines) == 2 + len(result.rows) + 2
    assert {line.count("|") for line in lines[:-2]} == {11}
    assert lines[-1] == "Chance is 0.600."
    assert lines[3] == (
        "| lower vector | word | concept | probe | 1 | 0.250 | 0.300 ± 0.200 | "
        f"+0.600 [{result.change(result.row()).low:+.3f}, {result.change(result.row()).high:+.3f}] "
        "| +0.300 | – |"
    )
    assert "| none | probe | – | – | 0.900 ± 0.200 | – | – | – |" in lines[2]
    assert lines[10].endswith("| +0.250 |")


def test_a_table_may_be_of_some_rows():
    result = make_result()

    assert len(result.table([result.row()]).splitlines()) == 5
    assert len(result.table([]).splitlines()) == 4


# Files


def test_what_is_saved_is_loaded_again(tmp_path):
    result = make_result()
    path = tmp_path / "new" / "result.json"

    result.save(path)

    assert ConceptAblationResult.load(path) == result
    assert ConceptAblationResult.load(str(path)).table() == result.table()
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values["chance"] == 0.6
    assert values["rows"][1]["accuracy"] == 0.3
    assert values["rows"][1]["correct"] == "0000000111"
    assert "é" in path.read_text(encoding="utf-8")


def test_numbers_that_json_lacks_are_left_out(tmp_path):
    rows = (row("none", 9), row(names.CONCEPT, 3, removed_norm=math.nan))

    make_result(rows=rows, ordinary_ce=math.nan).save(tmp_path / "result.json")

    loaded = ConceptAblationResult.load(tmp_path / "result.json")
    assert loaded.ordinary_ce is None
    assert loaded.rows[1].correct == rows[1].correct
    assert math.isnan(loaded.rows[1].removed_norm)


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": 1}', '"rows"'])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other.json is no result of concept_ablation"):
        ConceptAblationResult.load(path)


# Two ablations of the same examples


def test_drops_differ_only_above_chance():
    def right(n: int) -> list[bool]:
        return [i < n for i in range(40)]

    both_below = drop_difference(right(8), right(16), chance=0.5)
    assert both_below.mean == 0
    assert both_below.low <= 0 <= both_below.high
    one_below = drop_difference(right(8), right(32), chance=0.5)
    assert one_below.mean == pytest.approx(0.8 - 0.5)
    assert 0 < one_below.low < 0.3 < one_below.high
    assert drop_difference(right(32), right(8), chance=0.5).mean == pytest.approx(-0.3)
    assert drop_difference(right(30), right(30), chance=0.5) == (0, 0, 0)
    assert drop_difference([False], [True], chance=0.5) == Interval.of_one(0.5)
    # The mean over runs, each of which is bounded by chance on its own.
    runs = drop_difference([right(8), right(32)], [right(32), right(8)], chance=0.5)
    assert runs.mean == pytest.approx(0, abs=1e-6)
