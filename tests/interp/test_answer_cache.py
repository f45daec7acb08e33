"""Answers on disk."""

from __future__ import annotations

import json

import pytest

from bae_lens.interp.answer_cache import AnswerCache, key_of


def test_answers_outlive_the_cache(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    AnswerCache(path).put("a", "yes", {"kind": "match"})
    AnswerCache(path).put("b", None)

    again = AnswerCache(path)

    assert (again["a"], again["b"], len(again)) == ("yes", None, 2)
    assert "c" not in again
    assert json.loads(path.read_text().splitlines()[0])["kind"] == "match"


def test_in_memory():
    cache = AnswerCache(None)
    cache.put("a", "é")
    assert cache["a"] == "é"


@pytest.mark.parametrize("left", [b'{"key": "b", "ans', b"\xff\xfe", b"[1]", b'{"key": 1}\n'])
def test_half_a_line_costs_no_other(tmp_path, left, caplog):
    path = tmp_path / "answers.jsonl"
    AnswerCache(path).put("a", "yes")
    path.write_bytes(path.read_bytes() + left)

    AnswerCache(path).put("c", "no")
    again = AnswerCache(path)

    assert (again["a"], again["c"], len(again)) == ("yes", "no", 2)
    assert "1 lines" in caplog.text


def test_key_does_not_depend_on_order():
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1}) != key_of({"a": 1, "b": [3]})
