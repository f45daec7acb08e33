from dataclasses import dataclass

import pytest
from simple_parsing import ArgumentParser

from bae_lens.fields import number_or_none


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
