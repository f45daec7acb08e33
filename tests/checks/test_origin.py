"""Whose code an error is from."""

from __future__ import annotations

import json

import pytest

from bae_lens.checks.fields import check, whole
from bae_lens.checks.origin import origin_of


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
