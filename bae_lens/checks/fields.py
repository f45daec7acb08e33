"""What a field of a config, a setting or an argument may be, checked the same way everywhere.

A rule says what is expected, and refuses everything else in one form of words: ``FIELD must be a
positive number; got 'x'.`` Configs and settings check all their fields with ``check_fields`` when they
are made, in Python as from a file; a function checks an argument with ``check``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
from simple_parsing.helpers.fields import field

# What a count or a seed can be where it becomes a tensor.
_LARGEST_WHOLE = 2**63 - 1
# Of a value in a message.
_SHOWN_CHARACTERS = 80


class Rule(Protocol):
    """What a value must be."""

    def expected(self, value: Any) -> str:
        """In words, after "must be", where ``value`` came instead."""
        ...

    def read(self, value: Any) -> Any:
        """The value as Python's own type; ``ValueError`` if it is not what the rule says."""
        ...


@dataclass(frozen=True)
class Number:
    """A finite number in a range. Numpy's numbers become Python's; a bool is none, nor is a tensor.

    Args:
        least, above: the lower end, itself allowed or not.
        most, below: the upper end, itself allowed or not.
        whole: without a fraction; 1e6 is read as a whole number, as from a file.
        or_none: None is allowed too.
        words: strings that are allowed too.
        hint: what to do, at the end of the message.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    or_none: bool = False
    words: tuple[str, ...] = ()
    hint: str = ""

    def expected(self, value: Any) -> str:
        is_infinite = _is_number(value) and not _is_finite(value)
        adjectives = [
            "positive" if self.above == 0 and self.most is None and self.below is None else "",
            "finite" if is_infinite and not self.whole else "",
            "whole" if self.whole else "",
        ]
        number = " ".join(["a", *filter(None, adjectives), "number"])
        others = [*map(repr, self.words), *(["None"] if self.or_none else [])]
        what = number + self._range()
        if others:
            what = ", ".join([what, *others[:-1]]) + f" or {others[-1]}"
        return f"{what} ({self.hint})" if self.hint else what

    def _range(self) -> str:
        low = self.least if self.least is not None else self.above
        high = self.most if self.most is not None else self.below
        if low is not None and high is not None:
            if self.least is None:
                return f" above {low} and {'at most' if self.below is None else 'below'} {high}"
            return f" from {low} to {'' if self.below is None else 'below '}{high}"
        for end, words in (
            (self.least, "of at least"),
            (self.above or None, "above"),  # 0 is said by "positive"
            (self.most, "of at most"),
            (self.below, "below"),
        ):
            if end is not None:
                return f" {words} {end}"
        return ""

    def read(self, value: Any) -> Any:
        if value is None and self.or_none:
            return None
        if isinstance(value, str) and value in self.words:
            return value
        return self._read_number(value)

    def _read_number(self, value: Any) -> int | float:
        if not _is_number(value) or not _is_finite(value):
            raise ValueError
        if self.whole and (
            value != int(value) or (self.most is None and abs(value) > _LARGEST_WHOLE)
        ):
            raise ValueError
        if (
            (self.least is not None and value < self.least)
            or (self.above is not None and value <= self.above)
            or (self.most is not None and value > self.most)
            or (self.below is not None and value >= self.below)
        ):
            raise ValueError
        # An integer stays one where any number will do, so that files keep what was given.
        if self.whole or isinstance(value, Integral):
            return value if type(value) is int else int(value)
        return value if type(value) is float else float(value)


def whole(least: int | None = 0, most: int | None = None, **kwargs: Any) -> Number:
    """The rule of a count, a width or a seed."""
    return Number(least=least, most=most, whole=True, **kwargs)


def positive(**kwargs: Any) -> Number:
    """The rule of a scale or a rate, which zero cannot be."""
    return Number(above=0, **kwargs)


@dataclass(frozen=True)
class OneOf:
    """One of some strings, and of None where it is among them."""

    choices: Sequence[str | None]

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return f"one of {', '.join(map(str, self.choices))}"

    def read(self, value: Any) -> Any:
        if not isinstance(value, (str, type(None))) or value not in self.choices:
            raise ValueError
        return value


@dataclass(frozen=True)
class Flag:
    """True or False."""

    or_none: bool = False

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "True, False or None" if self.or_none else "True or False"

    def read(self, value: Any) -> Any:
        if value is None and self.or_none:
            return None
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError
        return bool(value)


@dataclass(frozen=True)
class Text:
    """A string."""

    or_none: bool = False
    may_be_empty: bool = True

    def expected(self, value: Any) -> str:  # noqa: ARG002
        what = "a string" if self.may_be_empty else "a string that is not empty"
        return f"{what} or None" if self.or_none else what

    def read(self, value: Any) -> Any:
        if value is None and self.or_none:
            return None
        if not isinstance(value, str) or not (value or self.may_be_empty):
            raise ValueError
        return value


@dataclass(frozen=True)
class Device:
    """The name of a device that torch knows, whether this machine has it or not."""

    words: tuple[str, ...] = ()

    def expected(self, value: Any) -> str:  # noqa: ARG002
        return "the name of a device that torch knows, such as 'cpu' or 'cuda:0'"

    def read(self, value: Any) -> Any:
        import torch  # Fields are of the command line's options too, whose help waits for nothing heavy.

        if isinstance(value, torch.device):
            return str(value)
        if not isinstance(value, str):
            raise ValueError
        if value not in self.words:
            try:
                torch.device(value)
            except RuntimeError as error:
                raise ValueError from error
        return value


@dataclass(frozen=True)
class ListOf:
    """Values one after another, read as a tuple: of a list, a tuple, a range or an array of numpy.

    Args:
        each: what each of them must be.
        least: how many there are at least.
        distinct: no two are equal.
    """

    each: Rule
    least: int = 1
    distinct: bool = False
    or_none: bool = False

    def expected(self, value: Any) -> str:
        values = value if isinstance(value, (list, tuple)) else ()
        wrong = next((v for v in values if not is_valid(v, self.each)), None)
        what = f"a list of {self.least} or more{' different' if self.distinct else ''} values"
        what += f", each {self.each.expected(wrong)}"
        return f"{what}, or None" if self.or_none else what

    def read(self, value: Any) -> Any:
        if value is None and self.or_none:
            return None
        if isinstance(value, np.ndarray) and value.ndim == 1:
            value = value.tolist()
        # Not any sequence: a string is one of strings.
        if not isinstance(value, (list, tuple, range)) or len(value) < self.least:
            raise ValueError
        values = tuple(self.each.read(v) for v in value)
        if self.distinct and len(set(values)) < len(values):
            raise ValueError
        return values


def check(name: str, value: Any, rule: Rule) -> Any:
    """``value`` as the rule reads it, with Python's own types for numpy's.

    Args:
        name: of the field or argument, for the message.
        value: what came.
        rule: what it must be.

    Raises:
        ValueError: if it is anything else: ``NAME must be …; got …``.
    """
    try:
        return rule.read(value)
    except ValueError:
        raise ValueError(f"{name} must be {rule.expected(value)}; got {shown(value)}.") from None


def is_valid(value: Any, rule: Rule) -> bool:
    """Whether a value is what a rule says."""
    try:
        rule.read(value)
    except ValueError:
        return False
    return True


def check_fields(config: Any, rules: Mapping[str, Rule]) -> None:
    """Check the fields of a config, frozen or not, and put Python's own types for numpy's there.

    Raises:
        ValueError: for the first field that is not what its rule says.
    """
    for name, rule in rules.items():
        given = getattr(config, name)
        value = check(name, given, rule)
        if value is not given:
            object.__setattr__(config, name, value)


def plain(value: Any) -> Any:
    """The number in a scalar of numpy or torch; anything else as it is, an array of several among them."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value


def shown(value: Any) -> str:
    """A value in a message: on one line, and no longer than a line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        # An integer of too many digits, or whatever a foreign class does.
        text = f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # An integer that no float can hold.
        return False


def number_or_none(default: float | str | None, *words: str, kind: type = float) -> Any:
    """A dataclass field that is a number, None (``none`` on the command line) or one of ``words``."""

    def parse(text: str) -> float | str | None:
        if text.lower() == "none":
            return None
        return text if text in words else kind(text)

    parse.__name__ = " or ".join(["number", *words, "none"])
    return field(default=default, type=parse)
