import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from simple_parsing import ArgumentParser

from bae_lens.checks.fields import (
    Device,
    Flag,
    ListOf,
    Number,
    OneOf,
    Text,
    check,
    check_fields,
    is_valid,
    number_or_none,
    positive,
    shown,
    whole,
)


@dataclass
class Config:
    rate: float | None = number_or_none(0.5)
    target: float | str | None = number_or_none("d_in", "d_in")


def parse(*args: str) -> Config:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_arguments(Config, dest="cfg")
    return parser.parse_args(list(args)).cfg


def test_defaults():
    assert Config() == parse() == Config(0.5, "d_in")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("7", 7.0), ("none", None), ("None", None)]
)
def test_numbers_and_none(text, value):
    assert parse("--rate", text).rate == value
    assert parse("--target", text).target == value


def test_words():
    assert parse("--target", "d_in").target == "d_in"
    with pytest.raises(Exception, match="d_in"):
        parse("--rate", "d_in")


NUMBERS_REFUSED = ["x", "1", [1], None, True, np.bool_(True), float("nan"), float("inf"), -1, 1j]
NUMBERS_REFUSED += [torch.tensor(1.0), torch.tensor(1), 10**400, {}]


@pytest.mark.parametrize("value", NUMBERS_REFUSED, ids=repr)
@pytest.mark.parametrize("rule", [positive(), whole(1), Number(least=0, below=1), whole(0, 5)])
def test_what_is_no_number_of_the_range(rule, value):
    with pytest.raises(ValueError, match=r"^n must be a .*number.*; got .*\.$"):
        check("n", value, rule)


@pytest.mark.parametrize(
    ("value", "rule", "expected"),
    [
        ("x", positive(), "n must be a positive number; got 'x'."),
        (math.inf, positive(), "n must be a positive finite number; got inf."),
        (2.5, whole(1), "n must be a whole number of at least 1; got 2.5."),
        (0, whole(1, or_none=True), "n must be a whole number of at least 1 or None; got 0."),
        (True, Number(least=0), "n must be a number of at least 0; got True."),
        (1, Number(least=0, below=1), "n must be a number from 0 to below 1; got 1."),
        (1, Number(above=0, below=1), "n must be a number above 0 and below 1; got 1."),
        (0, Number(above=0, most=1), "n must be a number above 0 and at most 1; got 0."),
        (7, whole(0, 5), "n must be a whole number from 0 to 5; got 7."),
        (2**63, whole(), f"n must be a whole number of at least 0; got {2**63}."),
        (
            "x",
            positive(words=("d_in",), or_none=True),
            "n must be a positive number, 'd_in' or None; got 'x'.",
        ),
        (0, positive(hint="set m instead"), "n must be a positive number (set m instead); got 0."),
        ("c", OneOf(["a", "b"]), "n must be one of a, b; got 'c'."),
        (["a"], OneOf(["a", None]), "n must be one of a, None; got ['a']."),
        (1, Flag(), "n must be True or False; got 1."),
        ("no", Flag(or_none=True), "n must be True, False or None; got 'no'."),
        (1, Text(), "n must be a string; got 1."),
        ("", Text(or_none=True, may_be_empty=False), "n must be a string that is not empty or None; got ''."),
    ],
)  # fmt: skip
def test_messages(value, rule, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        check("n", value, rule)


@pytest.mark.parametrize("value", ["gpu", "", "cuda:x", None, 3])
def test_a_device_that_is_none(value):
    with pytest.raises(ValueError, match="device must be the name of a device"):
        check("device", value, Device())


@pytest.mark.parametrize(
    ("value", "rule", "read"),
    [
        (np.int32(3), whole(1), 3),
        (1e6, whole(1), 1_000_000),
        (np.float64(2.0), whole(1), 2),
        (3, positive(), 3),
        (np.float32(0.5), positive(), 0.5),
        (np.int64(2), positive(), 2),
        (None, whole(or_none=True), None),
        ("d_in", positive(words=("d_in",)), "d_in"),
        (np.bool_(True), Flag(), True),
        (None, OneOf(["a", None]), None),
        (torch.device("cuda:1"), Device(), "cuda:1"),
        ("auto", Device(words=("auto",)), "auto"),
        ("", Text(), ""),
    ],
)
def test_what_is_read(value, rule, read):
    got = check("n", value, rule)
    assert got == read
    assert type(got) is type(read)


SEEDS = ListOf(whole(0), distinct=True)


@pytest.mark.parametrize(
    ("value", "read"),
    [([1, 0], (1, 0)), (range(3), (0, 1, 2)), (np.arange(2), (0, 1)), ((np.int64(4),), (4,))],
)
def test_a_list_is_read_as_a_tuple(value, read):
    assert check("seeds", value, SEEDS) == read
    assert is_valid(value, SEEDS)


@pytest.mark.parametrize("value", [[], (), [1, 1], "12", 3, None, [1, -1], {1, 2}, np.ones((2, 2))])
def test_a_list_that_is_none(value):
    assert not is_valid(value, SEEDS)
    with pytest.raises(
        ValueError,
        match=r"^seeds must be a list of 1 or more different values, each a whole number of at "
        r"least 0; got .*\.$",
    ):
        check("seeds", value, SEEDS)


@dataclass(frozen=True)
class Frozen:
    n: int
    share: float

    def __post_init__(self):
        check_fields(self, {"n": whole(1), "share": Number(least=0, most=1)})


def test_fields_become_pythons_own_also_of_a_frozen_class():
    made = Frozen(np.int64(4), np.float32(0.25))  # pyright: ignore[reportArgumentType]
    assert (type(made.n), type(made.share)) == (int, float)
    assert made == Frozen(4, 0.25)
    with pytest.raises(ValueError, match=r"share must be a number from 0 to 1; got 2\."):
        Frozen(1, 2)


def test_a_value_is_shown_on_one_line():
    assert shown(torch.ones(100, 100)).startswith("tensor([[1., 1.")
    assert len(shown("x" * 10_000)) == 80
    assert "\n" not in shown(np.ones((20, 20)))
    assert shown(10**5_000) == "<int that cannot be shown>"
