"""What is missing, what is a text, and what is said of either."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from bae_lens.activations.texts import MissingTexts, check_readable, check_text, is_missing


@pytest.mark.parametrize(
    "value", [None, "", float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.float64("nan")]
)
def test_nothing_is_missing(value):
    assert is_missing(value)


@pytest.mark.parametrize(
    "value", [0, 0.0, " ", "0", "None", "nan", [], {}, b"", False, np.zeros(2)]
)
def test_all_else_is_there(value):
    assert not is_missing(value)


@pytest.mark.parametrize("text", ["", "a", "\0", "é", "\U0001f600", "‮", "\x1b[2J", "a\r\nb", "﻿"])
def test_a_string_that_utf8_can_hold_is_a_text(text):
    assert check_text(text, "It") is text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (5, "got 5"),
        (1.5, "got 1.5"),
        (None, "got None"),
        (b"abc", "got b'abc'"),
        (["a"], r"got \['a'\]"),
        ({"a": 1}, "got {'a': 1}"),
        ("x" * 100 + "\ud800", r"'\\ud800' as character 101"),
        ("\udfff", r"'\\udfff' as character 1, half of a surrogate pair, which UTF-8 cannot hold"),
        (["y" * 1000], "y…"),
    ],
)
def test_anything_else_is_refused_in_ascii(value, shown):
    with pytest.raises(ValueError, match=shown) as caught:
        check_text(value, "The text of row 3")
    message = str(caught.value)
    assert message.startswith("The text of row 3 has ")
    assert len(message) < 300
    message.encode()


def test_missing_texts_are_told_of_once_and_counted_at_the_end(caplog):
    missing = MissingTexts("body")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            missing.pass_over(4)
        for _ in range(3):
            missing.at_end(9)
        MissingTexts().at_end(9)
    assert [r.getMessage() for r in caplog.records] == [
        "The 4. row that was read has no text in the column 'body'; such rows are passed over.",
        "2 of 9 rows have no text in the column 'body' and were passed over.",
    ]


def test_what_can_be_read_once_only_is_refused():
    for once in (iter(["a"]), (text for text in ["a"]), map(str, [1])):
        with pytest.raises(ValueError, match="which can be read once only"):
            check_readable(once)
    check_readable(["a"])
