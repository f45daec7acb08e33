"""That what was made from a file has the types that its class declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import pytest

from bae_lens.checks.typed import check_types
from tests.report.helpers import make_records


class Part(NamedTuple):
    ids: tuple[int, ...]
    share: float | None = None


class Row(NamedTuple):
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Whole:
    kind: ClassVar[str] = "whole"
    name: str
    n: int
    n_each: tuple[int | None, ...] | None
    share: float
    is_new: bool
    side: Literal["left", "right"]
    pair: tuple[int, str]
    parts: tuple[Part, ...]
    by_name: Mapping[str, tuple[float, ...]]
    anything: Any = None


RIGHT = Whole(
    "a", 1, (2, None), 0.5, True, "left", (1, "b"), (Part((1, 2)), Part((), 0)), {"x": (0.5, 1)}
)


def test_that_what_is_right_passes() -> None:
    check_types(RIGHT)
    check_types(replace(RIGHT, n=0, n_each=None, share=-0.5, pair=(-1, "b")))
    check_types(replace(RIGHT, share=1, parts=[], pair=[1, "b"], anything=object()))
    check_types(make_records(12))
    check_types(Row((0.5, 1, None)))
    with pytest.raises(ValueError, match=r"values\[2\] must be of type float \| None; got '1'."):
        check_types(Row((0.5, None, "1")))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "name must be of type str; got 1."),
        ({"name": None}, "name must be of type str; got None."),
        ({"n": 1.0}, "n must be of type int; got 1.0."),
        ({"n": True}, "n must be of type int; got True."),
        ({"n": -1}, "n must be 0 at least; got -1."),
        ({"n_each": (1, None, -2)}, "n_each must be 0 at least; got -2."),
        ({"share": "1"}, "share must be of type float; got '1'."),
        ({"share": True}, "share must be of type float; got True."),
        ({"is_new": 1}, "is_new must be of type bool; got 1."),
        ({"side": "up"}, r"side must be of type Literal\['left', 'right'\]; got 'up'."),
        ({"side": ["left"]}, "side must be of type Literal.*; got .'left'.."),
        ({"pair": (1,)}, r"pair must be of type tuple\[int, str\]; got \(1,\)."),
        ({"pair": ("b", 1)}, "pair must be of type int; got 'b'."),
        ({"parts": 3}, "parts must be of type tuple.*; got 3."),
        ({"parts": ((1, 2),)}, r"parts\[0\] must be of type Part; got \(1, 2\)."),
        (
            {"parts": (Part((1,)), Part._make([(1, "2"), None]))},
            r"parts\[1\].ids\[1\] must be of type int",
        ),
        ({"parts": (Part((1, True)),)}, r"parts\[0\].ids\[1\] must be of type int; got True."),
        (
            {"parts": (Part._make([(1,), "x"]),)},
            r"parts\[0\].share must be of type float \| None; got 'x'",
        ),
        ({"by_name": [1]}, "by_name must be of type .*; got .1.."),
        ({"by_name": {"x": (None,)}}, r"by_name\['x'\]\[0\] must be of type float; got None."),
        ({"by_name": {1: ()}}, "by_name must be of type str; got 1."),
        ({"name": ["x" * 10_000]}, "name must be of type str; got .{60}…."),
    ],
)
def test_that_the_first_value_of_another_type_is_named(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_types(replace(RIGHT, **changes))
