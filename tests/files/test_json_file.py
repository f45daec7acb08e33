"""Results as files."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from bae_lens.concept_ablation import ConceptAblationResult
from bae_lens.examples import LatentRecords
from bae_lens.files.json_file import finite_or_none, load_json, read_json, write_json
from bae_lens.quiz import QuizKey, QuizResult
from bae_lens.scoring import ComSemResult, IntruderResult, Ranking, Recoverability


def test_that_what_was_written_is_read(tmp_path: Path) -> None:
    values = {"a": [1, 2.5], "text": "„ß“ \u2028"}
    write_json(tmp_path / "new" / "x.json", values)
    assert read_json(tmp_path / "new" / "x.json", "result", "a", "text") == values


def test_that_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": math.nan})
    assert read_json(tmp_path / "x.json", "result") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"b": 1}', b"\xff\xfe", b"[" * 100_000], ids=range(6)
)
def test_that_anything_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.json is no result of a test"):
        read_json(tmp_path / "x.json", "result of a test", "a")


def test_that_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*x\.json"):
        read_json(tmp_path / "x.json", "result")


@pytest.mark.parametrize("error", [KeyError("b"), IndexError(), TypeError(), AttributeError()])
def test_that_values_of_something_else_are_refused(tmp_path: Path, error: Exception) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise error

    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match=r"x\.json is no result"):
        load_json(tmp_path / "x.json", "result", fail, "a")
    assert load_json(tmp_path / "x.json", "result", len, "a") == 1


RESULTS = (
    ComSemResult,
    ConceptAblationResult,
    LatentRecords,
    IntruderResult,
    QuizKey,
    QuizResult,
    Ranking,
)


@pytest.mark.parametrize("kind", [*RESULTS, Recoverability])
def test_that_no_result_is_loaded_from_something_else(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "x.json"
    names = [field.name for field in fields(kind)]
    for values in ([], None):
        write_json(path, dict.fromkeys(names, values))
        with pytest.raises(ValueError, match=r"x\.json is no "):
            kind.load(path)
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    write_json(path, dict.fromkeys(needed[:-1]))
    with pytest.raises(ValueError, match=f"x.json is no .*: it has no {needed[-1]!r}"):
        kind.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_that_what_json_cannot_hold_is_none(value: float) -> None:
    assert finite_or_none(value) is None


@pytest.mark.parametrize("value", [0.5, -1, True, "nan", None, [1.0]])
def test_that_anything_else_is_left_alone(value: Any) -> None:
    assert finite_or_none(value) == value
    json.dumps(finite_or_none(value), allow_nan=False)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"a": %s}' % ("9" * 400), "a number of 400 digits"),
        ('{"a": [{"b": -%s}]}' % ("9" * 5000), "a number of 5001 digits"),
        ('{"a": 1e999}', "not finite: 1e999"),
        ('{"a": NaN}', "not finite: NaN"),
        ('{"a": -Infinity}', "not finite: -Infinity"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        ('{"a": %s' % ("[" * 200_000), "nested too deep"),
        ('{"a": %s' % ('{"a":' * 200_000), "nested too deep"),
    ],
)
def test_that_what_json_does_not_say_clearly_is_refused(
    tmp_path: Path, content: str, why: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=rf"x\.json is no result: it is no JSON \(.*{why}"):
        read_json(tmp_path / "x.json", "result")


def test_that_half_a_surrogate_pair_costs_no_result(tmp_path: Path) -> None:
    values = {"a": "\ud800 kind", "b": "„ß“"}
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json", "result") == values


def test_that_integers_of_64_bits_are_kept(tmp_path: Path) -> None:
    values = {"a": [2**64 - 1, -(2**63)]}
    write_json(tmp_path / "x.json", values)
    assert read_json(tmp_path / "x.json", "result") == values


def test_that_many_names_take_no_more_than_their_share(tmp_path: Path) -> None:
    names = ", ".join(f'"{i}": 1' for i in range(100_000))
    (tmp_path / "x.json").write_text(f'{{{names}, "99999": 2}}')
    with pytest.raises(ValueError, match="'99999' stands twice"):
        read_json(tmp_path / "x.json", "result")
