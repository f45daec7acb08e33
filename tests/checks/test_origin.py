"""Whose code an error is from."""

from __future__ import annotations

import json

import pytest

from bae_lens.checks.fields import check, whole
from bae_lens.checks.origin import is_in_words, origin_of


@pytest.mark.parametrize(
    ("call", "package"),
    [
        (lambda: json.loads("{"), "json"),
        (lambda: check("n", 0, whole(1)), "bae_lens"),
        (lambda: int("x"), "tests"),
    ],
)
def test_it_is_that_of_the_last_frame(call, package):
    with pytest.raises(ValueError) as told:  # noqa: PT011
        call()
    assert origin_of(told.value) == package


def test_of_what_was_not_raised_it_is_not_known():
    assert origin_of(ValueError("never raised")) == ""


def unpack() -> None:
    _a, _b, _c = (1, 2)  # pyright: ignore[reportAssignmentType]


def say() -> None:
    raise ValueError("In words.")


def say_of_another() -> None:
    try:
        unpack()
    except ValueError as error:
        raise ValueError("What it means.") from error


def pass_on(call) -> None:
    try:
        call()
    except ValueError:
        raise


@pytest.mark.parametrize("how", [lambda call: call(), pass_on])
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (unpack, False),
        (lambda: int("x"), False),
        (say, True),
        (say_of_another, True),
        (lambda: check("n", 0, whole(1)), True),
    ],
)
def test_what_is_said_in_words_is_told_from_what_python_says(how, call, said):
    with pytest.raises(ValueError) as told:  # noqa: PT011
        how(call)
    assert is_in_words(told.value) == said


def test_of_what_was_not_raised_there_is_nobody_who_said_it():
    assert not is_in_words(ValueError("never raised"))
