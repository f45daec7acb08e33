"""Results as files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bae_lens.interp import ComSemResult, IntruderResult, Ranking, Recovery
from bae_lens.interp.json_file import load_json, read_json, write_json
from bae_lens.quiz import QuizResult


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


@pytest.mark.parametrize("values", [[], {}, None], ids=["list", "dict", "null"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (Recovery, ("said", "concepts")),
        (IntruderResult, ("control", "latents")),
        (ComSemResult, ("runs", "pairs", "settings")),
        (Ranking, ("comparisons", "names")),
        (QuizResult, ("key", "answers")),
    ],
)
def test_that_no_result_is_loaded_from_values_that_are_none(
    tmp_path: Path, kind: Any, names: Any, values: Any
) -> None:
    write_json(tmp_path / "x.json", dict.fromkeys(names, values))
    with pytest.raises(ValueError, match=r"x\.json is no "):
        kind.load(tmp_path / "x.json")
