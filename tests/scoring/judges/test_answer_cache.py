"""Answers on disk."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bae_lens.scoring.judges.answer_cache import AnswerCache, key_of


def test_answers_outlive_the_cache(tmp_path):
    path = tmp_path / "folder" / "answers.jsonl"
    AnswerCache(path).put("a", "yes", {"kind": "match"})
    AnswerCache(path).put("b", "no")

    again = AnswerCache(path)

    assert (again["a"], again["b"], len(again)) == ("yes", "no", 2)
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


def test_what_had_no_answer_is_open(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f'{{"key": "{k}", "answer": null}}\n' for k in "abb"))
    cache = AnswerCache(path)
    assert (len(cache), "a" in cache, cache.was_open) == (0, False, {"a", "b"})
    cache.put("a", "yes")
    assert AnswerCache(path).was_open == {"b"}


HOSTILE = [
    b"[" * 200_000,
    b'{"key": "b", "answer": "no", "x": ' + b"9" * 5000 + b"}",
    b'{"key": "b", "answer": "no", "x": NaN}',
    b'{"key": "b", "key": "c", "answer": "no"}',
    b'{"key": "b", "answer": ["no"]}',
    b'{"key": ["b"], "answer": "no"}',
    b'{"key": "b", "answer": "' + b"x" * 3 * 2**20 + b'"}',
    b"\0" * 100,
]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_line_costs_no_other(tmp_path, line, caplog):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        b'{"key": "a", "answer": "yes"}\n' + line + b'\n{"key": "d", "answer": "no"}\n'
    )
    cache = AnswerCache(path)
    assert (cache["a"], cache["d"], len(cache)) == ("yes", "no", 2)
    assert "1 lines" in caplog.text


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_costs_no_more_than_the_lines_that_it_is_in(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("cache") / "answers.jsonl"
    for key in "abc":
        AnswerCache(path).put(key, "yes", {"said": ["é", "\ud800"]})
    content = bytearray(path.read_bytes())
    line = content.splitlines(keepends=True)[1]
    begin = len(content.splitlines(keepends=True)[0])
    damage = data.draw(st.binary(max_size=40)).replace(b"\n", b" ")
    at = data.draw(st.integers(0, len(line) - 2))
    end = data.draw(st.integers(at, len(line) - 1))
    content[begin + at : begin + end] = damage
    path.write_bytes(content)
    cache = AnswerCache(path)
    assert (cache["a"], cache["c"]) == ("yes", "yes")
    assert all(isinstance(key, str) for key in cache.was_open)
    # Anything at all.
    path.write_bytes(data.draw(st.binary(max_size=200)))
    AnswerCache(path)


@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file_is_refused(tmp_path, what):
    path = tmp_path / "x"
    path.mkdir() if what == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match="x is no file"):
        AnswerCache(path)
